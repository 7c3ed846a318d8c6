"""`check` on a healthy node, and on the same node with one thing broken at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.check.facts import ClusterFacts
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding
from ipvs_node_agent.check.gather_cluster import look_at_cluster
from ipvs_node_agent.commands.check import Checking
from ipvs_node_agent.config.file import load
from ipvs_node_agent.host.procfs import process_called
from ipvs_node_agent.iptables import command
from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import EVERYWHERE, WEB, Bed, node_bed
from tests.support.agentprocess import agent_process
from tests.support.documents import OPERATIONS
from tests.support.kubeproxy import add_device, proxy_mode
from tests.support.netns import namespaces
from tests.support.pki import Pki
from tests.support.tables import add_foreign_rules, restore
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
NOBODY = 65534


@dataclass
class Node(Bed):
    """A node that is healthy, but for what a test breaks."""

    cluster: ClusterFacts
    # What is said with nothing broken.
    usual: Sequence[Finding] = ()

    def shell(self, script: str) -> None:
        """Runs a script, in which `nat` is iptables."""
        nat = f'nat() {{ iptables-{self.backend} -w 10 -t nat "$@"; }}'
        self.namespace.run("sh", "-euc", f"{nat}\n{script}")

    def as_ever(self, _: Any, __: Any, ___: Any, begun: Any) -> ClusterFacts:
        begun(self.cluster)
        return self.cluster

    def findings(self) -> list[Finding]:
        """What check says, in this process and with the cluster as ever, which is quicker."""
        with self.namespace.enter(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUNTIME_DIRECTORY", str(self.agent.runtime))
            patch.setattr("ipvs_node_agent.commands.check.look_at_cluster", self.as_ever)
            return [*Checking(self.agent.config).findings()]

    def says(self, wanted: str) -> None:
        """Check finds this, and does not with nothing broken: LEVEL ID: TEXT => REMEDY.

        Of the text and of the remedy, any part will do.
        """
        finding, _, remedy = wanted.partition(" => ")
        level_and_id, _, text = finding.partition(": ")
        level, _, id_ = level_and_id.partition(" ")
        found = [f for f in self.findings() if f.level != OK and f not in self.usual]
        shown = "\n".join(map(str, found))
        matching = [f for f in found if (f.level, f.id) == (level, id_) and text in f.text]
        assert matching, shown
        assert remedy in matching[0].remedy, shown


def looked_at(config: Path) -> ClusterFacts:
    found = load(config)
    return look_at_cluster(Api(Path(found.kubeconfig)), found, lambda _: None, lambda _: None)


@pytest.fixture(scope="module", params=["nft", "legacy"])
def broken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Pki
) -> Iterator[Node]:
    """A node whose agent has made its rules, and is down."""
    directory = tmp_path_factory.mktemp("node")
    with ExitStack() as stack:
        (namespace,) = stack.enter_context(namespaces("node"))
        namespace.forward()
        add_device(namespace)
        for family in FAMILIES:
            add_foreign_rules(namespace, family, request.param)
            restore(namespace, family, request.param, HINT)
        bed = stack.enter_context(node_bed(namespace, request.param, directory, pki))
        bed.put(WEB)
        bed.agent.start()
        bed.agent.stop()
        with namespace.enter():
            made = Node(**vars(bed), cluster=looked_at(bed.agent.config))
        made.usual = [f for f in made.findings() if f.level != OK]
        yield made


@pytest.fixture
def started(broken: Node) -> Iterator[Node]:
    """The same node while its agent runs."""
    broken.agent.start()
    yield broken
    broken.agent.stop()


# What does not depend on the backend is tried with one of them.
once = pytest.mark.parametrize("broken", ["nft"], indirect=True)


def test_a_node_whose_agent_is_down_has_that_one_trouble(broken: Node) -> None:
    (only,) = broken.usual
    assert only == ("AgentDown", FAIL, "agent", "does not run", "ipvs-node-agent run")


# A node with systemd, for a while

SYSTEMCTL = """#!/bin/sh
[ "$1" = show ] || exit 1
cat <<'END'
{}
END
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Has systemctl say what it is told to, in blocks for units."""
    booted = Path("/run/systemd/system")
    booted.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def say(**units: str) -> None:
        blocks = [
            f"Id={name.replace('_', '-')}.service\nLoadState=loaded\n{text}"
            for name, text in units.items()
        ]
        (tmp_path / "systemctl").write_text(SYSTEMCTL.format("\n\n".join(blocks)))
        (tmp_path / "systemctl").chmod(0o755)

    yield say
    booted.rmdir()


ENABLED = "ActiveState=active\nUnitFileState=enabled\nMainPID={}\n"


@EVERYWHERE
def test_a_healthy_node_gives_only_ok_and_stays_as_it_is(started: Node, systemd: Any) -> None:
    def state() -> list[str]:
        shown = ["cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        rules = started.namespace.run("nft", "list", "ruleset").splitlines()
        return [started.namespace.run(*shown), *(line for line in rules if "counter" not in line)]

    process = started.agent.pid
    systemd(ipvs_node_agent=ENABLED.format(process))
    before, requests = state(), len(started.api.requests)
    with proxy_mode(started.namespace, "ipvs"):
        done = started.agent.call("check")
    assert {request.verb for request in started.api.requests[requests:]} == {"list", "watch", "get"}
    assert state() == before
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("ok    ")] == []
    assert f"ok    agent: the service runs as process {process}" in lines
    assert "ok    kube-proxy: in IPVS mode, as it reports" in lines


def test_each_table_is_read_once(started: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 50,000 Services, one look at a table takes seconds."""
    read: Counter[str] = Counter()
    start = command.start

    def noted(
        launcher: Any, name: str, arguments: Sequence[str], *more: Any, **options: Any
    ) -> Any:
        read[" ".join((name, *arguments))] += 1
        return start(launcher, name, arguments, *more, **options)

    monkeypatch.setattr(command, "start", noted)
    with proxy_mode(started.namespace, "ipvs"):
        assert started.findings()[-1].id == "RulesOK"
    assert {f"{family.command}-{started.backend}-save -t nat" for family in FAMILIES} <= {*read}
    assert {*read.values()} == {1}, read


