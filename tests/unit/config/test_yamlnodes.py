"""Values of every type, and what is no such value, said in the words of the file."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.config.file import parse
from tests.support.configs import FILE, at, nested, refusal

CIDRS = "a list of CIDRs such as [10.240.2.128/25]"
PERIOD = "a duration from 0.1s to 3600s, such as 2s or 500ms"
MAPPING = "a mapping of keys to values"
WANTED = {
    "kubeconfig": "text",
    "nodeName": "text",
    "podCIDRs": CIDRS,
    "chains": MAPPING,
    "chains.prerouting": "text",
    "chains.output": "text",
    "chains.markMasquerade": "text",
    "chains.servicesPerChain": "a whole number from 2 to 4096",
    "masquerade": "All or HostOnly",
    "services": MAPPING,
    "services.externalIPs": "true or false",
    "services.externalTrafficPolicy": "Any or Local",
    "services.allowedExternalCIDRs": CIDRS,
    "services.matchPorts": "Shared or Always",
    "iptables": MAPPING,
    "iptables.backend": "auto or nft or legacy",
    "iptables.lockWaitSeconds": "a whole number from 1 to 60",
    "driftCheckPeriod": PERIOD,
    "metricsBindAddress": "text",
    "serviceMetrics": "true or false",
}
# What a value of the type looks like in a file, and how a message shows it.
TYPES = {
    "a-number": ("7.5", "7.5"),
    "a-whole-number": ("70000", "70000"),
    "a-boolean": ("yes", "yes"),
    "null": ("null", "null"),
    "nothing": ("", "null"),
    "text": ('"some words"', '"some words"'),
    "a-date": ("2026-01-05", "2026-01-05"),
    "a-list": ("[x]", "a list"),
    "a-mapping": ("{x: 1}", "a mapping"),
    "binary": ("!!binary aGk=", "aGk="),
}
NULL_ALLOWED = ("nodeName", "podCIDRs", "chains", "services", "iptables")
# The types that a key takes; what is wrong with their values is tested further down.
RIGHT = {
    "text": ("text",),
    "true or false": ("a-boolean",),
    MAPPING: ("a-mapping",),
    CIDRS: ("a-list",),
}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        pytest.param(key, kind, id=f"{key}-{kind}")
        for key, wanted in WANTED.items()
        for kind in TYPES
        if kind not in RIGHT.get(wanted, ())
        if not (key in NULL_ALLOWED and kind in ("null", "nothing"))
    ],
)
def test_a_wrong_type_is_refused(key: str, kind: str) -> None:
    value, shown = TYPES[kind]
    message = refusal(f"# a comment\n{nested(key, value)}")
    assert message == f"{at(2)}{key}: wanted {WANTED[key]}, got {shown}"


PER_CHAIN, LOCK_WAIT = "a whole number from 2 to 4096", "a whole number from 1 to 60"
BIND = 'HOST:PORT such as 127.0.0.1:10273, or "" to turn it off'


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("podCIDRs", '"10.240.2.128/25"', CIDRS),
        ("chains.servicesPerChain", "1", PER_CHAIN),
        ("chains.servicesPerChain", "0", PER_CHAIN),
        ("chains.servicesPerChain", "-2", PER_CHAIN),
        ("chains.servicesPerChain", "4097", PER_CHAIN),
        ("chains.servicesPerChain", "010", PER_CHAIN),
        ("chains.servicesPerChain", "0x10", PER_CHAIN),
        ("chains.servicesPerChain", "1:30", PER_CHAIN),
        ("chains.servicesPerChain", "1_6", PER_CHAIN),
        ("chains.servicesPerChain", '"16"', PER_CHAIN),
        ("iptables.lockWaitSeconds", "0", LOCK_WAIT),
        ("iptables.lockWaitSeconds", "61", LOCK_WAIT),
        ("iptables.lockWaitSeconds", '"5s"', LOCK_WAIT),
        ("services.externalIPs", '"true"', "true or false"),
        ("services.externalIPs", "1", "true or false"),
        ("driftCheckPeriod", "2", PERIOD),
        ("driftCheckPeriod", '""', PERIOD),
        ("driftCheckPeriod", '"0s"', PERIOD),
        ("driftCheckPeriod", '"99ms"', PERIOD),
        ("driftCheckPeriod", '"2h"', PERIOD),
        ("driftCheckPeriod", '"-2s"', PERIOD),
        ("driftCheckPeriod", '"2 s"', PERIOD),
        ("driftCheckPeriod", '"1s1h"', PERIOD),
        ("driftCheckPeriod", '"2seconds"', PERIOD),
        ("driftCheckPeriod", '"٢s"', PERIOD),
        ("metricsBindAddress", '"10273"', BIND),
        ("metricsBindAddress", '"127.0.0.1"', BIND),
        ("metricsBindAddress", '"127.0.0.1:"', BIND),
        ("metricsBindAddress", '"127.0.0.1:0"', BIND),
        ("metricsBindAddress", '"127.0.0.1:65536"', BIND),
        ("metricsBindAddress", '"127.0.0.1:http"', BIND),
        ("metricsBindAddress", '"::1:80"', BIND),
        ("metricsBindAddress", '"http://127.0.0.1:80"', BIND),
        ("metricsBindAddress", '"127.0.0.1:١٠٢٧٣"', BIND),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_refused(key: str, value: str, wanted: str) -> None:
    assert refusal(nested(key, value)) == f"{at(1)}{key}: wanted {wanted}, got {value}"


@pytest.mark.parametrize("value", ["!!bool maybe", "!!bool 1"])
def test_a_tag_does_not_make_a_boolean(value: str) -> None:
    shown = value.partition(" ")[2]
    message = refusal(f"services: {{externalIPs: {value}}}")
    assert message == f"{at(1)}services.externalIPs: wanted true or false, got {shown}"


def test_a_tag_does_not_make_a_whole_number() -> None:
    message = refusal("chains: {servicesPerChain: !!int x}")
    assert message == f"{at(1)}chains.servicesPerChain: wanted {PER_CHAIN}, got x"


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("driftCheckPeriod", "100ms", 0.1),
        ("driftCheckPeriod", "0.5s", 0.5),
        ("driftCheckPeriod", "1h", 3600.0),
        ("driftCheckPeriod", "59m59s999ms", 3599.999),
        ("metricsBindAddress", '""', ""),
        ("metricsBindAddress", '":10273"', ":10273"),
        ("metricsBindAddress", "node-1.example.com:65535", "node-1.example.com:65535"),
        ("metricsBindAddress", '"[fd00::1]:1"', "[fd00::1]:1"),
        ("nodeName", '"1"', "1"),
        ("podCIDRs", "[]", ()),
    ],
)
def test_a_value_at_the_edge_is_taken(key: str, value: str, read: Any) -> None:
    attribute = {"driftCheckPeriod": "drift_check_period", "nodeName": "node_name"}
    attribute |= {"metricsBindAddress": "metrics_bind_address", "podCIDRs": "pod_cidrs"}
    assert getattr(parse(nested(key, value), FILE), attribute[key]) == read


TOP_KEYS = (
    "kubeconfig, nodeName, podCIDRs, chains, masquerade, services, iptables, driftCheckPeriod,"
    " metricsBindAddress, serviceMetrics"
)


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        pytest.param(
            "masquerad: All", 1, "unknown key masquerad (did you mean masquerade?)", id="typo"
        ),
        pytest.param(
            "\n\npodCidrs: []", 3, "unknown key podCidrs (did you mean podCIDRs?)", id="case"
        ),
        pytest.param("x: 1", 1, f"unknown key x (known are {TOP_KEYS})", id="nothing-close"),
        pytest.param("1: 1", 1, f"unknown key 1 (known are {TOP_KEYS})", id="a-number"),
        pytest.param("[a]: 1", 1, f"unknown key (no text) (known are {TOP_KEYS})", id="a-list"),
        pytest.param(
            "services:\n  externalIP: true",
            2,
            "unknown key services.externalIP (did you mean externalIPs?)",
            id="in-a-section",
        ),
        pytest.param(
            "iptables:\n  wait: 5",
            2,
            "unknown key iptables.wait (known are backend, lockWaitSeconds)",
            id="nothing-close-in-a-section",
        ),
        pytest.param(
            "backend: nft", 1, f"unknown key backend (known are {TOP_KEYS})", id="without-section"
        ),
        pytest.param(
            '"a\\nb": 1', 1, f"unknown key a\\nb (known are {TOP_KEYS})", id="a-line-break"
        ),
        pytest.param(
            "base: &b {}\n<<: *b", 1, f"unknown key base (known are {TOP_KEYS})", id="a-merge"
        ),
        pytest.param(
            "masquerade: All\nmasquerade: HostOnly",
            2,
            "masquerade is given twice (keep one of them)",
            id="twice",
        ),
        pytest.param(
            "chains:\n  output: A\n  output: A",
            3,
            "chains.output is given twice (keep one of them)",
            id="twice-in-a-section",
        ),
    ],
)
def test_a_key_that_is_unknown_or_given_twice_is_refused(
    text: str, line: int, complaint: str
) -> None:
    assert refusal(text) == at(line) + complaint


@pytest.mark.parametrize(
    ("key", "value", "choice"),
    [
        ("masquerade", "all", "All"),
        ("masquerade", "hostonly", "HostOnly"),
        ("services.externalTrafficPolicy", "local", "Local"),
        ("services.matchPorts", "ALWAYS", "Always"),
        ("iptables.backend", "NFT", "nft"),
    ],
)
def test_a_choice_in_another_case_is_refused_with_the_right_one(
    key: str, value: str, choice: str
) -> None:
    wanted = f'{at(1)}{key}: wanted {WANTED[key]}, got "{value}" (did you mean {choice}?)'
    assert refusal(nested(key, value)) == wanted


A_CIDR = "wanted a CIDR such as 10.240.2.128/25, got"


@pytest.mark.parametrize("key", ["podCIDRs", "services.allowedExternalCIDRs"])
@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ('"10.240.2.128"', "which is no CIDR (wanted ADDRESS/LENGTH)"),
        ('"10.240.2.129/25"', "which has host bits set (did you mean 10.240.2.128/25?)"),
        ('"10.240.2.0/33"', "which has a prefix length over 32"),
        ('"010.240.2.0/24"', "which has leading zeros, which some programs read as octal"),
        ('"::ffff:10.0.0.0/104"', "which is an IPv4-mapped IPv6 address; write it as IPv4"),
        ('"pods/24"', "which is no IP address"),
        ('""', "which is no CIDR (wanted ADDRESS/LENGTH)"),
    ],
)
def test_a_bad_cidr_is_named_by_its_place_in_the_list(key: str, item: str, complaint: str) -> None:
    message = refusal(nested(key, f"\n  [10.0.0.0/8,\n  {item}]"))
    assert message == f"{at(3)}{key}[1]: {A_CIDR} {item}, {complaint}"


@pytest.mark.parametrize("item", ["null", "10", "[x]", "{x: 1}"])
def test_a_list_of_cidrs_holds_text_only(item: str) -> None:
    shown = {"[x]": "a list", "{x: 1}": "a mapping"}.get(item, item)
    assert refusal(f"podCIDRs: [{item}]") == f"{at(1)}podCIDRs[0]: wanted text, got {shown}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("{", "line 1: is no YAML: ", id="broken"),
        pytest.param(
            "a: b: c", "line 1: is no YAML: mapping values are not allowed here", id="two"
        ),
        pytest.param("\n\tx: 1", "line 2: is no YAML: found character '\\t' that cannot", id="tab"),
        pytest.param("x: *y", "line 1: is no YAML: found undefined alias 'y'", id="alias"),
        pytest.param("x: @y", "line 1: is no YAML: found character '@' that cannot", id="at"),
        pytest.param(
            'masquerade: All\nkubeconfig: "/a\0b"',
            "line 2: is no YAML: unacceptable character #x0000",
            id="NUL",
        ),
        pytest.param('x: "\\UFFFFFFFF"', "is no YAML: ", id="no-such-character"),
        pytest.param(
            "masquerade: All\n---\nmasquerade: All",
            "line 2: is no YAML: expected a single document",
            id="two-documents",
        ),
        pytest.param("[" * 20000, "is nested too deeply", id="nested-deeply"),
        pytest.param("a: " + "[" * 5000 + "]" * 5000, "is nested too deeply", id="and-closed"),
        pytest.param(
            "- masquerade: All",
            "line 1: the file: wanted a mapping of keys to values, got a list",
            id="a-list",
        ),
        pytest.param(
            "masquerade",
            'line 1: the file: wanted a mapping of keys to values, got "masquerade"',
            id="a-word",
        ),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, complaint: str) -> None:
    message = refusal(text)
    assert complaint in message
    assert message.startswith(f"configuration {FILE}")
    assert "\\n" not in message


def test_a_mapping_that_holds_itself_is_refused() -> None:
    message = refusal("chains: &a\n  chains: *a")
    assert message == f"{at(2)}is no YAML: it has aliases that stand for too much"


def test_a_long_value_is_shown_in_part() -> None:
    message = refusal(f"masquerade: {'x' * 10000}")
    assert message == f'{at(1)}masquerade: wanted All or HostOnly, got "{"x" * 57}..."'
