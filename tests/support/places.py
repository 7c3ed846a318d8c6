"""Where things of this repository are, however deep in `tests/` somebody asks."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "ipvs_node_agent"
TESTS = REPOSITORY / "tests"
PACKAGING = REPOSITORY / "packaging"
# In front of the libraries, it has the package `kubernetes` replaced.


def modules() -> dict[str, Path]:
    """All modules of the program, by their path in it: `rules/claims` is rules/claims.py."""
    found = {
        str(path.relative_to(PROGRAM).with_suffix("")): path
        for path in sorted(PROGRAM.rglob("*.py"))
    }
    if len(found) < 40:
        raise AssertionError(f"no program of ours: {sorted(found)}")
    return found