def test_of_nftables_service_it_is_said_where_it_flushes_rules_of_ours(
    broken: Node, systemd: Any
) -> None:
    """Debian's own /etc/nftables.conf begins with `flush ruleset`."""
    systemd(nftables=ENABLED.format(0))
    said = "nftables.service flushes all rules when it is reloaded or stopped"
    found = [f for f in broken.findings() if f.text.startswith(said)]
    wanted = [(WARN, "NftablesFlushes")] if broken.backend == "nft" else []
    assert [(f.level, f.id) for f in found] == wanted


@once
def test_the_documents_show_what_it_prints(started: Node, systemd: Any, pki: Pki) -> None:
    kubeconfig, pem = credentials(started)
    pki.write_node_client(pem, "worker-1", datetime(2038, 1, 1, tzinfo=timezone.utc))
    started.namespace.set("ipv4/ip_forward", "0")
    process = started.agent.pid
    systemd(ipvs_node_agent=ENABLED.format(process), ufw=ENABLED.format(0))
    with proxy_mode(started.namespace, "ipvs"):
        done = started.agent.call("check")
    started.namespace.set("ipv4/ip_forward", "1")
    pki.write_node_client(pem, "worker-1")
    assert (done.returncode, done.stderr) == (1, "")
    shown = done.stdout
    for here, there in (
        (str(kubeconfig), "/etc/kubernetes/kubelet.conf"),
        (str(started.agent.config), "/etc/ipvs-node-agent/config.yaml"),
        (started.api.url, "https://10.0.0.1:6443"),
        (f"process {process}\n", "process 1234\n"),
    ):
        shown = shown.replace(here, there)
    assert shown == OPERATIONS.printed_by("ipvs-node-agent check")


@once
def test_another_clusters_ca(broken: Node) -> None:
    kubeconfig, pem = credentials(broken)
    good = kubeconfig.read_text()
    Pki().write_kubeconfig(kubeconfig, broken.api.url, pem)
    said = broken.agent.call("check").stdout
    kubeconfig.write_text(good)
    (line,) = [line for line in said.splitlines() if line.startswith("fail  API server: ")]
    assert "the server's certificate is not accepted" in line
    assert "/etc/kubernetes/pki/ca.crt" in line


def credentials(node: Node) -> tuple[Path, Path]:
    """The kubeconfig, and the certificate with its key."""
    kubeconfig = Path(node.settings["kubeconfig"])
    return kubeconfig, kubeconfig.with_name("kubelet-client-current.pem")


