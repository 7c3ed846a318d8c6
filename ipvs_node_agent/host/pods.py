"""How this node's pods are reached: by which interfaces, where not by pod CIDR.

A network plugin that takes the pods' addresses from the Node's pod CIDR needs nothing of this.
Calico with its own IPAM does not, nor does a bridge with a subnet of its own. They are known by
their CNI configuration (that of the file which the container runtime takes, the first by name), or
by what they made in the kernel; the pods' addresses decide nothing, as they come and go.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from ipvs_node_agent.config import regularfile
from ipvs_node_agent.config.regularfile import Unfit
from ipvs_node_agent.host.links import Links
from ipvs_node_agent.model.addresses import Address, Network, address_of, parse_network
from ipvs_node_agent.model.objects import Candidate, PodNetwork

CNI = Path("/etc/cni/net.d")
_SUFFIXES = (".conf", ".conflist", ".json")
# felix's interface_prefix (FelixConfiguration interfacePrefix).
_CALICO = "cali"
# The shortest prefixes of its blocks (IPPool blockSize); bird has other blackholes as well.
_LARGEST_BLOCK = {4: 20, 6: 116}
# What the reference plugin calls its bridge, and flannel has it made.
_BRIDGE = "cni0"


class Plugin(NamedTuple):
    """A CNI plugin: its type, and the bridge that pods are ports of, with the bridge's subnets."""

    kind: str
    bridge: str = ""
    subnets: tuple[Network, ...] = ()


def networks(links: Links, plugins: Iterable[Plugin]) -> frozenset[PodNetwork]:
    """The pods that network plugins tell of, or have made interfaces for."""
    plugins, found = list(plugins), set()
    is_routed = any(name.startswith(_CALICO) for name, _ in routed(links))
    if is_routed or any(plugin.kind == "calico" for plugin in plugins):
        found.add(PodNetwork(f"{_CALICO}+"))
    for plugin in plugins:
        if plugin.bridge in links.names:
            own = (address for name, address in links.addresses if name == plugin.bridge)
            subnets = plugin.subnets or tuple(sorted(map(ip_network, own), key=str))
            # A bridge gets its address a moment after it is made, and tells of no pods before.
            if subnets:
                found.add(PodNetwork(plugin.bridge, subnets))
    return frozenset(found)


def routed(links: Links) -> frozenset[tuple[str, Address]]:
    """The single addresses that the kernel has routes to without a gateway, by interface."""
    return frozenset(
        (route.interface, address_of(route.destination.network_address.packed))
        for route in links.routes
        if route.destination.num_addresses == 1 and route.interface
    )


def candidates(
    links: Links,
    plugins: Iterable[Plugin],
    neighbours: Iterable[tuple[str, Address]],
    own: Collection[Address],
) -> frozenset[Candidate]:
    """What may be pods' addresses: routed to, neighbours' or a bridge's. The API server knows.

    An interface with one of the Node's `own` addresses leads to other hosts.
    """
    outside = {name for name, address in links.addresses if address in own}
    found = {
        Candidate(network.interface, address_of(subnet.network_address.packed), subnet.prefixlen)
        for network in networks(links, plugins)
        for subnet in network.subnets or ()
    }
    found.update(
        Candidate(name, address, address.max_prefixlen)
        for name, address in (*routed(links), *neighbours)
        if not (address.is_link_local or address.is_multicast or address.is_loopback)
    )
    return frozenset(each for each in found if each.interface not in outside)


def blocks(links: Links) -> frozenset[Network]:
    """The networks that Calico gives pods of this node addresses from."""
    return frozenset(
        route.destination
        for route in links.routes
        if route.is_blackhole
        and route.destination.prefixlen >= _LARGEST_BLOCK[route.destination.version]
    )


def plugins(folder: Path = CNI) -> list[Plugin]:
    """The plugins of the configuration that the container runtime takes; none where there is none.

    Multus comes first and hands on to others, so behind it the next file counts as well.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return []
    found: list[Plugin] = []
    for path in files:
        found += _plugins(path)
        if any(not plugin.kind.startswith("multus") for plugin in found):
            break
    return found


def _plugins(path: Path) -> Iterator[Plugin]:
    try:
        raw = json.loads(regularfile.read(path))
    except (OSError, Unfit, ValueError, RecursionError):
        # The container runtime passes over it as well.
        return
    # Multus has the other plugins' whole configurations in its own.
    for whole in (raw, *_items(raw, "delegates")):
        for one in (whole, *_items(whole, "plugins")):
            kind = one.get("type") if isinstance(one, dict) else None
            if isinstance(kind, str):
                yield Plugin(kind, _bridge(one), tuple(_ranges(one)))


def _bridge(plugin: Mapping[str, Any]) -> str:
    """The bridge that a plugin makes, or has made; empty where it has none."""
    kind, made_by = plugin["type"], plugin
    if kind == "flannel":
        delegate = plugin.get("delegate")
        made_by = delegate if isinstance(delegate, dict) else {}
    name = made_by.get("bridge", _BRIDGE)
    return name if kind in ("bridge", "flannel") and isinstance(name, str) else ""


def _ranges(plugin: Mapping[str, Any]) -> Iterator[Network]:
    """The subnets of a plugin's host-local IPAM."""
    ipam = plugin.get("ipam")
    sets = [[ipam], *_items(ipam, "ranges")]
    for each in (one for some in sets if isinstance(some, list) for one in some):
        subnet = each.get("subnet") if isinstance(each, dict) else None
        if isinstance(subnet, str):
            try:
                yield parse_network(subnet, strict=False)
            except ValueError:
                pass  # It is the plugin's to complain of.


def _items(raw: Any, key: str) -> list[Any]:
    value = raw.get(key) if isinstance(raw, dict) else None
    return value if isinstance(value, list) else []
