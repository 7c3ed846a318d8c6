"""The rule that drops TCP packets to this node that connection tracking calls INVALID.

A late packet of a connection between a pod and the outside that connection tracking no longer knows
is not translated back. It arrives at the host, which knows no such connection, and answers with a
reset: the other end gives up a connection that was fine, or that the pod was about to end. TCP
alone, since ICMP errors about flows that are not tracked carry the path's MTU; and what comes in by
lo is the host's own.
"""

from __future__ import annotations

from ipvs_node_agent.nat.chains import FILTER, OWN_INPUT_CHAIN
from ipvs_node_agent.nat.ruleset import Ruleset

DROP_INVALID = "! -i lo -p tcp -m conntrack --ctstate INVALID -j DROP"
_DROPPING = Ruleset({OWN_INPUT_CHAIN: (DROP_INVALID,)}, {"INPUT": OWN_INPUT_CHAIN}, table=FILTER)
_NOTHING = Ruleset(table=FILTER)


def input_rules(dropping: bool) -> Ruleset:
    """What is wanted in a family's filter table.

    It names no address that those in front could take: whatever they do, it gives way to them.
    """
    return _DROPPING if dropping else _NOTHING
