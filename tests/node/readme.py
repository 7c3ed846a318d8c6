"""What the README tells an operator to type, for the tests to type it."""

from __future__ import annotations

import re
from pathlib import Path

_README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
_PROSE = re.sub(r"(?ms)^```.*?^```$", "", _README)
# A line may end within a command.
_COMMANDS = {re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", _PROSE)}


def of_readme(command: str) -> str:
    """`command`, which has to be in the README."""
    assert command in _COMMANDS, f"the README has no `{command}`"
    return command


INSTALL = of_readme("apt install ./ipvs-node-agent_*.deb")
STATUS = of_readme("systemctl status ipvs-node-agent")
JOURNAL = of_readme("journalctl -u ipvs-node-agent")
RELOAD = of_readme("systemctl reload ipvs-node-agent")
REMOVE = of_readme("apt remove ipvs-node-agent")
PURGE = of_readme("apt purge ipvs-node-agent")
