"""What the followers of many agents cost a real API server, and kube-proxies, for the same changes.

The API server's own processor seconds, what goes over the cables, the watch events that it counts,
and the requests that its audit log has; phase by phase, for none, some and more of either.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple
from unittest.mock import patch

from ipvs_node_agent.apiserver import follower, leash
from tests.bench.crowd import Agents, Authority, Place, Proxies
from tests.bench.measures import Figures, say
from tests.cluster.bed import NODES, set_external_ips, streams
from tests.cluster.controlplane import API_ADDRESS, ControlPlane, KubeApiServer, control_plane
from tests.cluster.filling import SLICES, endpoints, fill, name, slice_name, words
from tests.support.cluster import node
from tests.support.waiting import eventually

_TICKS = os.sysconf("SC_CLK_TCK")
_EVENTS = re.compile(r"^apiserver_watch_events_total\{.*\} (\S+)$", re.MULTILINE)
# Where the API server is reached, as it reports where there are several.
_ENDPOINTS = "/api/v1/namespaces/default/endpoints"
_KUBERNETES = {
    "metadata": {"name": "kubernetes"},
    "subsets": [
        {"addresses": [{"ip": API_ADDRESS[4]}], "ports": [{"name": "https", "port": 6443}]}
    ],
}
# Watches that end so soon do not count as broken, and many do in a short while.
_RENEWING = (6, 9)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    services: int
    agents: Sequence[int]
    proxies: Sequence[int]
    changes: int
    calm_seconds: float
    outage_seconds: float
    # Changes in a second, at most.
    rate: float = 25.0


FULL = Scale(1_000, (50, 100, 200), (10, 20, 40), 250, 60, 20)
QUICK = Scale(20, (5,), (), 3, 1, 1)


class Sample(NamedTuple):
    """What there was up to a moment."""

    at: float
    events: float
    sent: int
    received: int
    cpu: float


class Request(NamedTuple):
    """When it came, for what, and whether it is a watch that goes on."""

    at: float
    what: str
    is_open: bool


class Meter:
    """Looks at the API server from outside, and asks for its metrics."""

    def __init__(self, plane: ControlPlane, server: KubeApiServer) -> None:
        self._plane, self._server = plane, server

    def cpu(self) -> float:
        """The processor seconds of its process."""
        fields = Path(f"/proc/{self._server.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / _TICKS

    def sample(self, is_end: bool) -> Sample:
        """All that is counted; what it takes to ask falls outside, at the beginning and the end."""
        cpu = self.cpu()
        events = sum(map(float, _EVENTS.findall(self._server.client().text("GET", "/metrics"))))
        sent, received = self._wired()
        return Sample(time.time(), events, sent, received, cpu if is_end else self.cpu())

    def _wired(self) -> tuple[int, int]:
        """The bytes that have left for the nodes, and come from them."""
        links = json.loads(self._plane.namespace.run("ip", "-s", "-j", "link"))
        both = [each["stats64"] for each in links if each["ifname"].startswith("crowd")]
        return sum(each["tx"]["bytes"] for each in both), sum(each["rx"]["bytes"] for each in both)

    def requests(self, since: float) -> list[Request]:
        """Those of the nodes since then, in the order in which they came."""
        found: dict[str, Request] = {}
        for line in (self._server.directory / "audit.log").read_text().splitlines():
            event = json.loads(line)
            text = event["requestReceivedTimestamp"].replace("Z", "+00:00")
            at = datetime.fromisoformat(text).timestamp()
            if at >= since:
                what = f"{event['verb']} {event.get('objectRef', {}).get('resource', '')}"
                is_open = event["stage"] == "ResponseStarted"
                is_open &= event["responseStatus"]["code"] == 200
                found[event["auditID"]] = Request(at, what, is_open)
        return sorted(found.values())

    def settle(self, crowd: Agents | Proxies | None, seconds: float) -> None:
        """Waits until it has nothing to do, nor the others with what it sent."""

        def state() -> tuple[float, int]:
            return self.cpu(), crowd.events if isinstance(crowd, Agents) else 0

        def quiet() -> bool:
            cpu, events = state()
            time.sleep(seconds)
            cpu_then, events_then = state()
            return cpu_then - cpu <= 0.1 * seconds and events == events_then

        eventually(quiet, "the API server has nothing to do", 120)


class Bed:
    """A control plane with Services, EndpointSlices and Nodes, and what is measured of it."""

    def __init__(self, place: Place, scale: Scale) -> None:
        self.place, self.scale, self.server = place, scale, place.server
        self.meter = Meter(place.plane, place.server)
        self.crowd: Agents | Proxies | None = None
        self._changed = 0
        self.began = 0.0

    def phase(self, what: str, units: float, act: Callable[[], object], alone: bool = False) -> Any:
        """The figures of one phase, in which so many things happen."""
        say(f"fleet: {what}")
        before = self.meter.sample(is_end=False)
        act()
        if not alone:
            self.meter.settle(self.crowd, min(1.0, self.scale.calm_seconds))
        after = self.meter.sample(is_end=True)
        requests = Counter(each.what for each in self.meter.requests(before.at))
        return {
            "units": units,
            "seconds": after.at - before.at,
            # Of another process, if it was started anew meanwhile.
            "cpu": after.cpu - (before.cpu if after.cpu >= before.cpu else 0.0),
            "events": after.events - (before.events if after.events >= before.events else 0.0),
            "sent": after.sent - before.sent,
            "received": after.received - before.received,
            "requests": dict(requests),
        }

    def calm(self) -> None:
        """Lets time pass."""
        time.sleep(self.scale.calm_seconds)

    def change_services(self) -> None:
        """Gives Services other external IPs, one by one."""
        admin = self.server.client()
        for number in self._paced():
            octet = 1 + self._changed % 250
            set_external_ips(admin, name(number), f"10.{octet}.{words(number)[1].split('.', 2)[2]}")

    def change_slices(self) -> None:
        """Has pods become ready and unready, one by one."""
        admin = self.server.client()
        for number in self._paced():
            pods = endpoints(number, self._changed % 10)
            admin.patch(f"{SLICES}/{slice_name(number)}", {"endpoints": pods})

    def change_nodes(self) -> None:
        """Has each node's status change, as its kubelet has it every five minutes."""
        admin, self._changed = self.server.client(), self._changed + 1
        for number in range(max(self.scale.agents)):
            condition = {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "lastHeartbeatTime": f"2026-01-01T00:{self._changed % 60:02}:00Z",
            }
            path = f"{NODES}/{self.place.node(number)[0]}/status"
            admin.patch(path, {"status": {"conditions": [condition]}})

    def _paced(self) -> Iterator[int]:
        self._changed += 1
        began = time.monotonic()
        for number in range(self.scale.changes):
            time.sleep(max(0.0, began + number / self.scale.rate - time.monotonic()))
            yield number * 7 % self.scale.services

    def until_all_follow(self, act: Callable[[], object]) -> None:
        """Does it, and waits until everybody's watches are open that then began."""
        self.began = time.time()
        act()
        if self.crowd is not None:
            wanted = self.crowd.watches
            eventually(lambda: len(self.watches()) == wanted, "all follow", 240, pause=1.0)

    def watches(self) -> list[float]:
        """When each of the open watches began."""
        return [each.at for each in self.meter.requests(self.began) if each.is_open]

    def _gets(self) -> int:
        return sum(each.what == "get endpoints" for each in self.meter.requests(self.began))

    def restart(self) -> Figures:
        """What it costs that the API server is away for a while, and who is back when."""
        self.began = time.time()

        def act() -> None:
            self.server.kill()
            time.sleep(self.scale.outage_seconds)
            self.until_all_follow(self.server.start)
            if isinstance(self.crowd, Agents):
                # A second after their watches they ask for the server's addresses.
                count = self.crowd.watches // 2
                eventually(lambda: self._gets() >= count, "all have the addresses", 60, pause=1.0)

        found: Figures = self.phase("restart", 1, act)
        came = [each.at for each in self.meter.requests(self.began)]
        found["back"] = [round(at - came[0], 2) for at in self.watches()]
        return found


