"""Reads Services and Nodes from the API server's raw JSON.

The typed models of older Python clients drop fields that they do not know, such as `ipMode`, so
the JSON itself is read here. It is hostile: any field can have any type and any size. What cannot
be read is left out and becomes a `Problem` of its Service; it never raises, and never widens what
the rest of the Service may do.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Callable, TypeVar

from ipvs_node_agent.errors import one_line
from ipvs_node_agent.model.addresses import Address, Network, parse_address, parse_network
from ipvs_node_agent.model.objects import (
    LOAD_BALANCER,
    TYPES,
    Node,
    Port,
    Problem,
    Service,
    is_node_name,
    port,
    same_ports,
)

IGNORE_ANNOTATION = "ipvs-node-agent/ignore"
# kube-proxy leaves Services with one of these labels alone, whatever the value (KEP-2447, and
# apis/core.IsHeadlessService in its Service informer's selector).
FOREIGN_LABELS = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")
# What says so, for people.
_IGNORED = f"the annotation {IGNORE_ANNOTATION}"
_LEFT_ALONE = {label: f"the label {label}" for label in FOREIGN_LABELS}

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# In the order in which kube-proxy looks for the node's own (GetNodeHostIPs).
_ADDRESS_TYPES = ("InternalIP", "ExternalIP")
_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
# The one form that the API server writes, of which all digits in a row sort as the times do.
_TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)Z", re.ASCII)
_NEWEST = 99991231235959
_MAX_PROBLEMS, _MAX_SHOWN_NUMBER = 10, 10**20

T = TypeVar("T")


class UnknownObject(ValueError):
    """Something that is not of the kind expected, or whose name cannot be one."""


def object_key(raw: Any, kind: str) -> str:
    """The `namespace/name` (or plain name) of a raw object of `kind`; raises UnknownObject."""
    metadata = child(raw, "metadata")
    # Items of a list carry no kind of their own.
    if not isinstance(raw, dict) or raw.get("kind", kind) != kind:
        found = raw.get("kind") if isinstance(raw, dict) else type(raw).__name__
        raise UnknownObject(f"wanted a {kind}, got {shown(found)}")
    if raw.get("apiVersion", "v1") != "v1":
        raise UnknownObject(f"wanted a {kind} of v1, got one of {shown(raw['apiVersion'])}")
    name = metadata.get("name")
    if kind == "Node":
        if not isinstance(name, str) or not is_node_name(name):
            raise UnknownObject(f"a Node's name cannot be {shown(name)}")
        return name
    namespace = metadata.get("namespace", "default")
    for part, value in (("namespace", namespace), ("name", name)):
        if not isinstance(value, str) or not _DNS_LABEL.fullmatch(value):
            raise UnknownObject(f"a Service's {part} cannot be {shown(value)}")
    return f"{namespace}/{name}"


def read_service(raw: Any) -> Service:
    """The Service in `raw`. Raises UnknownObject where it is none; all else is a Problem."""
    key = object_key(raw, "Service")
    reader = _Reader(key)
    metadata, spec = child(raw, "metadata"), child(raw, "spec")
    created = metadata.get("creationTimestamp")
    time = _TIMESTAMP.fullmatch(created) if isinstance(created, str) else None
    balanced = spec.get("type") == LOAD_BALANCER
    labels, annotations = child(metadata, "labels"), child(metadata, "annotations")
    skipped = next((said for label, said in _LEFT_ALONE.items() if label in labels), "")
    if not skipped and annotations.get(IGNORE_ANNOTATION) == "true":
        skipped = _IGNORED
    served, proxied = _ingress_ips(reader, raw) if balanced else ((), ())
    ranges, bad_ranges = _source_ranges(reader, spec) if balanced else ((), False)
    return Service(
        key=key,
        # Without an age it must not win an address from a Service that has one.
        created=int("".join(time.groups())) if time else _NEWEST,
        cluster_ips=_cluster_ips(reader, spec),
        load_balancer_ips=served,
        proxied_ips=proxied,
        external_ips=reader.each(spec.get("externalIPs"), "spec.externalIPs", _as_address),
        ports=same_ports(reader.each(spec.get("ports"), "spec.ports", _as_port)),
        local_policy=spec.get("externalTrafficPolicy") == "Local",
        source_ranges=ranges,
        bad_source_ranges=bad_ranges,
        skipped=skipped,
        problems=() if skipped else tuple(reader.problems),
        # One text for all Services of a type.
        type=next((each for each in TYPES if each == spec.get("type", TYPES[0])), ""),
    )


def read_node(raw: Any) -> Node:
    """The Node that `raw` holds. Raises UnknownObject where it is none; all else is a Problem."""
    name = object_key(raw, "Node")
    reader = _Reader(name)
    spec, status = child(raw, "spec"), child(raw, "status")
    cidrs = reader.each(spec.get("podCIDRs"), "spec.podCIDRs", _as_pod_cidr)
    if not cidrs and spec.get("podCIDR"):
        cidrs = reader.each([spec["podCIDR"]], "spec.podCIDR", _as_pod_cidr)
    listed = reader.each(status.get("addresses"), "status.addresses", _as_node_address)
    by_type = sorted(filter(None, listed), key=lambda each: _ADDRESS_TYPES.index(each[0]))
    addresses = tuple(dict.fromkeys(address for _, address in by_type))
    return Node(name, cidrs, addresses, tuple(reader.problems))


class _Reader:
    """Reads lists element by element, and keeps a Problem for each element that cannot be read."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.problems: list[Problem] = []
        self.unreadable = 0

    def problem(self, text: str) -> None:
        self.unreadable += 1
        # A Service with a thousand bad fields is said to be bad a few times, not a thousand.
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Problem(self.key, "Unreadable", one_line(text)))

    def each(self, values: Any, at: str, read: Callable[[Any], T]) -> tuple[T, ...]:
        """What `read` makes of each of `values`, once each; its ValueErrors become Problems."""
        if values is None:
            return ()
        if not isinstance(values, list):
            self.problem(f"{at} is {shown(values)}, wanted a list")
            return ()
        found = []
        for index, value in enumerate(values):
            try:
                found.append(read(value))
            except ValueError as error:
                self.problem(f"{at}[{index}] {error}")
        if len(found) < 2:
            return tuple(found)
        return tuple({_identity(value): value for value in found}.values())


