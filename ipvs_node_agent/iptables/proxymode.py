"""kube-proxy's mode, by its own word and by the tables that it keeps.

Its word alone proves nothing: a container on the host's network may be root without any right, and
answer on its port. To make its tables takes CAP_NET_ADMIN. So rules are taken away only where both
say the same, and a word that nothing agrees with is a doubt, which changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from ipvs_node_agent.host.kubeproxy import answers
from ipvs_node_agent.iptables import nftlist
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.launcher import Launcher
from ipvs_node_agent.iptables.table import BACKENDS, may_read, saved_table
from ipvs_node_agent.model.addresses import FAMILIES
from ipvs_node_agent.rules.policy import unneeded_in


class ProxyMode(NamedTuple):
    """The mode to go by, None where it was never known; `doubt` says what speaks against it."""

    mode: str | None
    doubt: str = ""


def proxy_mode(launcher: Launcher, known: str | None = None) -> ProxyMode:
    """kube-proxy's mode; `known`, the last one, as long as nothing tells another for certain."""
    said = answers()
    if len(said) > 1:
        return ProxyMode(known, f"kube-proxy answers both {' and '.join(sorted(said))}")
    if not said or said == {known}:
        return ProxyMode(known)
    (word,) = said
    if unneeded_in(word) and not _has_tables(word, launcher):
        return ProxyMode(known, f"kube-proxy says that its mode is {word}, and has not its tables")
    is_over = not unneeded_in(known) or _has_tables(word, launcher)
    if not is_over and _has_tables(known or "", launcher):
        return ProxyMode(
            known, f"kube-proxy says that its mode is {word}, and has {known}'s tables"
        )
    return ProxyMode(word)


def _has_tables(mode: str, launcher: Launcher) -> bool:
    """Whether the kernel has what kube-proxy makes in `mode`."""
    if mode == "nftables":
        return "kube-proxy" in nftlist.tables()
    rules = _service_rules(launcher)
    has_set = any("KUBE-CLUSTER-IP" in rule for rule in rules)
    if mode == "ipvs":
        return has_set
    return not has_set and any(" -j KUBE-SVC-" in rule for rule in rules)


def _service_rules(launcher: Launcher) -> list[str]:
    """The rules of KUBE-SERVICES, in both backends and families; without those not to be read."""
    rules: list[str] = []
    for backend in BACKENDS:
        for family in FAMILIES:
            try:
                if may_read(family, backend):
                    text = saved_table(launcher, f"{family.command}-{backend}-save", "nat")
                    lines = text.split("\n")
                    rules += [line for line in lines if line.startswith("-A KUBE-SERVICES ")]
            except TableError:
                continue
    return rules
