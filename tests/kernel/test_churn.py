"""All at once: changes all the time, flows to every port, a chain that marks comes and goes."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import Bed, Entry, node_bed
from tests.support.cluster import node, service
from tests.support.meanwhile import meanwhile
from tests.support.netns import Namespace
from tests.support.tables import add_mark_masq, restore
from tests.support.topology import EXTERNAL_IP, POD_CIDR, topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once]

SECONDS = 6.0
CHANGES_A_SECOND = 50
EMPTY = "*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n"
FILL = "*nat\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n"


@contextmanager
def repeated(every: float, texts: list[str], bed: Bed) -> Iterator[None]:
    """Somebody else restores one of `texts` after the other meanwhile."""
    turns = itertools.cycle(texts)
    with meanwhile(lambda: restore(bed.namespace, IPV4, bed.backend, next(turns)), every):
        yield


def test_services_change_while_the_chain_that_marks_comes_and_goes(bed: Bed) -> None:
    """Plans are made anew in the midst of changes, from one state each."""
    chance = random.Random(bed.backend)
    wanted: dict[str, Entry] = {}
    bed.agent.start()
    end = time.monotonic() + SECONDS
    with repeated(0.25, [EMPTY, FILL], bed):
        while time.monotonic() < end:
            name = f"web-{chance.randrange(20)}"
            if chance.random() < 0.2 and wanted.pop(name, None) is not None:
                bed.api.delete("Service", "default", name)
            else:
                # Each has addresses of its own.
                external = f"10.19.{name[4:]}.{chance.randrange(1, 4)}"
                wanted[name] = (external, name, f"10.231.0.{chance.randrange(1, 250)}")
                bed.api.put(service(name, [wanted[name][2]], [external]))
            # The pace of the changes is what is tested.
            time.sleep(1 / CHANGES_A_SECOND)
    restore(bed.namespace, IPV4, bed.backend, EMPTY)
    restore(bed.namespace, IPV4, bed.backend, FILL)
    for name in list(wanted)[5:]:
        bed.api.delete("Service", "default", name)
        del wanted[name]
    bed.expect(sorted(wanted.values(), key=lambda entry: tuple(map(int, entry[0].split(".")))))
    assert bed.agent.running
    assert "internal error" not in bed.agent.log


def test_a_pod_that_sends_from_everywhere_holds_up_nobodys_change(tmp_path: Path) -> None:
    """Connection tracking's entries of a flow to each port go outside of the main loop."""
    with topology() as made:
        add_mark_masq(made.node, IPV4, "nft")
        known = service("known", ["10.231.9.9"], ["10.19.9.9"])
        with node_bed(made.node, "nft", tmp_path, node(POD_CIDR[4]), known) as bed:
            bed.agent.start()
            dns = service("dns", ["10.231.5.3"], [EXTERNAL_IP[4]])
            dns["spec"]["ports"] = [{"protocol": "UDP", "port": 53}]
            bed.api.put(dns)
            eventually(lambda: any(EXTERNAL_IP[4] in line for line in bed.ours(IPV4)))
            send_to_each_port(made.pod, EXTERNAL_IP[4], 20_000)
            # A busy machine drops some of them on the way.
            assert flows(bed) > 2_000
            dns["spec"]["clusterIP"], dns["spec"]["clusterIPs"] = "10.231.5.4", ["10.231.5.4"]
            bed.api.put(dns)
            began = time.monotonic()
            bed.api.put(service("other", ["10.231.2.62"], ["10.19.22.57"]))
            eventually(lambda: any("10.19.22.57" in line for line in bed.ours(IPV4)))
            assert time.monotonic() - began < 3
            eventually(lambda: flows(bed) == 0, f"no flow; {flows(bed)} left", 30)
            assert "UDP flows may go on" not in bed.agent.log


def send_to_each_port(sender: Namespace, address: str, count: int) -> None:
    """A datagram to each of `count` ports."""
    program = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for port in range(1, {count + 1}): s.sendto(b'x', ({address!r}, port))\n"
    )
    sender.run("python3", "-c", program)


def flows(bed: Bed) -> int:
    """How many flows to the external IP connection tracking knows."""
    listing = bed.namespace.run(
        *("conntrack", "-L", "-f", "ipv4", "-p", "udp", "--orig-dst", EXTERNAL_IP[4])
    )
    return sum(line.startswith("udp") for line in listing.splitlines())
