"""kube-proxy's mode, as it reports and by the tables that it keeps.

Its word alone proves nothing: a container on the host's network may be root without any right, and
answer on its port. To make its tables takes CAP_NET_ADMIN. So rules are taken away only where both
say the same, and a word that nothing agrees with is a doubt, which changes nothing. So is one where
the kernel does not tell.
"""

from __future__ import annotations

from typing import NamedTuple

from ipvs_node_agent.host.kubeproxy import answers
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.saved import saved_table
from ipvs_node_agent.iptables.table import BACKENDS, NFT, may_read
from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from ipvs_node_agent.nft import listing
from ipvs_node_agent.processes.launcher import Launcher
from ipvs_node_agent.rules.policy import unneeded_in


class ProxyMode(NamedTuple):
    """The mode to go by, None where it was never known; `doubt` says what speaks against it."""

    mode: str | None
    doubt: str = ""


def proxy_mode(launcher: Launcher, known: str | None = None, backend: str = NFT) -> ProxyMode:
    """kube-proxy's mode; `known`, the last one, as long as nothing tells another for certain.

    `backend` is the one that the node uses: what is in the other one may be of another time.
    """
    said = answers()
    if len(said) > 1:
        return ProxyMode(known, f"kube-proxy answers both {' and '.join(sorted(said))}")
    if not said or said == {known}:
        return ProxyMode(known)
    (word,) = said
    says = f"kube-proxy says that its mode is {word}, but"
    has = _has_tables(word, launcher, backend) if unneeded_in(word) or unneeded_in(known) else None
    if unneeded_in(word) and not has:
        tells = "its tables cannot be read" if has is None else "has no tables of that mode"
        return ProxyMode(known, f"{says} {tells}")
    if unneeded_in(known) and not has:
        had = _has_tables(known or "", launcher, backend)
        if had is None:
            return ProxyMode(known, f"{says} its tables cannot be read")
        if had:
            return ProxyMode(known, f"{says} has the tables of {known} mode")
    return ProxyMode(word)


def _has_tables(mode: str, launcher: Launcher, backend: str) -> bool | None:
    """Whether the kernel has what kube-proxy makes in `mode`; None where nobody can tell."""
    if mode == "nftables":
        tables = listing.tables()
        return None if tables is None else "kube-proxy" in tables
    others = [each for each in BACKENDS if each != backend]
    for each in (backend, *others):
        rules = _service_rules(launcher, each)
        if rules is None:
            return None
        # Where it has rules in the node's own backend, the other one's are what a move left.
        if rules:
            has_set = any("KUBE-CLUSTER-IP" in rule for rule in rules)
            if mode == "ipvs":
                return has_set
            return not has_set and any(" -j KUBE-SVC-" in rule for rule in rules)
    return False


def _service_rules(launcher: Launcher, backend: str) -> list[str] | None:
    """The rules of KUBE-SERVICES, in both families; None where they cannot be read."""
    rules: list[str] = []
    for family in FAMILIES:
        try:
            if may_read(family, backend):
                text = saved_table(launcher, f"{family.command}-{backend}-save", "nat")
                lines = text.split("\n")
                rules += [line for line in lines if line.startswith("-A KUBE-SERVICES ")]
        except TableError:
            # A kernel without IPv6 still has a kube-proxy.
            if family is IPV4:
                return None
    return rules
