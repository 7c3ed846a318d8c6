"""The configuration file: from YAML text to a `Config`, or one sentence with file, line and key.

`_KEYS` at the end lists every key, with its reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ipvs_node_agent.config import regularfile
from ipvs_node_agent.config import yamlnodes as read
from ipvs_node_agent.config.regularfile import Unfit
from ipvs_node_agent.config.settings import (
    DEFAULTS,
    Chains,
    Config,
    IptablesOptions,
    ServiceOptions,
)
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.model.addresses import Network
from ipvs_node_agent.model.objects import INTERFACE_WANTED, is_interface, is_node_name
from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN, name_fault, stem

DEFAULT_PATH = Path("/etc/ipvs-node-agent/config.yaml")
# A file may say what it is, so that a later version with other keys can tell.
IDENTITY = {"apiVersion": "ipvs-node-agent/v1", "kind": "Configuration"}


class Loaded(NamedTuple):
    """A configuration, the file's name, and the keys that it has; None where it is missing.

    Those of sections are SECTION.KEY.
    """

    config: Config
    name: str
    given: frozenset[str] | None = frozenset()


def load(path: Path | None) -> Config:
    """The configuration in the file at `path`; None is the default file, which may be absent.

    Raises UsageError for a file that is missing though named, unreadable, open to changes by
    others, or wrong in itself.
    """
    return load_with_keys(path).config


def load_with_keys(path: Path | None) -> Loaded:
    """The same, with the keys that the file has."""
    name = str(path or DEFAULT_PATH)
    what, data = f"configuration {name}", b""
    try:
        data = regularfile.read(name, private=True)
        text = data.decode()
    except FileNotFoundError:
        if path is None:
            return Loaded(DEFAULTS, name, None)
        hint = "name a file that exists, or leave --config out"
        raise UsageError(what, "no such file", hint) from None
    except OSError as error:
        hint = "run it as root" if isinstance(error, PermissionError) else ""
        raise UsageError(what, error.strerror or str(error), hint) from None
    except Unfit as error:
        raise UsageError(what, error.why, error.hint) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{what} line {line}", "is not UTF-8 text") from None
    return _parse(text, name)


def parse(text: str, name: str) -> Config:
    """The configuration in `text`; `name` is the file's, for messages. Raises UsageError."""
    return _parse(text, name).config


def values(config: Config) -> dict[str, Any]:
    """What `config` has for every key, those of sections as SECTION.KEY."""
    found: dict[str, Any] = {}
    for key, reader in _KEYS.items():
        value = getattr(config, read.attribute(key))
        if isinstance(reader, read.Section):
            inside = {f"{key}.{each}": getattr(value, read.attribute(each)) for each in reader.keys}
            found.update(inside)
        else:
            found[key] = value
    return found


def _parse(text: str, name: str) -> Loaded:
    root = read.compose(text, f"configuration {name}")
    if root is None or read.is_null(root):
        return Loaded(DEFAULTS, name)
    try:
        _check_identity(root)
        attributes = read.mapping(root, "", {**_IDENTITY, **_KEYS})
        config = Config(**{k: v for k, v in attributes.items() if k not in _OF_IDENTITY})
        _check_chain_names_differ(root, config.chains)
        return Loaded(config, name, frozenset(_given(root)))
    except read.Bad as bad:
        line = bad.node.start_mark.line + 1
        what = f"configuration {name} line {line}"
        raise UsageError(what, bad.why, bad.hint) from None


def _check_identity(root: yaml.Node) -> None:
    """First of all, as keys that are not known here may be another version's."""
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in _IDENTITY:
            _IDENTITY[key.value](value, key.value)


def _given(root: yaml.Node) -> Iterator[str]:
    """The keys in a file that was read."""
    for key, value in root.value:
        if not isinstance(_KEYS.get(key.value), read.Section):
            yield key.value
        elif not read.is_null(value):
            yield from (f"{key.value}.{each.value}" for each, _ in value.value)


def _node_name(node: yaml.Node, at: str) -> str:
    text = read.string(node, at)
    if not is_node_name(text):
        raise read.wanted(node, at, "a Node's name (lower-case letters, digits, - and .)")
    return text


def _pod_cidrs(node: yaml.Node, at: str) -> tuple[Network, ...]:
    cidrs = read.cidrs(node, at)
    for index, (item, cidr) in enumerate(zip(node.value, cidrs)):
        if cidr.prefixlen == 0:
            expected = "the addresses of this node's pods, not every address"
            raise read.wanted(item, f"{at}[{index}]", expected)
    return cidrs


def _pod_interface(node: yaml.Node, at: str) -> str:
    text = read.string(node, at)
    if not is_interface(text):
        raise read.wanted(node, at, INTERFACE_WANTED)
    return text


def _chain_name(kube_allowed: bool) -> read.Reader:
    def read_name(node: yaml.Node, at: str) -> str:
        text = read.string(node, at)
        fault = name_fault(text)
        if fault:
            raise read.wanted(node, at, fault)
        if text in (OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN):
            raise read.wanted(node, at, "a name that the agent does not use for something else")
        if text.startswith("KUBE-") and not kube_allowed:
            expected = "a name without KUBE- in front, which belongs to Kubernetes"
            raise read.wanted(node, at, expected)
        return text

    return read_name


def _check_chain_names_differ(root: yaml.Node, chains: Chains) -> None:
    names = (chains.prerouting, chains.output, chains.mark_masquerade)
    fault = ""
    if len(set(names)) < len(names):
        fault = f"chains: wanted three different names, got {', '.join(names)}"
    if stem(names[0]) == stem(names[1]):
        fault = fault or f"chains: wanted names that begin differently, got {', '.join(names[:2])}"
    for name in names:
        for base in (*names[:2], OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN):
            if name.startswith(f"{stem(base)}-"):
                fault = f"chains: wanted a name that does not begin with {stem(base)}-, got {name}"
    if fault:
        node = next(value for key, value in root.value if key.value == "chains")
        raise read.Bad(node, fault)


_IDENTITY: Mapping[str, read.Reader] = {key: read.one_of(word) for key, word in IDENTITY.items()}
_OF_IDENTITY = frozenset(map(read.attribute, IDENTITY))
_KEYS: Mapping[str, read.Reader] = {
    "kubeconfig": read.path,
    "nodeName": read.or_null(_node_name),
    "podCIDRs": read.or_null(_pod_cidrs),
    "podInterfaces": read.or_null(read.sequence(_pod_interface, "interfaces such as [cali+]")),
    "chains": read.section(
        Chains,
        prerouting=_chain_name(kube_allowed=False),
        output=_chain_name(kube_allowed=False),
        markMasquerade=_chain_name(kube_allowed=True),
        servicesPerChain=read.integer(2, 4096),
    ),
    "masquerade": read.one_of("All", "HostOnly"),
    "services": read.section(
        ServiceOptions,
        externalIPs=read.boolean,
        externalTrafficPolicy=read.one_of("Any", "Local"),
        allowedExternalCIDRs=read.cidrs,
        matchPorts=read.one_of("Shared", "Always"),
    ),
    "iptables": read.section(
        IptablesOptions,
        backend=read.one_of("auto", "nft", "legacy"),
        lockWaitSeconds=read.integer(1, 60),
    ),
    "driftCheckPeriod": read.duration(0.1, 3600),
    "metricsBindAddress": read.bind_address,
    "serviceMetrics": read.boolean,
    "dropInvalidInput": read.boolean,
}