# kube-proxy and iptables


PORTALS = 'OUTPUT {} -m comment --comment "service portals" -j KUBE-SERVICES'
MASQUERADES = 'POSTROUTING -m comment --comment "kubernetes postrouting" -j KUBE-POSTROUTING'
GONE, BACK = "ip link delete kube-ipvs0", "ip link add kube-ipvs0 type bridge"
# What breaks the node, what mends it, and what is said in between.
HOST = {
    "no kube-proxy": (
        GONE,
        BACK,
        "fail KubeProxyAbsent: not found on this node => spec.nodeName=worker-1",
    ),
    "chains of kube-proxy's iptables mode": (
        f"{GONE}; nat -N KUBE-SVC-X",
        f"{BACK}; nat -X KUBE-SVC-X",
        "fail KubeProxyNotIPVS: in iptables mode, by its chains KUBE-SVC-... => /proxyMode tells",
    ),
    "a table of kube-proxy's nftables mode": (
        f"{GONE}; nft add table ip kube-proxy",
        f"{BACK}; nft delete table ip kube-proxy",
        "fail KubeProxyNotIPVS: in nftables mode, by its nftables table => /proxyMode tells",
    ),
    "a nat table of somebody else's making": (
        "iptables-nft-save -t nat >saved; nft delete table ip nat; nft add table ip nat;"
        " nft add chain ip nat PREROUTING '{ type filter hook prerouting priority 0; }'",
        "nft delete table ip nat; iptables-nft-restore <saved",
        "fail TableUnreadable: made with nft => nft list ruleset",
    ),
    "chains that a predecessor left": (
        "nat -N NMANAGER_OUTPUT",
        "nat -X NMANAGER_OUTPUT",
        "warn PredecessorsChains: left chains NMANAGER_... => /^:NMANAGER_/ {print $1",
    ),
}
ON_EITHER_BACKEND = {
    "a jump behind kube-proxy's": (
        f"nat -I {PORTALS.format(1)}",
        f"nat -D {PORTALS.format('')}",
        "fail JumpBehind: OUTPUT jumps to IPVS_OUTPUT behind KUBE-SERVICES"
        " => systemctl start ipvs-node-agent",
    ),
    "a chain of nft's own in front": (
        "nft add table inet firewall; nft add chain inet firewall pre"
        " '{ type nat hook prerouting priority -150; }'; nft add rule inet firewall pre accept",
        "nft delete table inet firewall",
        "warn NatBefore: the chain pre of the nft table inet firewall runs before iptables' own on"
        " prerouting => nft list chain inet firewall pre",
    ),
    "marks that nobody masquerades": (
        f"nat -D {MASQUERADES}",
        f"nat -A {MASQUERADES}",
        "warn MarkNotMasqueraded: nothing in POSTROUTING masquerades"
        " => get pods -l k8s-app=kube-proxy",
    ),
}


