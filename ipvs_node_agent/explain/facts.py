"""What `explain` knows of a node before it judges: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipvs_node_agent.config.settings import DEFAULTS, Config
from ipvs_node_agent.host.ipvs import VirtualServer
from ipvs_node_agent.host.routes import Way
from ipvs_node_agent.iptables.conntrack import Flow
from ipvs_node_agent.iptables.proxymode import ProxyMode
from ipvs_node_agent.model.addresses import Address, Family
from ipvs_node_agent.model.objects import Candidate, Problem, Snapshot, UncoveredPod
from ipvs_node_agent.nat.trace import Table
from ipvs_node_agent.nft.listing import BaseChain
from ipvs_node_agent.rules.coverage import Coverage

# What becomes of the running agent, besides the states of `status`.
RUNNING, SILENT, DOWN = "Running", "Silent", "Down"


@dataclass(frozen=True)
class NatTable:
    """A nat table as it is; `error` is why it cannot be read."""

    family: Family
    backend: str
    table: Table = field(default_factory=Table)
    error: str = ""

    @property
    def name(self) -> str:
        """The command that shows it."""
        return f"{self.family.command}-{self.backend}"


@dataclass(frozen=True)
class Agent:
    """The running agent: what becomes of it (`state`), in its own words, and what it refuses.

    `following` is what it says about the cluster it knows; None where it does not say.
    """

    state: str = RUNNING
    in_sync: bool = True
    sentence: str = "In sync"
    refused: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything. `seen` is the cluster as rules depend on it; None where `unseen` says why.

    `lacks` is what the Node lacks before it gets rules. `ways` are those of the host's packets to
    addresses; one that is missing there has no route. `marks` are bits that packets may be marked
    with before they come to nat. `pods` are pods of this node that rules cover, and `uncovered`
    those that none does. `ipvs` is None where the kernel has none, and `flows` of an address are
    where connection tracking cannot be read.
    """

    config: Config = DEFAULTS
    node: str = ""
    seen: Snapshot | None = None
    unseen: str = ""
    lacks: str = ""
    agent: Agent = Agent()
    backend: str = "nft"
    tables: tuple[NatTable, ...] = ()
    base_chains: tuple[BaseChain, ...] = ()
    marks: Mapping[Family, int] = field(default_factory=dict)
    proxy: ProxyMode = field(default_factory=lambda: ProxyMode(None))
    ipvs: tuple[VirtualServer, ...] | None = None
    flows: Mapping[Address, tuple[Flow, ...] | None] = field(default_factory=dict)
    ways: Mapping[Address, Way] = field(default_factory=dict)
    pods: tuple[Candidate, ...] = ()
    coverage: Coverage = field(default_factory=lambda: Coverage((), ()))
    uncovered: tuple[UncoveredPod, ...] = ()
    remedy: str = ""
