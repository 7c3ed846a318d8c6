"""What the journal holds of all this, from the first installation to the last purge."""

from __future__ import annotations

import re

import pytest

from tests.node.scene import Scene

# What the agent says, as an operator reads it.
_SENTENCES = re.compile(
    "|".join(
        [
            "x",
        ]
    )
)


@pytest.fixture(scope="module")
def journal(scene: Scene) -> list[str]:
    return scene.journal()


def test_it_holds_no_traceback(journal: list[str]) -> None:
    assert journal
    assert not [line for line in journal if "Traceback" in line or "Error:" in line]
