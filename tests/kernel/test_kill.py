"""An agent that is killed at any moment: no connection fails, and the next one ends it rightly."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.faults import LONG
from tests.support.meanwhile import meanwhile
from tests.support.topology import CLUSTER_IP, EXTERNAL_IP, NODE_TO_BACKEND, POD_CIDR, Topology
from tests.support.traffic import more, streaming
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

# On each backend.
KILLS = 200 if LONG else 10
# Seconds: longer than it takes to start, or from one write to a few more.
LIFE = 0.7
CONSTANT = service("constant", list(CLUSTER_IP.values()), EXTERNAL_IP.values())


@pytest.fixture
def bed(wired: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """A node with short chains, so that changes split and join them; the agent is down."""
    with node_bed(wired.node, backend, tmp_path, node(*POD_CIDR.values()), CONSTANT) as made:
        made.agent.configure({**made.settings, "chains": {"servicesPerChain": 4}})
        yield made


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
            bed.api.delete("Service", "default", f"passing-{index}")
        else:
            there.add(index)
            bed.api.put(passing(index, chance))

    with meanwhile(change, 0.02):
        yield


def test_no_connection_fails_however_often_it_is_killed_and_the_end_is_exactly_right(
    wired: Topology, bed: Bed
) -> None:
    seed = int(os.environ.get("IPVS_NODE_AGENT_SEED") or time.time())
    print(f"IPVS_NODE_AGENT_SEED={seed}")
    chance = random.Random(seed)
    addresses = list(EXTERNAL_IP.values())
    most = KILLS * 500
    # A write for a Service's change is said on this level alone.
    bed.agent.options = ["--log-level", "debug"]
    bed.agent.start()
    with (
        streaming(wired.pod, *addresses, pause=0.01, most=most) as pod,
        streaming(wired.node, *addresses, pause=0.01, most=most) as host,
    ):
        with changing(bed, random.Random(chance.random())):
            for _ in range(KILLS):
                if chance.random() < 0.7:
                    # Changes go on all the time, so it is mostly about to write.
                    written = bed.agent.log.count("wrote")
                    eventually(lambda: bed.agent.log.count("wrote") > written)  # noqa: B023
                moment = time.monotonic() + chance.uniform(0, LIFE)
                eventually(lambda: time.monotonic() >= moment, timeout=60)  # noqa: B023
                assert bed.agent.running, bed.agent.log[-2000:]
                assert bed.agent.stop(signal.SIGKILL) == -signal.SIGKILL
                bed.agent.start(wait=False)
        eventually(lambda: bed.agent.call("diff").returncode == 0, "exactly what is wanted", 60)
        more(pod, host)
        made = pod.made, host.made
        expected = {EXTERNAL_IP[version]: {NODE_TO_BACKEND[version]} for version in (4, 6)}
        assert pod.seen() == host.seen() == expected
    writes = bed.agent.log.count("wrote")
    print(f"{KILLS} kills, {writes} writes, {made} connections of pod and host")
    # The chains were changed while the stream flowed.
    assert writes > KILLS
    assert min(made) > KILLS