@contextmanager
def _bed(scale: Scale) -> Iterator[Bed]:
    with tempfile.TemporaryDirectory() as directory:
        binaries = Path(os.environ["KUBEBUILDER_ASSETS"])
        with control_plane(binaries, Path(directory)) as plane:
            fill(plane, scale.services, whole=True)
            authority = Authority()
            both = plane.secrets / "both.crt"
            both.write_text(plane.pki.ca_pem + authority.pem)
            plane.servers[0].kill()
            with plane.another(f"--client-ca-file={both}") as server:
                server.start()
                server.client().post(_ENDPOINTS, _KUBERNETES)
                place = Place(plane, authority, server, Path(directory))
                for number in range(max(scale.agents)):
                    server.client().post(NODES, node(name=place.node(number)[0]))
                yield Bed(place, scale)


def _common(bed: Bed) -> Figures:
    """What happens to everybody."""
    scale, nodes = bed.scale, max(bed.scale.agents)
    found = {"calm": bed.phase("calm", scale.calm_seconds / 60, bed.calm, alone=True)}
    found["services"] = bed.phase("Services change", scale.changes, bed.change_services)
    found["slices"] = bed.phase("EndpointSlices change", scale.changes, bed.change_slices)
    found["nodes"] = bed.phase("Nodes change", nodes, bed.change_nodes)
    return found


