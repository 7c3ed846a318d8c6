"""Pods that the reference CNI plugins make: their packets reach an external IP, no other's do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.host.pods import CNI
from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.cluster import POD_CIDRS, node
from tests.support.netns import Namespace, make_private, namespaces
from tests.support.topology import (
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    Topology,
    ask,
    other_node_pod,
    reaching,
)

# The environment that has the plugins, see its recipe.
pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

PLUGINS = Path("/usr/lib/cni")
SUBNETS = ("10.244.3.0/24", "fd00:244:3::/64")
ELSEWHERE = {4: "10.244.4.7/24", 6: "fd00:244:4::7/64"}
BY_CIDR = f"pod CIDR: {', '.join(SUBNETS)}"
# Whether a packet that a bridge has in hand goes through iptables as well, in each family.
BRIDGE_NETFILTER = ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables")


@dataclass(frozen=True)
class Network:
    """A configuration as it is on a node, and what is to come of it."""

    plugin: Mapping[str, Any]
    known_by: str = BY_CIDR
    matched: Sequence[str] = tuple(f"-s {each}" for each in SUBNETS)
    pod_cidrs: Sequence[str] = SUBNETS
    interfaces: Sequence[str] | None = None
    bridge_netfilter: str = "1"
    # What makes the pods, where it is not the plugin that is configured.
    made_by: Mapping[str, Any] | None = None


def by(interface: str, plugin: Mapping[str, Any], **fields: Any) -> Network:
    """Pods have addresses outside of the Node's pod CIDRs, and are known by `interface`."""
    matched = (f"-i {interface}",) * 2
    return Network(plugin, f"interface: {interface}", matched, POD_CIDRS, **fields)


BRIDGE = {"type": "bridge", "bridge": "cni7", "isGateway": True}
PTP = {"type": "ptp"}
FLANNEL = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}
# flannel's plugin is not Debian's; it does no more than to call the bridge plugin.
DELEGATE = {"type": "bridge", "hairpinMode": True, "isGateway": True}

NETWORKS = {
    "bridge inside": Network(BRIDGE),
    "bridge outside": by("cni7", BRIDGE),
    "ptp inside": Network(PTP),
    "ptp outside": by("veth+", PTP, interfaces=["veth+"]),
    "flannel inside": Network(FLANNEL, made_by=DELEGATE),
    "flannel outside": by("cni0", FLANNEL, made_by=DELEGATE, bridge_netfilter="0"),
}


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[Path]:
    """The folder of the node's CNI configurations, for this test alone."""
    make_private()
    CNI.mkdir(parents=True, exist_ok=True)
    own = tmp_path / "net.d"
    own.mkdir()
    subprocess.run(["mount", "--bind", own, CNI], check=True)
    yield CNI
    subprocess.run(["umount", "--lazy", CNI], check=True)


@contextmanager
def connected(
    host: Namespace, pod: Namespace, plugin: Mapping[str, Any], leases: Path
) -> Iterator[None]:
    """The pod is on the plugin's network, as a container runtime has it put there."""
    ipam = {
        "type": "host-local",
        "dataDir": str(leases),
        "ranges": [[{"subnet": subnet}] for subnet in SUBNETS],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    config = json.dumps({"cniVersion": "0.4.0", "name": "pods", **plugin, "ipam": ipam})
    told = {
        "CNI_CONTAINERID": pod.name,
        "CNI_NETNS": str(pod.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
    }
    call = ("env", *(f"{name}={value}" for name, value in told.items()))
    program = str(PLUGINS / plugin["type"])
    host.run(*call, "CNI_COMMAND=ADD", program, stdin=config)
    try:
        yield
    finally:
        host.run(*call, "CNI_COMMAND=DEL", program, stdin=config)


def configuration(plugin: Mapping[str, Any]) -> str:
    """What the plugin's installer writes; portmap as one more is what most have."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in SUBNETS]}
    first = plugin if plugin["type"] == "flannel" else {**plugin, "ipam": ipam}
    return json.dumps({"name": "pods", "plugins": [first, {"type": "portmap"}]})


@pytest.mark.parametrize("name", NETWORKS)
def test_pods_reach_an_external_ip_and_nobody_from_elsewhere_does(
    around: Topology, wired_bed: Bed, cni: Path, tmp_path: Path, name: str
) -> None:
    network, bed = NETWORKS[name], wired_bed
    for key in BRIDGE_NETFILTER:
        around.node.set(key, network.bridge_netfilter)
    (cni / "10-pods.conflist").write_text(configuration(network.plugin))
    bed.api.put(node(*network.pod_cidrs))
    if network.interfaces is not None:
        bed.configure(podInterfaces=network.interfaces)
    bed.put(WEB, WEB6)
    plugin = network.made_by or network.plugin
    with (
        namespaces("local", "remote") as (local, remote),
        connected(around.node, local, plugin, tmp_path / "leases"),
    ):
        other_node_pod(around.node, remote, "flannel.1", ELSEWHERE)
        bed.agent.start()
        (said,) = (line for line in bed.agent.log.splitlines() if "pods are matched by" in line)
        assert said.endswith(f"pods are matched by {network.known_by}")
        for family, matched in zip(FAMILIES, network.matched):
            assert f" {matched} " in "\n".join(bed.ours(family))
            reached = [ask(each, EXTERNAL_IP[family.version]) for each in (local, remote)]
            # By the node itself, so the tunnel is one.
            assert reached == [NODE_TO_BACKEND[family.version], "ConnectionRefusedError"]
            # The topology's own pod is on another network, so it is like anybody from outside.
            assert reaching(around, family.version) == "host"
