"""The configuration: what a file means, and the one line that says what is wrong with it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from ipvs_node_agent.config import file as config_file
from ipvs_node_agent.config.file import IDENTITY, load, load_with_keys, parse, values
from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.nat.chains import stem
from tests.support.configs import EVERY_KEY, EVERY_VALUE, FILE, at, nested, refusal


# That the file which is shipped shows the defaults is tests/repository/test_documents.py's.
@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a comment\n\n",
        "---\n...\n",
        "null\n",
        "~",
        "{}",
        "chains:\nservices:\niptables:\n",
        "\ufeff# a byte order mark\n",
    ],
)
def test_a_file_that_says_nothing_means_the_defaults(text: str) -> None:
    assert parse(text, FILE) == DEFAULTS


def test_every_key_can_be_set() -> None:
    assert parse(EVERY_KEY, FILE) == EVERY_VALUE


def test_a_key_alone_leaves_the_others_at_their_defaults() -> None:
    expected = replace(DEFAULTS, chains=replace(DEFAULTS.chains, output="LB_OUT"))
    assert parse("chains: {output: LB_OUT}", FILE) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("apiVersion: ipvs-node-agent/v2", "apiVersion: wanted ipvs-node-agent/v1, got"),
        ("apiVersion: v1\nkind: Configuration", "apiVersion: wanted ipvs-node-agent/v1, got"),
        ("kind: KubeProxyConfiguration", "kind: wanted Configuration, got"),
        ("kind: configuration", "kind: wanted Configuration, got"),
        ("{apiVersion: {a: b}}", "apiVersion: wanted ipvs-node-agent/v1, got a mapping"),
        ("kind: Configuration\nkind: Configuration", "kind is given twice"),
    ],
)
def test_a_file_that_says_to_be_something_else_is_refused(text: str, complaint: str) -> None:
    assert complaint in refusal(text)


def test_what_a_file_says_to_be_comes_before_what_it_holds() -> None:
    """Its keys may be known to the version that it is for."""
    text = refusal("masquerade: Some\nnewKey: 1\napiVersion: ipvs-node-agent/v2\n")
    assert text.startswith(f"{at(3)}apiVersion: wanted ipvs-node-agent/v1, got ")


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("", []),
        ("chains:\n", []),
        ("masquerade: All\nchains: {output: A}", ["chains.output", "masquerade"]),
        ("kind: Configuration\nnodeName: null", ["kind", "nodeName"]),
        (EVERY_KEY, [*IDENTITY, *values(DEFAULTS)]),
    ],
)
def test_the_keys_of_a_file_are_known(text: str, given: list[str], file: Path) -> None:
    file.write_text(text)
    assert sorted(load_with_keys(file).given or ()) == sorted(given)


A_PATH = "an absolute path"
A_NODE = "a Node's name (lower-case letters, digits, - and .)"
A_NAME = "a chain name of letters, digits and _ . - (no - in front)"
SHORT = "a chain name of at most 28 characters"
OWN = "a chain name that is not built in"
NO_TARGET = "a chain name that is not a target of iptables"
OTHER_USE = "a name that the agent does not use for something else"
NOT_KUBES = "a name without KUBE- in front, which belongs to Kubernetes"
PRE, OUT, MARK = "chains.prerouting", "chains.output", "chains.markMasquerade"
REFUSED = [
    ([PRE, OUT, MARK], SHORT, ["A" * 29]),
    ([PRE], A_NAME, ["", "-A", "!A", "A B", "Ä", "A'B", "A,B"]),
    ([PRE], OWN, ["PREROUTING"]),
    ([OUT], OWN, ["FORWARD"]),
    ([MARK], OWN, ["POSTROUTING"]),
    ([PRE], NO_TARGET, ["ACCEPT"]),
    ([OUT], NO_TARGET, ["DNAT"]),
    ([MARK], NO_TARGET, ["MASQUERADE"]),
    ([PRE], NOT_KUBES, ["KUBE-SERVICES"]),
    ([OUT], NOT_KUBES, ["KUBE-MARK-MASQ"]),
    ([PRE, OUT, MARK], OTHER_USE, ["IPVS_MARK_MASQ", "IPVS_POSTROUTING"]),
    (["kubeconfig"], A_PATH, ["", "kubelet.conf", "~/.kube/config"]),
    (["nodeName"], A_NODE, ["", "Worker-1", "worker_1", "a b"]),
]


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [(key, value, wanted) for keys, wanted, values in REFUSED for key in keys for value in values],
)
def test_a_value_that_does_not_fit_its_key_is_refused(key: str, value: str, wanted: str) -> None:
    message = refusal(nested(key, f'"{value}"'))
    assert message == f'{at(1)}{key}: wanted {wanted}, got "{value}"'


@pytest.mark.parametrize("path", ["/etc/a\\nb", "/etc/\\0", "/etc/\\e[2J", "/etc/\\uD800"])
def test_a_path_that_no_log_line_can_show_is_refused(path: str) -> None:
    assert "kubeconfig: wanted an absolute path" in refusal(f'kubeconfig: "{path}"')


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
def test_not_every_address_is_a_pods(everything: str) -> None:
    message = refusal(f'podCIDRs: [10.0.0.0/8, "{everything}"]')
    wanted = "the addresses of this node's pods, not every address"
    assert message == f'{at(1)}podCIDRs[1]: wanted {wanted}, got "{everything}"'


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
    assert text == f"{at(1)}chains: wanted names that begin differently, got {name}, {other}"


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


@pytest.fixture
def default(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, at the default place."""
    monkeypatch.setattr(config_file, "DEFAULT_PATH", file)
    return file


def test_the_default_file_may_be_missing_and_is_read_where_it_is_not(default: Path) -> None:
    assert load(None) == replace(DEFAULTS, masquerade="HostOnly")
    default.unlink()
    assert load(None) == DEFAULTS


def no_utf_8(file: Path) -> None:
    file.write_bytes(b"masquerade: All\n# caf\xe9\n")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (Path.unlink, ": no such file (name a file that exists, or leave --config out)"),
        (no_utf_8, " line 2: is not UTF-8 text"),
        (
            lambda file: file.write_text("\nmasquerade: 1\n"),
            " line 2: masquerade: wanted All or HostOnly, got 1",
        ),
        (
            lambda file: file.chmod(0o646),
            ": users other than its owner may write to it (chmod go-w {file}, and read it again)",
        ),
    ],
    ids=["missing", "no UTF-8", "a bad value", "others can write it"],
)
def test_a_file_that_cannot_be_taken_is_refused_by_its_name(
    default: Path, spoil: Callable[[Path], object], why: str
) -> None:
    spoil(default)
    message = f"configuration {default}{why.format(file=default)}"
    for path in (default, *([None] if default.exists() else [])):
        with pytest.raises(UsageError) as caught:
            load(path)
        assert str(caught.value) == message


def test_a_file_that_only_root_may_read_is_asked_for_as_root(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ipvs_node_agent.config.regularfile.os.open", denied)
    with pytest.raises(UsageError, match=r"\.yaml: Permission denied \(run it as root\)$"):
        load(file)
