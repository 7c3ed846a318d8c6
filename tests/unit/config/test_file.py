"""The configuration: what a file means, and the one line that says what is wrong with it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.config import file as config_file
from ipvs_node_agent.config.file import load, parse
from ipvs_node_agent.config.settings import (
    DEFAULTS,
    Chains,
    Config,
    IptablesOptions,
    ServiceOptions,
)
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.model.addresses import parse_network
from ipvs_node_agent.nat.chains import stem
from tests.support.configs import FILE, at, nested, refusal

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


ABSOLUTE = "an absolute path"
NODE_NAME = "a Node's name (lower-case letters, digits, - and .)"
CHARACTERS = "a chain name of letters, digits and _ . - (no - in front)"
BUILT_IN = "a chain of its own, not one that is built in"
A_TARGET = "a chain name that is no target of iptables"
OTHER_USE = "a name that the agent does not use for something else"
KUBE = "a name without KUBE- in front, which belongs to Kubernetes"
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
    ],
)
def test_a_value_that_does_not_fit_its_key_is_refused(key: str, value: str, wanted: str) -> None:
    assert refusal(nested(key, value)) == f"{at(1)}{key}: wanted {wanted}, got {value}"


@pytest.mark.parametrize("path", ["/etc/a\\nb", "/etc/\\0", "/etc/\\e[2J", "/etc/\\uD800"])
def test_a_path_that_no_log_line_can_show_is_refused(path: str) -> None:
    assert "kubeconfig: wanted an absolute path" in refusal(f'kubeconfig: "{path}"')


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
    monkeypatch.setattr(config_file, "DEFAULT_PATH", tmp_path / "missing.yaml")
    assert load(None) == DEFAULTS


def test_the_default_file_is_read_where_it_exists(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_file, "DEFAULT_PATH", file)
    assert load(None).masquerade == "HostOnly"


def test_a_default_file_that_is_bad_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "DEFAULT_PATH", file)
    file.chmod(0o666)
    assert "others than its owner can write it" in file_refusal(None)


def test_a_file_that_others_can_change_is_refused(file: Path) -> None:
    file.chmod(0o646)
    hint = f"(chmod go-w {file}, and read it again)"
    message = f"configuration {file}: others than its owner can write it {hint}"
    assert file_refusal(file) == message


def test_a_file_that_only_root_may_read_is_asked_for_as_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    message = r"x\.yaml: Permission denied \(run it as root\)$"
    monkeypatch.setattr("ipvs_node_agent.config.regularfile.os.open", denied)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "x.yaml")


def test_text_that_is_no_utf_8_is_refused_with_its_line(file: Path) -> None:
    file.write_bytes(b"masquerade: All\n# caf\xe9\n")
    assert file_refusal(file) == f"configuration {file} line 2: is no UTF-8 text"


def test_a_line_break_in_the_files_name_is_escaped(tmp_path: Path) -> None:
    assert file_refusal(tmp_path / "a\nb").startswith(f"configuration {tmp_path}/a\\nb: no such")
