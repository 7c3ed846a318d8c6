"""Marking and masquerading by chains of our own, for a node without Kubernetes' KUBE-MARK-MASQ.

kube-proxy makes KUBE-MARK-MASQ, and the kubelet did so until 1.27; it is no API (KEP-3178), and is
missing where kube-proxy has not started yet, or where somebody flushed it. kube-proxy makes it
empty, and fills it at the end of its first sync, together with the chain that masquerades. The bit
is the one that kube-proxy takes by default, since that one is kept free on a node of Kubernetes. As
in its KUBE-POSTROUTING the mark is taken off before the packet goes on, so that nobody masquerades
twice.
"""

from __future__ import annotations

from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN
from ipvs_node_agent.nat.ruleset import Rules

CHAINS: dict[str, Rules] = {
    OWN_MARK_CHAIN: ("-j MARK --set-xmark 0x4000/0x4000",),
    OWN_POSTROUTING_CHAIN: (
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-j MARK --set-xmark 0x4000/0x0",
        "-j MASQUERADE --random-fully",
    ),
}
JUMPS = {"POSTROUTING": OWN_POSTROUTING_CHAIN}
