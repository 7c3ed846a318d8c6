"""Ways to break the mind, each of which its simulation has to see: text for other text."""

MUTATIONS = [
    # The state, and what follows from it.
    (
        "an event changes the Services that were planned from",
        "model/services.py",
        "fresh[place] = self._shards[place].copy()",
        "fresh[place] = self._shards[place]",
    ),
    (
        "a Service that is gone is no difference",
        "model/services.py",
        "keys = ours.keys() | theirs.keys()",
        "keys = ours.keys() & theirs.keys()",
    ),
    (
        "another configuration is not planned for",
        "rules/planner.py",
        "return self.config, self.node, self.own_mark",
        "return self.node, self.own_mark",
    ),
    (
        "another Node is not planned for",
        "rules/planner.py",
        "return self.config, self.node, self.own_mark",
        "return self.config, self.own_mark",
    ),
    (
        "another chain that marks is not planned for",
        "rules/planner.py",
        "return self.config, self.node, self.own_mark",
        "return self.config, self.node",
    ),
    (
        "what was planned of a Service that was left out is forgotten",
        "rules/planner.py",
        "planner.replace(before.planned(key), basis.planned(key))",
        "planner.replace(before.services.get(key), basis.planned(key))",
    ),
    (
        "a Service that is let in again is no difference",
        "rules/planner.py",
        "differing |= before.left_out ^ basis.left_out",
        "differing |= basis.left_out - before.left_out",
    ),
    (
        "a deletion is not noted",
        "sync/cluster.py",
        "services = self.services.with_changes({event.key: None})",
        "services = self.services.with_changes({})",
    ),
    (
        "a Node that is gone takes its pod CIDRs along",
        "sync/cluster.py",
        "pod_cidrs=told.pod_cidrs or last.pod_cidrs, ",
        "",
    ),
    (
        "rules are written for a Node without addresses",
        "rules/policy.py",
        "    if not node.addresses:\n",
        "    if False:\n",
    ),
    (
        "kube-proxy's mode changes nothing",
        "sync/agent.py",
        "if self.cluster.services is None or unneeded_in(self.proxy_mode):",
        "if self.cluster.services is None:",
    ),
    # The tree of chains.
    (
        "chains are never settled",
        "sync/wanted.py",
        "if changed >= _BURST or settling:",
        "if changed >= _BURST:",
    ),
    (
        "an address has rules in two places",
        "rules/dispatch.py",
        "(*(child.prefix.start for child in others), *node.entries)",
        "(*(child.prefix.start for child in others),)",
    ),
    (
        "a chain that tells nothing apart counts as settled",
        "rules/dispatch.py",
        "return all(child.prefix.length >= longer for child in node.children)",
        "return True",
    ),
    # The table: what is believed of it, and what others do.
    (
        "a write that failed is believed",
        "iptables/programmer.py",
        '        """Applies `change`; until all of it is there, nothing is certain."""\n'
        "        self.resync()\n",
        '        """Applies `change`; until all of it is there, nothing is certain."""\n',
    ),
    (
        "what others have is not looked at before a write",
        "iptables/programmer.py",
        "    if not wanted.fits(found.filled):\n        raise Misfit\n",
        "",
    ),
    (
        "a jump may be anywhere",
        "nat/ruleset.py",
        "if jumps == ((1, target),) or not (jumps or target):",
        "if [t for _, t in jumps] == [target] or not (jumps or target):",
    ),
    (
        "a table is never read whatever the kernel says",
        "sync/agent.py",
        "                table.programmer.resync()\n",
        "                pass\n",
    ),
    (
        "what is told of drift is not heard",
        "iptables/programmer.py",
        "        if self.heard():\n            self.resync()\n",
        "",
    ),
    # Failures.
    (
        "a failed write is not tried again",
        "sync/family.py",
        "self._retry_at = now + max(self._delay, 0.0 if error.locked else seconds)",
        "self._retry_at = math.inf",
    ),
    (
        "what an attempt showed of the chain that marks is not planned for",
        "sync/family.py",
        "self.wanted.own_mark = not self.wanted.own_mark",
        "pass",
    ),
    (
        "a family that nothing belongs to is done whatever happens",
        "sync/family.py",
        "nothing = not self.wanted.ruleset.chains and self._written is None",
        "nothing = not self.wanted.ruleset.chains",
    ),
    (
        "a Service that the kernel refused is never tried again",
        "sync/refused.py",
        "_Entry(services[key], why, min(delay * 2, _CAP), now + delay)",
        "_Entry(services[key], why, min(delay * 2, _CAP), math.inf)",
    ),
    (
        "a Service stays left out when it changes",
        "sync/refused.py",
        "if services.get(key) is entry.service",
        "if key in services",
    ),
    (
        "whoever is new is refused",
        "sync/refused.py",
        "        if not group or takes(frozenset(group)):\n            continue\n",
        "        if not group:\n            continue\n",
    ),
    (
        "a Service counts as refused though others changed the table",
        "iptables/programmer.py",
        "if not error.by_content or self._overtaken():",
        "if not error.by_content:",
    ),
    # What it says.
    (
        "it says that it is in sync while it is behind",
        "sync/agent.py",
        "if self._planned is not self._inputs or self._inputs.lacking:",
        "if self._inputs.lacking:",
    ),
    (
        "a change waits for ever",
        "sync/progress.py",
        "self.synced, self.waiting_since = now, math.inf",
        "self.synced = now",
    ),
    (
        "a refusal is told for ever",
        "sync/refused.py",
        "            del self._entries[key]\n        return taken\n",
        "            pass\n        return taken\n",
    ),
]
