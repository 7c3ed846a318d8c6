"""The configuration: what a file means, and the one line that says what is wrong with it."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.config import settings
from ipvs_node_agent.config.settings import (
    DEFAULTS,
    Chains,
    Config,
    IptablesOptions,
    ServiceOptions,
    load,
    parse,
)
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.model.addresses import parse_network
from ipvs_node_agent.nat.chains import may_be_ours, stem

FILE = "/etc/ipvs-node-agent/config.yaml"

EVERY_KEY_AT_ITS_DEFAULT = """\
kubeconfig: /etc/kubernetes/kubelet.conf
nodeName: null
podCIDRs: null
chains:
  prerouting: IPVS_PREROUTING
  output: IPVS_OUTPUT
  markMasquerade: KUBE-MARK-MASQ
  servicesPerChain: 16
masquerade: All
services:
  externalIPs: false
  externalTrafficPolicy: Any
  allowedExternalCIDRs: []
  matchPorts: Shared
iptables:
  backend: auto
  lockWaitSeconds: 5
driftCheckPeriod: 2s
metricsBindAddress: 127.0.0.1:10273
serviceMetrics: true
"""

# Every key with another value than its default.
EVERY_KEY = """\
kubeconfig: /root/.kube/config
nodeName: worker-1.example.com
podCIDRs: [10.240.2.128/25, "fd00:10:240:2::/64"]
chains:
  prerouting: LB_PRE
  output: LB_OUT
  markMasquerade: MY-MARK
  servicesPerChain: 32
masquerade: HostOnly
services:
  externalIPs: true
  externalTrafficPolicy: Local
  allowedExternalCIDRs: [10.19.0.0/16]
  matchPorts: Always
iptables:
  backend: legacy
  lockWaitSeconds: 30
driftCheckPeriod: 1m30s
metricsBindAddress: "[::1]:9000"
serviceMetrics: false
"""
EVERY_VALUE = Config(
    kubeconfig="/root/.kube/config",
    node_name="worker-1.example.com",
    pod_cidrs=(parse_network("10.240.2.128/25"), parse_network("fd00:10:240:2::/64")),
    chains=Chains("LB_PRE", "LB_OUT", "MY-MARK", 32),
    masquerade="HostOnly",
    services=ServiceOptions(True, "Local", (parse_network("10.19.0.0/16"),), "Always"),
    iptables=IptablesOptions("legacy", 30),
    drift_check_period=90.0,
    metrics_bind_address="[::1]:9000",
    service_metrics=False,
)


def refusal(text: str) -> str:
    """The whole line that is printed for `text`, less the program's name."""
    with pytest.raises(UsageError) as caught:
        parse(text, FILE)
    assert caught.value.exit_status == 2
    message = str(caught.value)
    assert message.isprintable()
    return message


def at(line: int) -> str:
    return f"configuration {FILE} line {line}: "


def nested(key: str, value: str) -> str:
    """A file that sets `key`, which may be SECTION.KEY, to `value`."""
    section, _, name = key.rpartition(".")
    return f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("# a comment\n\n", id="comments"),
        pytest.param("---\n...\n", id="an-empty-document"),
        pytest.param("null\n", id="null"),
        pytest.param("~", id="tilde"),
        pytest.param("{}", id="an-empty-mapping"),
        pytest.param("chains:\nservices:\niptables:\n", id="empty-sections"),
        pytest.param("\ufeff# a byte order mark\n", id="BOM"),
        pytest.param(EVERY_KEY_AT_ITS_DEFAULT, id="every-key-at-its-default"),
    ],
)
def test_a_file_that_says_nothing_new_means_the_defaults(text: str) -> None:
    assert parse(text, FILE) == DEFAULTS


def test_every_key_can_be_set() -> None:
    assert parse(EVERY_KEY, FILE) == EVERY_VALUE


def test_a_key_alone_leaves_the_others_at_their_defaults() -> None:
    expected = replace(DEFAULTS, chains=replace(DEFAULTS.chains, output="LB_OUT"))
    assert parse("chains: {output: LB_OUT}", FILE) == expected


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