def _identity(value: Any) -> Any:
    """What equal values have in common, and different ones have not; safe to be hashed.

    The hash of a prefix is a sum that anybody can do: ten thousand with the same one are easily
    made, and a mapping would take minutes to tell them apart. That of bytes, and of addresses as
    `parse_address` gives them, is another one in each process.
    """
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        return value.network_address.packed, value.prefixlen
    return value


def child(parent: Any, field: str) -> Mapping[str, Any]:
    """The mapping under `field`, or an empty one: absent and malformed read alike."""
    value = parent.get(field) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def shown(value: Any) -> str:
    """A part of a raw object, for messages: on one line, short, and whatever it holds."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > _MAX_SHOWN_NUMBER:
        # Python refuses to print a number of thousands of digits.
        return "a number with too many digits"
    return one_line(repr(value), 80)


def _as_address(value: Any) -> Address:
    return _parsed(value, "an IP address", parse_address)


def _as_network(value: Any) -> Network:
    return _parsed(value, "a CIDR", lambda text: parse_network(text, strict=False))


def _parsed(value: Any, wanted: str, parse: Callable[[str], T]) -> T:
    if not isinstance(value, str):
        raise ValueError(f"is {shown(value)}, wanted {wanted}")
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"{shown(value)} {error}") from None


def _as_pod_cidr(value: Any) -> Network:
    cidr = _as_network(value)
    if cidr.prefixlen == 0:
        raise ValueError(f"{shown(value)} matches every address, not only pods")
    return cidr


def _as_port(value: Any) -> Port:
    protocol = value.get("protocol", "TCP") if isinstance(value, dict) else None
    number = value.get("port") if isinstance(value, dict) else None
    if not isinstance(protocol, str) or protocol not in _PROTOCOLS:
        raise ValueError(f"has the protocol {shown(protocol)}, wanted TCP, UDP or SCTP")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 65536:
        raise ValueError(f"has the port {shown(number)}, wanted 1 to 65535")
    return port(_PROTOCOLS[protocol], number)


def _as_node_address(value: Any) -> tuple[str, Address] | None:
    """The type and IP of an entry of status.addresses; None for one that has no IP."""
    if not isinstance(value, dict) or value.get("type") not in _ADDRESS_TYPES:
        return None
    return value["type"], _as_address(value.get("address"))


def _cluster_ips(reader: _Reader, spec: Mapping[str, Any]) -> tuple[Address, ...]:
    """The first ClusterIP of each family; none for a headless Service."""
    values = spec.get("clusterIPs")
    if not isinstance(values, list) or not values:
        values = [spec.get("clusterIP")]
    values = [value for value in values if value not in (None, "", "None")]
    found = reader.each(values, "spec.clusterIPs", _as_address)
    by_version = {address.version: address for address in reversed(found)}
    return tuple(by_version[version] for version in sorted(by_version))


def _ingress_ips(reader: _Reader, raw: Any) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
    """The IPs that kube-proxy serves, and those that are a proxy's (KEP-1860) and nothing else."""
    balancer = child(child(raw, "status"), "loadBalancer")
    points = reader.each(balancer.get("ingress"), "status.loadBalancer.ingress", _as_ingress_ip)
    found = [point for point in points if point is not None]
    if points and not found:
        text = "status.loadBalancer.ingress has host names alone"
        reader.problems.append(Problem(reader.key, "NoAddress", text))
    served = dict.fromkeys(each[1] for each in found if each[0])
    proxied = dict.fromkeys(each[1] for each in found if not each[0])
    return tuple(served), tuple(address for address in proxied if address not in served)


def _as_ingress_ip(value: Any) -> tuple[bool, Address] | None:
    """Whether kube-proxy serves an ingress point, and its IP; None for a hostname alone."""
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value)}, wanted a mapping")
    if value.get("ip") in (None, ""):
        return None
    return value.get("ipMode") in (None, "VIP"), _as_address(value["ip"])


def _source_ranges(reader: _Reader, spec: Mapping[str, Any]) -> tuple[tuple[Network, ...], bool]:
    """The ranges that can be read, and whether there are others, which let nobody in."""
    values, before = spec.get("loadBalancerSourceRanges"), reader.unreadable
    # The API server lets white space around a range pass, and kube-proxy trims it.
    if isinstance(values, list):
        values = [value.strip() if isinstance(value, str) else value for value in values]
    found = reader.each(values, "spec.loadBalancerSourceRanges", _as_network)
    return found, reader.unreadable > before
