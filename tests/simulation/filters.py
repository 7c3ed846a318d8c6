"""The filter tables of a world: what `dropInvalidInput` is to have there, and what others do."""

from __future__ import annotations

from tests.simulation import oracle
from tests.simulation.oracle import State
from tests.simulation.search import Violation
from tests.simulation.table import SimTable, Telling, Wrote

CHAIN = "IPVS_INPUT"
_DROPPING = {CHAIN: ["! -i lo -p tcp -m conntrack --ctstate INVALID -j DROP"]}
# What others do to it, as restore input.
MEDDLING = {
    "flush table": "",
    "flush chain": f"-F {CHAIN}",
    "delete chain": f"-F {CHAIN}\n-D INPUT -j {CHAIN}\n-X {CHAIN}",
    "delete jump": f"-D INPUT -j {CHAIN}",
    "double jump": f"-I INPUT 1 -j {CHAIN}",
    "push back": "-I INPUT 1 -p tcp -j RETURN",
    "append rule": f"-A {CHAIN} -p udp -j RETURN",
    "refer": f"-A OUTPUT -p tcp -j {CHAIN}",
    "rename": "",
    "insist": ":cali-INPUT - [0:0]\n-A cali-INPUT -p tcp -j ACCEPT\n-I INPUT 1 -j cali-INPUT",
    "foreign chain": ":THEIRS - [0:0]\n-A THEIRS -p tcp -j DROP\n-A INPUT -j THEIRS",
}


def meddle(table: SimTable, what: str, told: Telling) -> None:
    """Somebody else does `what` to it."""
    if what == "flush table":
        table.flush(told)
    elif what == "rename":
        table.rename(CHAIN, "GONE", told)
    else:
        table.change(MEDDLING[what], told)


def judge(table: SimTable, wrote: Wrote) -> None:
    """After each write: what was others' is untouched, and ours is all or nothing."""
    if oracle.foreign(wrote.there) != oracle.foreign(wrote.now):
        raise Violation(f"{table.family}: foreign rules of filter were changed by\n{wrote.text}")
    if _own(wrote.left) not in ({}, _DROPPING):
        raise Violation(f"{table.family}: filter was left with {_own(wrote.left)}")


def expect(table: SimTable, there: dict[str, list[str]], told: State, has_rules: bool) -> None:
    """`there` is as it has to be by what was `told`, where nat has rules or has not."""
    dropping = told.config.drop_invalid_input and has_rules
    found, jumps = _own(there), oracle.own_jumps(there)
    wanted = {"INPUT": [(oracle.place(there, "INPUT"), CHAIN)]} if dropping else {}
    if found != (_DROPPING if dropping else {}) or jumps != wanted:
        raise Violation(
            f"{table.family}: filter has {found} and {jumps}, wanted {wanted}, dropping: {dropping}"
        )


def _own(chains: dict[str, list[str]]) -> dict[str, list[str]]:
    """What we have of it; a chain that others jump to stays without rules."""
    referred = {rule.rpartition("-j ")[2] for rules in chains.values() for rule in rules}
    own = oracle.own(chains)
    return {name: rules for name, rules in own.items() if rules or name not in referred}
