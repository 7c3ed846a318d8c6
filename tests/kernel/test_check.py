"""`check` on a healthy node, and on the same node with one thing broken at a time."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ipvs_node_agent.check.facts import ClusterFacts
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding
from ipvs_node_agent.check.gather_cluster import look_at_cluster
from ipvs_node_agent.commands.check import check
from ipvs_node_agent.config.file import load
from ipvs_node_agent.host.procfs import process_called
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from tests.kernel.conftest import EVERYWHERE
from tests.support.agentprocess import AgentProcess, agent_process
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.kubeproxy import add_device, proxy_mode
from tests.support.netns import Namespace, namespaces
from tests.support.pki import Pki
from tests.support.places import REPOSITORY, STANDIN
from tests.support.tables import add_foreign_rules, restore
from tests.support.topology import ask, serving
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

WEB = service("web", ["10.231.42.164"], ["10.19.20.201"])
HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"


class Node:
    """A node that is healthy, but for what a test breaks."""

    def __init__(
        self, namespace: Namespace, backend: str, api: ApiServer, pki: Pki, directory: Path
    ) -> None:
        self.namespace, self.backend, self.api, self.pki = namespace, backend, api, pki
        self.directory = directory
        self.kubeconfig = directory / "kubelet.conf"
        self.pem = directory / "kubelet-client.pem"
        self.settings: dict[str, Any] = {"kubeconfig": str(self.kubeconfig)}
        self.agent: AgentProcess
        self.cluster: ClusterFacts
        self.write_credentials()
        # What is said with nothing broken.
        self.usual: list[Finding] = []

    def write_credentials(self) -> None:
        self.pki.write_node_client(self.pem, "worker-1")
        self.pki.write_kubeconfig(self.kubeconfig, self.api.url, self.pem)

    @contextmanager
    def configured(self, **settings: Any) -> Iterator[None]:
        """The configuration has these settings meanwhile."""
        self.agent.configure({**self.settings, **settings})
        yield
        self.agent.configure(self.settings)

    def findings(self, cluster: ClusterFacts | None = None) -> list[Finding]:
        """What check says, in this process: that takes half the time.

        The cluster is looked at, unless `cluster` says what there is to be seen.
        """
        with self.namespace.enter(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUNTIME_DIRECTORY", str(self.agent.runtime))
            patch.syspath_prepend(str(STANDIN))
            if cluster is not None:
                patch.setattr("ipvs_node_agent.commands.check.look_at_cluster", lambda _: cluster)
            return check(self.agent.config)

    def says(self, level: str, what: str, text: str, mend: str) -> None:
        """Check finds this, which it does not find with nothing broken."""
        self._says(self.findings(), Finding(level, what, text, mend))

    def host_says(self, level: str, what: str, text: str, mend: str) -> None:
        """The same, where the cluster is as ever."""
        self._says(self.findings(self.cluster), Finding(level, what, text, mend))

    def _says(self, findings: list[Finding], wanted: Finding) -> None:
        level, what, text, mend = wanted
        found = [f for f in findings if f.level != OK and f not in self.usual]
        shown = "\n".join(map(str, found))
        matching = [f for f in found if (f.level, f.what) == (level, what) and text in f.text]
        assert matching, shown
        assert mend in matching[0].mend, shown

    def other_backend(self) -> str:
        return "legacy" if self.backend == "nft" else "nft"

    def restore(self, text: str, family: Family = IPV4) -> None:
        restore(self.namespace, family, self.backend, text)


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
        api = stack.enter_context(ApiServer(netns=str(namespace.path), pki=pki))
        for known in (node(*POD_CIDRS), WEB):
            api.put(known)
        made = Node(namespace, request.param, api, pki, directory)
        made.agent = stack.enter_context(
            agent_process(namespace, directory / "agent", made.settings)
        )
        made.agent.path.append(STANDIN)
        made.agent.start()
        made.agent.stop()
        with namespace.enter():
            made.cluster = look_at_cluster(load(made.agent.config))
        made.usual = [f for f in made.findings() if f.level != OK]
        yield made


# What does not depend on the backend is tried with one of them.
once = pytest.mark.parametrize("broken", ["nft"], indirect=True)


def test_a_node_whose_agent_is_down_has_that_one_trouble(broken: Node) -> None:
    (only,) = broken.usual
    assert only == (FAIL, "agent", "does not run", "systemctl start ipvs-node-agent")


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
def test_a_healthy_node_gives_only_ok_and_stays_as_it_is(broken: Node, systemd: Any) -> None:
    def state() -> list[str]:
        shown = ["cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        rules = broken.namespace.run("nft", "list", "ruleset").splitlines()
        return [broken.namespace.run(*shown), *(line for line in rules if "counter" not in line)]

    broken.agent.start()
    try:
        process = broken.agent.pid
        systemd(ipvs_node_agent=ENABLED.format(process))
        before, requests = state(), len(broken.api.requests)
        with proxy_mode(broken.namespace, "ipvs"):
            done = broken.agent.call("check")
        asked = {request.verb for request in broken.api.requests[requests:]}
        assert state() == before
    finally:
        broken.agent.stop()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("ok    ")] == []
    assert f"ok    agent: the service runs as process {process}" in lines
    assert "ok    kube-proxy: in IPVS mode, by its own word" in lines
    assert asked == {"list", "watch"}


def test_a_unit_that_is_disabled_and_a_firewall_that_flushes(broken: Node, systemd: Any) -> None:
    systemd(
        ipvs_node_agent="ActiveState=inactive\nUnitFileState=disabled\nMainPID=0\n",
        nftables="ActiveState=active\nUnitFileState=enabled\n",
        ufw="ActiveState=active\nUnitFileState=enabled\n",
    )
    found = {(f.level, f.what, f.text.partition(";")[0]) for f in broken.findings(broken.cluster)}
    assert (FAIL, "agent", "the service is inactive") in found
    assert (
        WARN,
        "other firewalls",
        "ufw empties PREROUTING and OUTPUT when it is reloaded",
    ) in found
    # Debian's own /etc/nftables.conf begins with `flush ruleset`.
    flushes = "nftables.service flushes all rules when it is reloaded or stopped"
    assert ((WARN, "other firewalls", flushes) in found) == (broken.backend == "nft")


@once
def test_the_readme_shows_what_it_prints(broken: Node, systemd: Any) -> None:
    last_day = datetime(2038, 1, 1, tzinfo=timezone.utc)
    broken.pki.write_node_client(broken.pem, "worker-1", not_after=last_day)
    broken.namespace.set("ipv4/ip_forward", "0")
    broken.agent.start()
    process = broken.agent.pid
    systemd(ipvs_node_agent=ENABLED.format(process), ufw=ENABLED.format(0))
    with proxy_mode(broken.namespace, "ipvs"):
        done = broken.agent.call("check")
    broken.agent.stop()
    broken.namespace.set("ipv4/ip_forward", "1")
    broken.write_credentials()
    assert (done.returncode, done.stderr) == (1, "")
    shown = done.stdout
    for here, there in (
        (str(broken.kubeconfig), "/etc/kubernetes/kubelet.conf"),
        (str(broken.agent.config), "/etc/ipvs-node-agent/config.yaml"),
        (broken.api.url, "https://10.0.0.1:6443"),
        (f"process {process}\n", "process 1234\n"),
    ):
        shown = shown.replace(here, there)
    readme = (REPOSITORY / "README.md").read_text()
    assert shown == readme.partition("# ipvs-node-agent check\n")[2].partition("```")[0]


# The cluster


@once
def test_no_kubeconfig(broken: Node) -> None:
    broken.kubeconfig.rename(broken.kubeconfig.with_suffix(".aside"))
    done = broken.agent.call("check", "-o", "json")
    broken.kubeconfig.with_suffix(".aside").rename(broken.kubeconfig)
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = [f for f in json.loads(done.stdout) if f["what"] == "credentials"]
    why = f"kubeconfig {broken.kubeconfig}: No such file or directory"
    assert (line["level"], line["text"]) == (FAIL, why)
    assert line["mend"].startswith("kubeadm join, or kubeconfig: FILE in ")


@once
def test_an_expired_certificate(broken: Node) -> None:
    yesterday = datetime.now(timezone.utc) - timedelta(days=1)
    broken.pki.write_node_client(broken.pem, "worker-1", not_after=yesterday)
    text = "the certificate of system:node:worker-1 expired on "
    broken.says(FAIL, "credentials", text, "kubeadm kubeconfig user --org system:nodes")
    broken.write_credentials()


@once
def test_a_key_of_another_certificate(broken: Node) -> None:
    certificate = (
        broken.pem.read_text().partition("-----BEGIN RSA")[0].partition("-----BEGIN EC")[0]
    )
    broken.pki.write_node_client(broken.pem, "worker-1")
    key = broken.pem.read_text().rpartition("-----END CERTIFICATE-----\n")[2]
    broken.pem.write_text(certificate + key)
    broken.says(FAIL, "credentials", f"cannot load {broken.pem}", "kubeadm kubeconfig user")
    broken.write_credentials()


@once
def test_another_clusters_ca(broken: Node) -> None:
    Pki().write_kubeconfig(broken.kubeconfig, broken.api.url, broken.pem)
    broken.says(FAIL, "API server", "certificate verify failed", "/etc/kubernetes/pki/ca.crt")
    broken.write_credentials()


@once
def test_an_api_server_out_of_reach(broken: Node) -> None:
    broken.api.stop()
    text = f"{broken.api.url}: cannot be reached: Connection refused"
    broken.says(FAIL, "API server", text, f"curl -k {broken.api.url}/livez")
    broken.api.start()


@once
def test_an_api_server_that_hangs_keeps_nobody_waiting(broken: Node) -> None:
    broken.api.hang()
    began = time.monotonic()
    broken.says(FAIL, "API server", "cannot be reached", f"curl -k {broken.api.url}/livez")
    assert time.monotonic() - began < 20
    broken.api.heal()


@once
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_lack_of_permission(broken: Node, verb: str) -> None:
    broken.api.fail(403, verb=verb, resource="services")
    text = f"refused to {verb} services: 403 Forbidden"
    broken.says(FAIL, "permission", text, "kubeconfig: /etc/kubernetes/kubelet.conf in ")
    broken.api.heal()


@once
def test_an_unknown_node(broken: Node) -> None:
    broken.api.delete("Node", "", "worker-1")
    broken.says(FAIL, "Node", "the API server knows no Node worker-1", "nodeName: ")
    broken.api.put(node(*POD_CIDRS))


@once
def test_no_pod_cidr(broken: Node) -> None:
    broken.api.put(node())
    broken.says(FAIL, "pod CIDRs", "Node worker-1 has none yet", "podCIDRs: [CIDR] in ")
    broken.api.put(node(*POD_CIDRS))


@once
def test_a_pod_cidr_that_contains_the_external_ips(broken: Node) -> None:
    with broken.configured(podCIDRs=["10.0.0.0/8"]):
        broken.says(FAIL, "external IPs", "all 1 are refused", "podCIDRs: [this node's own] in ")


@once
def test_a_bad_configuration(broken: Node) -> None:
    with broken.configured(masquerade="Some"):
        text = f'{broken.agent.config} line 2: masquerade: wanted All or HostOnly, got "Some"'
        broken.says(FAIL, "configuration", text, f"edit {broken.agent.config}, then systemctl")


# kube-proxy and iptables


@once
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_kube_proxy_in_another_mode(broken: Node, mode: str) -> None:
    with proxy_mode(broken.namespace, mode):
        text = f"in {mode} mode, by its own word: the agent is not needed"
        broken.host_says(FAIL, "kube-proxy", text, "apt purge ipvs-node-agent")


def test_in_iptables_mode_the_agents_rules_lead_nowhere(broken: Node) -> None:
    broken.namespace.run("ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo")
    proxys = "".join(
        f"-A KUBE-SVC-X -d {ip}/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1\n"
        for ip in ("10.19.20.201", "10.231.42.164")
    )
    with serving(broken.namespace, "127.0.0.1"):
        broken.restore(f"*nat\n:KUBE-SVC-X - [0:0]\n{proxys}-I OUTPUT 2 -j KUBE-SVC-X\nCOMMIT\n")
        led_past = ask(broken.namespace, "10.19.20.201", timeout=0.3)
        broken.restore("*nat\n-D OUTPUT -j IPVS_OUTPUT\nCOMMIT\n")
        without = ask(broken.namespace, "10.19.20.201")
    broken.restore(
        "*nat\n:KUBE-SVC-X - [0:0]\n-D OUTPUT -j KUBE-SVC-X\n-X KUBE-SVC-X\n"
        "-I OUTPUT 1 -j IPVS_OUTPUT\nCOMMIT\n"
    )
    broken.namespace.run("ip", "route", "delete", "local", "10.0.0.0/8", "dev", "lo")
    # The one name is Python 3.9's.
    assert led_past in ("TimeoutError", "timeout")
    assert "." in without


@once
def test_no_kube_proxy_and_what_gives_its_other_modes_away(broken: Node) -> None:
    broken.namespace.run("ip", "link", "delete", "kube-ipvs0")
    broken.host_says(FAIL, "kube-proxy", "there is no sign of it", "spec.nodeName=worker-1")
    broken.restore("*nat\n:KUBE-SVC-X - [0:0]\nCOMMIT\n")
    broken.host_says(
        FAIL, "kube-proxy", "in iptables mode, by its chains KUBE-SVC-...", "apt purge"
    )
    broken.namespace.run("nft", "add", "table", "ip", "kube-proxy")
    broken.host_says(FAIL, "kube-proxy", "in nftables mode, by its nftables table", "apt purge")
    broken.namespace.run("nft", "delete", "table", "ip", "kube-proxy")
    broken.restore("*nat\n:KUBE-SVC-X - [0:0]\n-X KUBE-SVC-X\nCOMMIT\n")
    add_device(broken.namespace)


@EVERYWHERE
def test_the_other_backend(broken: Node) -> None:
    other = broken.other_backend()
    with broken.configured(iptables={"backend": other}):
        text = f"the agent uses iptables-{other}, and the kubelet iptables-{broken.backend}"
        broken.host_says(FAIL, "iptables backend", text, "iptables: {backend: auto} in ")


def test_a_jump_behind_kube_proxys(broken: Node) -> None:
    jump = '-m comment --comment "service portals" -j KUBE-SERVICES'
    broken.restore(f"*nat\n-I OUTPUT 1 {jump}\nCOMMIT\n")
    text = "OUTPUT jumps to IPVS_OUTPUT behind KUBE-SERVICES"
    broken.host_says(FAIL, "jumps, IPv4", text, "systemctl restart ipvs-node-agent")
    broken.restore(f"*nat\n-D OUTPUT {jump}\nCOMMIT\n")


@EVERYWHERE
def test_rules_that_somebody_flushed(broken: Node) -> None:
    broken.restore("*nat\n-D OUTPUT -j IPVS_OUTPUT\nCOMMIT\n")
    text = f"out of sync (iptables-{broken.backend}: 1 jumps to set)"
    broken.host_says(FAIL, "rules", text, "systemctl start ipvs-node-agent")
    broken.restore("*nat\n-I OUTPUT 1 -j IPVS_OUTPUT\nCOMMIT\n")


def test_marks_that_nobody_masquerades(broken: Node) -> None:
    jump = '-m comment --comment "kubernetes postrouting" -j KUBE-POSTROUTING'
    broken.restore(f"*nat\n-D POSTROUTING {jump}\nCOMMIT\n")
    text = "nothing in POSTROUTING masquerades"
    broken.host_says(WARN, "KUBE-MARK-MASQ, IPv4", text, "delete pod -l k8s-app=kube-proxy")
    broken.restore(f"*nat\n-A POSTROUTING {jump}\nCOMMIT\n")


@once
def test_a_nat_table_of_somebody_elses_making(broken: Node) -> None:
    saved = broken.namespace.run("iptables-nft-save", "-t", "nat")
    make = "add chain ip nat PREROUTING { type filter hook prerouting priority 0; }"
    broken.namespace.run("nft", "-f", "-", stdin=f"delete table ip nat\nadd table ip nat\n{make}")
    broken.host_says(FAIL, "nat table, IPv4", "made with nft", "nft list ruleset")
    broken.namespace.run("nft", "delete", "table", "ip", "nat")
    restore(broken.namespace, IPV4, "nft", saved)


@once
def test_no_right_to_program(broken: Node) -> None:
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    with broken.namespace.enter():
        done = subprocess.run(
            [*drop, *broken.agent.command("check")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=broken.agent.environment,
        )
    assert (done.returncode, done.stderr) == (1, "")
    assert (
        "fail  privileges: without CAP_NET_ADMIN the kernel's rules can be neither read nor"
        " programmed => sudo ipvs-node-agent check\n"
    ) in done.stdout
    assert "nat table" not in done.stdout


# Others


@once
def test_a_second_agent(broken: Node) -> None:
    broken.agent.start()
    second_directory = broken.directory / "second"
    with agent_process(broken.namespace, second_directory, broken.settings) as second:
        second.start()
        text = f"a second one runs as process {second.pid}"
        broken.host_says(FAIL, "agent", text, f"kill {second.pid}")
    broken.agent.stop()


@contextmanager
def running(broken: Node, *command: str) -> Iterator[int]:
    """A process of the node, and its number."""
    process = broken.namespace.popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def copied(program: str, directory: Path, name: str, mode: int = 0o755) -> Path:
    """A program of the system's under another name."""
    found = shutil.which(program)
    assert found
    copy = Path(shutil.copy(found, directory / name))
    copy.chmod(mode)
    return copy


