"""The table that users see, from `run` and from `render`, as `iptables -nvL -t nat` prints it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from tests.support.agentprocess import AgentProcess, agent_process
from tests.support.apiserver import ApiServer
from tests.support.netns import Namespace
from tests.support.pki import Pki
from tests.support.places import TESTS
from tests.support.tables import add_mark_masq, restore

pytestmark = pytest.mark.kernel

DATA = TESTS / "data"

TABLE = """
Chain IPVS_OUTPUT (1 references)
target prot opt in out source destination
KUBE-MARK-MASQ all -- * * 0.0.0.0/0 10.19.20.201 /* default/lb-service-1 */ ADDRTYPE match src-type LOCAL
DNAT all -- * * 0.0.0.0/0 10.19.20.201 /* default/lb-service-1 */ ADDRTYPE match src-type LOCAL to:10.231.42.164
KUBE-MARK-MASQ all -- * * 0.0.0.0/0 10.19.22.57 /* default/lb-service-2 */ ADDRTYPE match src-type LOCAL
DNAT all -- * * 0.0.0.0/0 10.19.22.57 /* default/lb-service-2 */ ADDRTYPE match src-type LOCAL to:10.231.2.62

Chain IPVS_PREROUTING (1 references)
target prot opt in out source destination
KUBE-MARK-MASQ all -- * * 10.240.2.128/25 10.19.20.201 /* default/lb-service-1 */
DNAT all -- * * 10.240.2.128/25 10.19.20.201 /* default/lb-service-1 */ to:10.231.42.164
KUBE-MARK-MASQ all -- * * 10.240.2.128/25 10.19.22.57 /* default/lb-service-2 */
DNAT all -- * * 10.240.2.128/25 10.19.22.57 /* default/lb-service-2 */ to:10.231.2.62
"""  # noqa: E501

# The dual-stack Service of dual-stack.yaml, whose IPv4 half has the first Service's addresses.
TABLE_IPV6 = """
Chain IPVS_OUTPUT (1 references)
target prot opt in out source destination
KUBE-MARK-MASQ all * * ::/0 fd00:19::201 /* default/lb-dual */ ADDRTYPE match src-type LOCAL
DNAT all * * ::/0 fd00:19::201 /* default/lb-dual */ ADDRTYPE match src-type LOCAL to:fd00:231::164

Chain IPVS_PREROUTING (1 references)
target prot opt in out source destination
KUBE-MARK-MASQ all * * fd00:10:240:2::/64 fd00:19::201 /* default/lb-dual */
DNAT all * * fd00:10:240:2::/64 fd00:19::201 /* default/lb-dual */ to:fd00:231::164
"""

DUAL_STACK = yaml.safe_load(
    """
- apiVersion: v1
  kind: Node
  metadata: {name: worker-1}
  spec: {podCIDR: 10.240.2.128/25, podCIDRs: ["10.240.2.128/25", "fd00:10:240:2::/64"]}
  status: {addresses: [{type: InternalIP, address: 192.168.7.11}]}
- apiVersion: v1
  kind: Service
  metadata: {name: lb-dual, namespace: default}
  spec:
    type: LoadBalancer
    clusterIP: 10.231.42.165
    clusterIPs: [10.231.42.165, "fd00:231::164"]
    ports: [{port: 80, protocol: TCP}]
  status: {loadBalancer: {ingress: [{ip: 10.19.20.202}, {ip: "fd00:19::201"}]}}
