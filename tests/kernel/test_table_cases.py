"""The fake table and the kernel's tables do the same with the same input (table-cases.txt)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables.anytable import Table
from ipvs_node_agent.iptables.command import TableError, launch
from ipvs_node_agent.iptables.table import NFT, KernelTable
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.processes.launcher import Launcher
from tests.kernel.conftest import EVERYWHERE
from tests.support.faketable import BUILT_IN, FakeTable
from tests.support.netns import Namespace, namespaces

# What rests on the fake table rests on what the package's own releases do.
pytestmark = EVERYWHERE

FILLINGS = {
    "IPv4": {"{ip}": "10.19.20.201/32", "{net}": "10.240.2.128/25", "{to}": "10.231.42.164"},
    "IPv6": {"{ip}": "fd00:19::201/128", "{net}": "fd00:10:240::/64", "{to}": "fd00:231::a4"},
}


class Case(NamedTuple):
    """A table, an input for it, and the table afterwards; `then` is None for a refused input."""

    name: str
    have: str
    give: str
    then: str | None


def read_cases(text: str) -> Iterator[Case]:
    blocks = (block.split("\n") for block in text.strip().split("\n\n"))
    for name, *lines in (block for block in blocks if not block[0].startswith("#")):
        said: dict[str, str] = {}
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            said[word] = said.get(word, "") + rest + "\n"
        give = said["whole"].lstrip() if "whole" in said else f"*nat\n{said['give']}COMMIT\n"
        assert ("then" in said) != ("refused" in said), name
        yield Case(name, said.get("have", ""), give, said.get("then"))


CASES = tuple(read_cases(Path(__file__).with_name("table-cases.txt").read_text(encoding="utf-8")))


def normal(save: str) -> list[str]:
    """What `save` printed: user chains without counters, then the rules chain by chain."""
    lines = save.split("\n")
    declared = {line.split(" ")[0] + " -" for line in lines if line.startswith(":")}
    rules = [line for line in lines if line.startswith("-A")]
    chains = declared - {f":{name} -" for name in BUILT_IN}
    return sorted(chains) + sorted(rules, key=lambda rule: rule.split(" ")[1])


def play(case: Case, table: Table, family: Family) -> None:
    """Plays `case` on an empty `table`."""

    def fill(text: str) -> str:
        for mark, value in FILLINGS[family.name].items():
            text = text.replace(mark, value)
        return text

    table.restore(f"*nat\n{fill(case.have)}COMMIT\n")
    assert normal(table.save()) == normal(fill(case.have))
    if case.then is None:
        with pytest.raises(TableError):
            table.restore(fill(case.give))
        assert normal(table.save()) == normal(fill(case.have))
    else:
        table.restore(fill(case.give))
        assert normal(table.save()) == normal(fill(case.then))


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_the_fake_table(case: Case, family: Family) -> None:
    play(case, FakeTable(), family)


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[Namespace, Launcher]]:
    """A node, and what starts commands there: one for all cases, as to make both takes longest."""
    with namespaces("node") as (made,):
        with made.enter():
            launcher = launch()
        yield made, launcher


@pytest.mark.kernel
@every_case
def test_the_kernels_table(
    case: Case, family: Family, backend: str, node: tuple[Namespace, Launcher]
) -> None:
    namespace, launcher = node
    if backend == NFT:
        namespace.run("nft", "flush", "ruleset")
    else:
        namespace.run(f"{family.command}-legacy-restore", "-w", "10", stdin="*nat\nCOMMIT\n")
    with namespace.enter():
        play(case, KernelTable(launcher, family, backend, IptablesOptions()), family)
