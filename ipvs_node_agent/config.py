"""The configuration file: from YAML text to a `Config`, or one sentence with file, line and key.

`DEFAULTS` is what an absent or empty file means. Every reader below takes one YAML node and gives
the value of one key, or raises `_Bad` with what was wanted; `_mapping` walks the keys. PyYAML
composes the nodes, so that each of them still knows its line.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, TypeVar

import yaml
from yaml.reader import ReaderError

from ipvs_node_agent.addresses import Network, parse_network
from ipvs_node_agent.errors import UsageError

DEFAULT_PATH = Path("/etc/ipvs-node-agent/config.yaml")

# Iptables keeps 28 of XT_EXTENSION_MAXNAMELEN's 29 bytes for the name (iptables(8), -N).
MAX_CHAIN_NAME = 28
OWN_MARK_CHAIN = "IPVS_MARK_MASQ"
OWN_POSTROUTING_CHAIN = "IPVS_POSTROUTING"

_MAX_FILE_BYTES = 1 << 20
_BUILT_IN_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
# A chain by the name of a target could never be jumped to.
_TARGETS = (
    "ACCEPT",
    "DROP",
    "QUEUE",
    "RETURN",
    "DNAT",
    "SNAT",
    "MASQUERADE",
    "REDIRECT",
    "NETMAP",
    "MARK",
    "CONNMARK",
    "LOG",
    "NFLOG",
    "REJECT",
    "TPROXY",
    "TRACE",
    "NOTRACK",
    "CT",
    "SET",
    "CLASSIFY",
    "TCPMSS",
    "TEE",
    "NFQUEUE",
    "DSCP",
    "TOS",
    "TTL",
    "HL",
    "CHECKSUM",
    "AUDIT",
)
_CHAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DURATION = re.compile(
    r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?",
    re.ASCII,  # Or ٢ would be a digit.
)


@dataclass(frozen=True)
class Chains:
    """The names of the nat chains, and how many Services one of them may hold."""

    prerouting: str = "IPVS_PREROUTING"
    output: str = "IPVS_OUTPUT"
    mark_masquerade: str = "KUBE-MARK-MASQ"
    services_per_chain: int = 16


@dataclass(frozen=True)
class ServiceOptions:
    """Which Services and external IPs count, and how they are matched."""

    external_ips: bool = False
    external_traffic_policy: str = "Any"
    allowed_external_cidrs: tuple[Network, ...] = ()
    match_ports: str = "Shared"


@dataclass(frozen=True)
class IptablesOptions:
    """Which iptables is called, and how long it may wait for another one's lock, in seconds."""

    backend: str = "auto"
    lock_wait_seconds: int = 5


@dataclass(frozen=True)
class Config:
    """The whole configuration; field by field the file's keys. Periods are in seconds."""

    kubeconfig: str = "/etc/kubernetes/kubelet.conf"
    node_name: str | None = None
    pod_cidrs: tuple[Network, ...] | None = None
    chains: Chains = field(default_factory=Chains)
    masquerade: str = "All"
    services: ServiceOptions = field(default_factory=ServiceOptions)
    iptables: IptablesOptions = field(default_factory=IptablesOptions)
    drift_check_period: float = 2.0
    metrics_bind_address: str = "127.0.0.1:10273"


DEFAULTS = Config()


def load(path: Path | None) -> Config:
    """The configuration in the file at `path`; None is the default file, which may be absent.

    Raises UsageError for a file that is missing though named, unreadable, open to changes by
    others, or wrong in itself.
    """
    named = path is not None
    path = path or DEFAULT_PATH
    try:
        text = _read(path)
    except FileNotFoundError:
        if not named:
            return DEFAULTS
        raise UsageError(
            f"configuration {path}",
            "no such file",
            "name a file that exists, or leave --config out",
        ) from None
    except OSError as error:
        raise UsageError(f"configuration {path}", error.strerror or str(error)) from None
    return parse(text, str(path))


def _read(path: Path) -> str:
    # Non-blocking, since opening a FIFO would wait for its writer for ever.
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        what = f"configuration {path}"
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(what, "is no regular file")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                what, "others than its owner can write it", f"chmod go-w {path}, and read it again"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise UsageError(
                what, f"belongs to user {status.st_uid}, who could change it", f"chown root {path}"
            )
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(what, f"is larger than {_MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{what} line {line}", "is no UTF-8 text") from None


