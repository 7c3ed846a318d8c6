"""The process around the agent: signals, reloading, crashes.

The kernel is a table in memory here, and the process is pytest's own.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from ipvs_node_agent import cli
from ipvs_node_agent.apiserver import client, resources
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.commands import following, mainloop, run
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.host.inbox import Inbox
from ipvs_node_agent.host.rundir import directory
from ipvs_node_agent.host.systemd import ServiceManager
from ipvs_node_agent.kubeconfig.credentials import load_credentials
from ipvs_node_agent.kubeconfig.reader import Reader
from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from ipvs_node_agent.observe.statussocket import ask
from ipvs_node_agent.sync.agent import Agent
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node, service
from tests.support.faketable import FakeTable
from tests.support.pki import Pki, plain_kubeconfig
from tests.support.promlint import fetch, value
from tests.support.standinkernel import fresh_kernel
from tests.support.tables import ours
from tests.support.waiting import eventually
from tests.support.watching import Watch

WEB = service("web", ["10.231.42.164"], ["10.19.20.201"])
OTHER = service("other", ["10.231.2.62"], ["10.19.22.57"])
WEB_ENTRY = ("10.19.20.201", "web", "10.231.42.164")
OTHER_ENTRY = ("10.19.22.57", "other", "10.231.2.62")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Told(ServiceManager):
    """A service manager that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__({})
        self.messages: list[str] = []

    def _send(self, state: str) -> None:
        self.messages.append(state)


class Setting:
    """A configuration, a kernel, and the agent run with them."""

    def __init__(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.path = directory / "config.yaml"
        self.kubeconfig = directory / "kubelet.conf"
        self.kernel = fresh_kernel()
        self.told = Told()
        self._log = caplog
        self.configure()

    def configure(self, **values: Any) -> None:
        """Writes the configuration with `values` on top."""
        usual = {
            "kubeconfig": str(self.kubeconfig),
            "nodeName": "worker-1",
            "metricsBindAddress": "",
        }
        self.write(yaml.safe_dump({**usual, **values}))

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self.path.chmod(0o600)

    def reload(self, **values: Any) -> None:
        """Has the agent read a configuration with `values` on top."""
        self.configure(**values)
        os.kill(os.getpid(), signal.SIGHUP)

    def rules(self, family: Family = IPV4, backend: str = "nft") -> list[str]:
        """The agent's lines in a table."""
        lines = self.kernel.backends[backend][family].save().splitlines()
        return by_chain(ours([re.sub(r" \[0:0\]$", "", line) for line in lines]))

    def holds(self, *entries: tuple[str, str, str], backend: str = "nft") -> None:
        """Waits until the IPv4 table holds exactly these rules of the agent's."""
        wanted = expected_rules(entries, POD_CIDRS[:1])
        eventually(lambda: self.rules(backend=backend) == wanted, f"the rules for {entries}")

    @property
    def restores(self) -> dict[Family, int]:
        """How often each table was written."""
        return {family: table.restores for family, table in self.kernel.backends["nft"].items()}

    @property
    def ready(self) -> int:
        """How often it said to be ready."""
        return self.told.messages.count("READY=1")

    def said(self, pattern: str) -> list[str]:
        """What was logged that has `pattern`."""
        lines = [record.getMessage() for record in self._log.records]
        return [line for line in lines if re.search(pattern, line)]

    def command(self) -> int:
        """Runs it to its end; the exit status."""
        return cli.main(["run", "--config", str(self.path)])

    def run_while(self, script: Callable[[], object], end: signal.Signals = signal.SIGTERM) -> None:
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
            assert self.command() == 0
        finally:
            thread.join(30)
            if failures:
                raise failures[0]


def _handled(number: signal.Signals) -> bool:
    return getattr(signal.getsignal(number), "__module__", "") == mainloop.__name__


def _unexpected(number: int, _: object) -> None:
    raise AssertionError(f"signal {number} outside of the agent's time")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.put(node(*POD_CIDRS))
        running.put(WEB)
        yield running


@pytest.fixture
def second() -> Iterator[ApiServer]:
    """Another cluster's, whose versions mean nothing to the first."""
    with ApiServer() as running:
        running.put(node(*POD_CIDRS))
        running.put(OTHER)
        running.compact()
        yield running


@pytest.fixture
def setting(
    tmp_path: Path,
    server: ApiServer,
    kubeconfig_read_here: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Setting]:
    caplog.set_level(logging.INFO)
    made = Setting(tmp_path, caplog)
    plain_kubeconfig(made.kubeconfig, server.url, "worker-1")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "ipvs-node-agent"))
    monkeypatch.setattr(mainloop, "Kernel", made.kernel)
    monkeypatch.setattr(run, "ServiceManager", lambda _: made.told)
    monkeypatch.setattr(following, "_CREDENTIALS_PERIOD", 0.05)
    monkeypatch.setattr(following, "_CREDENTIALS_PAUSE", 0.05)
    monkeypatch.setattr(mainloop, "_GUESSED_PERIOD", 0.05)
    # It would take the log away from pytest.
    monkeypatch.setattr(cli, "_set_up_logging", lambda _: None)
    monkeypatch.setattr(Backoff, "FIRST", 0.02)
    monkeypatch.setattr(Backoff, "CAP", 0.05)
    started: list[Any] = []

    class Following(following.Following):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(mainloop, "Following", Following)
    threads = threading.active_count()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # A signal that comes before or after the agent's own time ends no more than the test.
        signal.signal(number, _unexpected)
    try:
        yield made
    finally:
        for each in started:
            each.stop()
        # What they log would be the next test's.
        eventually(lambda: threading.active_count() <= threads, "the agent's threads end")
        for number, handler in before.items():
            signal.signal(number, handler)


