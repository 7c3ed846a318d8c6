"""Raw Services and Nodes as nobody should send them, and configurations to meet them with.

Each is a good object with a few of its parts replaced, at any depth, by whatever JSON can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from ipvs_node_agent.apiserver.reading import UnknownObject, read_service
from ipvs_node_agent.config.settings import Config, ServiceOptions
from ipvs_node_agent.model.addresses import parse_network
from ipvs_node_agent.model.objects import Service

NASTY = (
    'web" -j ACCEPT',
    "web\n-A PREROUTING -j ACCEPT",
    "COMMIT\n*filter",
    "\\",
    "'",
    "a b",
    "\u2028",
    "\ud800",
    "010.0.0.1",
    "::ffff:10.0.0.1",
    "10.0.0.1%eth0",
)
text = st.sampled_from(NASTY) | st.text(max_size=8)
json_leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
json_value = st.recursive(
    json_leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> Any:
    """What `good` gives, as it is or with a few of its parts, at any depth, replaced."""
    document = draw(good)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        part = document
        for _ in range(5):
            places = sorted(part) if isinstance(part, dict) else range(len(part))
            place: Any = draw(st.sampled_from(places))
            if not (isinstance(part[place], (dict, list)) and part[place] and draw(st.booleans())):
                break
            part = part[place]
        part[place] = draw(json_value)
    return document


def mapping(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(values)


IPS = ("10.19.0.1", "10.19.0.1", "10.19.0.2", "10.231.0.1", "192.168.7.11", "10.240.2.129")
IPS_6 = ("fd00:19::1", "fd00:19::1", "fd00:19::2", "fd00:231::1", "fd00:10:240:2::7")
NEVER = (
    *("0.0.0.0", "127.0.0.1", "169.254.0.9", "224.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::9", "ff02::1"),
)
CLUSTER_IPS = (
    ["10.231.0.1", "fd00:231::1"],
    ["fd00:231::2", "10.231.0.2"],
    ["10.231.0.3"],
    ["fd00:231::3"],
    ["None"],
)
CIDRS = ("10.240.2.192/26", "10.0.0.0/8", "192.168.0.0/16", "::/0", "fd00:10:240:2::/65")


def mostly(often: st.SearchStrategy[Any], seldom: st.SearchStrategy[Any]) -> Any:
    """What one in eight objects has would otherwise leave too few that get any rule."""
    return st.integers(0, 7).flatmap(lambda dice: seldom if dice == 7 else often)


def several(values: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3)


good_service = mapping(
    kind=st.just("Service"),
    metadata=mapping(
        name=st.sampled_from("abcdefgh"),
        namespace=st.sampled_from(["default", "team-a"]),
        creationTimestamp=st.sampled_from(["2026-01-05T08:00:00Z", "2026-01-06T08:00:00Z"]),
        labels=mostly(
            st.dictionaries(text, text, max_size=1),
            st.just({"service.kubernetes.io/headless": ""}).map(dict),
        ),
        annotations=mostly(
            st.dictionaries(text, text, max_size=1),
            st.just({"ipvs-node-agent/ignore": "true"}).map(dict),
        ),
    ),
    spec=mapping(
        type=st.sampled_from(["LoadBalancer", "LoadBalancer", "LoadBalancer", "ClusterIP"]),
        clusterIPs=mostly(st.sampled_from(CLUSTER_IPS[:2]), st.sampled_from(CLUSTER_IPS)).map(list),
        externalIPs=several([*IPS, *IPS_6]),
        externalTrafficPolicy=st.sampled_from(["Local", "Cluster"]),
        loadBalancerSourceRanges=mostly(st.just(None) | several(CIDRS), json_value),
        ports=st.lists(
            mapping(port=st.integers(1, 3), protocol=st.sampled_from(["TCP", "UDP", "SCTP"])),
            min_size=1,
            max_size=3,
        ),
    ),
    status=mapping(
        loadBalancer=mapping(
            ingress=st.lists(
                mapping(
                    ip=mostly(st.sampled_from([*IPS, *IPS_6]), st.sampled_from(NEVER)),
                    ipMode=st.sampled_from([None, "VIP", "VIP", "Proxy"]),
                ),
                min_size=1,
                max_size=4,
            )
        )
    ),
)
good_node = mapping(
    kind=st.just("Node"),
    metadata=mapping(name=st.just("worker-1")),
    spec=mapping(podCIDR=st.sampled_from(CIDRS), podCIDRs=several(CIDRS)),
    status=mapping(
        addresses=st.lists(mapping(type=st.just("InternalIP"), address=st.sampled_from(IPS)))
    ),
)
services = spoilt(good_service)
nodes = spoilt(good_node)
ALLOWED = (parse_network("10.19.0.0/31"), parse_network("fd00:19::/127"))
configs = st.builds(
    Config,
    masquerade=st.sampled_from(["All", "HostOnly"]),
    services=st.builds(
        ServiceOptions,
        external_ips=st.booleans(),
        external_traffic_policy=st.sampled_from(["Any", "Any", "Local"]),
        allowed_external_cidrs=st.sampled_from([(), (), ALLOWED]),
        match_ports=st.sampled_from(["Shared", "Always"]),
    ),
)


def read_services(raw: Sequence[Any]) -> dict[str, Service]:
    """The Services among `raw` that can be read, the last one of each name."""
    found: dict[str, Service] = {}
    for each in raw:
        with suppress(UnknownObject):
            service = read_service(each)
            found[service.key] = service
    return found