def _crowd(bed: Bed, count: int, crowd: Agents | Proxies) -> Figures:
    """Everything about so many of a kind."""
    kind = type(crowd).__name__.lower()
    say(f"fleet: {count} {kind}")
    bed.crowd = crowd
    try:
        start = partial(bed.until_all_follow, crowd.start)
        found: Figures = {"count": count, "start": bed.phase("start", 1, start)}
        found.update(_common(bed))
        if isinstance(crowd, Agents):
            found["look"] = bed.phase("addresses are looked up", 1, crowd.look)
            found["look"]["units"] = found["look"]["requests"]["get endpoints"] / count
            rotate = partial(bed.until_all_follow, crowd.rotate)
            found["rotation"] = bed.phase("rotation", 1, rotate)
        found["restart"] = bed.restart()
        return found
    finally:
        crowd.stop()
        bed.crowd = None


def _renewing(bed: Bed, count: int, seconds: float, passing: float) -> Figures:
    """Watches that end all the time, as they do every few minutes.

    In between, addresses are asked for no more often than every `passing` seconds.
    """
    with (
        patch.object(follower, "_WATCH_SECONDS", _RENEWING),
        patch.object(leash, "_PASSING", passing),
    ):
        crowd = bed.crowd = Agents(bed.place, count)
        try:
            crowd.start()
            bed.meter.settle(crowd, 1.0)
            before = crowd.connections()
            found: Figures = bed.phase("watches end", 1, lambda: time.sleep(seconds), alone=True)
            found["connections"] = len(crowd.connections() - before)
        finally:
            crowd.stop()
            bed.crowd = None
    found["units"] = sum(
        found["requests"].get(f"watch {what}", 0) for what in ("services", "nodes")
    )
    return found


def measure(scale: Scale = FULL) -> Figures:
    """All of it, in one run."""
    # Each agent has two connections.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with _bed(scale) as bed:
        found: Figures = {"scale": {"services": scale.services, "outage": scale.outage_seconds}}
        bed.meter.settle(None, 1.0)
        found["nobody"] = {"count": 0, **_common(bed), "restart": bed.restart()}
        found["agents"] = [_crowd(bed, n, Agents(bed.place, n)) for n in scale.agents]
        most = max(scale.agents)
        found["renewal"] = _renewing(bed, most, 20, math.inf)
        found["passing"] = _renewing(bed, most, 20, 0.0)
        found["proxies"] = [_crowd(bed, n, Proxies(bed.place, n)) for n in scale.proxies]
    return found


def quick() -> Figures:
    """A small fleet; fails where what cannot vary is not as promised."""
    with _bed(QUICK) as bed:
        streamed = streams(bed.server.client())
        (count,) = QUICK.agents
        crowd = bed.crowd = Agents(bed.place, count)
        try:
            found: Figures = {
                "start": bed.phase("start", 1, partial(bed.until_all_follow, crowd.start)),
                "calm": bed.phase("calm", 1, bed.calm),
                "services": bed.phase("Services change", QUICK.changes, bed.change_services),
                "slices": bed.phase("EndpointSlices change", QUICK.changes, bed.change_slices),
                "restart": bed.restart(),
            }
        finally:
            crowd.stop()
        found["passing"] = passing = _renewing(bed, count, 2 * max(_RENEWING), 0.0)
    wanted = dict.fromkeys(("get endpoints", "list nodes", "watch nodes", "watch services"), count)
    if not streamed:
        # It is asked once more in each of both ways.
        wanted.update({"list services": count, "watch services": 2 * count})
    assert found["start"]["requests"] == wanted, found["start"]
    assert found["calm"]["requests"] == {}, found["calm"]
    assert found["slices"]["requests"] == {}, found["slices"]
    assert found["slices"]["sent"] < found["services"]["sent"], "EndpointSlices do not travel"
    # Each watch is open once; the addresses are asked for once, or twice if it went away again.
    after, back = found["restart"]["requests"], found["restart"]["back"]
    assert len(back) == 2 * count, back
    assert count <= after["get endpoints"] <= 2 * count, after
    # Between two watches of a Node comes one question, and all by one connection.
    asked = passing["requests"]
    assert asked["get endpoints"] >= count, passing
    assert abs(asked["get endpoints"] - asked["watch nodes"]) <= count, passing
    assert passing["connections"] == 0, passing
    return found
