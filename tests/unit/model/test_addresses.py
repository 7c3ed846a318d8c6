"""Addresses and prefixes are read strictly, and printed as iptables-save prints them."""

from __future__ import annotations

import ipaddress
import re

import pytest

from ipvs_node_agent.model.addresses import (
    FAMILIES,
    IPV4,
    IPV6,
    Network,
    collapse,
    contains,
    intersection,
    of_family,
    parse_address,
    parse_host_port,
    parse_network,
    reached_at,
    show_address,
    show_network,
)


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(parse_network(text) for text in texts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.19.20.201", "10.19.20.201"),
        ("0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.255"),
        ("fd00::1", "fd00::1"),
        ("FD00:0:0:0:0:0:0:1", "fd00::1"),
        ("fd00:0:0:1:0:0:0:1", "fd00:0:0:1::1"),
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("::", "::"),
        ("::10.0.0.1", "::10.0.0.1"),
        ("::a00:1", "::10.0.0.1"),
    ],
)
def test_an_address_is_shown_as_the_c_library_shows_it(text: str, shown: str) -> None:
    assert show_address(parse_address(text)) == shown


NO_ADDRESS = "is not an IP address"
LEADING_ZEROS = "has leading zeros, which some programs read as octal"
MAPPED = "is an IPv4-mapped IPv6 address; write it as IPv4"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", NO_ADDRESS),
        ("lb.example.com", NO_ADDRESS),
        ("10.0.0", NO_ADDRESS),
        ("10.0.0.1.2", NO_ADDRESS),
        ("10.0.0.256", NO_ADDRESS),
        ("10.0.0.1/32", NO_ADDRESS),
        (" 10.0.0.1", NO_ADDRESS),
        ("10.0.0.1\n", NO_ADDRESS),
        ("10.0.0.-1", NO_ADDRESS),
        ("0x0a000001", NO_ADDRESS),
        ("167772161", NO_ADDRESS),
        ("１０.0.0.1", NO_ADDRESS),
        ("١0.0.0.1", NO_ADDRESS),
        ("fd00::1%eth0", NO_ADDRESS),
        ("[fd00::1]", NO_ADDRESS),
        ("fd00:::1", NO_ADDRESS),
        ("1" * 5000, NO_ADDRESS),
        ("10.0.0.1\0", NO_ADDRESS),
        ('10.0.0.1" -j ACCEPT', NO_ADDRESS),
        ("010.0.0.1", LEADING_ZEROS),
        ("10.0.0.01", LEADING_ZEROS),
        ("10.00.0.1", LEADING_ZEROS),
        ("::ffff:10.0.0.1", MAPPED),
        ("::ffff:a00:1", MAPPED),
        ("0:0:0:0:0:FFFF:10.0.0.1", MAPPED),
    ],
)
def test_what_could_be_read_in_two_ways_is_no_address(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.240.2.128/25", "10.240.2.128/25"),
        ("10.240.2.1/32", "10.240.2.1/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00:0::/64", "fd00::/64"),
        ("::/0", "::/0"),
    ],
)
def test_a_prefix_is_shown_with_its_length(text: str, shown: str) -> None:
    assert show_network(parse_network(text)) == shown


NO_CIDR = "is not a CIDR (wanted ADDRESS/LENGTH)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.0", NO_CIDR),
        ("10.0.0.0/", NO_CIDR),
        ("10.0.0.0/255.0.0.0", NO_CIDR),
        ("10.0.0.0/-8", NO_CIDR),
        ("10.0.0.0/ 8", NO_CIDR),
        ("10.0.0.0/٨", NO_CIDR),
        ("10.0.0.0/8/8", NO_CIDR),
        ("10.0.0.0/0000000008", NO_CIDR),
        ("10.0.0.0/33", "has a prefix length over 32"),
        ("fd00::/129", "has a prefix length over 128"),
        ("10.0.0.1/8", "has host bits set (did you mean 10.0.0.0/8?)"),
        ("fd00::1/64", "has host bits set (did you mean fd00::/64?)"),
        ("010.0.0.0/8", LEADING_ZEROS),
        ("::ffff:10.0.0.0/104", MAPPED),
        ("pods/8", NO_ADDRESS),
        ("/8", NO_ADDRESS),
    ],
)
def test_what_is_no_prefix_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "shown"), [("10.0.0.1/8", "10.0.0.0/8"), ("fd00::1/64", "fd00::/64")]
)
def test_host_bits_can_be_masked_off_as_the_kernel_does(text: str, shown: str) -> None:
    assert show_network(parse_network(text, strict=False)) == shown


