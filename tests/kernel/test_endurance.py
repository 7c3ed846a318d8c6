"""All at once and all the time: changes, kills, and a chain that marks that comes and goes."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import WEB, WEB6, Bed, Entry
from tests.support.cluster import service
from tests.support.faults import LONG
from tests.support.meanwhile import meanwhile
from tests.support.topology import EXTERNAL_IP, NODE_TO_BACKEND, Topology
from tests.support.traffic import streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

# On each backend.
KILLS = 200 if LONG else 10
# Seconds: longer than it takes to start, or from one write to a few more.
LIFE = 0.7


@pytest.fixture
def split(wired_bed: Bed) -> Bed:
    """A node with short chains, so that changes split and join them; the agent is down."""
    wired_bed.put(WEB, WEB6)
    wired_bed.configure(chains={"servicesPerChain": 4})
    return wired_bed


def passing(index: int, chance: random.Random) -> dict[str, Any]:
    """A Service that comes and goes, in the neighbourhood of the constant one's IP or far away."""
    near, far = f"10.19.20.{index + 100}", f"10.19.{chance.randrange(256)}.{index}"
    external = [chance.choice((near, far)), f"fd00:19::{chance.randrange(1, 0x1FF):x}"]
    external = [ip for ip in external if ip not in EXTERNAL_IP.values()]
    return service(f"passing-{index}", [f"10.231.9.{index}", f"fd00:231::9:{index}"], external)


@contextmanager
def changing(bed: Bed, chance: random.Random) -> Iterator[None]:
    """Other Services change all the time meanwhile."""
    there: set[int] = set()

    def change() -> None:
        index = chance.randrange(1, 60)
        if index in there and chance.random() < 0.5:
            there.remove(index)
            bed.delete(f"passing-{index}")
        else:
            there.add(index)
            bed.api.put(passing(index, chance))

    with meanwhile(change, 0.02):
        yield


def test_no_connection_fails_however_often_it_is_killed_and_the_end_is_exactly_right(
    wired: Topology, split: Bed
) -> None:
    seed = int(os.environ.get("IPVS_NODE_AGENT_SEED") or time.time())
    print(f"IPVS_NODE_AGENT_SEED={seed}")
    chance = random.Random(seed)
    # A write for a Service's change is said on this level alone.
    split.agent.options = ["--log-level", "debug"]
    split.agent.start()
    with streams(wired, pause=0.01, most=KILLS * 5000) as flowing:
        with changing(split, random.Random(chance.random())):
            for number in range(KILLS):
                if number == 0 or chance.random() < 0.7:
                    # Changes go on all the time, so it is mostly about to write.
                    written = split.agent.log.count("wrote")
                    eventually(lambda: split.agent.log.count("wrote") > written)  # noqa: B023
                moment = time.monotonic() + chance.uniform(0, LIFE)
                eventually(lambda: time.monotonic() >= moment, timeout=60)  # noqa: B023
                assert split.agent.running, split.agent.log[-2000:]
                assert split.agent.stop(signal.SIGKILL) == -signal.SIGKILL
                split.agent.start(wait=False)
        eventually(lambda: split.agent.call("diff").returncode == 0, "exactly what is wanted", 60)
        flowing.expect(NODE_TO_BACKEND)
        made = flowing.pod.made, flowing.host.made
    writes = split.agent.log.count("wrote")
    print(f"{KILLS} kills, {writes} writes, {made} connections of pod and host")
    assert min(made) > KILLS


SECONDS = 6.0
CHANGES_A_SECOND = 50
EMPTY = "*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n"
FILL = "*nat\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n"


@pytest.mark.once
def test_services_change_while_the_chain_that_marks_comes_and_goes(bed: Bed) -> None:
    """Plans are made anew in the midst of changes, from one state each."""
    chance = random.Random(bed.backend)
    wanted: dict[str, Entry] = {}
    bed.agent.start()
    end = time.monotonic() + SECONDS
    turns = itertools.cycle([EMPTY, FILL])
    with meanwhile(lambda: bed.restore(IPV4, next(turns)), 0.25):
        while time.monotonic() < end:
            name = f"web-{chance.randrange(20)}"
            if chance.random() < 0.2 and wanted.pop(name, None) is not None:
                bed.delete(name)
            else:
                # Each has addresses of its own.
                external = f"10.19.{name[4:]}.{chance.randrange(1, 4)}"
                wanted[name] = (external, name, f"10.231.0.{chance.randrange(1, 250)}")
                bed.put(wanted[name])
            # The pace of the changes is what is tested.
            time.sleep(1 / CHANGES_A_SECOND)
    bed.restore(IPV4, EMPTY)
    bed.restore(IPV4, FILL)
    for name in list(wanted)[5:]:
        bed.delete(name)
        del wanted[name]
    bed.expect(*wanted.values())
    assert bed.agent.running
    assert "internal error" not in bed.agent.log
