"""A model of Calico's felix as it keeps the nat table (felix/iptables/table.go); time is told.

Its rules carry a hash in their comment. It looks at the table 1, 2, 4 s ... after each write of its
own, and once no look was for 90 s; where the rules with a hash in a built-in chain are not exactly
its own ones, in front of all others (`chainInsertMode: Insert`) or behind (`Append`), it deletes
and inserts them, in one restore. A chain of its own that is another one is written anew.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ipvs_node_agent.model.addresses import IPV4, Family
from tests.support.netns import Namespace
from tests.support.tables import restore

# Seconds: a look where there was none for so long, and the first one after a write.
REFRESH, POST_WRITE = 90.0, 1.0
_HASHED = re.compile(r'-A (\S+) (.*--comment "?cali:([^\s"]+)"? ?.*)')
_JUMPS = {
    "PREROUTING": "cali-PREROUTING",
    "OUTPUT": "cali-OUTPUT",
    "POSTROUTING": "cali-POSTROUTING",
}


def _hashed(chain: str, rules: Sequence[str]) -> list[str]:
    """Rules with their hashes, each made of the chain's name and all rules so far."""
    return [
        f'-m comment --comment "cali:{_hash(chain, *rules[: number + 1])}" {rule}'
        for number, rule in enumerate(rules)
    ]


def _hash(*parts: str) -> str:
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()[:16]


@dataclass
class Felix:
    """One felix, one family. Its time goes on as it waits, and nobody else's."""

    namespace: Namespace
    family: Family
    backend: str
    insert: bool = True
    now: float = 0.0
    rewrites: int = 0
    looks: int = 0
    floating: dict[str, str] = field(default_factory=dict)
    _read_at: float = 0.0
    _written_at: float = 0.0
    _interval: float = POST_WRITE

    def start(self) -> None:
        """Its first write, which is no rewrite."""
        self.look()
        self.rewrites = 0

    def wait(self) -> None:
        """Lets time go by until it looks at the table, and does."""
        due_at = self._read_at + REFRESH + 0.001
        if self._interval < 3600:
            due_at = min(due_at, self._written_at + self._interval)
        self.now = max(due_at, self.now)
        while self._interval < 3600 and self.now >= self._written_at + self._interval:
            self._interval *= 2
        self.look()

    def translate(self, external: str, pod: str) -> None:
        """Gives a pod a floating IP."""
        self.floating[external] = pod
        self.look()

    def take_back(self, external: str) -> None:
        """Takes a floating IP away."""
        del self.floating[external]
        self.look()

    def look(self) -> None:
        """Compares the table with what is to be there, and mends it."""
        self._read_at = self.now
        self.looks += 1
        rules: dict[str, list[str]] = {}
        for line in self._save():
            if line.startswith(":"):
                rules[line[1:].split(" ", 1)[0]] = []
            elif line.startswith("-A "):
                rules[line.split(" ", 2)[1]].append(line)
        wanted = self._chains()
        lines = []
        for chain, own in wanted.items():
            if chain not in rules or self._hashes(rules[chain]) != self._hashes(own):
                lines += [f":{chain} - [0:0]", *own]
        for built_in, target in _JUMPS.items():
            there = rules.get(built_in, [])
            jump = f"-A {built_in} {_hashed(built_in, [f'-j {target}'])[0]}"
            hashes, own = self._hashes(there), self._hashes([jump])
            others = [""] * hashes.count("")
            if hashes != (own + others if self.insert else others + own):
                lines += [line.replace("-A", "-D", 1) for line, each in zip(there, hashes) if each]
                lines.append(jump.replace("-A", "-I", 1) if self.insert else jump)
        if lines:
            # Chains first, as rules may jump to any of them.
            lines.sort(key=lambda line: not line.startswith(":"))
            text = "\n".join(["*nat", *lines, "COMMIT", ""])
            restore(self.namespace, self.family, self.backend, text)
            self.rewrites += 1
            self._written_at, self._interval = self.now, POST_WRITE

    def _save(self) -> list[str]:
        command = f"{self.family.command}-{self.backend}-save"
        return self.namespace.run(command, "-t", "nat").splitlines()

    def _hashes(self, lines: list[str]) -> list[str]:
        found = (_HASHED.match(line) for line in lines)
        return [each[3] if each else "" for each in found]

    def _chains(self) -> dict[str, list[str]]:
        pools = "10.233.64.0/18" if self.family is IPV4 else "fd85:ee78:d8a6:8607::/64"
        chains = {
            "cali-PREROUTING": ["-j cali-fip-dnat"],
            "cali-OUTPUT": ["-j cali-fip-dnat"],
            "cali-POSTROUTING": ["-j cali-fip-snat", "-j cali-nat-outgoing"],
            "cali-nat-outgoing": [f"-s {pools} ! -d {pools} -j MASQUERADE"],
            "cali-fip-dnat": [
                f"-d {external} -j DNAT --to-destination {pod}"
                for external, pod in self.floating.items()
            ],
            "cali-fip-snat": [
                f"-s {pod} -d {pod} -j SNAT --to-source {external}"
                for external, pod in self.floating.items()
            ],
        }
        return {
            chain: [f"-A {chain} {rule}" for rule in _hashed(chain, rules)]
            for chain, rules in chains.items()
        }
