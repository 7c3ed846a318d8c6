"""Pods that no rule covers are noticed, on a node with real interfaces, routes and neighbours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.agentprocess import altered
from tests.support.cluster import pod
from tests.support.netns import Namespace, link, namespaces
from tests.support.promlint import fetch, value
from tests.support.topology import CLUSTER_IP, EXTERNAL_IP, NODE_TO_BACKEND, Topology, ask
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.once("debian12"),
    pytest.mark.parametrize("backend", ["nft"]),
]

METRICS = "127.0.0.1:10273"
# Half a minute is a part of a second here, and the ten minutes stay.
QUICK = {
    "observe.uncovered._LOOK_PERIOD": 0.2,
    "observe.nodeevents._LOOK_PERIOD": 0.2,
}
STRAY = {4: "172.31.7.5", 6: "fd00:31:7::5"}


@dataclass
class Stray:
    """Somebody beside the node, with addresses outside of its pod CIDRs, and how he is reached."""

    interface: str
    bed: Bed
    there: Namespace

    def reaches(self, version: int) -> bool:
        """Whether a rule takes his packet for a pod's."""
        told = ask(self.there, EXTERNAL_IP[version], timeout=0.5, source=STRAY[version])
        return told == NODE_TO_BACKEND[version]

    def report(self) -> dict[str, Any]:
        """What `status` says of pods."""
        pods: dict[str, Any] = json.loads(self.bed.agent.call("status", "-o", "json").stdout)[
            "pods"
        ]
        return pods

    def metric(self) -> float:
        with self.bed.namespace.enter():
            return value(fetch(f"http://{METRICS}/metrics")[1], "ipvs_node_agent_uncovered_pods")

    def asked(self) -> int:
        """How often the API server was asked for pods."""
        return [request.resource for request in self.bed.api.requests].count("pods")


def routed(node: Namespace, there: Namespace) -> str:
    """A veth with a host route, as ptp, Calico and others have it."""
    link(node, there, "veth1a2b", "eth0")
    for version, address in STRAY.items():
        there.add_address("eth0", f"{address}/{32 if version == 4 else 128}")
        node.run("ip", "route", "add", address, "dev", "veth1a2b")
    # In place of proxy ARP.
    node.add_address("veth1a2b", "169.254.1.1/32", "fe80::1/64")
    there.run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
    there.run("ip", "route", "add", "default", "via", "169.254.1.1")
    there.run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
    return "veth1a2b"


def bridged(node: Namespace, there: Namespace) -> str:
    """A bridge with a subnet, as Weave and docker have it: no route of his own leads to him."""
    link(node, there, "veth3c4d", "eth0")
    node.run("ip", "link", "add", "br7", "type", "bridge")
    node.run("ip", "link", "set", "br7", "up")
    node.run("ip", "link", "set", "veth3c4d", "master", "br7")
    node.add_address("br7", "172.31.7.1/24", "fd00:31:7::1/64")
    there.add_address("eth0", f"{STRAY[4]}/24", f"{STRAY[6]}/64")
    there.add_route("default", "172.31.7.1")
    there.add_route("::/0", "fd00:31:7::1")
    return "br7"


@pytest.fixture(params=[routed, bridged], ids=lambda made: str(made.__name__))
def stray(wired: Topology, wired_bed: Bed, request: pytest.FixtureRequest) -> Iterator[Stray]:
    """He has talked with the node, so that it knows him as a neighbour as well."""
    wired_bed.put(WEB, WEB6)
    wired_bed.configure(metricsBindAddress=METRICS)
    wired_bed.agent.program = altered(QUICK)
    with namespaces("stray") as (there,):
        interface = request.param(wired.node, there)
        for version, address in STRAY.items():
            wired.backend.add_route(address, NODE_TO_BACKEND[version])
            assert ask(there, CLUSTER_IP[version], source=address) in STRAY.values()
        yield Stray(interface, wired_bed, there)


def test_a_pod_that_no_rule_covers_is_said_everywhere_until_one_does(stray: Stray) -> None:
    bed = stray.bed
    bed.api.put(pod("other", "10.240.2.130"))
    bed.api.put(pod("ours", *STRAY.values()))
    bed.agent.start()
    eventually(lambda: stray.report()["uncovered"])
    assert stray.report()["uncovered"] == [
        {"pod": "default/ours", "ip": address, "interface": stray.interface}
        for address in STRAY.values()
    ]
    assert not any(map(stray.reaches, STRAY))
    said = "1 pod of this node has no rules: default/ours at 172.31.7.5 by"
    assert said in bed.agent.call("status").stdout
    bed.agent.said(said)
    assert stray.metric() == 1
    event = eventually(lambda: bed.api.objects("Event"))[0]
    assert (event["reason"], said in event["message"]) == ("PodsUncovered", True)
    assert said in bed.agent.call("check").stdout

    pattern = "br7" if stray.interface == "br7" else "veth+"
    assert f"podInterfaces: [{pattern}]" in stray.report()["remedy"]
    bed.reload(podInterfaces=[pattern, "to-pod"])
    eventually(lambda: stray.report()["uncovered"] == [])
    assert stray.report()["knownBy"] == f"interface: {pattern}, to-pod"
    eventually(lambda: all(map(stray.reaches, STRAY)))
    assert stray.metric() == 0
    assert said not in bed.agent.call("check").stdout
    assert bed.agent.log.count("no rules") == 1


def test_who_is_no_pod_is_asked_about_once_and_never_said(stray: Stray) -> None:
    bed = stray.bed
    bed.agent.program = altered({**QUICK, "observe.uncovered._LEAST_PAUSE": 0.0})
    bed.api.put(pod("elsewhere", *STRAY.values(), node="worker-2"))
    bed.api.put(pod("host", STRAY[4], hostNetwork=True))
    bed.agent.start()
    eventually(stray.asked)
    bed.api.put(pod("new", "172.31.7.9"))
    assert stray.report()["uncovered"] == []
    new = ("172.31.7.9", "lladdr", "02:00:00:00:00:09", "nud", "permanent")
    bed.namespace.run("ip", "neighbour", "add", *new, "dev", stray.interface)
    eventually(lambda: stray.report()["uncovered"])
    assert [each["pod"] for each in stray.report()["uncovered"]] == ["default/new"]
    # A second time about the one that is new.
    assert stray.asked() == 2
