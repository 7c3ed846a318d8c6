"""The process around the agent: signals, reloading, crashes.

The kernel is a table in memory here, and the process is pytest's own.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from ipvs_node_agent import cli
from ipvs_node_agent.apiserver import client, resources
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.commands import run
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.host.rundir import directory
from ipvs_node_agent.host.systemd import ServiceManager
from ipvs_node_agent.kubeconfig.credentials import load_credentials
from ipvs_node_agent.kubeconfig.reader import Reader
from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node, service
from tests.support.pki import Pki, plain_kubeconfig
from tests.support.promlint import fetch, value
from tests.support.sockets import free_port
from tests.support.standinkernel import StandInKernel, fresh_kernel
from tests.support.tables import ours
from tests.support.waiting import eventually
from tests.support.watching import Watch

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

WEB = service("web", ["10.231.42.164"], ["10.19.20.201"])
OTHER = service("other", ["10.231.2.62"], ["10.19.22.57"])
WEB_ENTRY = ("10.19.20.201", "web", "10.231.42.164")
OTHER_ENTRY = ("10.19.22.57", "other", "10.231.2.62")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[StandInKernel]:
    made = fresh_kernel()
    monkeypatch.setattr(run, "Kernel", made)
    return made


def rules(kernel: type[StandInKernel], family: Family = IPV4, backend: str = "nft") -> list[str]:
    """The agent's lines in a table."""
    lines = kernel.backends[backend][family].save().splitlines()
    return by_chain(ours([re.sub(r" \[0:0\]$", "", line) for line in lines]))


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.put(node(*POD_CIDRS))
        running.put(WEB)
        yield running


class Told(ServiceManager):
    """A service manager that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__({})
        self.messages: list[str] = []

    def _send(self, state: str) -> None:
        self.messages.append(state)

    @property
    def sentences(self) -> list[str]:
        """Each sentence about the state, in order."""
        return [m[len("STATUS=") :] for m in self.messages if m.startswith("STATUS=")]


class Setting:
    """A configuration, and the agent run with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "config.yaml"
        self.kubeconfig = directory / "kubelet.conf"
        self.told = Told()
        self._values: dict[str, Any] = {
            "kubeconfig": str(self.kubeconfig),
            "nodeName": "worker-1",
            "metricsBindAddress": "",
        }
        self.configure()

    def configure(self, **values: Any) -> None:
        """Writes the configuration with `values` on top."""
        self.write(yaml.safe_dump({**self._values, **values}))

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self.path.chmod(0o600)

    def connect(self, server: ApiServer) -> None:
        plain_kubeconfig(self.kubeconfig, server.url, "worker-1")

    @property
    def ready(self) -> int:
        """How often it said to be ready."""
        return self.told.messages.count("READY=1")

    def run(self) -> None:
        run.run(self.path, self.told)

    def command(self) -> int:
        """The same by the command line."""
        return cli.main(["run", "--config", str(self.path)])

    def run_while(
        self,
        script: Callable[[], object],
        runs: Callable[[], Any] | None = None,
        end: signal.Signals = signal.SIGTERM,
    ) -> Any:
        """Runs the agent while `script` runs in another thread, and stops it by a signal."""
        failures: list[BaseException] = []

        def steps() -> None:
            try:
                eventually(lambda: all(map(_handled, SIGNALS)), "the agent handles signals")
                script()
            except BaseException as error:
                failures.append(error)
            finally:
                os.kill(os.getpid(), end)

        thread = threading.Thread(target=steps, daemon=True)
        thread.start()
        try:
            result = (runs or self.run)()
        finally:
            thread.join(30)
            if failures:
                raise failures[0]
        return result


def _handled(number: signal.Signals) -> bool:
    return getattr(signal.getsignal(number), "__module__", "") == run.__name__