# 1. From the start to the end


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_status_0_and_leaves_the_rules(
    end: signal.Signals, setting: Setting
) -> None:
    setting.run_while(lambda: setting.holds(WEB_ENTRY), end)
    setting.holds(WEB_ENTRY)
    assert setting.said("stopped; the rules stay in place")


@pytest.mark.parametrize("what", ["Kernel.choose", "StatusSocket.start"])
def test_a_start_that_fails_ends_with_its_own_reason(
    what: str,
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And not with that of something that is stopped though it never started."""

    def refused(_: object) -> None:
        raise RefusedError("the node", "is not what it should be")

    name, _, method = what.partition(".")
    monkeypatch.setattr(getattr(mainloop, name), method, refused)
    assert setting.command() == RefusedError.exit_status
    assert capsys.readouterr().err.endswith("the node: is not what it should be\n")


def test_an_agent_that_is_only_constructed_does_nothing(
    setting: Setting, server: ApiServer
) -> None:
    threads = threading.active_count()
    config = Config(kubeconfig=str(setting.kubeconfig), node_name="worker-1")
    mainloop.MainLoop(setting.path, config, setting.told, Reader(setting.kubeconfig))
    assert threading.active_count() == threads
    assert not directory().exists()
    assert (server.requests, setting.told.messages) == ([], [])
    assert setting.restores == {IPV4: 0, IPV6: 0}


def test_readiness_is_said_once_and_not_before_the_rules_are_there(
    setting: Setting, server: ApiServer
) -> None:
    def script() -> None:
        eventually(lambda: setting.ready)
        assert setting.rules() == expected_rules([WEB_ENTRY], POD_CIDRS[:1])
        server.put(OTHER)
        setting.holds(WEB_ENTRY, OTHER_ENTRY)

    setting.run_while(script)
    assert setting.ready == 1
    assert setting.said("^ready") == ["ready: the kernel (iptables-nft) holds all rules"]


def test_a_server_that_goes_away_is_said_once_and_the_rules_stay(
    setting: Setting, server: ApiServer
) -> None:
    def script() -> None:
        setting.holds(WEB_ENTRY)
        server.wait_for(lambda: server.watches("services") and server.watches("nodes"))
        server.stop()
        eventually(lambda: setting.said("trying again; the rules stay as they are"))
        assert setting.rules() == expected_rules([WEB_ENTRY], POD_CIDRS[:1])
        server.start()
        server.put(OTHER)
        setting.holds(WEB_ENTRY, OTHER_ENTRY)
        eventually(lambda: setting.said("answers again"))

    setting.run_while(script)
    assert len(setting.said("trying again; the rules stay as they are")) == 1
    assert len(setting.said("answers again")) == 1


def test_an_agent_without_a_server_can_be_stopped(setting: Setting, server: ApiServer) -> None:
    server.stop()
    setting.run_while(lambda: None)
    assert not setting.rules()


def test_a_second_agent_on_the_node_is_refused(setting: Setting) -> None:
    def second() -> None:
        with pytest.raises(RefusedError, match="already running"):
            run.run(setting.path, setting.told)

    setting.run_while(second)


@pytest.mark.parametrize("name", ["read_service", "read_node"])
def test_a_mistake_of_the_programs_own_in_a_follower_ends_the_process(
    name: str,
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(resources, name, broken)
    assert setting.command() == 70
    assert "internal error: ZeroDivisionError: a bug" in capsys.readouterr().err
    assert not setting.rules()


# 2. Reloading


def test_neither_a_restart_nor_a_reload_that_changes_nothing_writes(setting: Setting) -> None:
    ready = 0

    def script() -> None:
        setting.holds(WEB_ENTRY)
        eventually(lambda: setting.ready > ready)
        for _ in range(3):
            before = len(setting.said("read the configuration again"))
            setting.reload()
            eventually(lambda b=before: len(setting.said("read the configuration again")) > b)  # type: ignore[misc]

    for _ in range(2):
        ready = setting.ready
        setting.run_while(script)
    assert setting.restores == {IPV4: 1, IPV6: 1}


@pytest.mark.parametrize(
    ("values", "cidr"),
    [({"podCIDRs": ["10.1.0.0/16"]}, "10.1.0.0/16"), ({"nodeName": "worker-2"}, "10.240.9.0/24")],
    ids=["pod CIDRs", "another Node"],
)
def test_another_configuration_is_put_to_work(
    values: dict[str, Any], cidr: str, setting: Setting, server: ApiServer
) -> None:
    server.put(node("10.240.9.0/24", name="worker-2"))

    def script() -> None:
        setting.holds(WEB_ENTRY)
        setting.reload(**values)
        eventually(lambda: setting.rules() == expected_rules([WEB_ENTRY], [cidr]))
        eventually(lambda: setting.said("read the configuration again"))

    setting.run_while(script)
    ((key, value),) = values.items()
    shown = str(value).replace("'", "")
    before = "worker-1" if key == "nodeName" else "null"
    assert setting.said("^configuration: ") == [f"configuration: {key} was {before} and is {shown}"]
    assert "fd00:10:240" not in "".join(setting.rules(IPV6))
    # Once at first, and once at the reload's end.
    assert setting.ready == 2
    assert len([m for m in setting.told.messages if m.startswith("RELOADING=1\n")]) == 1


def test_a_round_has_not_ended_whatever_is_published_meanwhile(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hangs in one command after the other would look healthy, else."""
    tick, publish = Agent.tick, mainloop.MainLoop._publish
    turned: list[float] = []
    busy: list[Callable[[], None]] = []

    def publishing(loop: mainloop.MainLoop) -> None:
        publish(loop)
        turned.append(loop._monitoring.published.turned)
        busy[:] = [loop._launcher.busy]

    def ticking(agent: Agent) -> float:
        for _ in range(2):
            busy[0]()
        assert turned[-1] == turned[-2]
        return tick(agent)

    monkeypatch.setattr(mainloop.MainLoop, "_publish", publishing)
    monkeypatch.setattr(Agent, "tick", ticking)
    setting.run_while(lambda: setting.holds(WEB_ENTRY))
    assert len({*turned}) > 1


def test_metrics_move_with_the_configuration(setting: Setting) -> None:
    # Where no other test looks for a port that is free.
    first, second = (f"127.77.{os.getpid() % 250}.{number}:20001" for number in (1, 2))
    setting.configure(metricsBindAddress=first)

    def stale(address: str) -> float:
        text = fetch(f"http://{address}/metrics")[1]
        return value(text, "ipvs_node_agent_config_stale")

    def script() -> None:
        setting.holds(WEB_ENTRY)
        eventually(lambda: setting.said(f"served at {first}"))
        eventually(lambda: fetch(f"http://{first}/readyz") == (200, "ok\n"))
        text = fetch(f"http://{first}/metrics")[1]
        assert value(text, "ipvs_node_agent_services", ip_family="IPv4") == 1
        setting.reload(masquerade="Some")
        eventually(lambda: stale(first) == 1)
        setting.reload(metricsBindAddress=second)
        eventually(lambda: setting.said(f"served at {second}"))
        assert fetch(f"http://{second}/healthz") == (200, "ok\n")
        eventually(lambda: stale(second) == 0)
        eventually(lambda: refused(first))
        setting.reload()
        eventually(lambda: refused(second))

    setting.run_while(script)
    assert not setting.said("cannot serve")


def refused(address: str) -> bool:
    """Whether nobody serves `address`."""
    try:
        fetch(f"http://{address}/healthz")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("kept", [True, False], ids=["remembered", "full disk"])
def test_chains_by_other_names_replace_the_old_ones(setting: Setting, kept: bool) -> None:
    if not kept:
        # Nothing can be written in its place.
        (directory() / "chains").mkdir(parents=True)

    def script() -> None:
        setting.holds(WEB_ENTRY)
        setting.reload(chains={"prerouting": "NEW_PREROUTING", "output": "NEW_OUTPUT"})
        table = setting.kernel.backends["nft"][IPV4]
        eventually(lambda: "NEW_PREROUTING" in table.save())
        assert "IPVS_" not in table.save()

    setting.run_while(script)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("masquerade: Some\n", "line 1: masquerade: wanted All or HostOnly"),
        ("chains: [\n", "is not YAML"),
        (None, "no such file"),
    ],
    ids=["a bad value", "no YAML", "no file"],
)
def test_a_bad_configuration_is_said_and_the_old_one_goes_on(
    text: str | None, complaint: str, setting: Setting, server: ApiServer
) -> None:
    def script() -> None:
        setting.holds(WEB_ENTRY)
        if text is None:
            setting.path.unlink()
        else:
            setting.write(text)
        os.kill(os.getpid(), signal.SIGHUP)
        eventually(lambda: setting.said("keeping the old configuration: "))
        server.put(OTHER)
        setting.holds(WEB_ENTRY, OTHER_ENTRY)

    setting.run_while(script)
    (line,) = setting.said("keeping the old configuration")
    assert complaint in line
    assert "\n" not in line


