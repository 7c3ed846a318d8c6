"""Values of every type, and what is no such value, said in the words of the file."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from ipvs_node_agent.config.file import _KEYS as KEYS
from ipvs_node_agent.config.file import parse
from tests.support.configs import FILE, at, nested, refusal

TEXT = "text"
BOOLEAN = "true or false"
CIDRS = "a list of CIDRs such as [10.240.2.128/25]"
PERIOD = "a duration from 0.1s to 3600s, such as 2s or 500ms"
MAPPING = "a mapping of keys to values"
PER_CHAIN = "a whole number from 2 to 4096"
LOCK_WAIT = "a whole number from 1 to 60"
BIND = 'HOST:PORT such as 127.0.0.1:10273, or "" to turn it off'
WANTED = {
    "apiVersion": "ipvs-node-agent/v1",
    "kind": "Configuration",
    "kubeconfig": TEXT,
    "nodeName": TEXT,
    "podCIDRs": CIDRS,
    "chains": MAPPING,
    "chains.prerouting": TEXT,
    "chains.output": TEXT,
    "chains.markMasquerade": TEXT,
    "chains.servicesPerChain": PER_CHAIN,
    "masquerade": "All or HostOnly",
    "services": MAPPING,
    "services.externalIPs": BOOLEAN,
    "services.externalTrafficPolicy": "Any or Local",
    "services.allowedExternalCIDRs": CIDRS,
    "services.matchPorts": "Shared or Always",
    "iptables": MAPPING,
    "iptables.backend": "auto or nft or legacy",
    "iptables.lockWaitSeconds": LOCK_WAIT,
    "driftCheckPeriod": PERIOD,
    "metricsBindAddress": TEXT,
    "serviceMetrics": BOOLEAN,
    "dropInvalidInput": BOOLEAN,
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
RIGHT = {TEXT: "text", BOOLEAN: "a-boolean", MAPPING: "a-mapping", CIDRS: "a-list"}


def quoted(value: str) -> str:
    return f'"{value}"'


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (key, kind)
        for key, wanted in WANTED.items()
        for kind in TYPES
        if kind != RIGHT.get(wanted)
        if not (key in NULL_ALLOWED and kind in ("null", "nothing"))
    ],
)
def test_a_wrong_type_is_refused(key: str, kind: str) -> None:
    value, shown = TYPES[kind]
    message = refusal(f"# a comment\n{nested(key, value)}")
    assert message == f"{at(2)}{key}: wanted {WANTED[key]}, got {shown}"


BAD_NUMBERS = ("1", "0", "-2", "4097", "010", "0x10", "1:30", "1_6", '"16"')
BAD_PERIODS = ("", "0s", "99ms", "2h", "-2s", "2 s", "1s1h", "2seconds", "٢s")
BAD_ADDRESSES = (
    "10273",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:http",
    "::1:80",
    "http://127.0.0.1:80",
    "127.0.0.1:١٠٢٧٣",
)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("podCIDRs", '"10.240.2.128/25"', CIDRS),
        *(("chains.servicesPerChain", value, PER_CHAIN) for value in BAD_NUMBERS),
        *(("iptables.lockWaitSeconds", value, LOCK_WAIT) for value in ("0", "61", '"5s"')),
        *(("services.externalIPs", value, BOOLEAN) for value in ('"true"', "1")),
        *(("driftCheckPeriod", value, PERIOD) for value in ("2", *map(quoted, BAD_PERIODS))),
        *(("metricsBindAddress", quoted(value), BIND) for value in BAD_ADDRESSES),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_refused(key: str, value: str, wanted: str) -> None:
    assert refusal(nested(key, value)) == f"{at(1)}{key}: wanted {wanted}, got {value}"


@pytest.mark.parametrize(
    ("key", "tag", "value"),
    [
        ("services.externalIPs", "!!bool", "maybe"),
        ("services.externalIPs", "!!bool", "1"),
        ("chains.servicesPerChain", "!!int", "x"),
    ],
)
def test_a_tag_does_not_make_a_value_of_its_type(key: str, tag: str, value: str) -> None:
    message = refusal(nested(key, f"{tag} {value}"))
    assert message == f"{at(1)}{key}: wanted {WANTED[key]}, got {value}"


@pytest.mark.parametrize(
    ("attribute", "value", "read"),
    [
        ("drift_check_period", "100ms", 0.1),
        ("drift_check_period", "0.5s", 0.5),
        ("drift_check_period", "1h", 3600.0),
        ("drift_check_period", "59m59s999ms", 3599.999),
        ("metrics_bind_address", '""', ""),
        ("metrics_bind_address", '":10273"', ":10273"),
        ("metrics_bind_address", "node-1.example.com:65535", "node-1.example.com:65535"),
        ("metrics_bind_address", '"[fd00::1]:1"', "[fd00::1]:1"),
        ("node_name", '"1"', "1"),
        ("pod_cidrs", "[]", ()),
    ],
)
def test_a_value_at_the_edge_is_taken(attribute: str, value: str, read: Any) -> None:
    (key,) = (key for key in KEYS if key.lower() == attribute.replace("_", ""))
    assert getattr(parse(f"{key}: {value}", FILE), attribute) == read


KNOWN = (
    "(known are apiVersion, kind, kubeconfig, nodeName, podCIDRs, podInterfaces, chains,"
    " masquerade, services, iptables, driftCheckPeriod, metricsBindAddress, serviceMetrics,"
    " dropInvalidInput)"
)
ONE = "(keep one of them)"


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("masquerad: All", 1, "unknown key masquerad (did you mean masquerade?)"),
        ("\n\npodCidrs: []", 3, "unknown key podCidrs (did you mean podCIDRs?)"),
        ("x: 1", 1, f"unknown key x {KNOWN}"),
        ("1: 1", 1, f"unknown key 1 {KNOWN}"),
        ("[a]: 1", 1, f"unknown key (no text) {KNOWN}"),
        ('"a\\nb": 1', 1, f"unknown key a\\nb {KNOWN}"),
        ("backend: nft", 1, f"unknown key backend {KNOWN}"),
        ("base: &b {}\n<<: *b", 1, f"unknown key base {KNOWN}"),
        (
            "services:\n  externalIP: true",
            2,
            "unknown key services.externalIP (did you mean externalIPs?)",
        ),
        (
            "iptables:\n  wait: 5",
            2,
            "unknown key iptables.wait (known are backend, lockWaitSeconds)",
        ),
        ("masquerade: All\nmasquerade: HostOnly", 2, f"masquerade is given twice {ONE}"),
        ("chains:\n  output: A\n  output: A", 3, f"chains.output is given twice {ONE}"),
    ],
)
def test_a_key_that_is_unknown_or_given_twice_is_refused(
    text: str, line: int, complaint: str
) -> None:
    assert refusal(text) == at(line) + complaint


def test_where_an_upgrade_has_taken_python_away_a_bad_key_is_still_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "difflib", None)
    assert refusal("masquerad: All") == at(1) + f"unknown key masquerad {KNOWN}"


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
        ('"10.240.2.128"', "which is not a CIDR (wanted ADDRESS/LENGTH)"),
        ('"10.240.2.129/25"', "which has host bits set (did you mean 10.240.2.128/25?)"),
        ('"10.240.2.0/33"', "which has a prefix length over 32"),
        ('"010.240.2.0/24"', "which has leading zeros, which some programs read as octal"),
        ('"::ffff:10.0.0.0/104"', "which is an IPv4-mapped IPv6 address; write it as IPv4"),
        ('"pods/24"', "which is not an IP address"),
        ('""', "which is not a CIDR (wanted ADDRESS/LENGTH)"),
    ],
)
def test_a_bad_cidr_is_named_by_its_place_in_the_list(key: str, item: str, complaint: str) -> None:
    message = refusal(nested(key, f"\n  [10.0.0.0/8,\n  {item}]"))
    assert message == f"{at(3)}{key}[1]: {A_CIDR} {item}, {complaint}"


@pytest.mark.parametrize("item", ["null", "10", "[x]", "{x: 1}"])
def test_a_list_of_cidrs_holds_text_only(item: str) -> None:
    shown = {"[x]": "a list", "{x: 1}": "a mapping"}.get(item, item)
    assert refusal(f"podCIDRs: [{item}]") == f"{at(1)}podCIDRs[0]: wanted text, got {shown}"


NO_MAPPING = "the file: wanted a mapping of keys to values, got"


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("{", 1, "is not YAML: "),
        ("a: b: c", 1, "is not YAML: mapping values are not allowed here"),
        ("\n\tx: 1", 2, "is not YAML: found character '\\t' that cannot"),
        ("x: *y", 1, "is not YAML: found undefined alias 'y'"),
        ("x: @y", 1, "is not YAML: found character '@' that cannot"),
        (
            'masquerade: All\nkubeconfig: "/a\0b"',
            2,
            "is not YAML: unacceptable character #x0000",
        ),
        ("masquerade: All\n---\nmasquerade: All", 2, "is not YAML: expected a single document"),
        ("chains: &a\n  chains: *a", 2, "is not YAML: it has aliases that stand for too much"),
        ("- masquerade: All", 1, f"{NO_MAPPING} a list"),
        ("masquerade", 1, f'{NO_MAPPING} "masquerade"'),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, line: int, complaint: str) -> None:
    assert refusal(text).startswith(f"{at(line)}{complaint}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('x: "\\UFFFFFFFF"', "is not YAML: "),
        ("[" * 20000, "is nested too deeply"),
        (f"a: {'[' * 5000}{']' * 5000}", "is nested too deeply"),
    ],
    ids=["no such character", "nested deeply", "and closed"],
)
def test_what_is_wrong_in_no_certain_line_is_refused(text: str, complaint: str) -> None:
    message = refusal(text)
    assert message.startswith(f"configuration {FILE}")
    assert complaint in message


def test_a_long_value_is_shown_in_part() -> None:
    message = refusal(f"masquerade: {'x' * 10000}")
    assert message == f'{at(1)}masquerade: wanted All or HostOnly, got "{"x" * 57}..."'
