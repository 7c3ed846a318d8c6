"""What can happen to the mind of an agent, as plain steps, and histories of them.

Each seed leaves some kinds of steps out and has others often, as faults that need a run of one kind
would drown in an even mixture ("swarm testing", Groce and others, 2012).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Union

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
NODES = (
    *("plain", "other CIDR", "one family", "other address", "IPv4 alone", "no CIDRs"),
    *("no addresses", "gone"),
)
CONFIGS = (
    *("plain", "HostOnly", "by port", "external IPs", "Local only", "CIDR by hand"),
    *("other names", "other mark", "short chains", "long chains", "allowed few"),
)
MODES = (None, "ipvs", "iptables", "nftables")
FAULTS = ("locked", "hangs", "busy", "late")
MOMENTS = ("", "", "", "before save", "after save", "before restore", "after restore")
CHAINS = ("IPVS_PREROUTING", "IPVS_OUTPUT", "IPVS_MARK_MASQ", "IPVS_POSTROUTING")
BUILT_IN = ("PREROUTING", "OUTPUT", "POSTROUTING")


class Backend(NamedTuple):
    """First of all: whether the kernel tells of others' changes, as nft's does."""

    tells: bool


class Put(NamedTuple):
    """A Service comes or changes at the API server; `told` says whether the agent hears at once."""

    name: str
    ips: tuple[str, ...]
    cluster_ip: str
    ports: tuple[int, ...] = (80,)
    protocol: str = "TCP"
    external_ips: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    ignored: bool = False
    local: bool = True
    created: int = 1
    told: bool = True


class Delete(NamedTuple):
    """A Service goes."""

    name: str
    told: bool = True


class Swap(NamedTuple):
    """Two Services swap their external IPs, or their ClusterIPs."""

    one: str
    other: str
    what: str
    told: bool = True


class NodeBecomes(NamedTuple):
    """The Node is another one, or gone."""

    what: str
    told: bool = True


class Deliver(NamedTuple):
    """The agent hears of so many changes that it had not heard of."""

    events: int


class List(NamedTuple):
    """The agent is told everything anew."""

    resource: str


class Others(NamedTuple):
    """Somebody else changes a table, in the midst of the agent's next call if there is a moment."""

    what: str
    family: int
    chain: str
    told: bool = True
    moment: str = ""


class Refuse(NamedTuple):
    """The kernel refuses all rules for an address from now on, and says or does not say which."""

    ip: str
    names_it: bool


class Accept(NamedTuple):
    """The kernel refuses nothing any more."""


class Fail(NamedTuple):
    """The next commands fail."""

    family: int
    faults: tuple[str, ...]


class Reload(NamedTuple):
    """The configuration becomes another one."""

    config: str


class Mode(NamedTuple):
    """kube-proxy tells its mode."""

    mode: str | None


class Trouble(NamedTuple):
    """A resource cannot be followed, or can again."""

    resource: str
    over: bool


class Pass(NamedTuple):
    """Time passes, with as many ticks as are asked for, or with one at its end, or without."""

    seconds: float
    ticks: str


class Calm(NamedTuple):
    """The agent hears of everything, and time passes in which nothing happens."""


Step = Union[
    Backend,
    Put,
    Delete,
    Swap,
    NodeBecomes,
    Deliver,
    List,
    Others,
    Refuse,
    Accept,
    Fail,
    Reload,
    Mode,
    Trouble,
    Pass,
    Calm,
]

OTHERS = (
    *("flush table", "flush chain", "delete chain", "delete jump", "double jump", "push back"),
    *("append rule", "stray chain", "refer", "empty mark", "fill mark", "remove mark", "rename"),
    *("native on", "native off", "foreign chain"),
)


def history(seed: int) -> list[Step]:
    """The steps that `seed` stands for."""
    chance = random.Random(seed)
    # With few addresses Services share them.
    pool = chance.sample(IPS, chance.choice((1, 3, len(IPS), len(IPS))))
    kinds: Sequence[tuple[Callable[[random.Random], Step], float]] = [
        (lambda c: _put(c, pool), 8.0),
        (_delete, 2.0),
        (_swap, 1.0),
        (_node, 1.0),
        (lambda c: Deliver(c.choice((1, 1, 2, 50))), 2.0),
        (lambda c: List(c.choice(("services", "services", "nodes"))), 0.5),
        (_others, 4.0),
        (lambda c: Refuse(c.choice(pool), c.random() < 0.5), 1.0),
        (lambda _: Accept(), 0.5),
        (_fail, 1.0),
        (lambda c: Reload(c.choice(CONFIGS)), 1.0),
        (lambda c: Mode(c.choice(MODES)), 0.5),
        (lambda c: Trouble(c.choice(("services", "nodes")), c.random() < 0.5), 0.3),
        (_pass, 12.0),
        (lambda _: Calm(), 0.5),
    ]
    # In some worlds a few kinds happen, and in some nothing but what Services do.
    often = chance.choice(((0.0, 1.0, 1.0, 4.0), (0.0, 0.0, 0.0, 1.0), (0.0,)))
    weights = [weight * chance.choice(often) for _, weight in kinds]
    # Something has to be there, and time has to pass.
    weights[0], weights[-2] = max(weights[0], 6.0), max(weights[-2], 2.0)
    makers = chance.choices([make for make, _ in kinds], weights, k=chance.randint(5, 60))
    return [Backend(chance.random() < 0.7), *(make(chance) for make in makers)]


def _put(chance: random.Random, pool: Sequence[str]) -> Step:
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
        told=chance.random() < 0.8,
    )


def _delete(chance: random.Random) -> Step:
    return Delete(chance.choice(NAMES), chance.random() < 0.8)


def _swap(chance: random.Random) -> Step:
    one, other = chance.sample(NAMES, 2)
    return Swap(one, other, chance.choice(("ips", "cluster_ip")), chance.random() < 0.8)


def _node(chance: random.Random) -> Step:
    return NodeBecomes(chance.choice(NODES), chance.random() < 0.8)


def _others(chance: random.Random) -> Step:
    what = chance.choice(OTHERS)
    if what.startswith("native") and chance.random() < 0.7:
        what = chance.choice(("empty mark", "fill mark"))
    return Others(
        what,
        chance.choice((4, 4, 4, 6)),
        chance.choice((*CHAINS, "#0", "#3", "#7")),
        chance.random() < 0.9,
        chance.choice(MOMENTS),
    )


def _fail(chance: random.Random) -> Step:
    faults = chance.choices(FAULTS, (4, 1, 4, 2), k=chance.choice((1, 1, 2, 5)))
    return Fail(chance.choice((4, 4, 6)), tuple(faults))


def _pass(chance: random.Random) -> Step:
    seconds = chance.choice((0.0, 0.01, 0.03, 0.071, 0.2, 0.5, 1.0, 2.1, 5.0, 12.0, 70.0, 310.0))
    ticks = chance.choice(("due", "due", "one", "none"))
    return Pass(seconds, "one" if ticks == "due" and seconds > 5 else ticks)
