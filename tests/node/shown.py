"""What the documents tell an operator to type, for the tests to type it."""

from __future__ import annotations

import re

from tests.support.documents import OPERATIONS, README

_PROSE = re.sub(r"(?ms)^```.*?^```$", "", README.text)
# A line may end within a command.
_COMMANDS = {re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", _PROSE)}


def of_readme(command: str) -> str:
    """`command`, which has to be in the README."""
    assert command in _COMMANDS, f"the README has no `{command}`"
    return command


def of_operations(command: str) -> str:
    """`command`, which has to be at a prompt in docs/operations.md."""
    assert command in [example.command for example in OPERATIONS.examples]
    return command


INSTALL = of_readme("apt install ./ipvs-node-agent_*.deb")
STATUS = of_readme("systemctl status ipvs-node-agent")
JOURNAL = of_readme("journalctl -u ipvs-node-agent")
RELOAD = of_readme("systemctl reload ipvs-node-agent")
REMOVE = of_readme("apt remove ipvs-node-agent")
PURGE = of_readme("apt purge ipvs-node-agent")
MASK = of_operations("systemctl mask --runtime ipvs-node-agent")
UNMASK = of_operations("systemctl unmask --runtime ipvs-node-agent")
ENABLE = of_operations("systemctl enable ipvs-node-agent")
RESTART = of_operations("systemctl restart ipvs-node-agent")
CHECK = of_operations("ipvs-node-agent check")
DIFF = of_operations("ipvs-node-agent diff")
PLAY = of_operations(
    "ansible-playbook -i hosts -e ipvs_node_agent_package=$PWD/ipvs-node-agent.deb roll-out.yml"
)