@once
def test_a_predecessor(broken: Node, tmp_path: Path) -> None:
    predecessor = copied("sleep", tmp_path, "network-node-manager")
    with running(broken, str(predecessor), "60") as number:
        mend = "kubectl -n kube-system delete daemonset network-node-manager"
        broken.host_says(WARN, "network-node-manager", f"runs as process {number}", mend)
    broken.restore("*nat\n:NMANAGER_OUTPUT - [0:0]\nCOMMIT\n")
    broken.host_says(
        WARN, "network-node-manager", "left chains NMANAGER_...", "/^:NMANAGER_/ {print $1"
    )
    broken.restore("*nat\n:NMANAGER_OUTPUT - [0:0]\n-X NMANAGER_OUTPUT\nCOMMIT\n")


@pytest.fixture
def in_everybodys_reach() -> Iterator[Path]:
    """A directory from which every account can start programs."""
    with TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


AGENTS_WORDS = ["python3", "-", "ipvs-node-agent", "run"]


@once
@pytest.mark.parametrize(
    ("user", "program", "name", "mode", "words"),
    [
        pytest.param(65534, sys.executable, "", 0, AGENTS_WORDS, id="agent"),
        pytest.param(65534, "cat", "python3", 0o4755, AGENTS_WORDS, id="agent-setuid"),
        pytest.param(0, "cat", "", 0, AGENTS_WORDS, id="agent-by-its-words-alone"),
        pytest.param(65534, "cat", "ipvs-node-controller", 0o755, ["cat"], id="predecessor"),
        pytest.param(65534, "cat", "ipvs-node-controller", 0o4755, ["cat"], id="setuid"),
        pytest.param(0, "cat", "", 0, ["ipvs-node-controller"], id="by-its-words-alone"),
    ],
)
def test_nobody_can_pass_a_process_off_as_an_agent(
    broken: Node,
    in_everybodys_reach: Path,
    user: int,
    program: str,
    name: str,
    mode: int,
    words: list[str],
) -> None:
    path = copied(program, in_everybodys_reach, name, mode) if name else shutil.which(program)
    broken.agent.start()
    try:
        before = broken.findings(broken.cluster)
        process = broken.namespace.popen(words, executable=path, stdin=subprocess.PIPE, user=user)
        with process:
            cmdline = Path(f"/proc/{process.pid}/cmdline")
            eventually(lambda: cmdline.read_bytes().split(b"\0")[0] == words[0].encode())
            assert broken.findings(broken.cluster) == before
    finally:
        broken.agent.stop()
    assert not [finding for finding in before if finding.level != OK and finding.what == "agent"]


