"""Which names chains of the agent's can have."""

from __future__ import annotations

import hashlib
import re
from typing import Callable

# Iptables keeps 28 of XT_EXTENSION_MAXNAMELEN's 29 bytes for the name (iptables(8), -N).
MAX_CHAIN_NAME = 28
# What a chain's part of a tree is called behind its stem and a dash.
_MAX_TAG = 12
_MAX_STEM = MAX_CHAIN_NAME - _MAX_TAG - 1
OWN_MARK_CHAIN = "IPVS_MARK_MASQ"
OWN_POSTROUTING_CHAIN = "IPVS_POSTROUTING"
# The one chain of ours in filter, where nobody else's name matters.
OWN_INPUT_CHAIN = "IPVS_INPUT"

# The tables that the agent has chains in.
NAT, FILTER = "nat", "filter"

BUILT_IN_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
# A chain by the name of a target could never be jumped to.
_TARGET = re.compile(
    r"ACCEPT|DROP|QUEUE|RETURN|DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|MARK|CONNMARK|LOG|NFLOG"
    r"|REJECT|TPROXY|TRACE|NOTRACK|CT|SET|CLASSIFY|TCPMSS|TEE|NFQUEUE|DSCP|TOS|TTL|HL|CHECKSUM"
    r"|AUDIT"
)
_CHAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def may_be_ours(name: str) -> bool:
    """Whether a chain of the agent's could have `name`."""
    return not name_fault(name) and not name.startswith("KUBE-")


def name_fault(name: str) -> str:
    """What a chain's name has to be and `name` is not; empty where it is fine."""
    if len(name) > MAX_CHAIN_NAME:
        return f"a chain name of at most {MAX_CHAIN_NAME} characters"
    if not _CHAIN_NAME.fullmatch(name):
        return "a chain name of letters, digits and _ . - (no - in front)"
    if name in BUILT_IN_CHAINS:
        return "a chain name that is not built in"
    if _TARGET.fullmatch(name):
        return "a chain name that is not a target of iptables"
    return ""


def stem(name: str) -> str:
    """What the names of the chains begin with that are split off from the chain `name`.

    It is the name itself where that leaves room for a tag, as the default names do.
    """
    if len(name) <= _MAX_STEM:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=2).hexdigest()
    return f"{name[: _MAX_STEM - 5]}_{digest}"


def owner(names: frozenset[str]) -> Callable[[str], bool]:
    """Tells whether a chain is ours: one of `names`, or one split off from it (`NAME-...`)."""
    prefixes = tuple(f"{stem(name)}-" for name in names)
    return lambda chain: chain in names or chain.startswith(prefixes)