def parse(text: str, name: str) -> Config:
    """The configuration in `text`; `name` is the file's, for messages. Raises UsageError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        why = error.problem
        if why == "but found another document":
            why = f"{error.context}, {why}"
        raise UsageError(f"configuration {name}{where}", f"is no YAML: {why}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        why = f"unacceptable character #x{error.character:04x}"
        raise UsageError(f"configuration {name} line {line}", f"is no YAML: {why}") from None
    # \UFFFFFFFF, which is no character.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UsageError(f"configuration {name}", f"is no YAML: {error}") from None
    except RecursionError:
        raise UsageError(f"configuration {name}", "is nested too deeply") from None
    if root is None or _is_null(root):
        return DEFAULTS
    try:
        config = Config(**_mapping(root, "", _KEYS))
        _check_chain_names_differ(root, config.chains)
        return config
    except _Bad as bad:
        line = bad.node.start_mark.line + 1
        what = f"configuration {name} line {line}"
        raise UsageError(what, bad.why, bad.hint) from None


def may_be_ours(name: str) -> bool:
    """Whether a chain of the agent's could have `name`."""
    return not _name_fault(name) and not name.startswith("KUBE-")


def _name_fault(name: str) -> str:
    """What a chain's name has to be and `name` is not; empty where it is fine."""
    if len(name) > MAX_CHAIN_NAME:
        return f"a chain name of at most {MAX_CHAIN_NAME} characters"
    if not _CHAIN_NAME.fullmatch(name):
        return "a chain name of letters, digits and _ . - (no - in front)"
    if name in _BUILT_IN_CHAINS:
        return "a chain of its own, not one that is built in"
    if name in _TARGETS:
        return "a chain name that is no target of iptables"
    return ""


class _Bad(Exception):
    """A node that does not say what its key wants."""

    def __init__(self, node: yaml.Node, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.node, self.why, self.hint = node, why, hint


T = TypeVar("T")
_Reader = Callable[[yaml.Node, str], Any]


def _mapping(node: yaml.Node, at: str, keys: Mapping[str, tuple[str, _Reader]]) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _wanted(node, at or "the file", "a mapping of keys to values")
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "(no text)"
        path = f"{at}.{key}" if at else key
        if key not in keys:
            raise _Bad(key_node, f"unknown key {path}", _suggestion(key, list(keys)))
        attribute, read = keys[key]
        if attribute in values:
            raise _Bad(key_node, f"{path} is given twice", "keep one of them")
        values[attribute] = read(value_node, path)
    return values


def _suggestion(word: str, known: Sequence[str]) -> str:
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1)
    return f"did you mean {lower[close[0]]}?" if close else "known are " + ", ".join(known)


def _wanted(node: yaml.Node, at: str, wanted: str, hint: str = "") -> _Bad:
    return _Bad(node, f"{at}: wanted {wanted}, got {_shown(node)}", hint)


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if _is_null(node):
        return "null"
    value = str(node.value)
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f'"{shown}"' if _tag(node) == "str" else shown


def _tag(node: yaml.Node) -> str:
    return str(node.tag).rpartition(":")[2]


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and _tag(node) == "null"