ABSOLUTE = "an absolute path"
NODE_NAME = "a Node's name (lower-case letters, digits, - and .)"
CHARACTERS = "a chain name of letters, digits and _ . - (no - in front)"
BUILT_IN = "a chain of its own, not one that is built in"
A_TARGET = "a chain name that is no target of iptables"
OTHER_USE = "a name that the agent does not use for something else"
KUBE = "a name without KUBE- in front, which belongs to Kubernetes"
PER_CHAIN, LOCK_WAIT = "a whole number from 2 to 4096", "a whole number from 1 to 60"
BIND = 'HOST:PORT such as 127.0.0.1:10273, or "" to turn it off'
MINE = "the addresses of this node's pods, not every address"


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("kubeconfig", '""', ABSOLUTE),
        ("kubeconfig", '"kubelet.conf"', ABSOLUTE),
        ("kubeconfig", '"~/.kube/config"', ABSOLUTE),
        ("nodeName", '""', NODE_NAME),
        ("nodeName", '"Worker-1"', NODE_NAME),
        ("nodeName", '"worker_1"', NODE_NAME),
        ("nodeName", '"a b"', NODE_NAME),
        ("podCIDRs", '"10.240.2.128/25"', CIDRS),
        ("chains.prerouting", '""', CHARACTERS),
        ("chains.prerouting", f'"{"A" * 29}"', "a chain name of at most 28 characters"),
        ("chains.output", f'"{"A" * 29}"', "a chain name of at most 28 characters"),
        ("chains.markMasquerade", f'"{"A" * 29}"', "a chain name of at most 28 characters"),
        ("chains.prerouting", '"-A"', CHARACTERS),
        ("chains.prerouting", '"!A"', CHARACTERS),
        ("chains.prerouting", '"A B"', CHARACTERS),
        ("chains.prerouting", '"Ä"', CHARACTERS),
        ("chains.prerouting", '"A\'B"', CHARACTERS),
        ("chains.prerouting", '"A,B"', CHARACTERS),
        ("chains.prerouting", '"PREROUTING"', BUILT_IN),
        ("chains.output", '"FORWARD"', BUILT_IN),
        ("chains.markMasquerade", '"POSTROUTING"', BUILT_IN),
        ("chains.prerouting", '"ACCEPT"', A_TARGET),
        ("chains.output", '"DNAT"', A_TARGET),
        ("chains.markMasquerade", '"MASQUERADE"', A_TARGET),
        ("chains.prerouting", '"KUBE-SERVICES"', KUBE),
        ("chains.output", '"KUBE-MARK-MASQ"', KUBE),
        ("chains.prerouting", '"IPVS_MARK_MASQ"', OTHER_USE),
        ("chains.output", '"IPVS_POSTROUTING"', OTHER_USE),
        ("chains.markMasquerade", '"IPVS_MARK_MASQ"', OTHER_USE),
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
def test_a_value_out_of_range_is_refused(key: str, value: str, wanted: str) -> None:
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


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
def test_not_every_address_is_a_pods(everything: str) -> None:
    message = refusal(f'podCIDRs: [10.0.0.0/8, "{everything}"]')
    assert message == f'{at(1)}podCIDRs[1]: wanted {MINE}, got "{everything}"'


def test_every_address_may_be_an_external_one() -> None:
    read = parse('services: {allowedExternalCIDRs: [0.0.0.0/0, "::/0"]}', FILE)
    assert [cidr.prefixlen for cidr in read.services.allowed_external_cidrs] == [0, 0]


@pytest.mark.parametrize(
    ("chains", "names"),
    [
        ("{output: IPVS_PREROUTING}", "IPVS_PREROUTING, IPVS_PREROUTING, KUBE-MARK-MASQ"),
        ("{prerouting: A, output: A}", "A, A, KUBE-MARK-MASQ"),
        ("{markMasquerade: IPVS_OUTPUT}", "IPVS_PREROUTING, IPVS_OUTPUT, IPVS_OUTPUT"),
    ],
)
def test_two_chains_of_one_name_are_refused(chains: str, names: str) -> None:
    wanted = f"{at(2)}chains: wanted three different names, got {names}"
    assert refusal(f"\nchains: {chains}") == wanted


def test_two_names_whose_trees_would_be_called_alike_are_refused() -> None:
    """Long names are shortened for the chains below them, to a digest that may be the same."""
    found: dict[str, str] = {}
    for number in range(10_000):
        name = f"A_NAME_OF_SOME_LENGTH_{number}"
        other = found.setdefault(stem(name), name)
        if other != name:
            break
    text = refusal(f"chains: {{prerouting: {name}, output: {other}}}")
    assert text == f"{at(1)}chains: wanted names that differ in front, got {name}, {other}"


@pytest.mark.parametrize(
    "chains",
    [
        "{markMasquerade: IPVS_PREROUTING-MARK}",
        "{markMasquerade: IPVS_OUTPUT-0}",
        "{markMasquerade: IPVS_MARK_MASQ-0}",
        "{prerouting: IPVS, output: IPVS-OUT}",
    ],
)
def test_no_chain_may_have_the_name_of_a_part_of_another(chains: str) -> None:
    # NAME-... are the chains that NAME is split into: they are emptied and dropped at will.
    assert refusal(f"chains: {chains}").startswith(f"{at(1)}chains: wanted ")


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


