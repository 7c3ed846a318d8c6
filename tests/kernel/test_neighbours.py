"""Who is a neighbour on which interface, as a real kernel tells."""

from __future__ import annotations

import pytest

from ipvs_node_agent.host.neighbours import neighbours
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.once]

KINDS = {
    "bridge": "type bridge",
    "veth": "type veth peer name peer",
    "tun": "",
    "vxlan": "type vxlan id 1 dstport 4789",
}


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("bridge", True), ("veth", True), ("tun", True), ("vxlan", False)],
)
def test_neighbours_count_where_pods_may_be(namespace: Namespace, kind: str, counts: bool) -> None:
    made = "tuntap add dev pods mode tap" if kind == "tun" else f"link add pods {KINDS[kind]}"
    namespace.run("ip", *made.split())
    namespace.run("ip", "link", "set", "pods", "up")
    states = {"2": "stale", "3": "reachable", "4": "permanent", "5": "failed", "6": "noarp"}
    for base in ("10.9.0.", "fd00:9::"):
        for number, state in states.items():
            lladdr = [] if state == "failed" else ["lladdr", f"02:00:00:00:00:0{number}"]
            words = [f"{base}{number}", *lladdr, "nud", state, "dev", "pods"]
            namespace.run("ip", "neighbour", "replace", *words)
    with namespace.enter():
        found = {(name, str(address)) for name, address in neighbours()}
    here = {("pods", f"{base}{n}") for base in ("10.9.0.", "fd00:9::") for n in (2, 3, 4)}
    assert found == (here if counts else set())
