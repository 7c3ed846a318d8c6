"""Services and Nodes are read from raw JSON, whatever it holds."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import UnknownObject, read_node, read_service
from ipvs_node_agent.model.addresses import Address, Network, parse_address, parse_network
from ipvs_node_agent.model.objects import Node, Port, Problem, Service
from tests.support import fleet

JUNK: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "a-number": 1.5,
    # Python refuses to print it.
    "a-huge-number": 1 << 20000,
    "text": "junk",
    "empty-text": "",
    "a-list": ["junk"],
    "a-list-of-lists": [[]],
    "a-mapping": {"junk": "junk"},
    "an-empty-mapping": {},
}
every_junk = pytest.mark.parametrize("junk", list(JUNK.values()), ids=list(JUNK))


def raw(**changes: Any) -> dict[str, Any]:
    """A Service that has everything; `changes` go by `spec_type`, `metadata_name`, `ingress`."""
    metadata = {
        "name": "web",
        "namespace": "default",
        "creationTimestamp": "2026-01-05T08:00:00Z",
        "labels": {"app": "web"},
        "annotations": {"note": "x"},
    }
    spec = {
        "type": "LoadBalancer",
        "clusterIP": "10.231.0.1",
        "clusterIPs": ["10.231.0.1", "fd00:231::1"],
        "externalIPs": ["10.20.0.1"],
        "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["10.240.0.0/16"],
        "ports": [{"port": 80}, {"protocol": "UDP", "port": 53}],
    }
    balancer = {"ingress": [{"ip": "10.19.0.1"}, {"ip": "fd00:19::1", "ipMode": "VIP"}]}
    parts: dict[str, dict[str, Any]] = {"metadata": metadata, "spec": spec}
    for name, value in changes.items():
        part, _, field = name.partition("_")
        parts.get(part, balancer)[field or name] = value
    return {"kind": "Service", **parts, "status": {"loadBalancer": balancer}}


def ips(*texts: str) -> tuple[Address, ...]:
    return tuple(map(parse_address, texts))


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(parse_network, texts))


READ = Service(
    key="default/web",
    created=20260105080000,
    cluster_ips=ips("10.231.0.1", "fd00:231::1"),
    load_balancer_ips=ips("10.19.0.1", "fd00:19::1"),
    proxied_ips=(),
    external_ips=ips("10.20.0.1"),
    ports=(Port("tcp", 80), Port("udp", 53)),
    local_policy=True,
    source_ranges=networks("10.240.0.0/16"),
    bad_source_ranges=False,
    skipped="",
    problems=(),
)


def with_problem(text: str) -> Service:
    return READ._replace(problems=(Problem("default/web", "Unreadable", text),))


def test_a_service_is_read() -> None:
    assert read_service(raw()) == READ


def test_a_service_needs_no_more_than_its_name() -> None:
    assert read_service({"metadata": {"name": "web"}}) == Service(
        key="default/web",
        created=99991231235959,
        cluster_ips=(),
        load_balancer_ips=(),
        proxied_ips=(),
        external_ips=(),
        ports=(),
        local_policy=False,
        source_ranges=(),
        bad_source_ranges=False,
        skipped="",
        problems=(),
        type="ClusterIP",
    )


def node(**parts: Any) -> dict[str, Any]:
    return {"kind": "Node", "metadata": {"name": "worker-1"}, **parts}


def test_a_node_is_read() -> None:
    addresses = [
        {"type": "ExternalIP", "address": "198.51.100.7"},
        {"type": "InternalIP", "address": "192.168.7.11"},
        {"type": "Hostname", "address": "worker-1"},
        {"type": "InternalDNS", "address": "worker-1.example.com"},
    ]
    spec = {"podCIDR": "10.240.2.128/25", "podCIDRs": ["10.240.2.128/25", "fd00::/64"]}
    assert read_node(node(spec=spec, status={"addresses": addresses})) == Node(
        name="worker-1",
        pod_cidrs=networks("10.240.2.128/25", "fd00::/64"),
        addresses=ips("192.168.7.11", "198.51.100.7"),
        problems=(),
    )


# Which objects are Services at all.


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (None, "wanted a Service, got 'NoneType'"),
        ([], "wanted a Service, got 'list'"),
        ({"kind": "Pod"}, "wanted a Service, got 'Pod'"),
        ({"kind": None}, "wanted a Service, got None"),
        ({"kind": ["Service"]}, "wanted a Service, got a list"),
        ({"kind": "Service\n"}, "wanted a Service, got 'Service\\n'"),
        ({"kind": 1 << 20000}, "wanted a Service, got a number with too many digits"),
        ({"kind": "Service"}, "a Service's name cannot be None"),
        ({"metadata": "web"}, "a Service's name cannot be None"),
        ({**raw(), "apiVersion": "knative/v1"}, "wanted a Service of v1, got one of 'knative/v1'"),
    ],
)
def test_what_is_no_service_is_refused(document: Any, complaint: str) -> None:
    with pytest.raises(UnknownObject) as caught:
        read_service(document)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("said", [{}, {"apiVersion": "v1"}])
def test_an_item_of_a_list_need_not_say_what_it_is(said: dict[str, str]) -> None:
    document = raw()
    del document["kind"]
    assert read_service({**document, **said}) == READ


NO_NAMES = [
    *("", "Web", "web_1", "-web", "web-", "we b", "wéb", "web\0", "web\n", "../web"),
    *('web" -j ACCEPT', "web\n-A PREROUTING -j ACCEPT", "worker\n<3>forged"),
    *(7, None, ["web"], {"web": 1}),
    pytest.param(1 << 20000, id="a-huge-number"),
]


@pytest.mark.parametrize("part", ["name", "namespace"])
@pytest.mark.parametrize("value", [*NO_NAMES, "web.1", "a" * 64])
def test_a_name_that_kubernetes_would_not_take_is_refused(part: str, value: Any) -> None:
    with pytest.raises(UnknownObject, match=f"^a Service's {part} cannot be ") as caught:
        read_service(raw(**{f"metadata_{part}": value}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "web-1", "1web", "a" * 63])
def test_a_name_that_kubernetes_takes_is_taken(name: str) -> None:
    assert read_service(raw(metadata_name=name)).key == f"default/{name}"


@pytest.mark.parametrize("name", [*NO_NAMES, ".", "a..b", "a" * 254])
def test_a_name_that_no_node_can_have_is_refused(name: Any) -> None:
    with pytest.raises(UnknownObject, match=r"^a Node's name cannot be ") as caught:
        read_node({"metadata": {"name": name}})
    assert str(caught.value).isprintable()


def test_a_service_is_no_node() -> None:
    with pytest.raises(UnknownObject, match=r"^wanted a Node, got 'Service'$"):
        read_node(raw())


CHOSEN = [str(ipaddress.IPv6Address(~(k * (2**61 - 1)) % 2**128)) for k in range(1, 1001)]


@pytest.mark.parametrize("field", ["loadBalancerSourceRanges", "externalIPs"])
def test_values_with_the_same_hash_take_no_longer_than_others(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's hash of an IPv6 prefix is its number modulo 2**61 - 1, so anybody can choose it."""
    compared = []
    for kind in (ipaddress.IPv6Address, ipaddress.IPv6Network):

        def equal(left: Any, right: Any, plain: Any = kind.__eq__) -> Any:
            compared.append(left)
            return plain(left, right)

        monkeypatch.setattr(kind, "__eq__", equal)
    ranges = field == "loadBalancerSourceRanges"
    values = [f"{address}/128" for address in CHOSEN] if ranges else CHOSEN
    found = read_service(raw(**{f"spec_{field}": values}))
    assert found.problems == ()
    assert len(found.source_ranges if ranges else found.external_ips) == len(CHOSEN)
    assert len(compared) < 10 * len(CHOSEN)


