"""What can happen to the mind of an agent, as plain steps, and histories of them.

Each seed leaves some kinds of steps out and has others often, as faults that need a run of one kind
would drown in an even mixture ("swarm testing", Groce and others, 2012).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Callable

from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from ipvs_node_agent.model.events import NODES as THE_NODE
from ipvs_node_agent.model.events import SERVICES
from tests.simulation.filters import MEDDLING as IN_FILTER
from tests.simulation.objects import CONFIGS, MEDDLING, NODES, PODS, Put
from tests.simulation.search import Step, step

NAMES = tuple("abcdefgh")
# Neighbours, so that chains of few Services have to be told apart by the last bits, and far ones.
IPS = (
    *("10.19.0.1", "10.19.0.2", "10.19.0.3", "10.19.0.4", "10.19.0.5", "10.19.0.6"),
    *("10.19.20.1", "172.30.0.1", "11.1.1.1"),
)
IPS_6 = ("fd00:19::1", "fd00:19::2", "fd00:19:1::1")
# Loopback, the Node's own, a pod's, a Service's ClusterIP, and nothing at all.
ODD_IPS = ("127.0.0.1", "192.168.7.11", "10.240.2.130", "10.231.0.2", "no address")
CLUSTER_IPS = tuple(f"10.231.0.{number}" for number in range(1, 9))
RANGES = ("10.240.2.128/26", "192.168.0.0/16", "203.0.113.0/24")
MODES = (None, "ipvs", "iptables", "nftables")
FAULTS = {"locked": 4, "hangs": 1, "busy": 4, "late": 2}
MOMENTS = ("", "", "", "before save", "after save", "before restore", "after restore")
CHAINS = ("IPVS_PREROUTING", "IPVS_OUTPUT", "IPVS_MARK_MASQ", "IPVS_POSTROUTING", "#0", "#3", "#7")
# See `table.Telling`.
TELLING = {"told": 84, "missed": 10, "unseen": 6}
PAUSES = (0.0, 0.01, 0.03, 0.071, 0.2, 0.5, 1.0, 2.1, 5.0, 12.0, 70.0, 310.0)


def history(seed: int) -> list[Step]:
    """The steps that `seed` stands for: calls of `World`'s methods."""
    chance = random.Random(seed)
    choice = chance.choice
    # With few addresses Services share them.
    pool = chance.sample(IPS, choice((1, 3, len(IPS), len(IPS))))

    def often(share: float = 0.8) -> bool:
        return chance.random() < share

    kinds: list[tuple[Callable[[], Step], float]] = [
        (lambda: step("put", _put(chance, pool), often()), 8.0),
        (lambda: step("delete", choice(NAMES), often()), 2.0),
        (lambda: step("swap", *chance.sample(NAMES, 2), choice(_SWAPPED), often()), 1.0),
        (lambda: step("node_becomes", choice(tuple(NODES)), often()), 1.0),
        (lambda: step("deliver", choice((1, 1, 2, 50))), 2.0),
        (lambda: step("list_anew", choice((SERVICES, SERVICES, THE_NODE))), 0.5),
        (lambda: _others(chance), 4.0),
        (lambda: _others_alone(chance, pool), 1.0),
        (lambda: _others_in_filter(chance), 1.0),
        (lambda: step("lose", choice((IPV4, *FAMILIES)), often(0.2)), 0.5),
        (lambda: step("refuse", choice(pool), often(0.5)), 1.0),
        (lambda: step("accept"), 0.5),
        (lambda: _fail(chance), 1.0),
        (lambda: step("reload", choice((*CONFIGS, "drop invalid"))), 1.0),
        (
            lambda: step("kernel_has", chance.sample((*pool, "192.168.7.11"), choice((0, 1, 1)))),
            1.0,
        ),
        (lambda: step("api_is_at", chance.sample(pool, 1), choice((80, 443, 6443)), often()), 0.5),
        (lambda: step("pods_are", choice(tuple(PODS))), 0.5),
        (lambda: step("kernel_lacks", *choice(((), (6,)))), 0.2),
        (lambda: step("proxy_becomes", choice(MODES)), 0.5),
        (lambda: step("trouble", choice((SERVICES, THE_NODE)), often(0.5)), 0.3),
        (lambda: _pass(chance), 12.0),
        (lambda: step("calm"), 0.5),
    ]
    # In some worlds a few kinds happen, and in some nothing but what Services do.
    factors = choice(((0.0, 1.0, 1.0, 4.0), (0.0, 0.0, 0.0, 1.0), (0.0,)))
    weights = [weight * choice(factors) for _, weight in kinds]
    # Something has to be there, and time has to pass.
    weights[0], weights[-2] = max(weights[0], 6.0), max(weights[-2], 2.0)
    makers = chance.choices([make for make, _ in kinds], weights, k=chance.randint(5, 60))
    begin = [step("backend", often(0.7))]
    begin += [step("kernel_has", ["192.168.7.11"])] if often(0.9) else []
    begin += [step("api_is_at", [], 6443, True)] if often(0.9) else []
    drift = _drift(chance, pool) if often(0.3) else ()
    # Whatever else happens shows what was left out before.
    last = _in_silence(chance) if often(0.3) else ()
    return [*begin, *(make() for make in makers), *drift, *last]


