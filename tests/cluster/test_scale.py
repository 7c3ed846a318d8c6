"""10,000 Services in a real API server: how long the agent takes to start, and its memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.cluster.bed import ControlPlane, Worker, add_service, control_plane, worker
from tests.cluster.rest import Client
from tests.support.tables import saved
from tests.support.waiting import eventually

SERVICES = int(os.environ.get("IPVS_NODE_AGENT_CLUSTER_SERVICES", "10000"))
# It takes three on two cores that are not needed otherwise; here the API server and other tests
# share them, so this only tells a start from none. What it took is printed.
START_SECONDS = 60.0
MEMORY_MIB = 100


@pytest.fixture(scope="module")
def large(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, since so many Services cost every test a lot."""
    with control_plane(binaries, tmp_path_factory.mktemp("large")) as plane:
        client = plane.servers[0].client()
        with ThreadPoolExecutor(8) as pool:
            for made in [pool.submit(_add, client, number) for number in range(SERVICES)]:
                made.result()
        yield plane


def _add(client: Client, number: int) -> None:
    # Local would need one of 2,768 node ports for its health check.
    address = f"10.{19 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    add_service(client, f"web-{number}", address, externalTrafficPolicy="Cluster")


@pytest.mark.xdist_group("scale")
def test_the_start_and_the_memory_with_10_000_services(large: ControlPlane, tmp_path: Path) -> None:
    with worker(large, tmp_path, clean=False) as node:
        figures = []
        for _ in range(3):
            began = time.monotonic()
            ready = node.agent.log.count("ready: ")
            node.agent.start(wait=False)
            eventually(
                lambda before=ready: node.agent.log.count("ready: ") > before,  # type: ignore[misc]
                f"ready\n{node.agent.log}",
                timeout=START_SECONDS,
            )
            took = time.monotonic() - began
            status = Path(f"/proc/{node.agent.pid}/status").read_text()
            peak = re.search(r"VmHWM:\s+(\d+) kB", status)
            assert peak is not None
            figures.append((took, int(peak[1]) / 1024))
            assert _programmed(node) == SERVICES
            node.agent.stop()
        for took, peak_mib in figures:
            print(f"started in {took:.1f} s, peak memory {peak_mib:.0f} MiB")
        assert max(peak_mib for _, peak_mib in figures) <= MEMORY_MIB


def _programmed(node: Worker) -> int:
    """How many Services have rules for pods."""
    lines = saved(node.namespace, IPV4, "nft")
    names = {line.split('"')[1] for line in lines if line.startswith("-A IPVS_PRE") and '"' in line}
    return len(names)