# What counts.

IP = "10.19.0.1"


@pytest.mark.parametrize(
    ("ingress", "found"),
    [
        pytest.param(None, [], id="none"),
        pytest.param([], [], id="empty"),
        pytest.param([{"hostname": "lb", "ip": IP}], [IP], id="both"),
        pytest.param([{"ip": IP, "ipMode": None}], [IP], id="null-mode"),
        pytest.param([{"ip": "fd00::1"}, {"ip": "FD00:0::1"}], ["fd00::1"], id="twice"),
        pytest.param([{"ip": "10.19.0.2"}, {"ip": IP}], ["10.19.0.2", IP], id="order"),
    ],
)
def test_the_ips_of_the_load_balancer(ingress: Any, found: list[str]) -> None:
    assert read_service(raw(ingress=ingress)) == READ._replace(load_balancer_ips=ips(*found))


@pytest.mark.parametrize("ingress", [[{"hostname": "lb"}], [{"ip": "", "hostname": "lb"}]])
def test_a_load_balancer_with_host_names_alone_is_said(ingress: Any) -> None:
    text = "status.loadBalancer.ingress has host names alone"
    problems = (Problem("default/web", "NoAddress", text),)
    assert read_service(raw(ingress=ingress)) == READ._replace(
        load_balancer_ips=(), problems=problems
    )


@pytest.mark.parametrize("mode", ["Proxy", "a mode of the future", "", 7])
def test_ips_that_are_a_proxys_are_told_apart(mode: Any) -> None:
    ingress = [{"ip": IP, "ipMode": mode}, {"ip": "10.19.0.2"}]
    wanted = READ._replace(load_balancer_ips=ips("10.19.0.2"), proxied_ips=ips(IP))
    assert read_service(raw(ingress=ingress)) == wanted
    served = [{"ip": IP, "ipMode": mode}, {"ip": IP, "ipMode": "VIP"}]
    assert read_service(raw(ingress=served)) == READ._replace(load_balancer_ips=ips(IP))