@once
@pytest.mark.parametrize("user", [0, 65534])
def test_only_roots_process_is_kube_proxy(
    broken: Node, in_everybodys_reach: Path, user: int
) -> None:
    program = copied("cat", in_everybodys_reach, "kube-proxy")
    process = broken.namespace.popen([str(program)], stdin=subprocess.PIPE, user=user)
    with process, broken.namespace.enter():
        assert process_called("kube-proxy") == (process.pid if user == 0 else None)


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
    with web_server(broken, theirs) as number, broken.configured(metricsBindAddress=address):
        text = f"process {number} ({Path(sys.executable).resolve().name}) listens on {address}"
        broken.host_says(FAIL, "metrics", text, "metricsBindAddress: with another port, in ")


@once
def test_the_same_port_of_another_address_is_free(broken: Node) -> None:
    with web_server(broken, "127.0.0.2"):
        assert (OK, "metrics", "nobody else listens on 127.0.0.1:10273", "") in broken.findings(
            broken.cluster
        )


@once
def test_a_terminal_gets_colours_and_a_pipe_the_plain_restore_input(broken: Node) -> None:
    broken.restore("*nat\n-D OUTPUT -j IPVS_OUTPUT\nCOMMIT\n")
    plain, coloured = broken.agent.call("diff"), on_a_terminal(broken, "diff")
    broken.restore(plain.stdout.partition("\n")[2])
    assert "\x1b" not in plain.stdout
    assert "\x1b[32m-I OUTPUT 1 -j IPVS_OUTPUT\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d+m|\r", "", coloured) == plain.stdout
    assert "\x1b[31mfail\x1b[0m  agent: does not run" in on_a_terminal(broken, "check")


def on_a_terminal(broken: Node, command: str) -> str:
    """What a command prints on a terminal."""
    here, there = pty.openpty()
    variables = {**broken.agent.environment, "TERM": "xterm"}
    process = broken.namespace.popen(broken.agent.command(command), stdout=there, env=variables)
    os.close(there)
    shown = b""
    with suppress(OSError):  # The end of a terminal is an error.
        while part := os.read(here, 1 << 16):
            shown += part
    os.close(here)
    process.wait()
    return shown.decode()


@once
def test_packets_that_are_not_forwarded(broken: Node) -> None:
    broken.namespace.set("ipv4/ip_forward", "0")
    broken.host_says(FAIL, "kernel", "net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1")
    broken.namespace.set("ipv4/ip_forward", "1")
