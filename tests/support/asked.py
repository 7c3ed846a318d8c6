"""What raw Services ask for, and whether a rule is one of that: an oracle for hostile objects.

It reads the raw objects, the Node and the rules by itself, with nothing of the program's own, so
that a mistake is not made twice. What it says of a rule is what the documents promise: an external
IP that a Service really has, its own ClusterIP, the clients that it lets in, and nothing refused.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Union

from ipvs_node_agent.config.settings import Config

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Ranges = Union[list[Network], None]

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
FOREIGN = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")
# Documentation aside: what no Service may have, whoever it is.
NEVER = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
        *("::/128", "::1/128", "fe80::/10", "ff00::/8", "::ffff:0.0.0.0/96"),
    )
]


def at(value: Any, *path: str) -> Any:
    """What `value` has under `path`; None where it has nothing there."""
    for field in path:
        value = value.get(field) if isinstance(value, dict) else None
    return value


def each(value: Any) -> list[Any]:
    """The elements of a list; none of anything else."""
    return value if isinstance(value, list) else []


def address(value: Any) -> Address | None:
    """The address that `value` spells in one of its usual forms."""
    return _address(value) if isinstance(value, str) and len(value) < 50 else None


@functools.lru_cache(maxsize=10_000)
def _address(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if "%" in text or (found.version == 4 and str(found) != text):
        return None
    return found


def network(value: Any) -> Network | None:
    """The prefix that `value` spells."""
    try:
        with_length = isinstance(value, str) and re.search(r"/[0-9]{1,3}$", value.strip())
        return ipaddress.ip_network(value.strip(), strict=False) if with_length else None
    except ValueError:
        return None


def key_of(raw: Any) -> str | None:
    """The `namespace/name` of a raw object, if it is a Service of v1 at all."""
    if not isinstance(raw, dict) or raw.get("kind", "Service") != "Service":
        return None
    metadata = at(raw, "metadata")
    namespace = metadata.get("namespace", "default") if isinstance(metadata, dict) else None
    name = at(raw, "metadata", "name")
    whole = all(isinstance(part, str) and NAME.fullmatch(part) for part in (namespace, name))
    return f"{namespace}/{name}" if whole and raw.get("apiVersion", "v1") == "v1" else None


class Rule(NamedTuple):
    """A rule that marks or translates. `source` is None in the host's rules.

    `ports` are its protocol, and its first and last port.
    """

    key: str
    source: Network | None
    destination: Address
    ports: tuple[str, int, int] | None
    to: Address | None


class Malformed(Exception):
    """A rule of a kind that the agent has no business to write."""


@functools.lru_cache(maxsize=10_000)
def parsed(rule: str, mark: str) -> Rule:
    """What `rule` says. Raises Malformed for one that says anything else as well."""
    words = shlex.split(rule)
    names, values = words[::2], words[1::2]
    options = dict(zip(names, values))
    known = {"-s", "-d", "-p", "-m", "--dport", "--comment", "--src-type", "-j", "--to-destination"}
    modules = {values[place] for place, name in enumerate(names) if name == "-m"}
    repeated = [name for name in names if name != "-m" and names.count(name) > 1]
    if len(names) != len(values) or not known >= {*names} or repeated:
        raise Malformed(rule)
    protocol = options.get("-p", "")
    local = options.get("--src-type") == "LOCAL"
    if modules != {"comment", *([protocol] if protocol else []), *(["addrtype"] if local else [])}:
        raise Malformed(rule)
    if (options["-j"] == "DNAT") != ("--to-destination" in options) or local == ("-s" in options):
        raise Malformed(rule)
    if options["-j"] not in ("DNAT", mark) or protocol not in ("", "tcp", "udp", "sctp"):
        raise Malformed(rule)
    destination = ipaddress.ip_network(options["-d"])
    if destination.num_addresses != 1 or ("--dport" in options) != bool(protocol):
        raise Malformed(rule)
    to = options.get("--to-destination")
    first, _, last = options.get("--dport", "").partition(":")
    return Rule(
        options["--comment"],
        None if local else ipaddress.ip_network(options["-s"]),
        destination.network_address,
        (protocol, int(first), int(last or first)) if protocol else None,
        ipaddress.ip_address(to) if to else None,
    )


class Asked:
    """What Services ask for, on a node with these pod CIDRs and addresses.

    With `exact`, each of `objects` counts as it is; without, an object counts in every version of
    itself, and what depends on the others is not looked at.
    """

    def __init__(
        self,
        objects: Iterable[Any],
        config: Config,
        pod_cidrs: Sequence[str],
        hosts: Sequence[str],
        exact: bool = True,
    ) -> None:
        self._config, self._exact = config, exact
        self._pod_cidrs = [ipaddress.ip_network(cidr) for cidr in pod_cidrs]
        self._hosts = [ipaddress.ip_address(host) for host in hosts]
        self.versions: dict[str, list[Any]] = {}
        self._ingress: dict[int, set[Address | None]] = {}
        for raw in objects:
            key = key_of(raw)
            if key is not None:
                before = [] if exact else self.versions.get(key, [])
                self.versions[key] = [*before, raw]

    def faults(self, chains: Mapping[str, Sequence[str]]) -> list[str]:
        """Those rules in `chains` that nobody asked for, each with the reason."""
        found = []
        for rules in chains.values():
            for rule in rules:
                jump = re.fullmatch(r"-d \S+( -p \w+( -m \w+ --dport [\d:]+)?)? -j (\S+)", rule)
                if jump and jump[3] in chains:
                    continue
                fault = self._fault(parsed(rule, self._config.chains.mark_masquerade))
                if fault:
                    found.append(f"{rule}: {fault}")
        return found

    def _fault(self, rule: Rule) -> str:
        refused = self._refused(rule.destination)
        if refused:
            return refused
        why = f"no Service {rule.key}"
        for raw in self.versions.get(rule.key, ()):
            why = self._mismatch(rule, raw)
            if not why:
                return self._foreign(rule, raw) if self._exact else ""
        return why

    def _refused(self, destination: Address) -> str:
        if any(destination in network for network in NEVER):
            return "no Service may have it"
        if any(destination in cidr for cidr in self._pod_cidrs):
            return "a pod's address"
        allowed = self._config.services.allowed_external_cidrs
        if allowed and not any(destination in cidr for cidr in allowed):
            return "not allowed"
        everybody = [raw for versions in self.versions.values() for raw in versions]
        if self._exact and any(destination in cluster_ips(raw).values() for raw in everybody):
            return "a ClusterIP"
        return ""

    def _mismatch(self, rule: Rule, raw: Any) -> str:
        """Why `rule` is not what `raw` asks for."""
        own = cluster_ips(raw).get(rule.destination.version)
        if own is None or rule.to not in (None, own):
            return f"its ClusterIP is {own}"
        ways = self._ways(raw, rule.destination)
        if not ways:
            return "it does not have this IP"
        if not asked_ports(rule) <= ports(raw):
            return "it does not have this port"
        if not any(self._lets_in(ranges, rule.source) for ranges in ways):
            return "it does not let these clients in"
        return ""

    def _ways(self, raw: Any, destination: Address) -> list[Ranges]:
        """The clients that `raw` lets in to `destination`, for each way in which it has it."""
        config = self._config.services
        labels, notes = at(raw, "metadata", "labels"), at(raw, "metadata", "annotations")
        if isinstance(labels, dict) and any(label in labels for label in FOREIGN):
            return []
        if at(notes, "ipvs-node-agent/ignore") == "true":
            return []
        local = at(raw, "spec", "externalTrafficPolicy") == "Local"
        if config.external_traffic_policy == "Local" and not local:
            return []
        if at(raw, "spec", "type") == "LoadBalancer":
            # There may be a thousand, for each of which a thousand rules ask.
            if id(raw) not in self._ingress:
                self._ingress[id(raw)] = ingress_ips(raw)
            if destination in self._ingress[id(raw)]:
                return [source_ranges(raw, destination.version)]
        external = map(address, each(at(raw, "spec", "externalIPs")))
        return [None] if config.external_ips and destination in external else []

    def _lets_in(self, ranges: Ranges, source: Network | None) -> bool:
        if source is None:
            # Ranges are of one family, and the node has one address in it that counts.
            hosts = [h for h in self._hosts if ranges and h.version == ranges[0].version]
            return ranges is None or any(hosts[0] in range_ for range_ in ranges if hosts)
        inside = [cidr for cidr in self._pod_cidrs if within(source, cidr)]
        return bool(inside) and (ranges is None or any(within(source, r) for r in ranges))

    def _foreign(self, rule: Rule, raw: Any) -> str:
        """Why what `raw` asks for is somebody else's all the same."""
        mine = rank(raw, rule)
        for key, (other,) in self.versions.items():
            has_cluster_ip = rule.destination.version in cluster_ips(other)
            if key == rule.key or not has_cluster_ip or not names(other, rule.destination):
                continue
            if rule.ports is None:
                return f"all ports, and {key} names the IP too"
            before = rank(other, rule._replace(key=key)) < mine
            if before and not asked_ports(rule).isdisjoint(ports(other)):
                return f"{key} comes before it"
        by_port = self._config.services.match_ports == "Always" or rule.destination in self._hosts
        return "all ports" if rule.ports is None and by_port else ""


