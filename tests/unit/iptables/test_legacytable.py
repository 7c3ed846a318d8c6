"""How a legacy table's block is read; tests/kernel/test_legacytable.py has the kernel's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ipvs_node_agent.iptables import legacytable

HEADER = bytes(40)
# The places of the next one's offset, and of the counters.
LAYOUT = (2, 4)


def entry(mark: bytes, packets: int, octets: int) -> bytes:
    return struct.pack("=2sHQQ2s", mark, 22, packets, octets, mark)


def test_counts_are_left_out_and_nothing_else() -> None:
    block = bytearray(HEADER + entry(b"ab", 3, 180) + entry(b"cd", 5, 300))
    assert legacytable._without_counts(block, *LAYOUT) == entry(b"ab", 0, 0) + entry(b"cd", 0, 0)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        pytest.param(entry(b"ab", 3, 180)[:-4], "cut off", id="an end that is cut off"),
        pytest.param(struct.pack("=2sH18s", b"ab", 0, b""), "too short", id="no length"),
        pytest.param(struct.pack("=2sH18s", b"ab", 19, b""), "too short", id="a short length"),
    ],
)
def test_a_block_that_cannot_be_told_is_an_error(entries: bytes, why: str) -> None:
    with pytest.raises(OSError, match=why):
        legacytable._without_counts(bytearray(HEADER + entries), *LAYOUT)


def test_a_kernel_without_legacy_tables_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tmp_path / "names"
    monkeypatch.setattr(legacytable, "_NAMES", {4: names})
    assert legacytable.names(4) == ()
    names.write_text("nat\nmangle\n")
    assert legacytable.names(4) == ["nat", "mangle"]
