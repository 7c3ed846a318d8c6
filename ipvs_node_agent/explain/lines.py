"""What an explanation is made of: lines with their grounds, and causes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address

# Of a line: it is as it should be, is worth a look, is why it does not work, or cannot be told. One
# without a level goes with the line that follows.
OK, WARN, FAIL, UNKNOWN, NEUTRAL = "ok", "warn", "fail", "?", ""


class Line(NamedTuple):
    """What is so, and about what (`subject`)."""

    level: str
    subject: str
    text: str


class Cause(NamedTuple):
    """What by itself has an address not work, or where `works` is None, not be told; as a sentence.

    `mend` is the next step.
    """

    works: bool | None
    sentence: str
    mend: str


@dataclass
class Told:
    """Lines, and the causes among what they say."""

    lines: list[Line] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)

    def say(self, level: str, subject: str, text: str) -> None:
        """Adds a line."""
        self.lines.append(Line(level, subject, text))

    def fails(self, subject: str, text: str, mend: str, sentence: str = "") -> None:
        """Adds a line, and that it is a cause."""
        self.say(FAIL, subject, text)
        self.causes.append(Cause(False, sentence or f"{subject}: {text}", mend))

    def doubts(self, subject: str, text: str, mend: str, sentence: str = "") -> None:
        """Adds a line, and that because of it nobody can tell."""
        self.say(UNKNOWN, subject, text)
        self.causes.append(Cause(None, sentence or f"{subject}: {text}", mend))

    def add(self, other: Told) -> None:
        """Adds all that `other` says."""
        self.lines += other.lines
        self.causes += other.causes


class Verdict(NamedTuple):
    """Whether it works, None where nobody can tell, as one sentence; and the next step."""

    works: bool | None
    sentence: str
    mend: str


class Explanation(NamedTuple):
    """What there is to say about an address, or about a Service that has none."""

    subject: str
    address: Address | None
    lines: tuple[Line, ...]
    verdict: Verdict
