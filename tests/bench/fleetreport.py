"""The section of docs/benchmarks.md about a fleet, from the figures that `fleet` printed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from ipvs_node_agent.apiserver import follower
from tests.bench.measures import Figures
from tests.bench.report import DOCS, axes_of, replaced, save, table

NODES, HOUR = 5_000, 3_600
# Of a cluster of that size: a Service every ten seconds, and a Node's status every five minutes.
SERVICE_CHANGES, NODE_CHANGES = 360, 12
# How many changes of EndpointSlices come with one of a Service; the first are both ends.
RATIOS = (0, 1, 20)


class Cost(NamedTuple):
    """What something costs the API server for one node, in processor seconds and bytes."""

    cpu: float
    bytes: float

    def times(self, number: float) -> Cost:
        """So many of it."""
        return Cost(self.cpu * number, self.bytes * number)


def total(costs: Sequence[Cost]) -> Cost:
    """All of it."""
    return Cost(sum(cost.cpu for cost in costs), sum(cost.bytes for cost in costs))


class Kind:
    """What is known of the agents or the kube-proxies."""

    def __init__(self, figures: Figures, name: str, watches: int, follows_slices: bool) -> None:
        self._figures, self.crowds = figures, figures[name]
        self.largest: Figures = self.crowds[-1]
        self.watches, self.follows_slices = watches, follows_slices

    def cost(self, what: str, crowd: Figures | None = None) -> Cost:
        """One time of it: what it took beyond an idle API server, and beyond doing it for nobody.

        Without a certain crowd, it is what the largest tells.
        """
        crowd = crowd or self.largest
        nobody = self._figures["nobody"]
        before = _one(nobody, what) if what in nobody else Cost(0.0, 0.0)
        with_them = _one(crowd, what)
        number = crowd["count"]
        # Less than nothing is what the clock of the processor does not tell apart.
        return Cost(max(0.0, with_them.cpu - before.cpu) / number, with_them.bytes / number)

    def requests(self, what: str) -> float:
        """How many requests come of it from each."""
        requests: dict[str, int] = self.largest[what]["requests"]
        return float(sum(requests.values()) / self.largest["count"])

    def hour(self, ratio: float) -> Cost:
        """An hour in which so many EndpointSlices change for each Service."""
        changes = self.cost("services").times(SERVICE_CHANGES)
        slices = self.cost("slices").times(SERVICE_CHANGES * ratio if self.follows_slices else 0)
        # Each reaches one node alone, and is measured as if it reached all of them.
        nodes = self.cost("nodes").times(NODE_CHANGES * self.largest["nodes"]["units"])
        # A bookmark a minute in each watch, which is no more than a small event.
        bookmark = Cost(self.cost("services").cpu, self.cost("calm").bytes / self.watches)
        bookmarks = bookmark.times(self.watches * HOUR / 60)
        ended = self.watches * HOUR / _mean(follower._WATCH_SECONDS)
        # An agent asks for addresses in passing, each time that its Node's watch has ended.
        renewals = renewal(self._figures, "passing" if "look" in self.largest else "renewal")
        return total([changes, slices, nodes, bookmarks, renewals.times(ended)])


def _one(crowd: Figures, what: str) -> Cost:
    """One time of something, beyond what the idle API server takes in that time."""
    phase, calm = crowd[what], crowd["calm"]
    idle = 0.0 if what == "calm" else calm["cpu"] / calm["seconds"] * phase["seconds"]
    sent = phase["sent"] + phase["received"]
    return Cost((phase["cpu"] - idle) / phase["units"], sent / phase["units"])


def _mean(ends: tuple[float, float]) -> float:
    return sum(ends) / 2


def renewal(figures: Figures, how: str = "renewal") -> Cost:
    """A watch that ends in time and is opened again by the same connection.

    With "passing", half of them have a question for addresses in between.
    """
    return _one({how: figures[how], "calm": figures["nobody"]["calm"]}, how)


def report(figures: Figures) -> None:
    """Writes the section anew, and draws its picture."""
    agents, proxies = Kind(figures, "agents", 2, False), Kind(figures, "proxies", 4, True)
    _plot(agents, proxies)
    scale = figures["scale"]
    text = (Path(__file__).with_name("fleet.md").read_text()).format(
        date=date.today().isoformat(),
        services=scale["services"],
        outage=round(scale["outage"]),
        changes=SERVICE_CHANGES,
        node_changes=NODE_CHANGES,
        agents=_numbers(agents),
        proxies=_numbers(proxies),
        third=f"{_third(agents, proxies):.1f}",
        single=_single(figures, agents, proxies),
        hours=_hours(agents, proxies),
        back=_back(agents, proxies),
    )
    path = DOCS / "benchmarks.md"
    path.write_text(replaced(path.read_text(), text))
    print(text)


def _numbers(kind: Kind) -> str:
    *some, last = [str(crowd["count"]) for crowd in kind.crowds]
    return f"{', '.join(some)} and {last}" if some else last


def _third(agents: Kind, proxies: Kind) -> float:
    """From how many changes of EndpointSlices to one of a Service on it is a third."""
    missing = 3 * agents.hour(0).cpu - proxies.hour(0).cpu
    return max(0.0, missing / (proxies.hour(1).cpu - proxies.hour(0).cpu))


def _single(figures: Figures, agents: Kind, proxies: Kind) -> str:
    rows = []
    for what, words in (
        ("start", "start, all at once"),
        ("services", "a Service changes"),
        ("slices", "an EndpointSlice changes"),
        ("restart", "the API server comes back"),
    ):
        kinds = [kind for kind in (agents, proxies) if what != "slices" or kind.follows_slices]
        cells = [_cell(kind.cost(what)) for kind in kinds]
        linear = [
            " / ".join(f"{kind.cost(what, crowd).cpu * 1000:.2f}" for crowd in kind.crowds)
            for kind in kinds
        ]
        both = ["nothing | "] * (2 - len(kinds)) + [" | ".join(each) for each in zip(cells, linear)]
        rows.append(" | ".join((words, *both, _ratio(agents, proxies, what))))
    ours = {
        "a watch ends and is opened again": renewal(figures),
        "the same, with a question in passing at every other one": renewal(figures, "passing"),
        "addresses are asked for by a connection of its own": agents.cost("look"),
        "another certificate": agents.cost("rotation"),
    }
    rows += [f"{words} | {_cell(cost)} | | | | " for words, cost in ours.items()]
    head = "what | agent | ms by number | kube-proxy | ms by number | agent to kube-proxy"
    return table(head, rows)


def _ratio(agents: Kind, proxies: Kind, what: str) -> str:
    """How the agent's cost compares, in processor time and bytes."""
    ours, theirs = agents.cost(what), proxies.cost(what)
    if what == "slices":
        return ""
    return f"{ours.cpu / theirs.cpu:.2f}, {ours.bytes / theirs.bytes:.2f}"


