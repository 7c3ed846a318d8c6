"""What a saved table is taken for."""

from __future__ import annotations

import pytest

from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.saved import saved_table
from ipvs_node_agent.processes.launcher import Launcher


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# Table `nat' is incompatible, use 'nft' tool.\n", "made with nft"),
        ("*nat\n:OUTPUT ACCEPT [0:0]\n", "an incomplete table"),
        ("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j RETURN\n-A OUT", "an incomplete table"),
        ("*filter\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", "an incomplete table"),
        ("no such command\n", "an incomplete table"),
    ],
)
def test_what_is_no_whole_table_is_none_whatever_the_exit_status(
    text: str, why: str, printed: list[str]
) -> None:
    printed[:] = [text]
    with pytest.raises(TableError, match=why):
        saved_table(Launcher({}), "iptables-nft-save", "nat")


@pytest.mark.parametrize("text", ["", "# Warning: iptables-legacy tables present\n"])
def test_a_table_that_is_not_there_is_empty(text: str, printed: list[str]) -> None:
    printed[:] = [text]
    assert saved_table(Launcher({}), "iptables-nft-save", "nat") == ""
