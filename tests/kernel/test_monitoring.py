"""Metrics and health of the real process: packets through rewrites, a kernel that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support import promtool
from tests.support.agentprocess import altered
from tests.support.promlint import faults, fetch, value
from tests.support.topology import EXTERNAL_IP, NODE_TO_BACKEND, Topology, ask
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

ADDRESS = "127.0.0.1:10273"
# A minute is a second here.
IMPATIENT = altered({"sync.state.PATIENCE": 1.0})
# An iptables-restore that fails, or hangs, for as long as a file is there.
STAND_IN = """
while [ -e $here/hang ]; do sleep 0.05; done
[ -e $here/fail ] && exit 4
exec $real "$@"
"""


@pytest.fixture
def bed(wired_bed: Bed) -> Bed:
    wired_bed.put(WEB, WEB6)
    wired_bed.configure(metricsBindAddress=ADDRESS)
    return wired_bed


def page(bed: Bed, path: str) -> tuple[int, str]:
    with bed.namespace.enter():
        return fetch(f"http://{ADDRESS}{path}")


def counted(bed: Bed) -> dict[str, float]:
    """The connections of the Service, by path."""
    text = page(bed, "/metrics")[1]
    labels = {"namespace": "default", "service": "web"}
    name = "ipvs_node_agent_service_packets_total"
    return {path: value(text, name, path=path, **labels) for path in ("pod", "host")}


def test_packets_are_counted_through_rewrites_of_their_chain(wired: Topology, bed: Bed) -> None:
    bed.agent.start()
    eventually(lambda: "are served at" in bed.agent.log)
    # The first look may take longer than a scrape waits for it.
    eventually(lambda: "service_packets_total{" in page(bed, "/metrics")[1], timeout=60)
    expected = {"pod": 0.0, "host": 0.0}
    assert counted(bed) == expected
    for turn in range(2):
        for version, external in EXTERNAL_IP.items():
            for source, path, times in ((wired.pod, "pod", 1), (wired.node, "host", 2)):
                for _ in range(times):
                    assert ask(source, external) == NODE_TO_BACKEND[version]
                    expected[path] += 1
        # A look that took long is not followed by the next one soon.
        eventually(lambda: counted(bed) == expected, timeout=60)
        # The chain that holds both Services is written anew, and the kernel counts from nothing.
        name = f"other-{turn}"
        bed.put((f"10.19.30.{turn}", name, "10.231.9.9"))
        bed.agent.said(f"default/{name}: ")
        assert counted(bed) == expected
    known = 'ipvs_node_agent_services{ip_family="IPv4"} 3'
    eventually(lambda: known in page(bed, "/metrics")[1], "all Services in the metrics")
    text = page(bed, "/metrics")[1]
    assert not faults(text)
    if promtool.THERE:
        assert promtool.promtool("check", "metrics", stdin=text) == (0, "")
    assert value(text, "ipvs_node_agent_services", ip_family="IPv4") == 3
    assert value(text, "ipvs_node_agent_services", ip_family="IPv6") == 1


@pytest.mark.parametrize(("fault", "backend"), [("hang", "nft"), ("fail", "legacy")])
def test_health_fails_with_the_kernel_and_recovers_with_it(
    bed: Bed, backend: str, tmp_path: Path, fault: str
) -> None:
    bed.agent.program = IMPATIENT
    for command in ("iptables", "ip6tables"):
        bed.stand_in(tmp_path, f"{command}-{backend}-restore", STAND_IN)
    (tmp_path / fault).touch()
    bed.agent.start(wait=False)
    eventually(lambda: "are served at" in bed.agent.log)
    assert page(bed, "/readyz")[0] == 503
    why = "hanging" if fault == "hang" else "has not reached the kernel"
    eventually(lambda: why in page(bed, "/healthz")[1])
    assert page(bed, "/healthz")[0] == 503
    assert page(bed, "/metrics")[0] == 200
    (tmp_path / fault).unlink()
    eventually(lambda: page(bed, "/readyz") == (200, "ok\n"))

    def healthy() -> bool:
        # Who rests counts as hanging after a second here, so it is not to rest.
        bed.agent.call("status")
        return page(bed, "/healthz") == (200, "ok\n")

    eventually(healthy)