def _string(node: yaml.Node, at: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or _tag(node) != "str":
        raise _wanted(node, at, "text")
    return str(node.value)


def _boolean(node: yaml.Node, at: str) -> bool:
    if not isinstance(node, yaml.ScalarNode) or _tag(node) != "bool":
        raise _wanted(node, at, "true or false")
    # A tag may claim to be a boolean what is none.
    value = yaml.SafeLoader.bool_values.get(node.value.lower())
    if value is None:
        raise _wanted(node, at, "true or false")
    return bool(value)


def _integer(low: int, high: int) -> _Reader:
    def read(node: yaml.Node, at: str) -> int:
        # YAML 1.1 would take 010 for 8 and 1:30 for 90; nobody means that here.
        plain = isinstance(node, yaml.ScalarNode) and _tag(node) == "int"
        if not plain or not re.fullmatch(r"0|-?[1-9]\d{0,9}", node.value):
            raise _wanted(node, at, f"a whole number from {low} to {high}")
        if not low <= int(node.value) <= high:
            raise _wanted(node, at, f"a whole number from {low} to {high}")
        return int(node.value)

    return read


def _one_of(*choices: str) -> _Reader:
    def read(node: yaml.Node, at: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.value not in choices:
            word = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
            close = {c.lower(): c for c in choices}.get(word.lower())
            hint = f"did you mean {close}?" if close else ""
            raise _wanted(node, at, " or ".join(choices), hint)
        return str(node.value)

    return read


def _or_null(read: _Reader) -> _Reader:
    return lambda node, at: None if _is_null(node) else read(node, at)


def _path(node: yaml.Node, at: str) -> str:
    text = _string(node, at)
    if not text.startswith("/") or "\0" in text:
        raise _wanted(node, at, "an absolute path")
    return text


def _node_name(node: yaml.Node, at: str) -> str:
    text = _string(node, at)
    if len(text) > 253 or not _DNS_SUBDOMAIN.fullmatch(text):
        raise _wanted(node, at, "a Node's name (lower-case letters, digits, - and .)")
    return text


def _cidrs(node: yaml.Node, at: str) -> tuple[Network, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise _wanted(node, at, "a list of CIDRs such as [10.240.2.128/25]")
    return tuple(_cidr(item, f"{at}[{index}]") for index, item in enumerate(node.value))


def _cidr(node: yaml.Node, at: str) -> Network:
    text = _string(node, at)
    try:
        return parse_network(text)
    except ValueError as error:
        raise _Bad(
            node, f'{at}: wanted a CIDR such as 10.240.2.128/25, got "{text}", which {error}'
        ) from None


def _pod_cidrs(node: yaml.Node, at: str) -> tuple[Network, ...]:
    cidrs = _cidrs(node, at)
    for index, (item, cidr) in enumerate(zip(node.value, cidrs)):
        if cidr.prefixlen == 0:
            raise _wanted(
                item, f"{at}[{index}]", "the addresses of this node's pods, not every address"
            )
    return cidrs


def _chain_name(kube_allowed: bool) -> _Reader:
    def read(node: yaml.Node, at: str) -> str:
        text = _string(node, at)
        fault = _name_fault(text)
        if fault:
            raise _wanted(node, at, fault)
        if text in (OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN):
            raise _wanted(node, at, "a name that the agent does not use for something else")
        if text.startswith("KUBE-") and not kube_allowed:
            raise _wanted(node, at, "a name without KUBE- in front, which belongs to Kubernetes")
        return text

    return read


def _check_chain_names_differ(root: yaml.Node, chains: Chains) -> None:
    names = (chains.prerouting, chains.output, chains.mark_masquerade)
    fault = ""
    if len(set(names)) < len(names):
        fault = f"chains: wanted three different names, got {', '.join(names)}"
    for name in names:
        for base in (*names[:2], OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN):
            if name.startswith(f"{base}-"):
                fault = f"chains: wanted no name like {name}, which could be split off from {base}"
    if fault:
        node = next(value for key, value in root.value if key.value == "chains")
        raise _Bad(node, fault)


def _duration(low: float, high: float) -> _Reader:
    def read(node: yaml.Node, at: str) -> float:
        wanted = f"a duration from {low:g}s to {high:g}s, such as 2s or 500ms"
        match = _DURATION.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
        if match is None or not node.value:
            raise _wanted(node, at, wanted)
        hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
        total = hours * 3600 + minutes * 60 + seconds + millis / 1000
        if not low <= total <= high:
            raise _wanted(node, at, wanted)
        return total

    return read


def _bind_address(node: yaml.Node, at: str) -> str:
    text = _string(node, at)
    host, colon, port = text.rpartition(":")
    fits = re.fullmatch(r"[A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]", host)
    if text and not (
        colon and fits and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536
    ):
        raise _wanted(node, at, 'HOST:PORT such as 127.0.0.1:10273, or "" to turn it off')
    return text


def _section(cls: Callable[..., T], keys: Mapping[str, tuple[str, _Reader]]) -> _Reader:
    def read(node: yaml.Node, at: str) -> T:
        return cls() if _is_null(node) else cls(**_mapping(node, at, keys))

    return read


_KEYS: Mapping[str, tuple[str, _Reader]] = {
    "kubeconfig": ("kubeconfig", _path),
    "nodeName": ("node_name", _or_null(_node_name)),
    "podCIDRs": ("pod_cidrs", _or_null(_pod_cidrs)),
    "chains": (
        "chains",
        _section(
            Chains,
            {
                "prerouting": ("prerouting", _chain_name(kube_allowed=False)),
                "output": ("output", _chain_name(kube_allowed=False)),
                "markMasquerade": ("mark_masquerade", _chain_name(kube_allowed=True)),
                "servicesPerChain": ("services_per_chain", _integer(2, 4096)),
            },
        ),
    ),
    "masquerade": ("masquerade", _one_of("All", "HostOnly")),
    "services": (
        "services",
        _section(
            ServiceOptions,
            {
                "externalIPs": ("external_ips", _boolean),
                "externalTrafficPolicy": ("external_traffic_policy", _one_of("Any", "Local")),
                "allowedExternalCIDRs": ("allowed_external_cidrs", _cidrs),
                "matchPorts": ("match_ports", _one_of("Shared", "Always")),
            },
        ),
    ),
    "iptables": (
        "iptables",
        _section(
            IptablesOptions,
            {
                "backend": ("backend", _one_of("auto", "nft", "legacy")),
                "lockWaitSeconds": ("lock_wait_seconds", _integer(1, 60)),
            },
        ),
    ),
    "driftCheckPeriod": ("drift_check_period", _duration(0.1, 3600)),
    "metricsBindAddress": ("metrics_bind_address", _bind_address),
}