@pytest.mark.parametrize(
    ("broken", "breaks", "mends", "wanted"),
    [
        pytest.param(backend, *case, id=f"{name}-{backend}")
        for backend, cases in (
            ("nft", {**HOST, **ON_EITHER_BACKEND}),
            ("legacy", ON_EITHER_BACKEND),
        )
        for name, case in cases.items()
    ],
    indirect=["broken"],
)
def test_what_is_wrong_with_the_host(
    broken: Node,
    breaks: str,
    mends: str,
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    broken.shell(breaks)
    try:
        broken.says(wanted)
    finally:
        broken.shell(mends)


@EVERYWHERE
def test_the_other_backend_and_rules_that_somebody_flushed(broken: Node) -> None:
    other = broken.other_backend
    broken.configure(iptables={"backend": other})
    broken.says(
        f"fail BackendNotKubelets: the agent uses iptables-{other},"
        f" and the kubelet iptables-{broken.backend} => iptables: {{backend: auto}} in "
    )
    broken.configure(iptables={})
    broken.shell("nat -D OUTPUT -j IPVS_OUTPUT")
    broken.says(
        f"fail RulesOutOfSync: out of sync (iptables-{broken.backend}: 1 jumps to set)"
        " => systemctl start ipvs-node-agent"
    )
    broken.shell("nat -I OUTPUT 1 -j IPVS_OUTPUT")


# Others


@once
def test_a_second_agent(started: Node, tmp_path: Path) -> None:
    with agent_process(started.namespace, tmp_path, started.settings) as second:
        second.start()
        number = second.pid
        started.says(f"fail AgentTwice: a second one runs as process {number} => kill {number}")


@contextmanager
def running(broken: Node, *command: str, **options: Any) -> Iterator[int]:
    """A process of the node, and its number."""
    process = broken.namespace.popen(command, stderr=subprocess.DEVNULL, **options)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def in_everybodys_reach() -> Iterator[Path]:
    """A directory from which every account can start programs."""
    with TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def copied(program: str, directory: Path, name: str, mode: int = 0o755) -> str:
    """A program of the system's under another name."""
    copy = shutil.copy(shutil.which(program) or program, directory / name)
    os.chmod(copy, mode)
    return str(copy)


@once
def test_a_predecessor_that_runs(broken: Node, tmp_path: Path) -> None:
    with running(broken, copied("sleep", tmp_path, "network-node-manager"), "60") as number:
        broken.says(
            f"warn PredecessorRuns: runs as process {number}"
            " => kubectl -n kube-system delete daemonset network-node-manager"
        )


AGENT = ["python3", "-", "ipvs-node-agent", "run"]
CONTROLLER = "ipvs-node-controller"


@once
@pytest.mark.parametrize(
    ("user", "program", "name", "mode", "words"),
    [
        pytest.param(NOBODY, sys.executable, "", 0, AGENT, id="agent"),
        pytest.param(NOBODY, "cat", "python3", 0o4755, AGENT, id="agent-setuid"),
        pytest.param(0, "cat", "", 0, AGENT, id="agent-by-its-words-alone"),
        pytest.param(NOBODY, "cat", CONTROLLER, 0o755, ["cat"], id="predecessor"),
        pytest.param(NOBODY, "cat", CONTROLLER, 0o4755, ["cat"], id="setuid"),
        pytest.param(0, "cat", "", 0, [CONTROLLER], id="by-its-words-alone"),
    ],
)
def test_nobody_can_pass_a_process_off_as_an_agent(
    started: Node,
    in_everybodys_reach: Path,
    user: int,
    program: str,
    name: str,
    mode: int,
    words: list[str],
) -> None:
    path = copied(program, in_everybodys_reach, name, mode) if name else shutil.which(program)
    before = started.findings()
    assert not [finding for finding in before if finding.level != OK and finding.subject == "agent"]
    options = {"executable": path, "stdin": subprocess.PIPE, "user": user}
    with running(started, *words, **options) as number:
        cmdline = Path(f"/proc/{number}/cmdline")
        eventually(lambda: cmdline.read_bytes().split(b"\0")[0] == words[0].encode())
        assert started.findings() == before


@once
@pytest.mark.parametrize("user", [0, NOBODY])
def test_only_roots_process_is_kube_proxy(
    broken: Node, in_everybodys_reach: Path, user: int
) -> None:
    program = copied("cat", in_everybodys_reach, "kube-proxy")
    process = running(broken, program, stdin=subprocess.PIPE, user=user)
    with process as number, broken.namespace.enter():
        assert process_called("kube-proxy") == (number if user == 0 else None)


@contextmanager
def web_server(broken: Node, address: str) -> Iterator[int]:
    """A program of somebody else's that listens, and the number of its process."""
    command = [sys.executable, "-m", "http.server", "10273", "--bind", address]
    shown = f"[{address}]:10273 " if ":" in address else f"{address}:10273 "
    with running(broken, *command) as number:
        eventually(lambda: shown in broken.namespace.run("ss", "-Hltn"))
        yield number


@once
@pytest.mark.parametrize(("ours", "theirs"), [("127.0.0.1", "0.0.0.0"), ("[::1]", "::1")])
def test_a_metrics_port_that_is_taken(broken: Node, ours: str, theirs: str) -> None:
    address = f"{ours}:10273"
    broken.configure(metricsBindAddress=address)
    with web_server(broken, theirs) as number:
        program = Path(sys.executable).resolve().name
        broken.says(
            f"fail MetricsPortTaken: process {number} ({program}) listens on {address}"
            " => metricsBindAddress: with another port, in "
        )
    broken.configure(metricsBindAddress="127.0.0.1:10273")
