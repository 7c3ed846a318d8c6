"""What others did to our chains and jumps, one word each, for counting and for the log."""

from __future__ import annotations

from ipvs_node_agent.nat.ruleset import Found

# A word and what it means to a reader of the log.
MEANINGS = {
    "TableFlushed": "all chains and jumps were gone",
    "ChainMissing": "a chain was gone",
    "ChainFlushed": "a chain was empty",
    "ChainChanged": "a chain's rules were others",
    "ChainAdded": "there was a chain too many",
    "JumpMissing": "a jump was gone",
    "JumpDoubled": "a jump was there more than once",
    "JumpNotFirst": "a jump was not the first rule",
}


def reasons(left: Found, found: Found) -> tuple[str, ...]:
    """What became of a table that was `left` so and is `found` so; nothing where it is the same."""
    if (left.chains or left.jumps) and not (found.chains or found.jumps):
        return ("TableFlushed",)
    seen = set()
    for name in left.chains.keys() | found.chains.keys():
        before, now = left.chains.get(name), found.chains.get(name)
        if now is None:
            seen.add("ChainMissing")
        elif before is None:
            seen.add("ChainAdded")
        elif before is not now and before != now:
            seen.add("ChainChanged" if now else "ChainFlushed")
    for built_in in left.jumps.keys() | found.jumps.keys():
        jumps = found.jumps.get(built_in, ())
        if jumps == left.jumps.get(built_in, ()):
            continue
        missing = {target for _, target in left.jumps.get(built_in, ())} - {t for _, t in jumps}
        seen.add("JumpMissing" if missing else "JumpDoubled" if len(jumps) > 1 else "JumpNotFirst")
    return tuple(reason for reason in MEANINGS if reason in seen)
