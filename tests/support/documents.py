"""The documents for users, and the commands, scripts and tables in them."""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from tests.support.places import REPOSITORY


class Example(NamedTuple):
    """A command at a prompt, and what is shown below it."""

    command: str
    output: str


class Document:
    """A Markdown file of the repository."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (REPOSITORY / name).read_text(encoding="utf-8")

    @property
    def examples(self) -> list[Example]:
        """The commands in blocks called console; each has a prompt of its own."""
        return [
            Example(*found)
            for block in self.consoles
            for found in re.findall(r"^[#$] (.+)\n((?:(?![#$] ).*\n)*)", block, re.MULTILINE)
        ]

    @property
    def consoles(self) -> list[str]:
        """The blocks called console."""
        return self._blocks("console")

    @property
    def scripts(self) -> dict[str, str]:
        """The blocks called sh, by the name in their first line, which is a comment."""
        return {block.split()[1]: block for block in self._blocks("sh")}

    def _blocks(self, kind: str) -> list[str]:
        # In a list they are indented.
        found = re.findall(rf"^( *)```{kind}\n((?:.*\n)*?)\1```$", self.text, re.MULTILINE)
        return [textwrap.dedent(block) for _, block in found]

    def script(self, name: str) -> str:
        """One of them."""
        return self.scripts[name]

    def words(self, wanted: str) -> bool:
        """Whether the text says so, wherever its lines end."""
        return wanted in re.sub(r"\s+", " ", self.text)

    def section(self, title: str) -> str:
        """What is below a heading, up to the next one of its level or above."""
        level = re.search(rf"^(#+) {re.escape(title)}$", self.text, re.MULTILINE)
        if level is None:
            raise LookupError(f"{self.name} has no section {title}")
        rest = self.text[level.end() :]
        end = re.search(rf"^#{{1,{len(level[1])}}} ", rest, re.MULTILINE)
        return rest[: end.start()] if end else rest

    def table(self, title: str) -> list[list[str]]:
        """The rows of all tables in a section, without their heads."""
        rows = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in self.section(title).splitlines()
            if line.startswith("|")
        ]
        heads = [_is_rule(below) for below in rows[1:]] + [False]
        return [row for row, head in zip(rows, heads) if not (head or _is_rule(row))]


def _is_rule(row: list[str]) -> bool:
    """Whether it is the line below a table's head."""
    return all(set(cell) <= set("-:") for cell in row)


def first_code(cell: str) -> str:
    """The first text in backticks."""
    found = re.match(r"`([^`]+)`", cell)
    return found[1] if found else ""


README = Document("README.md")
OPERATIONS = Document("docs/operations.md")
MIGRATION = Document("docs/migration.md")