def cluster_ips(raw: Any) -> dict[int, Address]:
    """The first ClusterIP of each family."""
    listed = each(at(raw, "spec", "clusterIPs")) or [at(raw, "spec", "clusterIP")]
    found: dict[int, Address] = {}
    for value in map(address, listed):
        if value is not None:
            found.setdefault(value.version, value)
    return found


def ingress_ips(raw: Any) -> set[Address | None]:
    """The addresses that the load balancer has, and kube-proxy serves; None may be among them."""
    points = each(at(raw, "status", "loadBalancer", "ingress"))
    return {address(at(p, "ip")) for p in points if at(p, "ipMode") in (None, "VIP")}


def ports(raw: Any) -> set[tuple[str, int]]:
    """Protocol and number of each port."""
    return {
        (str(port.get("protocol", "TCP")).lower(), port["port"])
        for port in each(at(raw, "spec", "ports"))
        if isinstance(at(port, "port"), int)
    }


def asked_ports(rule: Rule) -> set[tuple[str, int]]:
    """Protocol and number of each port that a rule is about; none where it is about all."""
    if rule.ports is None:
        return set()
    protocol, first, last = rule.ports
    return {(protocol, number) for number in range(first, last + 1)}


def named_ingress_ips(raw: Any) -> set[Address | None]:
    """The addresses that the load balancer names, whoever serves them."""
    points = each(at(raw, "status", "loadBalancer", "ingress"))
    balanced = at(raw, "spec", "type") == "LoadBalancer"
    return {address(at(point, "ip")) for point in points} if balanced else set()


def names(raw: Any, destination: Address) -> bool:
    """Whether a Service names an address, with rules or without."""
    external = map(address, each(at(raw, "spec", "externalIPs")))
    return destination in named_ingress_ips(raw) or destination in external


def source_ranges(raw: Any, version: int) -> Ranges:
    """The ranges of one family that can be read; None where everybody is let in."""
    values = at(raw, "spec", "loadBalancerSourceRanges")
    if values is None or values == []:
        return None
    read = [network(value) for value in each(values)]
    of_family = [found for found in read if found is not None and found.version == version]
    limited = of_family or None in read or not isinstance(values, list)
    return of_family if limited and all(found.prefixlen for found in of_family) else None


def rank(raw: Any, rule: Rule) -> tuple[bool, str, str]:
    """What sorts those in front who have a port before others."""
    created = at(raw, "metadata", "creationTimestamp")
    known = isinstance(created, str) and TIME.fullmatch(created)
    by_author = rule.destination not in named_ingress_ips(raw)
    return (by_author, created if known else "9999", rule.key)


def within(small: Network, large: Network) -> bool:
    """Whether `small` lies inside `large`; never where they are of different families."""
    if small.version != large.version:
        return False
    return small.subnet_of(large)  # type: ignore[arg-type]