def _cell(cost: Cost) -> str:
    size = f"{cost.bytes / 1e6:.2f} MB" if cost.bytes >= 1e6 else f"{cost.bytes / 1e3:.1f} kB"
    return f"{cost.cpu * 1000:.2f} ms, {size}"


def _hours(agents: Kind, proxies: Kind) -> str:
    rows = []
    for ratio in RATIOS:
        ours, theirs = (kind.hour(ratio) for kind in (agents, proxies))
        cells = [
            f"{cost.cpu * NODES / HOUR:.2f} cores, {cost.bytes * NODES / 1e9:.1f} GB"
            for cost in (ours, theirs)
        ]
        shares = f"{ours.cpu / theirs.cpu:.2f} | {ours.bytes / theirs.bytes:.2f}"
        rows.append(f"{ratio} | {cells[0]} | {cells[1]} | {shares}")
    return table("EndpointSlices to a Service | agents | kube-proxies | processor | bytes", rows)


def _back(agents: Kind, proxies: Kind) -> str:
    rows = []
    for name, kind in (("agents", agents), ("kube-proxies", proxies)):
        back = kind.largest["restart"]["back"]
        each = [
            sum(second <= at < second + 1 for at in back) for second in range(int(back[-1]) + 1)
        ]
        most = max(each) / len(back) * NODES * kind.watches
        rows.append(
            f"{name} | {kind.requests('start'):.1f} | {kind.requests('restart'):.1f}"
            f" | {back[len(back) // 2]:.1f} and {back[-1]:.1f} s | {most:.0f}"
        )
    head = (
        "who | requests of each at the start | after the restart | half and all watches open after"
    )
    return table(f"{head} | most in a second, of {NODES}", rows)


def _plot(agents: Kind, proxies: Kind) -> None:
    horizontal = "EndpointSlices that change for each Service that does"
    title = "What the agents of a fleet cost the API server, and what its kube-proxies do"
    figure, axes = axes_of(title, horizontal, f"cores of the API server for {NODES:,} nodes")
    ratios = [0.1 * 1.3**step for step in range(27)]
    for kind, label, colour in (
        (proxies, "kube-proxies", "#d95f02"),
        (agents, "agents", "#1f77b4"),
    ):
        cores = [kind.hour(ratio).cpu * NODES / HOUR for ratio in ratios]
        axes.plot(ratios, cores, color=colour, label=label)
    third = [proxies.hour(ratio).cpu * NODES / HOUR / 3 for ratio in ratios]
    axes.plot(ratios, third, ":", color="#d95f02", label="a third of the kube-proxies'")
    save(figure, axes, "fleet.svg")
