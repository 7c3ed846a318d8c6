"""Gathers what `explain` knows of the node, changing nothing in it.

Each look has a time limit, and what cannot be seen is left out, with the reason where that matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.explain.facts import Facts, NatTable
from ipvs_node_agent.host import ipvs, links, pods
from ipvs_node_agent.host.neighbours import neighbours
from ipvs_node_agent.host.routes import way_to
from ipvs_node_agent.host.rundir import own_names
from ipvs_node_agent.iptables.backends import Kernel, installed
from ipvs_node_agent.iptables.command import TableError, launch
from ipvs_node_agent.iptables.conntrack import flows_to
from ipvs_node_agent.iptables.proxymode import proxy_mode
from ipvs_node_agent.iptables.saved import saved_table
from ipvs_node_agent.iptables.table import BACKENDS, may_read
from ipvs_node_agent.model.addresses import FAMILIES, Address, Family
from ipvs_node_agent.model.objects import Candidate, Snapshot
from ipvs_node_agent.nat.chains import NAT
from ipvs_node_agent.nat.trace import marked_by, read
from ipvs_node_agent.nft import listing
from ipvs_node_agent.processes.launcher import Launcher
from ipvs_node_agent.rules.coverage import coverage
from ipvs_node_agent.rules.policy import lacking

_BEFORE_NAT, _ALL_BITS = ("raw", "mangle"), 0xFFFFFFFF


def look(config: Config, seen: Snapshot | None, unseen: str = "") -> Facts:
    """What there is to see on this node, where the cluster is as it was `seen`."""
    with closing(launch()) as launcher:
        chains = config.chains
        names = own_names(chains)
        kernel = Kernel(launcher, config.iptables, names, chains.mark_masquerade)
        kernel.choose()
        facts = Facts(
            config=config,
            seen=seen,
            unseen=unseen,
            backend=kernel.backend,
            tables=tuple(_tables(launcher)),
            marks=_marks(launcher),
            base_chains=listing.base_chains(),
            proxy=proxy_mode(launcher, backend=kernel.backend),
            ipvs=ipvs.virtual_servers(),
        )
    if seen is None:
        return facts
    known = coverage(config, seen.node, seen.pod_interfaces)
    return replace(
        facts,
        node=seen.node.name,
        lacks=lacking(config, seen.node, seen.pod_interfaces),
        coverage=known,
        pods=tuple(each for each in _candidates(seen.node.addresses) if known.covers(each)),
    )


def look_at(facts: Facts, addresses: Iterable[Address]) -> Facts:
    """`facts` with what there is to see about `addresses`."""
    addresses = list(addresses)
    ways = {each: way for each in addresses if (way := way_to(each)) is not None}
    return replace(facts, ways=ways, flows={each: flows_to(each) for each in addresses})


def _tables(launcher: Launcher) -> Iterator[NatTable]:
    for backend in BACKENDS:
        for family in FAMILIES:
            if not installed(family, backend) or not may_read(family, backend):
                continue
            save = f"{family.command}-{backend}-save"
            try:
                text = saved_table(launcher, save, NAT, "-c")
            except TableError as error:
                yield NatTable(family, backend, error=error.why)
                continue
            yield NatTable(family, backend, read(text))


def _marks(launcher: Launcher) -> dict[Family, int]:
    """The bits of marks that packets may have before they come to nat, by family."""
    marks = dict.fromkeys(FAMILIES, 0)
    for family, backend, table in product(FAMILIES, BACKENDS, _BEFORE_NAT):
        if installed(family, backend) and may_read(family, backend, table):
            try:
                text = saved_table(launcher, f"{family.command}-{backend}-save", table)
                marks[family] |= marked_by(read(text))
            except TableError:
                marks[family] = _ALL_BITS
    return marks


def _candidates(own: tuple[Address, ...]) -> frozenset[Candidate]:
    """What may be pods' addresses on this node."""
    try:
        return pods.candidates(links.ask(), pods.plugins(), neighbours(), own)
    except (AgentError, OSError, ValueError):
        return frozenset()
