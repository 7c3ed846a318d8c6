"""What docs/security.md names is there."""

from __future__ import annotations

import re

from tests.support.places import PROGRAM, REPOSITORY, TESTS

TEXT = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_test_and_every_file_that_it_names_exists() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("**/test_*.py"))
    tests = re.findall(r"`(test_\w+)`", TEXT)
    assert len(tests) > 20
    assert not [name for name in tests if f"def {name}(" not in code]
    # A test stands in the file that is named before it.
    for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", TEXT):
        there = (TESTS / file).read_text(encoding="utf-8")
        assert not [name for name in re.findall(r"\w+", names) if f"def {name}(" not in there]
    named = set(re.findall(r"`([\w./-]+\.(?:py|service|tmpfiles))`", TEXT))
    places = (REPOSITORY, TESTS, PROGRAM)
    assert not [name for name in named if not any((place / name).exists() for place in places)]