def _drift(chance: random.Random, pool: Sequence[str]) -> list[Step]:
    """Others who change what has been there for a while, which most worlds never get to."""
    told = [step("list_anew", each) for each in (SERVICES, THE_NODE)]
    steps = [step("node_becomes", "plain", True), *told, step("proxy_becomes", None)]
    steps += [step("put", _put(chance, pool), True) for _ in range(chance.choice((2, 5)))]
    kinds = (_others_alone, _overtaken)
    return [*steps, *(chance.choice(kinds)(chance, pool) for _ in range(8))]


def _in_silence(chance: random.Random) -> list[Step]:
    """Others change a table, nobody is told, and then nothing happens any more."""
    told, family = chance.choice(("missed", "missed", "unseen")), chance.choice(FAMILIES)
    in_nat = step("others", chance.choice(tuple(MEDDLING)), family, chance.choice(CHAINS), told, "")
    in_filter = step("others_in_filter", chance.choice(tuple(IN_FILTER)), family, told, "")
    begin = [step("list_anew", each) for each in (SERVICES, THE_NODE)]
    last = in_nat
    if chance.random() < 0.3:
        begin, last = [*begin, step("reload", "drop invalid")], in_filter
    return [*begin, step("deliver", 50), step("let_pass", 310.0, "due"), last]


_SWAPPED = ("load_balancer_ips", "cluster_ips")


def _put(chance: random.Random, pool: Sequence[str]) -> Put:
    odd = chance.random()
    ips = chance.sample(pool, min(len(pool), chance.choice((1, 1, 2, 3))))
    if odd < 0.1:
        ips.append(chance.choice(ODD_IPS))
    if odd > 0.7:
        ips.append(chance.choice(IPS_6))
    if odd > 0.95:
        ips = []
    seldom = chance.random()
    return Put(
        chance.choice(NAMES),
        tuple(ips),
        chance.choice(CLUSTER_IPS),
        tuple(sorted(chance.sample((53, 80, 81, 443, 8080), chance.choice((1, 1, 2, 4))))),
        chance.choice(("TCP", "TCP", "UDP")),
        tuple(chance.sample(pool, 1)) if seldom < 0.2 else (),
        tuple(chance.sample(RANGES, chance.randint(1, 2))) if 0.2 < seldom < 0.3 else (),
        ignored=0.3 < seldom < 0.4,
        local=not 0.4 < seldom < 0.5,
        created=chance.randint(1, 3),
    )


def _others(chance: random.Random) -> Step:
    what = chance.choice(tuple(MEDDLING))
    if what.startswith("native") and chance.random() < 0.7:
        what = chance.choice(("empty mark", "fill mark"))
    family = chance.choice((IPV4, IPV4, *FAMILIES))
    chain, moment = chance.choice(CHAINS), chance.choice(MOMENTS)
    return step("others", what, family, chain, _told(chance), moment)


def _told(chance: random.Random) -> str:
    return chance.choices(tuple(TELLING), tuple(TELLING.values()))[0]


def _others_alone(chance: random.Random, pool: Sequence[str]) -> Step:
    what, family = chance.choice(tuple(MEDDLING)), chance.choice((IPV4, *FAMILIES))
    times, put = chance.choice((0, 1, 1, 8)), _put(chance, pool)
    moment = chance.choice(MOMENTS[-3:])
    return step("others_alone", what, family, chance.choice(CHAINS), times, put, moment)


def _overtaken(chance: random.Random, pool: Sequence[str]) -> Step:
    """Rules have other places than they had, just before the agent's next write."""
    what, chain = chance.choice(("insert rule", "delete rule")), chance.choice(CHAINS[:2])
    return step("others_alone", what, IPV4, chain, 0, _put(chance, pool), "before restore")


def _others_in_filter(chance: random.Random) -> Step:
    what, family = chance.choice(tuple(IN_FILTER)), chance.choice((IPV4, *FAMILIES))
    return step("others_in_filter", what, family, _told(chance), chance.choice(MOMENTS))


def _fail(chance: random.Random) -> Step:
    count = chance.choice((1, 1, 2, 5))
    faults = chance.choices(tuple(FAULTS), tuple(FAULTS.values()), k=count)
    return step("fail", chance.choice((IPV4, *FAMILIES)), faults, chance.random() < 0.2)


def _pass(chance: random.Random) -> Step:
    seconds = chance.choice(PAUSES)
    ticks = chance.choice(("due", "due", "one", "none"))
    return step("let_pass", seconds, "one" if ticks == "due" and seconds > 70 else ticks)
