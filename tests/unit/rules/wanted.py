"""Services, a node and their rules, as the tests of `rules` have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.config.settings import DEFAULTS, Config
from ipvs_node_agent.model.addresses import IPV4, parse_address, parse_network
from ipvs_node_agent.model.objects import Node, Snapshot
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.rules.planner import Plan, plan
from tests.support.cluster import service

POD_CIDR, POD_CIDR_6 = "10.240.2.128/25", "fd00:10:240:2::/64"
NODE_IP, NODE_IP_6 = "192.168.7.11", "fd00:192:168:7::11"
WEB = service("web", ["10.231.0.1"], ["10.19.0.1"])


def node(
    cidrs: Sequence[str] = (POD_CIDR, POD_CIDR_6), ips: Sequence[str] = (NODE_IP, NODE_IP_6)
) -> Node:
    return Node("worker-1", tuple(map(parse_network, cidrs)), tuple(map(parse_address, ips)), ())


def snapshot(*raw: dict[str, Any], of: Node | None = None) -> Snapshot:
    services = [read_service(each) for each in raw]
    return Snapshot({each.key: each for each in services}, of or node())


def aged(created: str, raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` made on that day of January."""
    metadata = {**raw["metadata"], "creationTimestamp": f"2026-01-{created}T00:00:00Z"}
    return {**raw, "metadata": metadata}


def with_metadata(raw: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**raw, "metadata": {**raw["metadata"], **fields}}


def options(**services: Any) -> Config:
    """The defaults with other options for Services."""
    return replace(DEFAULTS, services=replace(DEFAULTS.services, **services))


def prerouting(found: Plan) -> tuple[str, ...]:
    return tuple(found.ruleset.chains["IPVS_PREROUTING"])


def output(found: Plan) -> tuple[str, ...]:
    return tuple(found.ruleset.chains["IPVS_OUTPUT"])


def pods(config: Config, seen: Snapshot) -> tuple[str, ...]:
    """The IPv4 rules for pods."""
    return prerouting(plan(config, seen, IPV4))


def host(config: Config, seen: Snapshot) -> tuple[str, ...]:
    """The IPv4 rules for the host."""
    return output(plan(config, seen, IPV4))


def pod_pair(
    ip: str = "10.19.0.1",
    key: str = "default/web",
    to: str = "10.231.0.1",
    source: str = POD_CIDR,
    ports: str = "",
) -> tuple[str, str]:
    bits = 128 if ":" in ip else 32
    match = f'-s {source} -d {ip}/{bits} {ports}-m comment --comment "{key}"'
    return f"{match} -j KUBE-MARK-MASQ", f"{match} -j DNAT --to-destination {to}"


def host_pair(
    ip: str = "10.19.0.1", key: str = "default/web", to: str = "10.231.0.1", ports: str = ""
) -> tuple[str, str]:
    bits = 128 if ":" in ip else 32
    match = f'-d {ip}/{bits} {ports}-m comment --comment "{key}" -m addrtype --src-type LOCAL'
    return f"{match} -j KUBE-MARK-MASQ", f"{match} -j DNAT --to-destination {to}"


def port(number: int | str, protocol: str = "tcp") -> str:
    return f"-p {protocol} -m {protocol} --dport {number} "


NOTHING = Ruleset(
    chains={"IPVS_PREROUTING": (), "IPVS_OUTPUT": ()},
    jumps={"PREROUTING": "IPVS_PREROUTING", "OUTPUT": "IPVS_OUTPUT"},
)


def sharing(
    name: str, number: int, *ports: dict[str, Any], policy: str = "Local"
) -> dict[str, Any]:
    return service(
        name,
        [f"10.231.0.{number}"],
        ["10.19.0.1"],
        ports=list(ports),
        externalTrafficPolicy=policy,
    )


HERE = parse_address("10.19.0.1")
HTTP, HTTPS, DNS = {"port": 80}, {"port": 443}, {"port": 53, "protocol": "UDP"}
