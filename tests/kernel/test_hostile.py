"""Whatever Services ask for, both kernels take the rules, and keep them as they were written.

Each example has chains under names of its own, so that all of them go through one restore.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.apiserver.reading import UnknownObject, read_node, read_service
from ipvs_node_agent.config.settings import DEFAULTS, Chains, Config
from ipvs_node_agent.model.addresses import IPV4, Family
from ipvs_node_agent.model.objects import Service, Snapshot
from ipvs_node_agent.nat.ruleset import Found, Ruleset, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.nat.trace import chains_of
from ipvs_node_agent.rules.planner import plan
from tests.kernel.conftest import OTHER, WEB, Bed
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.examples import hunt
from tests.support.netns import Namespace
from tests.support.rawobjects import configs, services
from tests.support.tables import add_mark_masq

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13", "oldest")]

NODE = read_node(node(*POD_CIDRS))
LONGEST = "n" * 63


def read_all(raw: Sequence[Any]) -> dict[str, Service]:
    """The Services among `raw`."""
    found = {}
    for each in raw:
        try:
            read = read_service(each)
        except UnknownObject:
            continue
        found[read.key] = read
    return found


def huge() -> list[dict[str, Any]]:
    """A Service with a thousand IPs of each family, and one with the longest name."""
    external = [f"10.{20 + n // 200}.{n % 200}.7" for n in range(1000)]
    external += [f"fd00:20:{n:x}::7" for n in range(1000)]
    many = service("many", ["10.231.0.7", "fd00:231::7"], external)
    named = service(LONGEST, ["10.231.0.8", "fd00:231::8"], ["10.19.0.9", "fd00:19::9"])
    named["metadata"]["namespace"] = LONGEST
    return [many, named]


@functools.cache
def planned(family: Family) -> Ruleset:
    """The plans for many lists of Services, as one."""
    plans: list[Ruleset] = []

    def add(raw: Sequence[Any], config: Config) -> None:
        number = len(plans)
        named = replace(config.chains, prerouting=f"P{number}", output=f"O{number}")
        snapshot = Snapshot(read_all(raw), NODE)
        plans.append(plan(replace(config, chains=named), snapshot, family).ruleset)

    @hunt(80)
    @given(
        raw=st.lists(services, min_size=3, max_size=8),
        config=configs,
        # Fewer than a file may ask for, so that a few Services are a tree.
        per_chain=st.sampled_from([1, 16]),
    )
    def collect(raw: list[Any], config: Config, per_chain: int) -> None:
        add(raw, replace(config, chains=Chains(services_per_chain=per_chain)))

    collect()
    add(huge(), DEFAULTS)
    return Ruleset({name: rules for each in plans for name, rules in each.chains.items()})


def test_the_kernel_takes_all_rules_and_keeps_them_as_they_are(
    family: Family, backend: str, namespace: Namespace
) -> None:
    add_mark_masq(namespace, family, backend)
    wanted = planned(family)
    # The thousand IPs alone have 4,000.
    assert sum(map(len, wanted.chains.values())) > 4010
    command = f"{family.command}-{backend}"
    text = restore_input(difference(Found(), wanted))
    namespace.run(f"{command}-restore", "-w", "10", "--noflush", "--test", stdin=text)
    namespace.run(f"{command}-restore", "-w", "10", "--noflush", stdin=text)
    saved = namespace.run(f"{command}-save", "-t", "nat")
    found = chains_of(saved.splitlines())
    assert {n: found.get(n) for n in wanted.chains} == {n: [*r] for n, r in wanted.chains.items()}


@pytest.mark.parametrize(
    "odd",
    [
        ["-A", "PREROUTING", "-i", '"x', "-j", "RETURN"],
        ["-A", "POSTROUTING", "-o", '"x', "-j", "RETURN"],
        ["-A", "OUTPUT", "-j", '"x'],
        ["-A", "PREROUTING", "-m", "physdev", "--physdev-in", '"x', "-j", "RETURN"],
    ],
    ids=["interface", "interface out", "chain", "bridge port"],
)
def test_a_name_of_others_that_begins_with_a_quote_hides_nothing_of_ours(
    bed: Bed, odd: list[str]
) -> None:
    bed.iptables("-N", '"x')
    bed.iptables(*odd)
    bed.iptables("-A", "OUTPUT", "-m", "comment", "--comment", "a b", "-j", "RETURN")
    bed.put(WEB)
    bed.agent.start()
    bed.put(OTHER)
    bed.expect(WEB, OTHER)
    # What is read again is what was written.
    bed.agent.stop()
    bed.agent.start()
    bed.expect(WEB, OTHER)
    bed.settled()
    assert "repaired" not in bed.agent.log
    bed.agent.stop()
    cleaned = bed.agent.call("cleanup")
    assert cleaned.returncode == 0, cleaned.stderr
    assert bed.ours(IPV4) == []