@pytest.fixture
def setting(
    tmp_path: Path, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setting]:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(run, "_CREDENTIALS_PERIOD", 0.05)
    monkeypatch.setattr(run, "_GUESSED_PERIOD", 0.05)
    # It would take the log away from pytest.
    monkeypatch.setattr(cli, "_set_up_logging", lambda _: None)
    monkeypatch.setattr(Backoff, "FIRST", 0.02)
    monkeypatch.setattr(Backoff, "CAP", 0.05)
    started: list[Any] = []

    class Following(run._Following):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(run, "_Following", Following)
    threads = threading.active_count()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # A signal that comes before or after the agent's own time ends no more than the test.
        signal.signal(number, _unexpected)
    try:
        made = Setting(tmp_path)
        made.connect(server)
        yield made
    finally:
        for following in started:
            following.stop()
        # What they log would be the next test's.
        eventually(lambda: threading.active_count() <= threads, "the agent's threads end")
        for number, handler in before.items():
            signal.signal(number, handler)


def _unexpected(number: int, _: object) -> None:
    raise AssertionError(f"signal {number} outside of the agent's time")


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def said(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    return [m for m in (r.getMessage() for r in caplog.records) if re.search(pattern, m)]


def holds(
    kernel: type[StandInKernel], *entries: tuple[str, str, str], backend: str = "nft"
) -> None:
    """Waits until the IPv4 table holds exactly these rules of the agent's."""
    wanted = expected_rules(entries, POD_CIDRS[:1])
    eventually(lambda: rules(kernel, backend=backend) == wanted, f"the rules for {entries}")


Kernel = type[StandInKernel]


# 1. From the start to the end


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_status_0_and_leaves_the_rules(
    end: signal.Signals,
    setting: Setting,
    kernel: Kernel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert setting.run_while(lambda: holds(kernel, WEB_ENTRY), setting.command, end) == 0
    holds(kernel, WEB_ENTRY)
    assert said(caplog, "stopped; the rules stay in place")


@pytest.mark.parametrize("what", ["Kernel.choose", "StatusSocket.start"])
def test_a_start_that_fails_ends_with_its_own_reason(
    what: str,
    setting: Setting,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And not with that of something that is stopped though it never started."""

    def refused(_: object) -> None:
        raise RefusedError("the node", "is not what it should be")

    name, _, method = what.partition(".")
    monkeypatch.setattr(getattr(run, name), method, refused)
    assert setting.command() == RefusedError.exit_status
    assert capsys.readouterr().err.endswith("the node: is not what it should be\n")


@pytest.mark.once("oldest")
@pytest.mark.parametrize("timeout", [0.0, 1e-5])
def test_a_wait_that_has_an_end_ends(timeout: float, setting: Setting, kernel: Kernel) -> None:
    """Behind a `get` that need not wait, Python 3.9's SimpleQueue may wait for ever."""
    loop = run._Loop(setting.path, Config(kubeconfig=str(setting.kubeconfig)), setting.told)
    late: list[bool] = []

    def end_it() -> None:
        late.append(True)
        loop._queue.put(int)

    alarm = threading.Timer(10, end_it)
    alarm.start()
    for _ in range(50_000):
        loop._queue.put(int)
        loop._next(timeout)
        with suppress(queue.Empty):
            loop._next(timeout)
        assert not late
    alarm.cancel()


def test_an_agent_that_is_only_constructed_does_nothing(
    setting: Setting, server: ApiServer, kernel: Kernel
) -> None:
    threads = threading.active_count()
    config = Config(kubeconfig=str(setting.kubeconfig), node_name="worker-1")
    run._Loop(setting.path, config, setting.told)
    assert threading.active_count() == threads
    assert not directory().exists()
    assert (server.requests, setting.told.messages) == ([], [])
    assert not any(table.restores for table in kernel.backends["nft"].values())


def test_readiness_is_said_once_and_not_before_the_rules_are_there(
    setting: Setting, server: ApiServer, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    def script() -> None:
        eventually(lambda: setting.ready)
        assert rules(kernel) == expected_rules([WEB_ENTRY], POD_CIDRS[:1])
        server.put(OTHER)
        holds(kernel, WEB_ENTRY, OTHER_ENTRY)

    setting.run_while(script)
    assert setting.ready == 1
    assert said(caplog, "^ready") == ["ready: the kernel (iptables-nft) holds all rules"]


def test_the_other_backend_is_cleaned_when_this_one_holds_all_rules(
    setting: Setting, kernel: Kernel
) -> None:
    setting.run_while(lambda: eventually(lambda: kernel.cleaned))
    (table,) = kernel.cleaned
    assert "10.19.20.201" in table


def test_a_server_that_is_away_is_said_once_and_waited_for(
    setting: Setting, server: ApiServer, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()

    def script() -> None:
        eventually(lambda: said(caplog, "Connection refused"))
        server.start()
        holds(kernel, WEB_ENTRY)

    setting.run_while(script)
    assert len(said(caplog, "Connection refused")) == 1
    assert said(caplog, "answers again")


def test_a_server_that_goes_away_is_said_once_and_the_rules_stay(
    setting: Setting, server: ApiServer, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    def script() -> None:
        holds(kernel, WEB_ENTRY)
        server.wait_for(lambda: server.watches("services") and server.watches("nodes"))
        server.stop()
        eventually(lambda: said(caplog, "Connection refused"))
        assert rules(kernel) == expected_rules([WEB_ENTRY], POD_CIDRS[:1])
        server.start()
        server.put(OTHER)
        holds(kernel, WEB_ENTRY, OTHER_ENTRY)
        eventually(lambda: said(caplog, "answers again"))

    setting.run_while(script)
    assert len(said(caplog, "Connection refused")) == 1
    assert len(said(caplog, "answers again")) == 1


def test_an_agent_without_a_server_can_be_stopped(
    setting: Setting, server: ApiServer, kernel: Kernel
) -> None:
    server.stop()
    setting.run_while(lambda: None)
    assert not rules(kernel)


def test_a_second_agent_on_the_node_is_refused(setting: Setting, kernel: Kernel) -> None:
    def script() -> None:
        with pytest.raises(RefusedError, match="already running"):
            run.run(setting.path, Told())

    setting.run_while(script)


@pytest.mark.parametrize("name", ["read_service", "read_node"])
def test_a_mistake_of_the_programs_own_in_a_follower_ends_the_process(
    name: str,
    setting: Setting,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(resources, name, broken)
    assert setting.command() == 70
    assert "internal error: ZeroDivisionError: a bug" in capsys.readouterr().err
    assert not rules(kernel)


def test_the_next_agent_finds_nothing_to_do(setting: Setting, kernel: Kernel) -> None:
    setting.run_while(lambda: holds(kernel, WEB_ENTRY))
    writes = {family: table.restores for family, table in kernel.backends["nft"].items()}
    setting.run_while(lambda: eventually(lambda: setting.ready == 2))
    assert writes == {f: table.restores for f, table in kernel.backends["nft"].items()}


# 2. Reloading


def reload() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def test_another_configuration_is_put_to_work(
    setting: Setting, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    def script() -> None:
        holds(kernel, WEB_ENTRY)
        setting.configure(podCIDRs=["10.1.0.0/16"])
        reload()
        wanted = expected_rules([WEB_ENTRY], ["10.1.0.0/16"])
        eventually(lambda: rules(kernel) == wanted)
        eventually(lambda: said(caplog, "read the configuration again"))

    setting.run_while(script)
    # Once at first, and once at the reload's end.
    assert setting.ready == 2
    assert len([m for m in setting.told.messages if m.startswith("RELOADING=1\n")]) == 1


def test_metrics_move_with_the_configuration(
    setting: Setting, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    setting.configure(metricsBindAddress=first)

    def script() -> None:
        holds(kernel, WEB_ENTRY)
        eventually(lambda: fetch(f"http://{first}/readyz") == (200, "ok\n"))
        text = fetch(f"http://{first}/metrics")[1]
        assert value(text, "ipvs_node_agent_services", ip_family="IPv4") == 1
        setting.write("masquerade: Some\n")
        reload()
        eventually(
            lambda: "ipvs_node_agent_config_stale 1.0" in fetch(f"http://{first}/metrics")[1]
        )
        setting.configure(metricsBindAddress=second)
        reload()
        eventually(lambda: said(caplog, f"served at {second}"))
        assert fetch(f"http://{second}/healthz") == (200, "ok\n")
        assert "ipvs_node_agent_config_stale 0.0" in fetch(f"http://{second}/metrics")[1]
        eventually(lambda: refused(first))
        setting.configure()
        reload()
        eventually(lambda: refused(second))

    setting.run_while(script)
    assert not said(caplog, "cannot serve")


def refused(address: str) -> bool:
    """Whether nobody serves `address`."""
    try:
        fetch(f"http://{address}/healthz")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("kept", [True, False], ids=["remembered", "full disk"])
def test_chains_by_other_names_replace_the_old_ones(
    setting: Setting, kernel: Kernel, kept: bool
) -> None:
    if not kept:
        # Nothing can be written in its place.
        (directory() / "chains").mkdir(parents=True)

    def table() -> str:
        return kernel.backends["nft"][IPV4].save()

    def script() -> None:
        holds(kernel, WEB_ENTRY)
        setting.configure(chains={"prerouting": "NEW_PREROUTING", "output": "NEW_OUTPUT"})
        reload()
        eventually(lambda: "NEW_PREROUTING" in table())
        assert "IPVS_" not in table()

    setting.run_while(script)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("masquerade: Some\n", "line 1: masquerade: wanted All or HostOnly"),
        ("chains: [\n", "is no YAML"),
        (None, "no such file"),
    ],
    ids=["a bad value", "no YAML", "no file"],
)
def test_a_bad_configuration_is_said_and_the_old_one_goes_on(
    text: str | None,
    complaint: str,
    setting: Setting,
    server: ApiServer,
    kernel: Kernel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def script() -> None:
        holds(kernel, WEB_ENTRY)
        if text is None:
            setting.path.unlink()
        else:
            setting.write(text)
        reload()
        eventually(lambda: said(caplog, "going on with the old configuration: "))
        server.put(OTHER)
        holds(kernel, WEB_ENTRY, OTHER_ENTRY)

    setting.run_while(script)
    (line,) = said(caplog, "going on with the old configuration")
    assert complaint in line
    assert "\n" not in line


def test_another_kubeconfig_leads_to_another_server(
    setting: Setting, server: ApiServer, kernel: Kernel
) -> None:
    with ApiServer() as second:
        second.put(node(*POD_CIDRS))
        second.put(OTHER)
        plain_kubeconfig(setting.directory / "second.conf", second.url, "worker-1")

        def script() -> None:
            holds(kernel, WEB_ENTRY)
            setting.configure(kubeconfig=str(setting.directory / "second.conf"))
            reload()
            holds(kernel, OTHER_ENTRY)
            server.wait_for(lambda: not server.watches("services") and not server.watches("nodes"))

        setting.run_while(script)


def test_another_node_name_leads_to_another_node(
    setting: Setting, server: ApiServer, kernel: Kernel
) -> None:
    server.put(node("10.240.9.0/24", name="worker-2"))

    def script() -> None:
        holds(kernel, WEB_ENTRY)
        setting.configure(nodeName="worker-2")
        reload()
        wanted = expected_rules([WEB_ENTRY], ["10.240.9.0/24"])
        eventually(lambda: rules(kernel) == wanted)
        assert not rules(kernel, IPV6) or "fd00:10:240" not in "".join(rules(kernel, IPV6))

    setting.run_while(script)


def test_a_reload_that_changes_nothing_writes_nothing(
    setting: Setting, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    def script() -> None:
        holds(kernel, WEB_ENTRY)
        eventually(lambda: setting.ready)
        for times in range(1, 4):
            reload()
            eventually(lambda t=times: len(said(caplog, "read the configuration again")) == t)  # type: ignore[misc]

    setting.run_while(script)
    assert {f: table.restores for f, table in kernel.backends["nft"].items()} == {IPV4: 1, IPV6: 1}


# 3. What changes by itself


def test_other_credentials_are_followed_without_a_signal(
    setting: Setting, server: ApiServer, kernel: Kernel
) -> None:
    with ApiServer() as second:
        second.put(node(*POD_CIDRS))

        def script() -> None:
            holds(kernel, WEB_ENTRY)
            # The old server's versions mean nothing to this one.
            second.put(OTHER)
            second.compact()
            setting.connect(second)
            holds(kernel, OTHER_ENTRY)
            server.wait_for(lambda: not server.watches("services") and not server.watches("nodes"))

        setting.run_while(script)


def test_credentials_that_come_late_are_used_at_once(
    setting: Setting, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    aside = setting.kubeconfig.with_suffix(".aside")
    setting.kubeconfig.rename(aside)

    def script() -> None:
        eventually(lambda: said(caplog, "is this node's kubelet set up"))
        aside.rename(setting.kubeconfig)
        holds(kernel, WEB_ENTRY)

    setting.run_while(script)
    assert len(said(caplog, "is this node's kubelet set up")) == 1


def test_the_rules_move_to_the_backend_that_the_node_turns_out_to_use(
    setting: Setting, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    setting.configure(driftCheckPeriod="1h")

    def script() -> None:
        holds(kernel, WEB_ENTRY)
        eventually(lambda: len(kernel.cleaned) == 1)
        kernel.found = "legacy"
        eventually(lambda: len(kernel.cleaned) == 2)

    setting.run_while(script)
    # The old backend must not be cleaned before the new one holds the rules.
    assert "10.19.20.201" in kernel.cleaned[1]
    holds(kernel, WEB_ENTRY, backend="legacy")
    assert said(caplog, "moving there") == ["the node uses iptables-legacy; moving there"]


def test_the_rules_move_once_more_where_the_kubelet_does(
    setting: Setting, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_BACKEND_PERIOD", 0.05)

    def script() -> None:
        for found in ("nft", "legacy", "nft"):
            kernel.found = found
            holds(kernel, WEB_ENTRY, backend=found)
            eventually(lambda: kernel.cleaned)
            kernel.cleaned.clear()

    setting.run_while(script)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"garbage", id="half a line"),
        pytest.param(b'{"type":"ERROR","object":{"code":500}}\n', id="an error event"),
        pytest.param(b'{"type":"ERROR","object":{"code":410}}\n', id="gone"),
        pytest.param(None, id="a reset"),
    ],
)
def test_watches_that_end_as_soon_as_they_begin_do_not_hurry_each_other(
    sent: bytes | None,
    setting: Setting,
    server: ApiServer,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def end_at_once(watch: Watch, _: object) -> None:
        await (watch.reset() if sent is None else watch.write(sent))

    monkeypatch.setattr(Watch, "run", end_at_once)
    monkeypatch.setattr(Backoff, "FIRST", 0.8)
    monkeypatch.setattr(Backoff, "CAP", 30.0)

    def script() -> None:
        holds(kernel, WEB_ENTRY)
        end = time.monotonic() + 1.5
        eventually(lambda: time.monotonic() > end)

    setting.run_while(script)
    requests = [(request.verb, request.resource) for request in server.requests]
    for request in requests:
        assert requests.count(request) <= 5


# 4. Whom the agent asks, and for what


def test_a_nodes_own_credentials_are_enough(
    setting: Setting, kernel: Kernel, tmp_path: Path
) -> None:
    pki = Pki()
    with ApiServer(pki=pki, streaming_lists=True) as secure:
        secure.put(node(*POD_CIDRS))
        secure.put(WEB)
        pki.write_node_client(tmp_path / "node.pem", "worker-1")
        pki.write_kubeconfig(setting.kubeconfig, secure.url, tmp_path / "node.pem")
        setting.configure(nodeName=None)
        setting.run_while(lambda: holds(kernel, WEB_ENTRY))
        assert {request.status for request in secure.requests} == {200}


def test_changes_do_not_wait_while_new_credentials_are_read(
    setting: Setting, server: ApiServer, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an exec plugin that takes its time."""
    reading, go_on = threading.Event(), threading.Event()

    def slow(reader: Reader) -> Any:
        reading.set()
        assert go_on.wait(30)
        return load_credentials(reader)

    def script() -> None:
        holds(kernel, WEB_ENTRY)
        monkeypatch.setattr(client, "load_credentials", slow)
        setting.kubeconfig.write_text(setting.kubeconfig.read_text() + "# changed\n")
        try:
            assert reading.wait(10)
            server.put(OTHER)
            holds(kernel, WEB_ENTRY, OTHER_ENTRY)
        finally:
            go_on.set()

    setting.run_while(script)
