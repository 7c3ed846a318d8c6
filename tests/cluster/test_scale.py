"""10,000 Services in a real API server: how long the agent takes to start, and its memory."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.cluster.bed import Worker, add_service, worker
from tests.cluster.controlplane import ControlPlane, control_plane
from tests.support.tables import saved

SERVICES = int(os.environ.get("IPVS_NODE_AGENT_CLUSTER_SERVICES", "10000"))
MEMORY_MIB = 100
# What the API server stores of a Service and of its ClusterIP.
_KEYS = ("/registry/ipaddresses/10.231.100.100", "/registry/services/specs/default/web-10000")
_UID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT_ONCE = 60


def words(number: int) -> list[str]:
    """A Service's name, external IP and ClusterIP, which are of one length in all."""
    place = f"{100 + number // 100}.{100 + number % 100}"
    return [f"web-{10000 + number}", f"10.19.{place}", f"10.231.{place}"]


def copied(text: bytes, number: int) -> bytes:
    """What is stored of the first Service, for another one."""
    for first, own in zip(words(0), words(number)):
        text = text.replace(first.encode(), own.encode())
    return _UID.sub(str(uuid.uuid4()).encode(), text)


@pytest.fixture(scope="module")
def large(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, since so many Services cost every test a lot.

    The API server would take minutes to make them all: it makes one, of which etcd gets copies.
    """
    with control_plane(binaries, tmp_path_factory.mktemp("large")) as plane:
        # Local would need one of 2,768 node ports for its health check.
        add_service(plane.servers[0].client(), *words(0), externalTrafficPolicy="Cluster")
        stored = {key: plane.etcd.get(key) for key in _KEYS}
        for start in range(1, SERVICES, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, SERVICES))
            plane.etcd.put(
                (copied(key.encode(), number).decode(), copied(value, number))
                for number in numbers
                for key, value in stored.items()
            )
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
