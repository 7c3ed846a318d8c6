"""Hosts and URLs are taken in one form only, and what is wrong is said without showing them."""

from __future__ import annotations

import base64
from typing import Callable

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.kubeconfig.urls import host, parse, proxy, server
from tests.support.examples import examples


def fault(read: Callable[[str], object], text: str) -> str:
    """Why `read` refuses the text, nothing where it takes it."""
    try:
        read(text)
    except ValueError as error:
        return str(error)
    return ""


LONG_LABEL, LONG_NAME = "a" * 64, ".".join(["a" * 63] * 4)


@pytest.mark.parametrize(
    "url",
    [
        "https://10.0.0.1:6443",
        "https://[fd00::1]:6443",
        "https://[fd00::1]",
        "https://api.example.org.:443",
        "https://under_score.example.org:1",
        "http://localhost:65535",
        "https://rancher.example.org/k8s/clusters/c-m-1234",
        f"https://{'a' * 63}.example",
    ],
)
def test_a_server_is_taken_as_it_is(url: str) -> None:
    assert server(url) == url


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("HTTPS://API.example.org/", "https://API.example.org"),
        ("https://10.0.0.1:", "https://10.0.0.1"),
        ("https://10.0.0.1:06443", "https://10.0.0.1:6443"),
    ],
)
def test_a_server_may_be_written_in_another_way(url: str, meant: str) -> None:
    assert server(url) == meant


FORM = "is not of the form https://HOST:PORT"
EMPTY_LABEL = "has a host with an empty label"
TOO_LONG = "has a host of more than 253 characters, or 63 in a label"
NO_IPV4 = "has a host that is not an IPv4 address"
NO_IPV6 = "has a host that is not an IPv6 address"
NO_PORT = "has a port outside 1 to 65535"
USER = "holds a user or a password, which no API server takes"
HOST_FAULTS = [
    *((name, EMPTY_LABEL) for name in ("a..b", ".a", "a..", ".")),
    *((name, TOO_LONG) for name in (LONG_LABEL, LONG_NAME)),
    *((name, NO_IPV4) for name in ("10.0.0", "10.0.0.256", "010.0.0.1", "0x0a000001", "167772161")),
    ("a*b", "has a host with a character that is not allowed in names (U+002A)"),
    ("a%41", "has a host with a character that is not allowed in names (U+0025)"),
]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        *((f"https://{name}:6443", why) for name, why in HOST_FAULTS),
        *((f"https://{rest}", "has no host") for rest in ("", ":6443")),
        ("https://a\u3002b", "has a character that is not allowed in URLs (U+3002)"),
        ("https://a b", "has a character that is not allowed in URLs (U+0020)"),
        ("https://a\nb", "has a character that is not allowed in URLs (U+000A)"),
        ("https://a\\b", "has a character that is not allowed in URLs (U+005C)"),
        ("https://a\ud800", "has a character that is not allowed in URLs (U+D800)"),
        *((f"https://{rest}", FORM) for rest in ("fd00::1:6443", "[fd00::1", "a?b", "a/#b")),
        *((url, FORM) for url in ("a:6443", "//a:6443", "https:a", "ftp://a")),
        *((f"https://[{host}]", NO_IPV6) for host in ("fe80::1%25eth0", "10.0.0.1", "")),
        *((f"https://a:{port}", NO_PORT) for port in ("0", "65536", "-1", "b", "9" * 5000)),
        *((f"https://{user}@a", USER) for user in ("u:p", "", "u@v")),
    ],
)
def test_anything_else_is_no_server(url: str, why: str) -> None:
    assert fault(server, url) == why


@pytest.mark.parametrize(
    "name", ["kubernetes", "kubernetes.default.svc", "10.96.0.1", "fd00::1", "a."]
)
def test_a_host_is_a_name_or_an_address(name: str) -> None:
    assert host(name) == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *HOST_FAULTS,
        ("a\u3002b", "has a host with a character that is not allowed in names (U+3002)"),
        ("[fd00::1]", "has a host with a character that is not allowed in names (U+005B)"),
        ("fe80::1%eth0", "has a host with a character that is not allowed in names (U+003A)"),
        ("a\n", "has a host with a character that is not allowed in names (U+000A)"),
        ("", "has no host"),
    ],
)
def test_anything_else_is_no_host(name: str, why: str) -> None:
    assert fault(host, name) == why


@pytest.mark.parametrize(
    ("url", "meant", "user"),
    [
        ("http://proxy:3128", "http://proxy:3128", None),
        ("http://proxy/", "http://proxy/", None),
        ("http://me:s3cret@[fd00::1]:3128", "http://[fd00::1]:3128", "me:s3cret"),
        ("http://me:%C3%A9%40@proxy:1", "http://proxy:1", "me:\u00e9@"),
        ("http://me:a@b@proxy:1", "http://proxy:1", "me:a@b"),
    ],
)
def test_a_proxys_user_is_told_apart_from_it(url: str, meant: str, user: str | None) -> None:
    found, authorization = proxy(url)
    assert found == meant
    said = authorization and base64.b64decode(authorization.removeprefix("Basic ")).decode()
    assert said == user


@pytest.mark.parametrize("url", ["https://p:1", "socks5://p:1", "p:1", "http://p/a", "http://p?a"])
def test_a_proxy_of_another_kind_is_none(url: str) -> None:
    assert fault(proxy, url) == "is not of the form http://HOST:PORT"


PIECES = (
    *("https://", "http://", "::1", "10.0.0.1", "0x", "xn--", LONG_LABEL, ":6443", "u:p@"),
    *"ab01.:@/?#[]%\\ \n\u3002\u00df\ud800",
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


@examples(500)
@given(text=texts | texts.map("https://".__add__))
def test_a_server_is_read_alike_by_all_who_get_it(text: str) -> None:
    """By urllib3, which sends the requests, and by the codec of those who open connections."""
    why = fault(server, text)
    assert why.isprintable()
    if why:
        return
    url = server(text)
    assert url.isascii()
    assert url.isprintable()
    ours, theirs = parse(url, "https", "http"), urllib3.util.parse_url(url)
    assert theirs.auth is None
    assert (theirs.host or "").strip("[]").lower() == ours.host.lower()
    assert (theirs.port or ours.address[1]) == ours.address[1]
    assert ours.host.encode("idna")


@examples(500)
@given(text=texts)
def test_a_host_can_be_looked_up(text: str) -> None:
    why = fault(host, text)
    assert why.isprintable()
    assert why or text.encode("idna")
