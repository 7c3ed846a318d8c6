"""What docs/security.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_test_that_it_names_exists() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    tests = re.findall(r"`(test_\w+)`", TEXT)
    assert len(tests) > 20
    assert not [name for name in tests if f"def {name}(" not in code]


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(r"`([\w./-]+\.(?:py|service|tmpfiles))`", TEXT))
    places = (ROOT, ROOT / "tests", ROOT / "ipvs_node_agent")
    assert not [name for name in named if not any((place / name).exists() for place in places)]
