"""How soon the agent undoes what others do to an nft table, beside what a bare restore takes."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from ipvs_node_agent.iptables.table import NFT
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.ruletext import Rules
from ipvs_node_agent.nat.saveformat import restore_input
from tests.bench.bed import BenchBed, Commits, bare_change, bench_bed
from tests.bench.measures import percentiles, ruleset, say
from tests.support.agentprocess import altered
from tests.support.fleet import LAYOUTS, fleet
from tests.support.tables import restore
from tests.support.waiting import eventually

# What stands behind our jump in OUTPUT, so that it can be moved.
BEHIND = "-A OUTPUT -d 192.0.2.1/32 -j RETURN"
# A fight is let rest after the fifth repair of a kind; here each of them counts.
TIRELESS = altered({"sync.repairs._PATIENCE": 1_000_000})


class Leaf(NamedTuple):
    """A chain of some Services, its rules, and the rule that jumps to it."""

    name: str
    rules: Rules
    jump: str


# What somebody does, as lines for iptables-restore.
KINDS: Mapping[str, Callable[[Leaf], str]] = {
    "a flushed chain": lambda leaf: f"-F {leaf.name}",
    "a deleted rule": lambda leaf: f"-D {leaf.name} {leaf.rules[0]}",
    "an inserted rule": lambda leaf: f"-I {leaf.name} 1 -d 192.0.2.1/32 -j RETURN",
    "a lost jump": lambda leaf: "-D OUTPUT -j IPVS_OUTPUT",
    "a moved jump": lambda leaf: "-D OUTPUT -j IPVS_OUTPUT\n-A OUTPUT -j IPVS_OUTPUT",
    "a deleted chain": lambda leaf: f"-D {leaf.jump}\n-F {leaf.name}\n-X {leaf.name}",
}


@dataclass
class Meddler:
    """Somebody who changes the table of a node where the agent runs, and looks at the clock."""

    bed: BenchBed

    def __post_init__(self) -> None:
        self._write(BEHIND)
        chains = ruleset(self.bed.services, IPV4).chains
        self.leaves = [
            Leaf(name, chains[name], f"{parent} {rule}")
            for parent, rules in chains.items()
            for rule in rules
            if (name := rule.rpartition(" -j ")[2]).startswith("IPVS_OUTPUT-")
            and not any("-j IPVS_OUTPUT-" in each for each in chains[name])
        ]
        self._commits = Commits(self.bed.namespace)

    def _write(self, text: str) -> None:
        restore(self.bed.namespace, IPV4, NFT, f"*nat\n{text}\nCOMMIT\n")

    def milliseconds(self, lines: str) -> float:
        """From the write of these to the one that undoes it."""
        began = time.monotonic()
        self._write(lines)
        theirs, ours = self._commits.wait(began, 2)
        return (ours - theirs) * 1000

    def flush(self) -> float:
        """From the loss of all rules and chains to their return."""
        began = time.monotonic()
        self.bed.namespace.run("nft", "flush", "table", "ip", "nat")
        (lost,) = self._commits.wait(began, 1)
        eventually(self._is_hooked, "a jump", 60, 0.005)
        # So many changes may be more than the kernel can tell the clock of.
        return (time.monotonic() - lost) * 1000

    def _is_hooked(self) -> bool:
        there = self.bed.namespace.run("iptables-nft", "-t", "nat", "-S", "OUTPUT")
        return "-j IPVS_OUTPUT" in there


def measure(count: int, times: int = 50, pause: float = 3.0) -> dict[str, Any]:
    """Milliseconds from the last foreign write to the agent's, by kind, with `count` Services.

    `pause` are the seconds after which a look at a large write of the agent's is over.
    """
    say(f"drift: {count} Services, {times} of each kind")
    with bench_bed(NFT, fleet(LAYOUTS["one dense pool"], count)) as bed:
        bed.agent.program = TIRELESS
        bed.start()
        time.sleep(pause)
        meddler, chance = Meddler(bed), random.Random(count)
        took: dict[str, list[float]] = {kind: [] for kind in KINDS}
        bare = []
        for number in range(times):
            for kind, made in KINDS.items():
                took[kind].append(meddler.milliseconds(made(chance.choice(meddler.leaves))))
                time.sleep(0.1)
            bare.append(bare_change(bed.namespace, NFT, number))
            time.sleep(0.1)
        flushed, restored = meddler.flush(), 0.0
        bed.agent.stop()
        bed.namespace.run("nft", "flush", "table", "ip", "nat")
        for part in difference(Found(), ruleset(bed.services, IPV4)).parts():
            text, began = restore_input(part), time.monotonic()
            restore(bed.namespace, IPV4, NFT, text)
            restored += (time.monotonic() - began) * 1000
    return {
        "services": count,
        "times": times,
        "ms": {kind: percentiles(values) for kind, values in took.items()},
        "bare_change_ms": percentiles(bare),
        "flush_ms": flushed,
        "bare_restore_ms": restored,
    }