# 3. The credentials


@pytest.mark.parametrize("how", ["another file", "the same file"])
def test_another_server_is_followed_instead(
    how: str, setting: Setting, server: ApiServer, second: ApiServer, tmp_path: Path
) -> None:
    """After a reload that names another file; without one where the file itself has changed."""

    def script() -> None:
        setting.holds(WEB_ENTRY)
        if how == "the same file":
            plain_kubeconfig(setting.kubeconfig, second.url, "worker-1")
        else:
            plain_kubeconfig(tmp_path / "second.conf", second.url, "worker-1")
            setting.reload(kubeconfig=str(tmp_path / "second.conf"))
        setting.holds(OTHER_ENTRY)
        server.wait_for(lambda: not server.watches("services") and not server.watches("nodes"))

    setting.run_while(script)


def test_when_the_api_server_was_last_heard_of_is_not_forgotten_with_its_credentials(
    setting: Setting, tmp_path: Path
) -> None:
    """Else nobody would be told that a node follows nothing any more after a reload."""

    def script() -> None:
        setting.holds(WEB_ENTRY)
        before = ask(directory()).contact
        setting.reload(kubeconfig=str(tmp_path / "absent.conf"))
        eventually(lambda: setting.said("read the configuration again"))
        after = ask(directory()).contact
        assert before is not None
        assert after is not None
        assert after >= before

    setting.run_while(script)