"""
)


def table(namespace: Namespace, family: Family, backend: str) -> str:
    """Our two chains without counters and padding; newer versions print `0` for `all`."""
    shown = ""
    for chain in ("IPVS_OUTPUT", "IPVS_PREROUTING"):
        text = namespace.run(
            *(f"{family.command}-{backend}", "-w", "10", "-t", "nat", "-nvL", chain)
        )
        shown += "\n"
        for line in text.splitlines():
            words = line.split()
            if re.fullmatch(r"\d+", words[0]) or words[0] == "pkts":
                words = words[2:]
            if words[1] == "0":
                words[1] = "all"
            # The column of IPv6's missing options is blank on some versions and -- on others.
            if family is IPV6 and words[2] == "--":
                del words[2]
            shown += " ".join(words) + "\n"
    return shown


@pytest.fixture
def backends_ready(namespace: Namespace, backend: str) -> None:
    for family in (IPV4, IPV6):
        add_mark_masq(namespace, family, backend)


@pytest.fixture
def run_agent(
    namespace: Namespace, backend: str, tmp_path: Path, backends_ready: None
) -> Callable[[list[object]], None]:
    """Runs the agent once against a TLS API server with these objects, the way kubeadm sets up."""

    def run(objects: list[object]) -> None:
        pki = Pki()
        pki.write_node_client(tmp_path / "kubelet-client-current.pem", "worker-1")
        with ApiServer(netns=str(namespace.path), pki=pki) as api:
            for item in objects:
                api.put(item)  # type: ignore[arg-type]
            kubeconfig = tmp_path / "kubelet.conf"
            pki.write_kubeconfig(kubeconfig, api.url, tmp_path / "kubelet-client-current.pem")
            settings = {"kubeconfig": str(kubeconfig), "iptables": {"backend": backend}}
            with agent_process(namespace, tmp_path / "agent", settings) as agent:
                agent.start()
                assert agent.stop() == 0

    return run


def two_services() -> list[object]:
    return list(yaml.safe_load_all((DATA / "two-services.yaml").read_text()))


def test_run_gives_the_table(
    namespace: Namespace, backend: str, run_agent: Callable[[list[object]], None]
) -> None:
    run_agent(two_services())
    assert table(namespace, IPV4, backend) == TABLE


def test_run_gives_the_ipv6_table(
    namespace: Namespace, backend: str, run_agent: Callable[[list[object]], None]
) -> None:
    run_agent(DUAL_STACK)
    assert table(namespace, IPV6, backend) == TABLE_IPV6
    assert "10.19.20.202 /* default/lb-dual */ to:10.231.42.165" in table(namespace, IPV4, backend)


@pytest.mark.parametrize("by_node", [False, True], ids=["--pod-cidr", "--node"])
def test_render_gives_the_table(
    namespace: Namespace, backend: str, tmp_path: Path, backends_ready: None, by_node: bool
) -> None:
    agent = AgentProcess(namespace, tmp_path, {})
    objects = two_services()
    services = tmp_path / "services.yaml"
    services.write_text(yaml.safe_dump_all(objects[1:]))
    node = tmp_path / "node.yaml"
    node.write_text(yaml.safe_dump(objects[0]))
    origin = ("--node", str(node)) if by_node else ("--pod-cidr", "10.240.2.128/25")
    done = agent.call("render", "-f", str(services), *origin)
    assert (done.returncode, done.stderr) == (0, "")
    restore(namespace, IPV4, backend, done.stdout)
    assert table(namespace, IPV4, backend) == TABLE


def test_render_gives_the_ipv6_table(
    namespace: Namespace, backend: str, tmp_path: Path, backends_ready: None
) -> None:
    agent = AgentProcess(namespace, tmp_path, {})
    services = tmp_path / "services.json"
    services.write_text(yaml.safe_dump(DUAL_STACK[1]))
    done = agent.call(
        *("render", "-f", str(services), "--family", "IPv6", "--pod-cidr", "fd00:10:240:2::/64")
    )
    assert (done.returncode, done.stderr) == (0, "")
    restore(namespace, IPV6, backend, done.stdout)
    assert table(namespace, IPV6, backend) == TABLE_IPV6


@pytest.mark.parametrize("chosen", ["nft", "legacy"])
def test_the_backend_is_the_one_the_kubelet_uses(
    namespace: Namespace, chosen: str, tmp_path: Path
) -> None:
    """`backend: auto` goes by the kubelet's chains in the mangle table."""
    hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
    restore(namespace, IPV4, chosen, hint)
    code = (
        "import ipvs_node_agent.iptables.backends as b; print(b.detect_backend(b.command.launch()))"
    )
    assert namespace.run(sys.executable, "-c", code).strip() == chosen


def test_looking_for_the_backend_makes_no_table(namespace: Namespace) -> None:
    code = (
        "import ipvs_node_agent.iptables.backends as b; print(b.detect_backend(b.command.launch()))"
    )
    assert namespace.run(sys.executable, "-c", code).strip() == "None"
    assert namespace.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names") == ""
    assert namespace.run("nft", "list", "ruleset") == ""
