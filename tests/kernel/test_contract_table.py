"""The table that users see, from `run` and from `render`, as `iptables -nvL -t nat` prints it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family
from tests.kernel.conftest import node_bed
from tests.support.agentprocess import AgentProcess
from tests.support.netns import Namespace
from tests.support.pki import Pki
from tests.support.places import TESTS
from tests.support.tables import add_mark_masq, restore

pytestmark = pytest.mark.kernel


class Shown(NamedTuple):
    """A cluster with one Node, and the agent's chains of a family there."""

    family: Family
    objects: list[Any]
    pod_cidr: str
    table: str


TWO_SERVICES = Shown(
    IPV4,
    list(yaml.safe_load_all((TESTS / "data" / "two-services.yaml").read_text())),
    "10.240.2.128/25",
    """
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
""",  # noqa: E501
)
DUAL_STACK = Shown(
    IPV6,
    yaml.safe_load(
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
    ),
    "fd00:10:240:2::/64",
    """
Chain IPVS_OUTPUT (1 references)
target prot opt in out source destination
KUBE-MARK-MASQ all * * ::/0 fd00:19::201 /* default/lb-dual */ ADDRTYPE match src-type LOCAL
DNAT all * * ::/0 fd00:19::201 /* default/lb-dual */ ADDRTYPE match src-type LOCAL to:fd00:231::164

Chain IPVS_PREROUTING (1 references)
target prot opt in out source destination
KUBE-MARK-MASQ all * * fd00:10:240:2::/64 fd00:19::201 /* default/lb-dual */
DNAT all * * fd00:10:240:2::/64 fd00:19::201 /* default/lb-dual */ to:fd00:231::164
""",
)


@pytest.fixture(params=[TWO_SERVICES, DUAL_STACK], ids=["two Services", "dual-stack"])
def shown(request: pytest.FixtureRequest, namespace: Namespace, backend: str) -> Shown:
    """What is to be shown on a node with the chain that marks."""
    for family in FAMILIES:
        add_mark_masq(namespace, family, backend)
    chosen: Shown = request.param
    return chosen


def table(namespace: Namespace, family: Family, backend: str) -> str:
    """Our two chains without counters and padding; newer versions print `0` for `all`."""
    shown = ""
    for chain in ("IPVS_OUTPUT", "IPVS_PREROUTING"):
        command = (f"{family.command}-{backend}", "-w", "10", "-t", "nat", "-nvL", chain)
        shown += "\n"
        for line in namespace.run(*command).splitlines():
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


def test_run_gives_the_table(
    shown: Shown, namespace: Namespace, backend: str, pki: Pki, tmp_path: Path
) -> None:
    """Set up as kubeadm does it."""
    with node_bed(namespace, backend, tmp_path, pki) as bed:
        bed.configure(iptables={"backend": backend})
        for each in shown.objects:
            bed.api.put(each)
        bed.agent.start()
        assert bed.agent.stop() == 0
    assert table(namespace, shown.family, backend) == shown.table


@pytest.mark.once("newest", "oldest")
@pytest.mark.parametrize("origin", ["--pod-cidr", "--node"])
def test_render_gives_the_table(
    shown: Shown, namespace: Namespace, backend: str, tmp_path: Path, origin: str
) -> None:
    node, *others = shown.objects
    services, node_file = tmp_path / "services.yaml", tmp_path / "node.yaml"
    services.write_text(yaml.safe_dump_all(others))
    node_file.write_text(yaml.safe_dump(node))
    value = str(node_file) if origin == "--node" else shown.pod_cidr
    arguments = ("-f", str(services), "--family", shown.family.name, origin, value)
    done = AgentProcess(namespace, tmp_path, {}).call("render", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    restore(namespace, shown.family, backend, done.stdout)
    assert table(namespace, shown.family, backend) == shown.table
