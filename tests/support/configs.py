"""What is wrong with a text that is to be a configuration."""

from __future__ import annotations

import pytest

from ipvs_node_agent.config.file import parse
from ipvs_node_agent.errors import UsageError

FILE = "/etc/ipvs-node-agent/config.yaml"


def refusal(text: str) -> str:
    """The whole line that is printed for `text`, less the program's name."""
    with pytest.raises(UsageError) as caught:
        parse(text, FILE)
    assert caught.value.exit_status == 2
    message = str(caught.value)
    assert message.isprintable()
    return message


def at(line: int) -> str:
    return f"configuration {FILE} line {line}: "


def nested(key: str, value: str) -> str:
    """A file that sets `key`, which may be SECTION.KEY, to `value`."""
    section, _, name = key.rpartition(".")
    return f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"