@pytest.mark.parametrize(
    ("kind", "known"),
    [(known, known) for known in ("ClusterIP", "NodePort", "ExternalName")]
    + [("loadbalancer", ""), (None, ""), ({}, "")],
)
def test_only_a_load_balancers_ingress_and_source_ranges_count(kind: Any, known: str) -> None:
    wanted = READ._replace(load_balancer_ips=(), source_ranges=(), type=known)
    assert read_service(raw(spec_type=kind)) == wanted


@pytest.mark.parametrize(
    ("cluster_ip", "cluster_ips", "found"),
    [
        pytest.param(IP, None, [IP], id="old-server"),
        pytest.param(IP, [], [IP], id="empty-list"),
        pytest.param("fd00::1", ["fd00::1", IP], [IP, "fd00::1"], id="IPv6-first"),
        pytest.param("None", ["None"], [], id="headless"),
        pytest.param("None", None, [], id="headless-old-server"),
        pytest.param("", None, [], id="not-yet"),
        pytest.param(None, None, [], id="ExternalName"),
        pytest.param(IP, [IP, "10.0.0.2"], [IP], id="two-of-a-family"),
    ],
)
def test_the_cluster_ips(cluster_ip: Any, cluster_ips: Any, found: list[str]) -> None:
    document = raw(spec_clusterIP=cluster_ip, spec_clusterIPs=cluster_ips)
    assert read_service(document) == READ._replace(cluster_ips=ips(*found))


@pytest.mark.parametrize(
    ("ranges", "found"),
    [
        pytest.param(None, (), id="none"),
        pytest.param([], (), id="empty"),
        pytest.param([" 10.0.0.0/8\t"], networks("10.0.0.0/8"), id="white-space"),
        pytest.param(["10.1.2.3/8"], networks("10.0.0.0/8"), id="host-bits"),
        pytest.param(["10.0.0.0/8", "10.0.0.0/8"], networks("10.0.0.0/8"), id="twice"),
    ],
)
def test_the_source_ranges(ranges: Any, found: tuple[Network, ...]) -> None:
    document = raw(spec_loadBalancerSourceRanges=ranges)
    assert read_service(document) == READ._replace(source_ranges=found)


@pytest.mark.parametrize("ranges", ["", "10.0.0.0/8", 0, False, {}, [None], ["all"], [["::/0"]]])
def test_source_ranges_that_cannot_be_read_let_nobody_in(ranges: Any) -> None:
    found = read_service(raw(spec_loadBalancerSourceRanges=ranges))
    assert (found.source_ranges, found.bad_source_ranges) == ((), True)
    assert len(found.problems) == 1


def test_source_ranges_of_which_one_cannot_be_read_are_known_to_be_incomplete() -> None:
    found = read_service(raw(spec_loadBalancerSourceRanges=["all", "10.0.0.0/8"]))
    assert (found.source_ranges, found.bad_source_ranges) == (networks("10.0.0.0/8"), True)


@pytest.mark.parametrize(
    ("part", "key", "value", "skipped"),
    [
        ("labels", "service.kubernetes.io/service-proxy-name", "other", True),
        ("labels", "service.kubernetes.io/service-proxy-name", "", True),
        ("labels", "service.kubernetes.io/headless", "", True),
        ("annotations", "service.kubernetes.io/headless", "", False),
        ("annotations", "ipvs-node-agent/ignore", "true", True),
        ("annotations", "ipvs-node-agent/ignore", "True", False),
        ("annotations", "ipvs-node-agent/ignore", True, False),
        ("labels", "ipvs-node-agent/ignore", "true", False),
    ],
)
def test_labels_and_annotations_say_whether_a_service_is_left_alone(
    part: str, key: str, value: Any, skipped: bool
) -> None:
    said = f"the {part[:-1]} {key}" if skipped else ""
    document = raw(**{f"metadata_{part}": {key: value}})
    assert read_service(document) == READ._replace(skipped=said)


def test_a_service_that_is_left_alone_has_no_problems() -> None:
    ignored = raw(metadata_annotations={"ipvs-node-agent/ignore": "true"}, spec_externalIPs=["?"])
    assert read_service(ignored) == READ._replace(
        external_ips=(), skipped="the annotation ipvs-node-agent/ignore"
    )


@pytest.mark.parametrize("layout", ["one dense pool", "one IPv6 pool"])
def test_what_the_benchmarks_servers_send_are_the_services_that_they_have(layout: str) -> None:
    for each in fleet.fleet(fleet.LAYOUTS[layout], 20).values():
        assert read_service(fleet.raw(each)) == each


