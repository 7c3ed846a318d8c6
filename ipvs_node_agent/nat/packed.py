"""Rules that are kept as long as they are wanted, in little memory.

Python takes 50 bytes for any text besides its characters, and 8 to list it, which for 10,000
Services is 3 MB. So rules that belong together, and come and go together, are one text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

# Behind each rule; none has it inside, as the kernel's own texts end with it.
_END = "\0"


def together(rules: Iterable[str]) -> str:
    """All `rules` as one text; empty for none."""
    return "".join(rule + _END for rule in rules)


def apart(text: str) -> Sequence[str]:
    """The rules of which `together` made `text`."""
    return text.split(_END)[:-1]


def how_many(text: str) -> int:
    """How many rules are in `text`."""
    return text.count(_END)


class Packed(Sequence[str]):
    """The rules in `texts`, one after the other, each of which `together` made.

    It equals any tuple of the same rules, however it was packed.
    """

    __slots__ = ("_count", "_texts")

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)
        self._count = sum(map(how_many, self._texts))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            yield from apart(text)

    def __reversed__(self) -> Iterator[str]:
        return reversed(tuple(self))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Packed):
            return "".join(self._texts) == "".join(other._texts)
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))