@pytest.mark.parametrize("path", ["/etc/a\\nb", "/etc/\\0", "/etc/\\e[2J", "/etc/\\uD800"])
def test_a_path_that_no_log_line_can_show_is_refused(path: str) -> None:
    assert "kubeconfig: wanted an absolute path" in refusal(f'kubeconfig: "{path}"')


def test_a_long_value_is_shown_in_part() -> None:
    message = refusal(f"masquerade: {'x' * 10000}")
    assert message == f'{at(1)}masquerade: wanted All or HostOnly, got "{"x" * 57}..."'


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("IPVS_PREROUTING", True),
        ("LB.PRE-1", True),
        ("KUBE-SERVICES", False),
        ("PREROUTING", False),
        ("ACCEPT", False),
        ("", False),
        ("-X", False),
        ("A" * 28, True),
        ("A" * 29, False),
        ("A\nB", False),
    ],
)
def test_which_names_can_be_the_agents(name: str, ours: bool) -> None:
    assert may_be_ours(name) is ours


# The file itself.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("masquerade: HostOnly\n")
    path.chmod(0o644)
    return path


def file_refusal(path: Path | None) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    return str(caught.value)


def test_a_file_is_read(file: Path) -> None:
    assert load(file) == replace(DEFAULTS, masquerade="HostOnly")


def test_a_file_is_named_in_what_is_wrong_with_it(file: Path) -> None:
    file.write_text("\nmasquerade: 1\n")
    message = f"configuration {file} line 2: masquerade: wanted All or HostOnly, got 1"
    assert file_refusal(file) == message


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    hint = "(name a file that exists, or leave --config out)"
    assert file_refusal(missing) == f"configuration {missing}: no such file {hint}"


def test_the_default_file_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEFAULT_PATH", tmp_path / "missing.yaml")
    assert load(None) == DEFAULTS


def test_the_default_file_is_read_where_it_exists(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "DEFAULT_PATH", file)
    assert load(None).masquerade == "HostOnly"


def test_a_default_file_that_is_bad_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEFAULT_PATH", file)
    file.chmod(0o666)
    assert "others than its owner can write it" in file_refusal(None)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
def test_a_file_that_others_can_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    hint = f"(chmod go-w {file}, and read it again)"
    message = f"configuration {file}: others than its owner can write it {hint}"
    assert file_refusal(file) == message


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o640, 0o444, 0o755])
def test_a_file_that_only_its_owner_can_write_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert load(file).masquerade == "HostOnly"


def test_what_counts_is_the_file_and_not_a_link_to_it(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    assert load(link).masquerade == "HostOnly"
    file.chmod(0o666)
    assert "others than its owner can write it" in file_refusal(link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, 1234, 0)
    message = f"configuration {file}: belongs to user 1234, who could change it (chown root {file})"
    assert file_refusal(file) == message


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert file_refusal(tmp_path) == f"configuration {tmp_path}: Is a directory"


def test_a_directory_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    file_refusal(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_only_root_may_read_is_asked_for_as_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    message = r"x\.yaml: Permission denied \(run it as root\)$"
    monkeypatch.setattr("ipvs_node_agent.config.regularfile.os.open", denied)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "x.yaml")


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert file_refusal(fifo) == f"configuration {fifo}: is no regular file"


def test_a_device_is_refused() -> None:
    assert file_refusal(Path("/dev/null")) == "configuration /dev/null: is no regular file"


def test_a_path_through_a_file_is_refused(file: Path) -> None:
    assert file_refusal(file / "x") == f"configuration {file}/x: Not a directory"


def test_text_that_is_no_utf_8_is_refused_with_its_line(file: Path) -> None:
    file.write_bytes(b"masquerade: All\n# caf\xe9\n")
    assert file_refusal(file) == f"configuration {file} line 2: is no UTF-8 text"


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    file.write_bytes(b"#" * (1 << 20))
    assert load(file) == DEFAULTS
    file.write_bytes(b"#" * ((1 << 20) + 1))
    assert file_refusal(file) == f"configuration {file}: is larger than 1048576 bytes"


def test_a_line_break_in_the_files_name_is_escaped(tmp_path: Path) -> None:
    assert file_refusal(tmp_path / "a\nb").startswith(f"configuration {tmp_path}/a\\nb: no such")
