"""Services and Nodes are read from raw JSON, whatever it holds."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import UnknownObject, object_key, read_node, read_service
from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.model.objects import Node, Port, Problem, Service

JUNK: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "a-number": 1.5,
    "text": "junk",
    "empty-text": "",
    "a-list": ["junk"],
    "a-list-of-lists": [[]],
    "a-mapping": {"junk": "junk"},
    "an-empty-mapping": {},
}
every_junk = pytest.mark.parametrize(
    "junk", [pytest.param(value, id=name) for name, value in JUNK.items()]
)


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
    ingress: Any = [{"ip": "10.19.0.1"}, {"ip": "fd00:19::1", "ipMode": "VIP"}]
    for name, value in changes.items():
        part, _, field = name.partition("_")
        if part == "ingress":
            ingress = value
        else:
            (metadata if part == "metadata" else spec)[field] = value
    status = {"loadBalancer": {"ingress": ingress}}
    return {"kind": "Service", "metadata": metadata, "spec": spec, "status": status}


def problems(service: Service) -> list[str]:
    assert {(p.service, p.reason) for p in service.problems} <= {(service.key, "Unreadable")}
    return [problem.text for problem in service.problems]


def test_a_service_is_read() -> None:
    assert read_service(raw()) == Service(
        key="default/web",
        created="2026-01-05T08:00:00Z",
        cluster_ips=(parse_address("10.231.0.1"), parse_address("fd00:231::1")),
        load_balancer_ips=(parse_address("10.19.0.1"), parse_address("fd00:19::1")),
        external_ips=(parse_address("10.20.0.1"),),
        ports=(Port("tcp", 80), Port("udp", 53)),
        local_policy=True,
        source_ranges=(parse_network("10.240.0.0/16"),),
        skipped=False,
        problems=(),
    )


def test_a_service_needs_no_more_than_its_name() -> None:
    assert read_service({"metadata": {"name": "web"}}) == Service(
        key="default/web",
        created="9999-12-31T23:59:59Z",
        cluster_ips=(),
        load_balancer_ips=(),
        external_ips=(),
        ports=(),
        local_policy=False,
        source_ranges=None,
        skipped=False,
        problems=(),
    )


def test_a_node_is_read() -> None:
    found = read_node(
        {
            "kind": "Node",
            "metadata": {"name": "worker-1"},
            "spec": {"podCIDR": "10.240.2.128/25", "podCIDRs": ["10.240.2.128/25", "fd00::/64"]},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": "192.168.7.11"},
                    {"type": "ExternalIP", "address": "198.51.100.7"},
                    {"type": "Hostname", "address": "worker-1"},
                    {"type": "InternalDNS", "address": "worker-1.example.com"},
                ]
            },
        }
    )
    assert found == Node(
        name="worker-1",
        pod_cidrs=(parse_network("10.240.2.128/25"), parse_network("fd00::/64")),
        addresses=(parse_address("192.168.7.11"), parse_address("198.51.100.7")),
        problems=(),
    )


# Which objects are Services at all.


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (None, "wanted a Service, got 'NoneType'"),
        ("Service", "wanted a Service, got 'str'"),
        ([], "wanted a Service, got 'list'"),
        ({"kind": "Pod"}, "wanted a Service, got 'Pod'"),
        ({"kind": None}, "wanted a Service, got None"),
        ({"kind": ["Service"]}, "wanted a Service, got a list"),
        ({"kind": "Service\n"}, "wanted a Service, got 'Service\\n'"),
        ({}, "a Service's name cannot be None"),
        ({"kind": "Service"}, "a Service's name cannot be None"),
        ({"metadata": "web"}, "a Service's name cannot be None"),
    ],
)
def test_what_is_no_service_is_refused(document: Any, complaint: str) -> None:
    with pytest.raises(UnknownObject, match=f"^{re.escape(complaint)}$"):
        read_service(document)


def test_a_service_of_another_api_is_refused() -> None:
    with pytest.raises(UnknownObject, match=r"serving\.knative\.dev/v1"):
        read_service({"apiVersion": "serving.knative.dev/v1", **raw()})


@pytest.mark.parametrize("version", ["v1", None])
def test_an_item_of_a_list_need_not_say_what_it_is(version: str | None) -> None:
    document = raw()
    del document["kind"]
    if version:
        document["apiVersion"] = version
    assert read_service(document).key == "default/web"


@pytest.mark.parametrize("part", ["name", "namespace"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "Web",
        "web_1",
        "-web",
        "web-",
        "we b",
        "web.1",
        "a" * 64,
        'web" -j ACCEPT',
        "web\n-A PREROUTING -j ACCEPT",
        "web\n",
        "wéb",
        "web\0",
        "../web",
        7,
        None,
        ["web"],
        {"web": 1},
    ],
    ids=repr,
)
def test_a_name_that_kubernetes_would_not_take_is_refused(part: str, value: Any) -> None:
    with pytest.raises(UnknownObject, match=f"^a Service's {part} cannot be ") as caught:
        read_service(raw(**{f"metadata_{part}": value}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "web-1", "1web", "a" * 63])
def test_a_name_that_kubernetes_takes_is_taken(name: str) -> None:
    assert read_service(raw(metadata_name=name)).key == f"default/{name}"


@pytest.mark.parametrize("name", [None, "", 7, ["x"], "a" * 254])
def test_a_node_needs_a_name(name: Any) -> None:
    with pytest.raises(UnknownObject, match=r"^a Node's name cannot be "):
        object_key({"kind": "Node", "metadata": {"name": name}}, "Node")


@pytest.mark.parametrize(
    "name", ["worker\n<3>forged", "Worker", "worker_1", ".", "a..b", "w ", "ẃ"]
)
def test_a_name_that_no_node_can_have_is_refused(name: str) -> None:
    with pytest.raises(UnknownObject, match=r"^a Node's name cannot be ") as caught:
        read_node({"metadata": {"name": name}})
    assert str(caught.value).isprintable()


def test_a_node_is_no_service() -> None:
    with pytest.raises(UnknownObject, match=r"^wanted a Node, got 'Service'$"):
        read_node(raw())


@pytest.mark.parametrize("field", ["kind", "name", "externalIPs"])
def test_a_number_with_too_many_digits_to_print_does_no_harm(field: str) -> None:
    number = 1 << 20000
    document = raw(metadata_name=number) if field == "name" else raw(spec_externalIPs=number)
    if field == "kind":
        document["kind"] = number
    if field == "externalIPs":
        assert read_service(document).external_ips == ()
    else:
        with pytest.raises(UnknownObject):
            read_service(document)


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
    assert len(found.source_ranges or () if ranges else found.external_ips) == len(CHOSEN)
    assert len(compared) < 10 * len(CHOSEN)


# Which IPs count.


@pytest.mark.parametrize(
    ("ingress", "ips"),
    [
        pytest.param(None, [], id="none"),
        pytest.param([], [], id="empty"),
        pytest.param([{"ip": "10.19.0.1"}], ["10.19.0.1"], id="an-IP"),
        pytest.param([{"hostname": "lb.example.com"}], [], id="a-hostname"),
        pytest.param([{"hostname": "lb", "ip": "10.19.0.1"}], ["10.19.0.1"], id="both"),
        pytest.param([{"ip": "", "hostname": "lb"}], [], id="an-empty-IP"),
        pytest.param([{"ip": "10.19.0.1", "ipMode": "VIP"}], ["10.19.0.1"], id="VIP"),
        pytest.param([{"ip": "10.19.0.1", "ipMode": None}], ["10.19.0.1"], id="null-mode"),
        pytest.param([{"ip": "10.19.0.1", "ipMode": "Proxy"}], [], id="Proxy"),
        pytest.param([{"ip": "10.19.0.1", "ipMode": "Other"}], [], id="a-mode-of-the-future"),
        pytest.param([{"ip": "10.19.0.1"}] * 2, ["10.19.0.1"], id="twice"),
        pytest.param(
            [{"ip": "fd00:19::1"}, {"ip": "FD00:19:0::1"}], ["fd00:19::1"], id="twice-spelled"
        ),
        pytest.param(
            [{"ip": "10.19.0.2"}, {"ip": "10.19.0.1"}], ["10.19.0.2", "10.19.0.1"], id="order"
        ),
    ],
)
def test_the_ips_of_the_load_balancer(ingress: Any, ips: list[str]) -> None:
    found = read_service(raw(ingress=ingress))
    assert found.load_balancer_ips == tuple(map(parse_address, ips))
    assert found.problems == ()


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("10.19.0.1", "is '10.19.0.1', wanted a mapping"),
        ({"ip": "010.19.0.1"}, "'010.19.0.1' has leading zeros, which some programs read as octal"),
        (
            {"ip": "::ffff:10.19.0.1"},
            "'::ffff:10.19.0.1' is an IPv4-mapped IPv6 address; write it as IPv4",
        ),
        ({"ip": "lb.example.com"}, "'lb.example.com' is no IP address"),
        ({"ip": '10.0.0.1" -j X\n'}, "'10.0.0.1\" -j X\\n' is no IP address"),
        ({"ip": 7}, "is 7, wanted an IP address"),
        ({"ip": ["10.19.0.1"]}, "is a list, wanted an IP address"),
    ],
)
def test_an_ip_that_cannot_be_read_is_a_problem_and_the_next_one_counts(
    entry: Any, complaint: str
) -> None:
    found = read_service(raw(ingress=[entry, {"ip": "10.19.0.9"}]))
    assert found.load_balancer_ips == (parse_address("10.19.0.9"),)
    assert problems(found) == [f"status.loadBalancer.ingress[0] {complaint}"]


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "ExternalName", "loadbalancer", None])
def test_only_a_load_balancers_ingress_and_source_ranges_count(kind: str | None) -> None:
    found = read_service(raw(spec_type=kind))
    assert found.load_balancer_ips == ()
    assert found.source_ranges is None
    assert found.external_ips == (parse_address("10.20.0.1"),)


@pytest.mark.parametrize(
    ("cluster_ip", "cluster_ips", "read"),
    [
        pytest.param("10.231.0.1", None, ["10.231.0.1"], id="old-server"),
        pytest.param("10.231.0.1", [], ["10.231.0.1"], id="empty-list"),
        pytest.param("10.231.0.1", ["10.231.0.1"], ["10.231.0.1"], id="single"),
        pytest.param(
            "fd00::1", ["fd00::1", "10.231.0.1"], ["10.231.0.1", "fd00::1"], id="IPv6-first"
        ),
        pytest.param("None", ["None"], [], id="headless"),
        pytest.param("None", None, [], id="headless-old-server"),
        pytest.param("", None, [], id="not-yet"),
        pytest.param(None, None, [], id="ExternalName"),
        pytest.param("10.0.0.1", ["10.0.0.1", "10.0.0.2"], ["10.0.0.1"], id="two-of-a-family"),
    ],
)
def test_the_cluster_ips(cluster_ip: Any, cluster_ips: Any, read: list[str]) -> None:
    found = read_service(raw(spec_clusterIP=cluster_ip, spec_clusterIPs=cluster_ips))
    assert found.cluster_ips == tuple(map(parse_address, read))
    assert found.problems == ()


@pytest.mark.parametrize(
    ("port", "complaint"),
    [
        ({"port": 0}, "has the port 0, wanted 1 to 65535"),
        ({"port": 65536}, "has the port 65536, wanted 1 to 65535"),
        ({"port": "80"}, "has the port '80', wanted 1 to 65535"),
        ({"port": True}, "has the port True, wanted 1 to 65535"),
        ({"port": 80.0}, "has the port 80.0, wanted 1 to 65535"),
        ({}, "has the port None, wanted 1 to 65535"),
        ({"port": 80, "protocol": "tcp"}, "has the protocol 'tcp', wanted TCP, UDP or SCTP"),
        ({"port": 80, "protocol": []}, "has the protocol a list, wanted TCP, UDP or SCTP"),
        (80, "has the protocol None, wanted TCP, UDP or SCTP"),
    ],
)
def test_a_port_that_cannot_be_read_is_a_problem(port: Any, complaint: str) -> None:
    found = read_service(raw(spec_ports=[port, {"port": 443}]))
    assert found.ports == (Port("tcp", 443),)
    assert problems(found) == [f"spec.ports[0] {complaint}"]


@pytest.mark.parametrize(
    ("ranges", "read"),
    [
        pytest.param(None, None, id="none"),
        pytest.param([], None, id="empty"),
        pytest.param(["10.0.0.0/8"], ["10.0.0.0/8"], id="one"),
        pytest.param([" 10.0.0.0/8\t"], ["10.0.0.0/8"], id="white-space"),
        pytest.param(["10.1.2.3/8"], ["10.0.0.0/8"], id="host-bits"),
        pytest.param(["10.0.0.0/8", "10.0.0.0/8"], ["10.0.0.0/8"], id="twice"),
    ],
)
def test_the_source_ranges(ranges: Any, read: list[str] | None) -> None:
    found = read_service(raw(spec_loadBalancerSourceRanges=ranges))
    assert found.source_ranges == (None if read is None else tuple(map(parse_network, read)))
    assert found.problems == ()


@pytest.mark.parametrize("ranges", ["", "10.0.0.0/8", 0, False, {}, [None], ["all"], [["::/0"]]])
def test_source_ranges_that_cannot_be_read_let_nobody_in(ranges: Any) -> None:
    found = read_service(raw(spec_loadBalancerSourceRanges=ranges))
    assert found.source_ranges == ()
    assert len(found.problems) == 1


def test_one_source_range_that_cannot_be_read_leaves_the_others() -> None:
    found = read_service(raw(spec_loadBalancerSourceRanges=["all", "10.0.0.0/8"]))
    assert found.source_ranges == (parse_network("10.0.0.0/8"),)
    assert problems(found) == [
        "spec.loadBalancerSourceRanges[0] 'all' is no CIDR (wanted ADDRESS/LENGTH)"
    ]


# Which Services are left alone.


@pytest.mark.parametrize(
    ("metadata", "skipped"),
    [
        ({"labels": {"service.kubernetes.io/service-proxy-name": "other"}}, True),
        ({"labels": {"service.kubernetes.io/service-proxy-name": ""}}, True),
        ({"labels": {"service.kubernetes.io/headless": ""}}, True),
        ({"annotations": {"service.kubernetes.io/headless": ""}}, False),
        ({"annotations": {"ipvs-node-agent/ignore": "true"}}, True),
        ({"annotations": {"ipvs-node-agent/ignore": "false"}}, False),
        ({"annotations": {"ipvs-node-agent/ignore": "True"}}, False),
        ({"annotations": {"ipvs-node-agent/ignore": True}}, False),
        ({"labels": {"ipvs-node-agent/ignore": "true"}}, False),
        ({"labels": None, "annotations": None}, False),
    ],
)
def test_labels_and_annotations_say_whether_a_service_is_left_alone(
    metadata: dict[str, Any], skipped: bool
) -> None:
    changes = {f"metadata_{field}": value for field, value in metadata.items()}
    assert read_service(raw(**changes)).skipped is skipped


def test_a_service_that_is_left_alone_has_no_problems_and_keeps_its_cluster_ips() -> None:
    found = read_service(
        raw(metadata_annotations={"ipvs-node-agent/ignore": "true"}, spec_externalIPs=["junk"])
    )
    assert found.problems == ()
    assert found.cluster_ips == (parse_address("10.231.0.1"), parse_address("fd00:231::1"))


@pytest.mark.parametrize(
    "created", [None, 7, "", "yesterday", "2026-01-05", "2026-01-05T08:00:00+01:00"]
)
def test_a_service_whose_age_cannot_be_read_is_the_youngest(created: Any) -> None:
    assert read_service(raw(metadata_creationTimestamp=created)).created == "9999-12-31T23:59:59Z"


# Whatever the JSON holds.


@every_junk
@pytest.mark.parametrize("field", sorted(raw()["spec"]))
def test_junk_in_the_spec_costs_no_more_than_its_own_field(field: str, junk: Any) -> None:
    found = read_service(raw(**{f"spec_{field}": junk}))
    assert all(text.isprintable() and field[:9] in text for text in problems(found))
    if field not in ("type", "clusterIP", "clusterIPs"):
        assert found.load_balancer_ips == read_service(raw()).load_balancer_ips
        assert found.cluster_ips == read_service(raw()).cluster_ips


@every_junk
@pytest.mark.parametrize("field", ["metadata", "spec", "status"])
def test_junk_for_a_whole_part_does_no_harm(field: str, junk: Any) -> None:
    document = {**raw(), field: junk}
    if field == "metadata":
        with pytest.raises(UnknownObject):
            read_service(document)
    else:
        assert read_service(document).key == "default/web"


@every_junk
@pytest.mark.parametrize("field", ["spec", "status"])
def test_junk_in_a_node_does_no_harm(field: str, junk: Any) -> None:
    node = {"kind": "Node", "metadata": {"name": "worker-1"}, field: junk}
    assert read_node(node) == Node("worker-1", (), (), ())


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"podCIDRs": ["pods"]}, "spec.podCIDRs[0] 'pods' is no CIDR (wanted ADDRESS/LENGTH)"),
        ({"podCIDRs": "10.0.0.0/24"}, "spec.podCIDRs is '10.0.0.0/24', wanted a list"),
        ({"podCIDRs": ["0.0.0.0/0"]}, "spec.podCIDRs[0] '0.0.0.0/0' would make every client a pod"),
        ({"podCIDR": "::/0"}, "spec.podCIDR[0] '::/0' would make every client a pod"),
        ({"podCIDR": 7}, "spec.podCIDR[0] is 7, wanted a CIDR"),
    ],
)
def test_a_pod_cidr_that_cannot_be_read_is_a_problem(spec: Any, complaint: str) -> None:
    found = read_node({"kind": "Node", "metadata": {"name": "worker-1"}, "spec": spec})
    assert found.pod_cidrs == ()
    assert found.problems == (Problem("worker-1", "Unreadable", complaint),)


def test_an_old_servers_single_pod_cidr_is_read() -> None:
    node = {"kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDR": "10.240.2.128/25"}}
    assert read_node(node).pod_cidrs == (parse_network("10.240.2.128/25"),)


def test_a_thousand_bad_fields_are_said_a_few_times() -> None:
    found = read_service(raw(ingress=[{"ip": "junk"}] * 1000))
    assert len(found.problems) == 10


def test_a_problem_says_whose_it_is_in_one_line() -> None:
    (problem,) = read_service(raw(ingress=[{"ip": "a\nb\u202e"}])).problems
    assert str(problem) == (
        "default/web: status.loadBalancer.ingress[0] 'a\\nb\\u202e' is no IP address"
    )
