"""The agent beside kube-proxy: the same Services, on the same machine, in one run."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Callable, NamedTuple

from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.iptables import legacytable
from ipvs_node_agent.iptables.table import BACKENDS, LEGACY, NFT
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.model.objects import Service, Snapshot
from ipvs_node_agent.nat.chains import NAT
from ipvs_node_agent.rules.planner import plan
from tests.bench.bed import BenchBed, Commits, bench_bed
from tests.bench.connections import restore_all
from tests.bench.measures import POOL, REPAIR_LIMIT, Figures, Scale, percentiles, say
from tests.bench.processes import idle, memory
from tests.bench.rival import MODES, KubeProxy, binary, kube_proxy, seen_by_all, udp
from tests.bench.wire import cost, pinned, wire
from tests.bench.work import change_once
from tests.support.apiserver import ApiServer
from tests.support.fleet import NODE, fleet
from tests.support.tables import add_mark_masq
from tests.support.topology import Topology
from tests.support.waiting import eventually

_UDP_PORT = 80
# kube-proxy collects changes for a second.
_MIN_SYNC = 1.0


class Rival(NamedTuple):
    """A kube-proxy on a node of its own."""

    proxy: KubeProxy
    api: ApiServer
    wired: Topology
    commits: Commits
    services: dict[str, Service]


# Begins something, and gives what waits for its end.
Begin = Callable[[], Callable[[], object]]


def beside(scale: Scale, meanwhile: Begin = lambda: lambda: None) -> Figures:
    """Each of them with as many Services; kube-proxy where its program is at hand.

    `meanwhile` goes on during kube-proxy's repairs, of which most is waiting.
    """
    services = udp(fleet(POOL[IPV4], scale.services).values())
    modes = MODES if binary() else ()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found: dict[str, Figures] = {}
        beds = {
            f"agent, {backend}": stack.enter_context(bench_bed(backend, services, seen_by_all))
            for backend in BACKENDS
        }
        for name, bed in beds.items():
            say(f"beside: {name}: start")
            found[name] = {"start_seconds": bed.start(timeout=180)}
            time.sleep(scale.pause)
            # Not beside another one that shares pages with it.
            found[name]["memory_mib"] = memory(bed.agent.pid)
            bed.agent.stop()
        for bed in beds.values():
            bed.start(timeout=180)
        rivals = {
            f"kube-proxy, {mode}": stack.enter_context(_rival(mode, services, folder / mode))
            for mode in modes
        }
        for name, rival in rivals.items():
            say(f"beside: {name}: start")
            found[name] = {"start_seconds": rival.proxy.start(timeout=900)}
            found[name]["memory_mib"] = memory(rival.proxy.pid)
        say(f"beside: all idle for {scale.idle_seconds} s")
        time.sleep(scale.pause)
        resting = {name: bed.agent.pid for name, bed in beds.items()}
        resting.update({name: rival.proxy.pid for name, rival in rivals.items()})
        for name, rested in idle(resting, scale.idle_seconds).items():
            found[name]["idle"] = rested
        for name, bed in beds.items():
            say(f"beside: {name}: changes and repairs")
            found[name].update(_agent_at_work(bed, scale))
        for name, rival in rivals.items():
            say(f"beside: {name}: changes")
            found[name].update(_rival_at_work(rival, scale))
        if scale.rival_repairs and rivals:
            ended = meanwhile()
            say(f"beside: kube-proxy: repairs, at once, {REPAIR_LIMIT:.0f} s at most")
            with ThreadPoolExecutor(len(rivals)) as threads:
                repaired = threads.map(_rival_repairs, rivals.values())
            for name, seconds in zip(rivals, repaired):
                found[name]["repair_seconds"] = seconds
            ended()
        wires = {name: rival.wired for name, rival in rivals.items()}
        connected = _connections(scale, services, wires)
    return {"services": scale.services, "found": found, "connections": connected}


@contextmanager
def _rival(mode: str, services: dict[str, Service], folder: Path) -> Iterator[Rival]:
    with wire() as wired, kube_proxy(wired.node, mode, services, folder) as (proxy, api):
        yield Rival(proxy, api, wired, Commits(wired.node), dict(services))


def _agent_at_work(bed: BenchBed, scale: Scale) -> Figures:
    chance = random.Random(5)
    commits = Commits(bed.namespace) if bed.backend == NFT else None
    times = []
    for _ in range(scale.changes):
        time.sleep(0.2)
        times.append(change_once(bed, _moved(bed.services, chance), commits))
    faults = {
        "a flushed chain": ("IPVS_PREROUTING", "-F IPVS_PREROUTING"),
        "a lost jump": ("PREROUTING", "-D PREROUTING -j IPVS_PREROUTING"),
    }
    return {
        "change_ms": percentiles(times),
        "repair_seconds": {
            name: max(_agent_repairs(bed, *fault) for _ in range(scale.repairs))
            for name, fault in faults.items()
        },
    }


def _agent_repairs(bed: BenchBed, chain: str, fault: str) -> float:
    """Seconds until `chain` is as it was; on legacy, until its table has that size again.

    A command of legacy's that lists the chain would keep the agent from looking and writing.
    """
    command = f"iptables-{bed.backend} -w 5 -t nat"

    def shown() -> str:
        return bed.namespace.run(*f"{command} -S {chain}".split())

    time.sleep(1.0)
    before, table = shown(), legacytable.Seen(IPV4.version, NAT)
    with bed.namespace.enter():
        if bed.backend == LEGACY:
            table.glance()

        def mended() -> bool:
            if bed.backend == LEGACY:
                return table.is_same(closely=False) is not False
            return shown() == before

        bed.namespace.run(*f"{command} {fault}".split())
        began = time.monotonic()
        eventually(mended, "a repair", 60.0, pause=0.005)
        took = time.monotonic() - began
    assert shown() == before, chain
    return took


def _moved(services: dict[str, Service], chance: random.Random) -> Service:
    """One of `services` with another ClusterIP."""
    old = services[chance.choice(sorted(services))]
    return old._replace(cluster_ips=(old.cluster_ips[0] + 60_000,))


def _rival_at_work(rival: Rival, scale: Scale) -> Figures:
    """kube-proxy's changes; of an endpoint it would hear in the same way."""
    chance, times = random.Random(5), []
    for _ in range(scale.rival_changes):
        # It would wait for its own pace, else.
        time.sleep(_MIN_SYNC + 0.2)
        new = _moved(rival.services, chance)
        rival.services[new.key] = new
        began = time.monotonic()
        rival.api.put(seen_by_all(new))
        times.append((rival.commits.last_after(began, 0.7) - began) * 1000)
    return {"change_ms": percentiles(times)}


