"""Ways to break the mind, each of which its simulation has to see: by module, old and new text."""

MUTATIONS = {
    "nat/edits.py": {
        "what comes behind an edit is counted from another place": (
            "after = self.place + both",
            "after = self.place + both + 1",
        ),
    },
    "model/services.py": {
        "an event changes the Services that were planned from": (
            "fresh[place] = self._shards[place].copy()",
            "fresh[place] = self._shards[place]",
        ),
        "a Service that is gone is no difference": (
            "keys = ours.keys() | theirs.keys()",
            "keys = ours.keys() & theirs.keys()",
        ),
    },
    "rules/planner.py": {
        "another configuration is not planned for": (
            "return self.config, self.node, self.own_mark,",
            "return self.node, self.own_mark,",
        ),
        "another Node is not planned for": (
            "return self.config, self.node, self.own_mark,",
            "return self.config, self.own_mark,",
        ),
        "another chain that marks is not planned for": (
            "return self.config, self.node, self.own_mark,",
            "return self.config, self.node,",
        ),
        "other interfaces of pods are not planned for": (
            "self.own_mark, self.pod_interfaces, self.network.absent",
            "self.own_mark, self.network.absent",
        ),
        "that the kernel lacks a family is not planned for": (
            "self.own_mark, self.pod_interfaces, self.network.absent",
            "self.own_mark, self.pod_interfaces",
        ),
        "what was planned of a Service that was left out is forgotten": (
            "planner.replace(before.planned(key), basis.planned(key))",
            "planner.replace(before.services.get(key), basis.planned(key))",
        ),
        "a Service that is let in again is no difference": (
            "differing |= before.left_out ^ basis.left_out",
            "differing |= basis.left_out - before.left_out",
        ),
    },
    "rules/claims.py": {
        "an address that the kernel has changes nothing": (
            "return inside | {address for address in touched if address in self._claims}",
            "return inside",
        ),
    },
    "rules/here.py": {
        "an address that is gone counts no more": (
            "gone.update(dict.fromkeys(self.addresses - addresses, now + LINGER))",
            "pass",
        ),
        "an address that is gone counts for ever": ("if now < self.due:", "if True:"),
        "what could not be looked up is forgotten": (
            "return replace(self, api_servers=self.api_servers | places)",
            "return replace(self, api_servers=places)",
        ),
        "an interface that was found is forgotten": (
            "return replace(self, pod_networks=networks.union(others))",
            "return replace(self, pod_networks=networks)",
        ),
    },
    "sync/cluster.py": {
        "a deletion is not noted": (
            "services = self.services.with_changes({event.key: None})",
            "services = self.services.with_changes({})",
        ),
        "a Node that is gone takes its pod CIDRs along": (
            "pod_cidrs=told.pod_cidrs or last.pod_cidrs, ",
            "",
        ),
        "another Node has what the last one had": (
            "if last is None or told is None or told.name != last.name:",
            "if last is None or told is None:",
        ),
    },
    "rules/policy.py": {
        "rules are written for a Node without addresses": (
            "    if not node.addresses:\n",
            "    if False:\n",
        ),
    },
    "sync/inputs.py": {
        "kube-proxy's mode changes nothing": (
            "if self.cluster.services is None or unneeded_in(self.proxy_mode):",
            "if self.cluster.services is None:",
        ),
    },
    "sync/agent.py": {
        "a change waits before everything is told": (
            "        if inputs.told:\n",
            "        if True:\n",
        ),
        "what has failed is counted back": (
            "FamilyState(failures=state.failures, synced=math.inf)",
            "FamilyState(synced=math.inf)",
        ),
        "it listens to what it does not look at": (
            "tables = self._all if self._inputs.suffice else ()",
            "tables = self._all",
        ),
        "a table is never read whatever the kernel says": (
            "                table.programmer.resync()\n",
            "                pass\n",
        ),
        "what fails or settles is not due again": (
            "            *(table.due for table in self._all),\n",
            "",
        ),
        "the kernel is not asked whether it told of everything": (
            "                table.programmer.prove()\n",
            "                pass\n",
        ),
        "of filter it is not asked whether it told of everything": (
            "            for table in self._all:\n                table.programmer.prove()\n",
            "            for table in self._tables.values():\n"
            "                table.programmer.prove()\n",
        ),
        "it says that it is in sync while it is behind": (
            "is_planned = self._planned is self._inputs and not self._inputs.lacking",
            "is_planned = not self._inputs.lacking",
        ),
    },
    "sync/wanted.py": {
        "chains are never settled": ("if changed >= _BURST or settling:", "if changed >= _BURST:"),
    },
    "rules/dispatch.py": {
        "an address has rules in two places": (
            "(*(child.prefix.start for child in others), *node.entries)",
            "(*(child.prefix.start for child in others),)",
        ),
        "a chain that tells nothing apart counts as settled": (
            "return all(child.prefix.length >= longer for child in node.children)",
            "return True",
        ),
    },
    "iptables/programmer.py": {
        "a write that failed is believed": (
            '        """Applies `change`; until all of it is there, nothing is certain."""\n'
            "        self.resync()\n",
            '        """Applies `change`; until all of it is there, nothing is certain."""\n',
        ),
        "rules are put right one by one where nobody tells of changes": (
            "if not (looked or self._known.drift) and self._table.told_by is not None:",
            "if not (looked or self._known.drift):",
        ),
        "what others have is not looked at before a write": (
            "    if not wanted.fits(found.filled):\n        raise Misfit\n",
            "",
        ),
        "what is told of drift is not heard": (
            "        if self.heard():\n            self._look_again(wanted)\n",
            "",
        ),
        "a partial reading that fails leaves what was believed": (
            "        before = self._known.certain\n        self.resync()\n",
            "        before = self._known.certain\n",
        ),
        "a partial reading is believed whatever it does not tell": (
            "        if found is None:\n",
            "        found = found or before\n        if found is None:\n",
        ),
        "a Service counts as refused though others changed the table": (
            "if not error.by_content or self._overtaken():",
            "if not error.by_content:",
        ),
    },
    "iptables/settling.py": {
        "others are never done": (
            "return min(self.last + _QUIET, self.first + _LONGEST)",
            "return math.inf",
        ),
    },
    "nat/amended.py": {
        "a chain has the rules that it had": (
            "chains[name] = expected[name] if expected.get(name) == rules else rules",
            "pass",
        ),
        "jumps are where they were": ("_put(jumps, name, says.jumps)", "pass"),
        "who stands in front is who stood there": (
            "_put(ahead, name, tuple(judged[to]._replace(rule=rule) for rule, to in says.leading))",
            "pass",
        ),
    },
    "nat/ruleset.py": {
        "nobody may stand in front": (
            "if not (other.insists or (built_in, other.target) in self.behind):",
            "if True:",
        ),
        "a jump may be anywhere": (
            "if jumps == ((place, target),) or not (jumps or target):",
            "if [t for _, t in jumps] == [target] or not (jumps or target):",
        ),
    },
    "sync/kept.py": {
        "what is told while a write goes on waits for more": (
            "return self._look_due(self._clock())",
            'return float("inf")',
        ),
        "nobody listens to what a table tells": (
            "return None if self.dirty or self._resting else self.programmer.told_by",
            "return None",
        ),
        "what is told while it rests is forgotten": (
            "            return self.repairs.rest_until\n",
            "            return math.inf\n",
        ),
        "a failed write is not tried again": (
            "self._retry_at = now + max(self._delay, 0.0 if error.locked else seconds)",
            "self._retry_at = math.inf",
        ),
        "a family that nothing belongs to is done whatever happens": (
            "if not (self._matters or error.locked or error.hung):",
            "if not self.ruleset.chains and not (error.locked or error.hung):",
        ),
    },
    "sync/family.py": {
        "what an attempt showed of the chain that marks is not planned for": (
            "self.wanted.own_mark = not self.wanted.own_mark",
            "pass",
        ),
    },
    "sync/refused.py": {
        "a Service that the kernel refused is never tried again": (
            "_Entry(services[key], why, min(delay * 2, _CAP), now + delay)",
            "_Entry(services[key], why, min(delay * 2, _CAP), math.inf)",
        ),
        "a Service stays left out when it changes": (
            "if services.get(key) is entry.service",
            "if key in services",
        ),
        "whoever is new is refused": (
            "        if not group or takes(frozenset(group)):\n            continue\n",
            "        if not group:\n            continue\n",
        ),
        "a refusal is told for ever": (
            "            del self._entries[key]\n        return taken\n",
            "            pass\n        return taken\n",
        ),
    },
    "sync/invalid.py": {
        "a filter table that was used rests though a write failed": (
            "return not (self._ruleset.chains or self.dirty)",
            "return not self._ruleset.chains",
        ),
        "another configuration changes nothing in filter": (
            "if dropping != bool(self._ruleset.chains):",
            "if dropping and not self._ruleset.chains:",
        ),
    },
    "sync/progress.py": {
        "a change waits for ever": (
            "self.synced, self.waiting_since = now, math.inf",
            "self.synced = now",
        ),
    },
}