def test_a_family_knows_its_command_and_how_long_its_addresses_are() -> None:
    assert [(f.command, f.bits, str(f)) for f in FAMILIES] == [
        ("iptables", 32, "IPv4"),
        ("ip6tables", 128, "IPv6"),
    ]


def test_prefixes_of_one_family_keep_their_order() -> None:
    mixed = networks("10.2.0.0/16", "fd00::/64", "10.1.0.0/16")
    assert of_family(mixed, IPV4) == networks("10.2.0.0/16", "10.1.0.0/16")
    assert of_family(mixed, IPV6) == networks("fd00::/64")


@pytest.mark.parametrize(
    ("network", "address", "inside"),
    [
        ("10.0.0.0/8", "10.255.255.255", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("::/0", "10.0.0.1", False),
        ("0.0.0.0/0", "fd00::1", False),
    ],
)
def test_an_address_is_only_inside_prefixes_of_its_family(
    network: str, address: str, inside: bool
) -> None:
    assert contains(parse_network(network), parse_address(address)) is inside


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [
        pytest.param(["10.0.0.0/8"], ["10.1.0.0/16"], ["10.1.0.0/16"], id="inside"),
        pytest.param(["10.1.0.0/16"], ["10.0.0.0/8"], ["10.1.0.0/16"], id="around"),
        pytest.param(["10.0.0.0/8"], ["10.0.0.0/8"], ["10.0.0.0/8"], id="equal"),
        pytest.param(["10.0.0.0/8"], ["11.0.0.0/8"], [], id="apart"),
        pytest.param(["10.0.0.0/8"], [], [], id="nothing"),
        pytest.param(
            ["10.0.0.0/8"], ["10.0.0.0/9", "10.128.0.0/9"], ["10.0.0.0/8"], id="in-two-halves"
        ),
        pytest.param(["10.0.0.0/8", "10.1.0.0/16"], ["10.1.2.0/24"], ["10.1.2.0/24"], id="once"),
        pytest.param(["fd00::/8"], ["fd00:1::/32"], ["fd00:1::/32"], id="IPv6"),
    ],
)
def test_an_intersection_is_the_fewest_prefixes(
    left: list[str], right: list[str], common: list[str]
) -> None:
    assert intersection(networks(*left), networks(*right)) == networks(*common)


def test_collapsing_gives_the_fewest_prefixes_sorted() -> None:
    assert collapse(networks("10.1.0.0/24", "10.0.1.0/24", "10.0.0.0/24")) == networks(
        "10.0.0.0/23", "10.1.0.0/24"
    )


def test_ipv6_addresses_are_not_given_the_same_hash() -> None:
    """Python's own hash is the number modulo 2**61 - 1, so that anybody can choose it."""
    chosen = [ipaddress.IPv6Address(k * (2**61 - 1)) for k in range(1, 100)]
    assert len(set(map(hash, chosen))) == 1
    assert len({hash(parse_address(str(each))) for each in chosen}) == 99
    assert [parse_address(str(each)) for each in chosen] == chosen


@pytest.mark.parametrize(
    ("text", "host", "port", "reached"),
    [
        ("127.0.0.1:10273", "127.0.0.1", 10273, "127.0.0.1"),
        ("[fd00::1]:1", "fd00::1", 1, "fd00::1"),
        ("node-1.example.com:65535", "node-1.example.com", 65535, "node-1.example.com"),
        (":80", "", 80, "127.0.0.1"),
        ("0.0.0.0:80", "0.0.0.0", 80, "127.0.0.1"),
        ("[::]:80", "::", 80, "::1"),
    ],
)
def test_a_host_and_its_port_are_read(text: str, host: str, port: int, reached: str) -> None:
    assert parse_host_port(text) == (host, port)
    assert reached_at(host) == reached


@pytest.mark.parametrize(
    "text",
    ["", ":", "80", "127.0.0.1", "a:0", "a:65536", "a:http", "a:1\n", "::1:80", "[]:80", "[a]b:80"],
)
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not HOST:PORT$"):
        parse_host_port(text)
