"""The configuration as a value. `DEFAULTS` is what an absent or empty file means."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipvs_node_agent.model.addresses import Network


@dataclass(frozen=True)
class Chains:
    """The names of the nat chains, and how many Services one of them may hold."""

    prerouting: str = "IPVS_PREROUTING"
    output: str = "IPVS_OUTPUT"
    mark_masquerade: str = "KUBE-MARK-MASQ"
    services_per_chain: int = 16


@dataclass(frozen=True)
class ServiceOptions:
    """Which Services and external IPs count, and how they are matched."""

    external_ips: bool = False
    external_traffic_policy: str = "Any"
    allowed_external_cidrs: tuple[Network, ...] = ()
    match_ports: str = "Shared"


@dataclass(frozen=True)
class IptablesOptions:
    """Which iptables is called, and how long it may wait for another one's lock, in seconds."""

    backend: str = "auto"
    lock_wait_seconds: int = 5


@dataclass(frozen=True)
class Config:
    """The whole configuration; field by field the file's keys. Periods are in seconds."""

    kubeconfig: str = "/etc/kubernetes/kubelet.conf"
    node_name: str | None = None
    pod_cidrs: tuple[Network, ...] | None = None
    pod_interfaces: tuple[str, ...] | None = None
    chains: Chains = field(default_factory=Chains)
    masquerade: str = "All"
    services: ServiceOptions = field(default_factory=ServiceOptions)
    iptables: IptablesOptions = field(default_factory=IptablesOptions)
    drift_check_period: float = 2.0
    metrics_bind_address: str = "127.0.0.1:10273"
    service_metrics: bool = True
    drop_invalid_input: bool = False


DEFAULTS = Config()