@pytest.mark.parametrize("created", [7, "yesterday", "2026-01-05", "2026-01-05T08:00:00+01:00"])
def test_a_service_whose_age_cannot_be_read_is_the_youngest(created: Any) -> None:
    document = raw(metadata_creationTimestamp=created)
    assert read_service(document) == READ._replace(created=99991231235959)


# What cannot be read.


@pytest.mark.parametrize(
    ("field", "entry", "complaint"),
    [
        ("ingress", "10.19.0.1", "is '10.19.0.1', wanted a mapping"),
        ("ingress", {"ip": "lb.example.com"}, "'lb.example.com' is not an IP address"),
        ("ingress", {"ip": "a\nb\u202e"}, "'a\\nb\\u202e' is not an IP address"),
        ("ingress", {"ip": 7}, "is 7, wanted an IP address"),
        ("ingress", {"ip": ["10.19.0.1"]}, "is a list, wanted an IP address"),
        ("externalIPs", 10**30, "is a number with too many digits, wanted an IP address"),
        ("ports", {"port": 0}, "has the port 0, wanted 1 to 65535"),
        ("ports", {"port": 65536}, "has the port 65536, wanted 1 to 65535"),
        ("ports", {"port": "80"}, "has the port '80', wanted 1 to 65535"),
        ("ports", {"port": True}, "has the port True, wanted 1 to 65535"),
        ("ports", {"port": 80.0}, "has the port 80.0, wanted 1 to 65535"),
        ("ports", {}, "has the port None, wanted 1 to 65535"),
        ("ports", {"protocol": "tcp"}, "has the protocol 'tcp', wanted TCP, UDP or SCTP"),
        ("ports", {"protocol": []}, "has the protocol a list, wanted TCP, UDP or SCTP"),
        ("ports", 80, "has the protocol None, wanted TCP, UDP or SCTP"),
        ("loadBalancerSourceRanges", "all", "'all' is not a CIDR (wanted ADDRESS/LENGTH)"),
    ],
)
def test_what_cannot_be_read_is_a_problem_and_what_is_behind_it_counts(
    field: str, entry: Any, complaint: str
) -> None:
    document = raw()
    balancer = document["status"]["loadBalancer"]
    (balancer if field == "ingress" else document["spec"])[field].insert(0, entry)
    at = "status.loadBalancer.ingress" if field == "ingress" else f"spec.{field}"
    wanted = with_problem(f"{at}[0] {complaint}")
    assert read_service(document) == wanted._replace(bad_source_ranges="Ranges" in field)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"podCIDRs": ["pods"]}, "spec.podCIDRs[0] 'pods' is not a CIDR (wanted ADDRESS/LENGTH)"),
        ({"podCIDRs": "10.0.0.0/24"}, "spec.podCIDRs is '10.0.0.0/24', wanted a list"),
        (
            {"podCIDRs": ["0.0.0.0/0"]},
            "spec.podCIDRs[0] '0.0.0.0/0' matches every address, not only pods",
        ),
        ({"podCIDR": "::/0"}, "spec.podCIDR[0] '::/0' matches every address, not only pods"),
        ({"podCIDR": 7}, "spec.podCIDR[0] is 7, wanted a CIDR"),
    ],
)
def test_a_pod_cidr_that_cannot_be_read_is_a_problem(spec: Any, complaint: str) -> None:
    problem = Problem("worker-1", "Unreadable", complaint)
    assert read_node(node(spec=spec)) == Node("worker-1", (), (), (problem,))


def test_an_old_servers_single_pod_cidr_is_read() -> None:
    found = read_node(node(spec={"podCIDR": "10.240.2.128/25"}))
    assert found.pod_cidrs == networks("10.240.2.128/25")


def test_a_thousand_bad_fields_are_said_a_few_times() -> None:
    assert len(read_service(raw(ingress=[{"ip": "junk"}] * 1000)).problems) == 10


@every_junk
@pytest.mark.parametrize(
    "field", [*(f"spec_{field}" for field in raw()["spec"]), "metadata_labels", "metadata_uid"]
)
def test_junk_costs_no_more_than_its_own_field(field: str, junk: Any) -> None:
    found = read_service(raw(**{field: junk}))
    name = field.partition("_")[2]
    assert all(each.text.isprintable() and name[:9] in each.text for each in found.problems)
    if name not in ("type", "clusterIP", "clusterIPs"):
        assert found.load_balancer_ips == READ.load_balancer_ips
        assert found.cluster_ips == READ.cluster_ips


@every_junk
@pytest.mark.parametrize("part", ["spec", "status"])
def test_junk_for_a_whole_part_does_no_harm(part: str, junk: Any) -> None:
    assert read_service({**raw(), part: junk}).key == "default/web"
    assert read_node(node(**{part: junk})) == Node("worker-1", (), (), ())
