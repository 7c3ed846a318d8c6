"""What the agent is at one moment: values that other threads may read.

The main loop makes a new `Published` each time it goes round, and where a command takes long, and
puts it in the place of the last one; whoever serves metrics and health reads that, and touches
nothing else. All times are monotonic, as in the agent; `math.inf` and `-math.inf` stand for never.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ipvs_node_agent.config.settings import Chains
from ipvs_node_agent.model.addresses import Address, Family
from ipvs_node_agent.model.objects import Problem, Service, UncoveredPod
from ipvs_node_agent.rules.coverage import Coverage

# A change may wait so long for the kernel, and the main loop may take so long for one round.
PATIENCE = 60.0


class Meter:
    """Is told how long things took, in seconds, as they happen; this one forgets."""

    def synced(self, family: Family, seconds: float) -> None:
        """A family's table was written, or could not be."""

    def programmed(self, family: Family, seconds: Iterable[float]) -> None:
        """So long ago the API server told of changes that the kernel now has."""


@dataclass(frozen=True)
class FamilyState:
    """One family's tables: what is wanted there, and how far it is there.

    `synced` is when the table was last known to hold what is wanted, `queued` when something else
    was last wanted, and `waiting_since` since when something is wanted that is not there. `behind`
    are the jumps of others that have the first place (see `nat.Ruleset`).
    """

    services: int = 0
    rules: int = 0
    chains: int = 0
    failures: int = 0
    synced: float = -math.inf
    queued: float = -math.inf
    waiting_since: float = math.inf
    behind: frozenset[tuple[str, str]] = frozenset()

    def joined(self, other: FamilyState) -> FamilyState:
        """Both as one: what holds of the one that is further behind."""
        return FamilyState(
            services=self.services + other.services,
            rules=self.rules + other.rules,
            chains=self.chains + other.chains,
            failures=self.failures + other.failures,
            synced=min(self.synced, other.synced),
            queued=max(self.queued, other.queued),
            waiting_since=min(self.waiting_since, other.waiting_since),
            behind=self.behind | other.behind,
        )


@dataclass(frozen=True)
class AgentState:
    """What the agent itself knows; `waiting_since` is of the oldest change not in the kernel.

    `coverage` says which packets are a pod's, and is None where no rule needs to know;
    `uncovered` are the pods whose packets are not among them. `troubled_since` is when it was first
    told that the API server cannot be followed. `lingering` are addresses that the kernel had until
    a short time ago, which still count as this node's.
    """

    families: Mapping[Family, FamilyState] = field(default_factory=dict)
    repairs: Mapping[str, int] = field(default_factory=dict)
    refusals: frozenset[Problem] = frozenset()
    restarts: Mapping[str, int] = field(default_factory=dict)
    waiting_since: float = math.inf
    proxy_mode: str | None = None
    coverage: Coverage | None = None
    node_addresses: tuple[Address, ...] = ()
    uncovered: tuple[UncoveredPod, ...] = ()
    troubled_since: float = math.inf
    lingering: frozenset[Address] = frozenset()


@dataclass(frozen=True)
class View:
    """What the agent knows of each Service, for who asks; all of it stays as it is.

    `since` is when `in_sync` became what it is. `served` has the external IPs with rules and the
    Services that they are for. `last_error` is the last thing that failed, `last_repair` the last
    thing of others' that was undone, both with their times.
    """

    in_sync: bool
    since: float
    node: str
    services: Mapping[str, Service]
    served: Mapping[Address, tuple[str, ...]]
    problems: frozenset[Problem]
    last_error: tuple[float, str] | None
    last_repair: tuple[float, str] | None = None


@dataclass(frozen=True)
class Published:
    """The agent and the process around it.

    `turned` is when the main loop last went round, `ready` whether the kernel ever held everything;
    `expires` is the end of the credentials as seconds since the epoch, where it is known.
    """

    turned: float
    ready: bool = False
    sentence: str = ""
    agent: AgentState = field(default_factory=AgentState)
    config_stale: bool = False
    expires: float | None = None
    backend: str = ""
    chains: Chains = field(default_factory=Chains)


def in_sync_sentence(services: Mapping[str, int], troubled: bool = False) -> str:
    """What is said where the kernel holds everything: how many Services have rules, by family.

    Where it is `troubled`, the API server may know more by now.
    """
    shown = ", ".join(f"{count} in {family}" for family, count in services.items() if count)
    known = " with what was last known" if troubled else ""
    return f"In sync{known}; Services with rules: {shown or 'none'}"


def sickness(published: Published, now: float) -> str:
    """What keeps the agent from its work, with the seconds it has lasted; empty where nothing."""
    silent, waits = now - published.turned, now - published.agent.waiting_since
    if silent > PATIENCE:
        return f"the main loop has been hanging for {silent:.0f} s"
    if waits > PATIENCE:
        return f"a change has not reached the kernel for {waits:.0f} s: {published.sentence}"
    return ""
