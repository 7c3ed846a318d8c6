"""Thousands of Services, with external IPs in the places that people have them."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from ipvs_node_agent.model.addresses import IPV4, IPV6, Address, Family, contains, parse_network
from ipvs_node_agent.model.objects import Node, Port, Service, Snapshot
from tests.support.cluster import node

Addresses = Callable[[int], Iterator[Address]]

NODE = Node(
    "worker-1",
    (parse_network("10.240.2.128/25"), parse_network("fd00:10:240:2::/64")),
    (ipaddress.ip_address("192.168.7.11"), ipaddress.ip_address("fd00:192:168:7::11")),
    (),
)
_CLUSTER_IPS = {4: ipaddress.ip_network("198.18.0.0/15"), 6: ipaddress.ip_network("fd00:96::/64")}
_TAKEN = (*_CLUSTER_IPS.values(), *NODE.pod_cidrs)


class Layout(NamedTuple):
    """Where the external IPs of a fleet are."""

    family: Family
    addresses: Addresses


def _pools(starts: list[str], count: int) -> Iterator[Address]:
    """Consecutive addresses, the same share from each of the places in `starts`."""
    share = -(-count // len(starts))
    for index in range(count):
        yield ipaddress.ip_address(starts[index // share]) + index % share


def _many_pools(form: str, spread: int, count: int) -> Iterator[Address]:
    chance = random.Random(form)
    starts = [form.format(*(chance.randrange(1, spread) for _ in range(2))) for _ in range(20)]
    return _pools(starts, count)


def _random(network: str, count: int) -> Iterator[Address]:
    chance, inside = random.Random(network), ipaddress.ip_network(network)
    found: set[Address] = set()
    while len(found) < count:
        address = inside[chance.randrange(1, inside.num_addresses - 1)]
        refused = address.is_loopback or address.is_multicast or address.is_link_local
        taken = any(contains(network, address) for network in _TAKEN)
        if not (refused or taken or address in found):
            found.add(address)
            yield address


def _shared(network: str, count: int) -> Iterator[Address]:
    """As even a share of the addresses of a small network as there is."""
    inside = ipaddress.ip_network(network)
    for index in range(count):
        yield inside[index % inside.num_addresses]


LAYOUTS = {
    "one dense pool": Layout(IPV4, partial(_pools, ["172.20.0.1"])),
    "twenty pools": Layout(IPV4, partial(_many_pools, "11.{}.{}.0", 250)),
    "random over 10/8": Layout(IPV4, partial(_random, "10.0.0.0/8")),
    "random over the whole space": Layout(IPV4, partial(_random, "0.0.0.0/0")),
    "all in one /24": Layout(IPV4, partial(_shared, "10.19.20.0/24")),
    "one IPv6 pool": Layout(IPV6, partial(_pools, ["2001:db8:19::1"])),
    "twenty IPv6 pools": Layout(IPV6, partial(_many_pools, "2001:db8:{:x}:{:x}::", 1 << 16)),
    "random over an IPv6 /64": Layout(IPV6, partial(_random, "2001:db8:19:20::/64")),
    "random over IPv6": Layout(IPV6, partial(_random, "2000::/3")),
}


_CREATED = "2026-01-01T00:00:00Z"


def service(number: int, external: Address, port: int = 80) -> Service:
    """A LoadBalancer Service as `read_service` would give it."""
    return Service(
        key=f"team-{number % 100}/service-{number}",
        created=int("".join(filter(str.isdigit, _CREATED))),
        cluster_ips=(_CLUSTER_IPS[external.version][number + 1],),
        load_balancer_ips=(external,),
        proxied_ips=(),
        external_ips=(),
        ports=(Port("tcp", port),),
        local_policy=True,
        source_ranges=(),
        bad_source_ranges=False,
        skipped="",
        problems=(),
    )


def fleet(layout: Layout, count: int) -> dict[str, Service]:
    """`count` Services laid out so; Services that share an address have ports of their own."""
    users: dict[Address, int] = {}
    services: dict[str, Service] = {}
    for number, address in enumerate(layout.addresses(count)):
        users[address] = users.get(address, 0) + 1
        made = service(number, address, 1000 + 7 * users[address])
        services[made.key] = made
    return services


def snapshot(layout: Layout, count: int) -> Snapshot:
    """The cluster with such a fleet."""
    return Snapshot(fleet(layout, count), NODE)


def raw(service: Service) -> dict[str, Any]:
    """`service` as an API server sends it, with all that others wrote into it: 2.2 kB."""
    namespace, _, name = service.key.partition("/")
    number = int(name.rpartition("-")[2])
    node_port = 30000 + number % 2768
    external, cluster = str(service.load_balancer_ips[0]), str(service.cluster_ips[0])
    written = {
        "labels": {
            "app.kubernetes.io/instance": name,
            "app.kubernetes.io/managed-by": "Helm",
            "app.kubernetes.io/name": "service",
            "app.kubernetes.io/version": "1.27.3",
            "helm.sh/chart": "service-4.11.2",
        },
        "annotations": {
            "meta.helm.sh/release-name": name,
            "meta.helm.sh/release-namespace": namespace,
            "metallb.universe.tf/ip-allocated-from-pool": "production-public-addresses",
        },
    }
    port = {
        "name": "http",
        "nodePort": node_port,
        "port": service.ports[0].number,
        "protocol": "TCP",
        "targetPort": "http",
    }
    spec = {
        "allocateLoadBalancerNodePorts": True,
        "clusterIP": cluster,
        "clusterIPs": [cluster],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": node_port,
        "internalTrafficPolicy": "Cluster",
        "ipFamilies": [f"IPv{service.cluster_ips[0].version}"],
        "ipFamilyPolicy": "SingleStack",
        "ports": [port],
        "selector": {"app.kubernetes.io/instance": name, "app.kubernetes.io/name": "service"},
        "sessionAffinity": "None",
        "type": "LoadBalancer",
    }
    status = {"loadBalancer": {"ingress": [{"ip": external, "ipMode": "VIP"}]}}
    managed = [("helm", {"metadata": written, "spec": {**spec, "ports": port}})]
    managed += [("controller", {"status": status})]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"00000000-0000-4000-8000-{number:012x}",
            "creationTimestamp": _CREATED,
            **written,
            "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
            "managedFields": [_managed(*each) for each in managed],
        },
        "spec": spec,
        "status": status,
    }


def _managed(manager: str, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": _owned(values),
        "manager": manager,
        "operation": "Update",
        "time": _CREATED,
    }


def _owned(value: object) -> dict[str, Any]:
    """The names in `value` as managedFields has them."""
    if not isinstance(value, dict):
        return {}
    return {f"f:{name}": _owned(each) for name, each in value.items()}


def raw_node() -> dict[str, Any]:
    """`NODE` as an API server sends it."""
    return node(*map(str, NODE.pod_cidrs), name=NODE.name)
