"""What `check` knows of a node before it judges: plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ipvs_node_agent.config.settings import DEFAULTS, Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.host.procfs import Process
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.objects import Node, Problem, Service, Snapshot, UncoveredPod
from ipvs_node_agent.nat.ruleset import Change, Found
from ipvs_node_agent.nft.listing import BaseChain


@dataclass(frozen=True)
class ConfigFacts:
    """The configuration file; `config` is the default one where it has an `error`."""

    path: str
    config: Config = DEFAULTS
    error: AgentError | None = None
    there: bool = True


class Validity(NamedTuple):
    """When the client certificate is valid, in seconds since the epoch."""

    begin: float
    end: float


@dataclass(frozen=True)
class ClusterFacts:
    """What the credentials are, and what the API server answered to them.

    `error` is why there are no credentials, `unreachable` why there was no answer, `refused` what
    the server said no to. `node` is None where it knows none of that name.
    """

    error: AgentError | None = None
    server: str = ""
    user: str | None = None
    certified_name: str | None = None
    warning: str = ""
    validity: Validity | None = None
    unreachable: AgentError | None = None
    refused: tuple[AgentError, ...] = ()
    node_name: str = ""
    node: Node | None = None
    services: Mapping[str, Service] | None = None
    # One of another installer's, where the configured one is not there.
    other_kubeconfig: str = ""


@dataclass(frozen=True)
class TableFacts:
    """One nat table; `error` is why it cannot be read. `first` are built-in chains' first rules.

    `masquerading` says whether POSTROUTING jumps to kube-proxy's chain.
    """

    family: Family
    backend: str
    found: Found = field(default_factory=Found)
    first: Mapping[str, Sequence[str]] = field(default_factory=dict)
    masquerading: bool = False
    error: TableError | None = None

    @property
    def chains(self) -> frozenset[str]:
        """The names of all chains but the built-in ones."""
        return self.found.foreign | self.found.chains.keys()


@dataclass(frozen=True)
class KubeProxy:
    """Signs of kube-proxy: its answer about its mode, and what it leaves in the kernel.

    Where `doubt` says what speaks against its answer, there is none.
    """

    answer: str | None = None
    doubt: str = ""
    device: bool = False
    nftables: bool = False
    process: int | None = None


class Unit(NamedTuple):
    """A systemd unit, in the words of systemctl."""

    load: str = "not-found"
    active: str = "inactive"
    enabled: str = ""
    process: int = 0
    status: str = ""


@dataclass(frozen=True)
class Listener:
    """Who listens on a TCP port; `ours` where it answers with the agent's own metrics."""

    process: int
    program: str
    ours: bool = False


@dataclass(frozen=True)
class HostFacts:
    """The node itself. `units` is None where systemd does not run."""

    may_program: bool = True
    # The backend that the kubelet uses, if it left a trace, and the one that the agent uses.
    kubelet_backend: str | None = None
    backend: str = "nft"
    tables: tuple[TableFacts, ...] = ()
    # What is ours in the filter tables of that backend, or why they cannot be read.
    filters: Mapping[Family, Found | TableError] = field(default_factory=dict)
    proxy: KubeProxy = KubeProxy()
    # The process that holds the agent's lock, and all that look like an agent.
    holder: int | None = None
    agents: tuple[Process, ...] = ()
    units: Mapping[str, Unit] | None = None
    listener: Listener | None = None
    flushing_file: bool = False
    saved_rules: bool = False
    conntrack: bool = True
    # All of nftables.
    base_chains: tuple[BaseChain, ...] = ()
    # Kernel settings by their path below /proc/sys/net; absent ones are left out.
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Everything. `seen` is what rules depend on, and `changes` what `run` would change now, by
    command; None where nobody can tell. `uncovered` are pods whose packets no rule is about, and
    `problems` what was asked for and gets no rules.
    """

    configuration: ConfigFacts
    now: float
    cluster: ClusterFacts = ClusterFacts()
    host: HostFacts = HostFacts()
    changes: tuple[tuple[str, Change], ...] | None = None
    seen: Snapshot | None = None
    uncovered: tuple[UncoveredPod, ...] = ()
    problems: tuple[Problem, ...] = ()

    def set_to(self, settings: str) -> str:
        """The remedy that sets these in the configuration."""
        return f"{settings} in {self.configuration.path}, then systemctl reload ipvs-node-agent"

    @property
    def repair(self) -> str:
        """The remedy for rules that are not as they should be: the agent puts them right."""
        if self.host.holder is None:
            return "systemctl start ipvs-node-agent"
        return "ipvs-node-agent status says why the agent has not put it right"
