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
    entries = [entry(bytes([n % 251, 7]), n, 180) for n in range(2500)]
    block = bytearray(HEADER + b"".join(entries))
    places = legacytable._places(block, *LAYOUT)
    before = legacytable._digest(block, places)
    for at in range(len(HEADER), len(block), 22):
        # Some entries; the first of all, and of those that are put together, are among them.
        sampled = at % 100 < 22 or (at - len(HEADER)) % 22_000 == 0
        for offset in (0, 1, 2, 3, 20, 21) if sampled else ():
            block[at + offset] ^= 1
            assert legacytable._digest(block, places) != before
            block[at + offset] ^= 1
        block[at + 4 : at + 20] = b"\xff" * 16
    assert legacytable._digest(block, places) == before


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        pytest.param(entry(b"ab", 3, 180)[:-4], "cut off", id="an end that is cut off"),
        pytest.param(struct.pack("=2sH18s", b"ab", 0, b""), "too short", id="no length"),
        pytest.param(struct.pack("=2sH18s", b"ab", 19, b""), "too short", id="a short length"),
        pytest.param(struct.pack("=2sH18s", b"ab", 23, b""), "too short", id="a long length"),
    ],
)
def test_a_block_that_cannot_be_told_is_an_error(entries: bytes, why: str) -> None:
    with pytest.raises(OSError, match=why):
        legacytable._places(bytearray(HEADER + entries), *LAYOUT)


def test_a_kernel_without_legacy_tables_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tmp_path / "names"
    monkeypatch.setattr(legacytable, "_NAMES", {4: names})
    assert legacytable.names(4) == ()
    names.write_text("nat\nmangle\n")
    assert legacytable.names(4) == ["nat", "mangle"]