def _rival_repairs(rival: Rival) -> dict[str, float]:
    """Seconds until each of two faults is mended; -1 where that takes longer than we wait."""
    node = rival.wired.node
    if rival.proxy.mode == "nftables":
        shown, breaking = "nft list chain ip kube-proxy {}", "nft flush chain ip kube-proxy {}"
        chains = {"a flushed chain": "services", "a lost jump": "nat-prerouting"}
    else:
        shown, breaking = "iptables -t nat -S {}", "iptables -t nat -F {}"
        chains = {"a flushed chain": "KUBE-MARK-MASQ", "a lost jump": "PREROUTING"}
    for chain in chains.values():
        node.run(*breaking.format(chain).split())
    began = time.monotonic()
    found = dict.fromkeys(chains, -1.0)

    def mended() -> bool:
        for name, chain in chains.items():
            text = node.run(*shown.format(chain).split())
            if found[name] < 0 and any(word in text for word in ("jump", "vmap", "-A")):
                found[name] = time.monotonic() - began
        return min(found.values()) >= 0

    with suppress(AssertionError):
        eventually(mended, "repairs", REPAIR_LIMIT, pause=0.5)
    return found


def _connections(
    scale: Scale, services: dict[str, Service], rivals: dict[str, Topology]
) -> Figures:
    """Microseconds of a new connection to a Service's port: none, kube-proxy, ours, in turns."""
    say("beside: connections")
    addresses = sorted(service.load_balancer_ips[0] for service in services.values())
    target = str(addresses[-1])
    with ExitStack() as stack:
        wires = {"no rules": stack.enter_context(wire()), **rivals}
        for backend in BACKENDS:
            for masquerade in ("HostOnly", "All"):
                wired = stack.enter_context(wire())
                config = replace(DEFAULTS, masquerade=masquerade)
                add_mark_masq(wired.node, IPV4, backend)
                wanted = plan(config, Snapshot(services, NODE), IPV4).ruleset
                restore_all(wired.node, IPV4, backend, wanted)
                wires[f"agent, {backend}, {masquerade}"] = wired
        times: dict[str, list[float]] = {name: [] for name in wires}
        with pinned():
            for _ in range(scale.rounds):
                for name, wired in wires.items():
                    number = scale.connections // (10 if "iptables" in name else 1)
                    times[name].append(cost(wired, target, number, _UDP_PORT))
    return {
        name: {"least": min(values), "median": sorted(values)[len(values) // 2]}
        for name, values in times.items()
    }
