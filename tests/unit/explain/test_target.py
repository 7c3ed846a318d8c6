"""What TARGET may be."""

from __future__ import annotations

import pytest

from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.explain.target import Target, target
from ipvs_node_agent.model.addresses import parse_address

FOUR, SIX = parse_address("10.19.20.201"), parse_address("fd00::1")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10.19.20.201", Target("", address=FOUR)),
        ("10.19.20.201:80", Target("", address=FOUR, port=80)),
        ("10.19.20.201:53/udp", Target("", address=FOUR, protocol="udp", port=53)),
        ("10.19.20.201:5060/SCTP", Target("", address=FOUR, protocol="sctp", port=5060)),
        ("fd00::1", Target("", address=SIX)),
        ("[fd00::1]", Target("", address=SIX)),
        ("[fd00::1]:80", Target("", address=SIX, port=80)),
        ("[fd00:0::1]:53/udp", Target("", address=SIX, protocol="udp", port=53)),
        ("default/web", Target("", key="default/web")),
        ("10/20", Target("", key="10/20")),
    ],
)
def test_what_is_meant(text: str, wanted: Target) -> None:
    assert target(text) == wanted._replace(text=text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web",
        "a/b/c",
        "Default/web",
        "default/",
        "10.19.20",
        "010.0.0.1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "10.19.20.201:0",
        "10.19.20.201:65536",
        "10.19.20.201:http",
        "10.19.20.201:80/icmp",
        "10.19.20.201/udp",
        "10.19.20.0/24",
        "fd00::1:80/udp",
        "[10.19.20.201]:80",
        "lb.example.com",
        "10.19.20.201:80\n",
        "default/web\n",
        "\x1b[2J",
        "1" * 100_000,
    ],
)
def test_anything_else_is_bad_usage_in_one_short_line(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        target(text)
    shown = str(raised.value)
    assert shown.isprintable()
    assert len(shown) < 300
    assert "NAMESPACE/NAME" in shown