def test_credentials_that_come_late_are_used_at_once(setting: Setting) -> None:
    aside = setting.kubeconfig.with_suffix(".aside")
    setting.kubeconfig.rename(aside)

    def script() -> None:
        eventually(lambda: setting.said("is this node's kubelet set up"))
        aside.rename(setting.kubeconfig)
        setting.holds(WEB_ENTRY)

    setting.run_while(script)
    assert len(setting.said("is this node's kubelet set up")) == 1


def test_changes_do_not_wait_while_new_credentials_are_read(
    setting: Setting, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an exec plugin that takes its time."""
    reading, go_on = threading.Event(), threading.Event()

    def slow(reader: Reader) -> Any:
        reading.set()
        assert go_on.wait(30)
        return load_credentials(reader)

    def script() -> None:
        setting.holds(WEB_ENTRY)
        monkeypatch.setattr(client, "load_credentials", slow)
        setting.kubeconfig.write_text(setting.kubeconfig.read_text() + "# changed\n")
        try:
            assert reading.wait(10)
            server.put(OTHER)
            setting.holds(WEB_ENTRY, OTHER_ENTRY)
        finally:
            go_on.set()

    setting.run_while(script)


def test_a_nodes_own_credentials_are_enough(setting: Setting, tmp_path: Path) -> None:
    pki = Pki()
    with ApiServer(pki=pki, streaming_lists=True) as secure:
        secure.put(node(*POD_CIDRS))
        secure.put(WEB)
        pki.write_node_client(tmp_path / "node.pem", "worker-1")
        pki.write_kubeconfig(setting.kubeconfig, secure.url, tmp_path / "node.pem")
        setting.configure(nodeName=None)
        setting.run_while(lambda: setting.holds(WEB_ENTRY))
        lists = [one for one in secure.requests if "endpoints" not in one.resource]
        assert {request.status for request in lists} == {200}


# 4. What changes by itself


def test_the_rules_move_with_the_kubelet_and_then_the_other_backend_is_cleaned(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mainloop, "_BACKEND_PERIOD", 0.05)
    setting.configure(driftCheckPeriod="1h")

    def script() -> None:
        for found, backend in ((None, "nft"), ("legacy", "legacy"), ("nft", "nft")):
            setting.kernel.found = found
            setting.holds(WEB_ENTRY, backend=backend)
            # The old backend must not be cleaned before the new one holds the rules.
            eventually(lambda: setting.kernel.cleaned)
            assert "10.19.20.201" in setting.kernel.cleaned.pop()

    setting.run_while(script)
    assert setting.kernel.cleaned == []
    assert setting.said("moving there") == [
        f"the node uses iptables-{backend}; moving there" for backend in ("legacy", "nft")
    ]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"half a line",
        b'{"type":"ERROR","object":{"code":500}}\n',
        b'{"type":"ERROR","object":{"code":410}}\n',
        None,
    ],
    ids=["nothing", "half a line", "an error event", "gone", "a reset"],
)
def test_watches_that_end_as_soon_as_they_begin_do_not_hurry_each_other(
    sent: bytes | None, setting: Setting, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def end_at_once(watch: Watch, _: object) -> None:
        await (watch.reset() if sent is None else watch.write(sent))

    monkeypatch.setattr(Watch, "run", end_at_once)
    monkeypatch.setattr(Backoff, "FIRST", 0.8)
    monkeypatch.setattr(Backoff, "CAP", 30.0)

    def script() -> None:
        setting.holds(WEB_ENTRY)
        end = time.monotonic() + 1.5
        eventually(lambda: time.monotonic() > end)

    setting.run_while(script)
    requests = [(request.verb, request.resource) for request in server.requests]
    for request in requests:
        assert requests.count(request) <= 5


def test_what_a_long_turn_leaves_of_memory_is_given_back_once(
    setting: Setting, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(mainloop, "return_pages", lambda: given.append(len(given)))
    monkeypatch.setattr(mainloop, "_FREED_SECONDS", 0.05)
    restore = FakeTable.restore

    def long_restore(table: FakeTable, text: str) -> None:
        restore(table, text)
        # As a table of ten thousand Services takes.
        time.sleep(2 * mainloop._LONG_TURN)

    monkeypatch.setattr(FakeTable, "restore", long_restore)

    def script() -> None:
        setting.holds(WEB_ENTRY)
        eventually(lambda: given, "memory given back")

    setting.run_while(script)
    # Both families' tables are written once, in one turn or two.
    assert len(given) <= 2


def test_what_comes_in_a_row_is_taken_before_anything_is_made_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine, who had to wait may wake up late.
    monkeypatch.setattr(mainloop, "_GOES_ON_SECONDS", 0.5)
    loop: Any = object.__new__(mainloop.MainLoop)
    loop._inbox, loop._stopped = Inbox(), threading.Event()
    told: list[int] = []
    count = 2_000

    def tell() -> None:
        for number in range(count):
            loop._inbox.put_in_turn(partial(told.append, number), loop._stopped)

    teller = threading.Thread(target=tell)
    teller.start()
    eventually(lambda: len(loop._inbox) >= 200, "much")
    turns = 0
    while len(told) < count:
        loop._work_off()
        turns += 1
    teller.join()
    assert told == [*range(count)]
    # Each turn would be a write; ten of 200 would be as many as without.
    assert turns <= 5
