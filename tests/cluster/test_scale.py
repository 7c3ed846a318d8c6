"""10,000 Services in a real API server: how long the agent takes to start, and its memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.cluster.bed import Worker, worker
from tests.cluster.controlplane import ControlPlane, control_plane
from tests.cluster.filling import fill
from tests.support.tables import saved

SERVICES = int(os.environ.get("IPVS_NODE_AGENT_CLUSTER_SERVICES", "10000"))
MEMORY_MIB = 100


@pytest.fixture(scope="module")
def large(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, since so many Services cost every test a lot."""
    with control_plane(binaries, tmp_path_factory.mktemp("large")) as plane:
        fill(plane, SERVICES)
        yield plane


@pytest.mark.xdist_group("scale")
def test_the_start_and_the_memory_with_10_000_services(large: ControlPlane, tmp_path: Path) -> None:
    with worker(large, tmp_path, clean=False) as node:
        peaks = []
        for _ in range(3):
            began = time.monotonic()
            node.start()
            took = time.monotonic() - began
            status = Path(f"/proc/{node.agent.pid}/status").read_text()
            (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
            peaks.append(int(peak) / 1024)
            print(f"started in {took:.1f} s, peak memory {peaks[-1]:.0f} MiB")
            assert _programmed(node) == SERVICES
            node.agent.stop()
        assert max(peaks) <= MEMORY_MIB


def _programmed(node: Worker) -> int:
    """How many Services have rules for pods."""
    lines = saved(node.namespace, IPV4, "nft")
    names = {line.split('"')[1] for line in lines if line.startswith("-A IPVS_PRE") and '"' in line}
    return len(names)
