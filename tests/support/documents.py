"""The documents for users, and the commands, scripts and tables in them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.support.places import REPOSITORY


class Example(NamedTuple):
    """A command at a prompt, and what is shown below it."""

    command: str
    output: str


class Entry(NamedTuple):
    """What is said of some words of the program: why they are said, and what to do."""

    codes: list[str]
    anchor: str
    kinds: list[str]
    cause: str
    cure: str


_ENTRY = re.compile(
    r'- \*\*(.+?)\*\*(?:<a id="(\w+)"></a>)? \(([\w, ]+)\): (.+?[.:]) \*Do:\* (.+\.)'
)


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

    def printed_by(self, command: str) -> str:
        """What is shown below the one `command` that has something below it."""
        outputs = [each.output for each in self.examples if each.command == command]
        (found,) = filter(None, outputs)
        return found

    @property
    def scripts(self) -> dict[str, str]:
        """The blocks called sh, by the name in their first line, which is a comment."""
        return {block.split()[1]: block for block in self._blocks("sh")}

    def block_of_yaml(self, word: str) -> str:
        """The block called yaml that has `word` in it."""
        (found,) = (block for block in self._blocks("yaml") if word in block)
        return found

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

    def entries(self, kind: str) -> list[Entry]:
        """The entries of a kind in the list of symptoms."""
        items = re.findall(r"^- .*(?:\n  .*)*", self.section("Symptoms"), re.MULTILINE)
        found = []
        for item in (re.sub(r"\s+", " ", item) for item in items):
            parts = _ENTRY.fullmatch(item)
            assert parts is not None, f"{self.name}: no entry: {item}"
            codes = [code for _, code in re.findall(r"(`+)(.+?)\1(?!`)", parts[1])]
            kinds = parts[3].split(", ")
            found.append(Entry(codes, parts[2] or "", kinds, parts[4], parts[5]))
        return [entry for entry in found if kind in entry.kinds]


def _is_rule(row: list[str]) -> bool:
    """Whether it is the line below a table's head."""
    return all(set(cell) <= set("-:") for cell in row)


def first_code(cell: str) -> str:
    """The first text in backticks."""
    found = re.match(r"`([^`]+)`", cell)
    return found[1] if found else ""


def lines_in(picture: Path) -> list[str]:
    """The lines of text that a picture of a terminal shows."""
    texts = ElementTree.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}text")
    return ["".join(line.itertext()) for line in texts]


# Of a terminal; tests/picture.py draws them.
EXPLAIN_PICTURE = REPOSITORY / "docs" / "explain.svg"
STATUS_PICTURE = REPOSITORY / "docs" / "status.svg"

README = Document("README.md")
OPERATIONS = Document("docs/operations.md")
FAQ = Document("docs/faq.md")
MIGRATION = Document("docs/migration.md")
SUPPORT = Document("docs/support.md")
