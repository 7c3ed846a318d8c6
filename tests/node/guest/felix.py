"""Runs in the machine: what Calico's felix does in nat, with `chainInsertMode: Insert`.

    felix.py insist LOG    until it is ended; a line of LOG for each look: how often it has written
    felix.py leave         takes away what it has made

Its jumps have to be the first rules of the built-in chains. It makes sure of that at its start,
looks again soon after each write of its own, and else every 90 seconds.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

# What felix has of either kind, made shorter by so much.
_SOON, _PERIOD, _SHORTER = 1.0, 90.0, 360.0
_JUMPS = {
    built_in: f'-A {built_in} -m comment --comment "cali:{mark}" -j cali-{built_in}'
    for built_in, mark in (
        ("PREROUTING", "6gwbT8clXdHdC1b1"),
        ("OUTPUT", "tVnHkvAo15HuiPy0"),
        ("POSTROUTING", "O3lYWMrLQYEMJtB5"),
    )
}
# Floating IPs would be in cali-fip-dnat; what leaves the cluster is masqueraded.
_RULES = {
    "cali-PREROUTING": ["-j cali-fip-dnat"],
    "cali-OUTPUT": ["-j cali-fip-dnat"],
    "cali-POSTROUTING": ["-j cali-fip-snat", "-j cali-nat-outgoing"],
    "cali-fip-dnat": [],
    "cali-fip-snat": [],
    "cali-nat-outgoing": [],
}


def rules(family: str, built_in: str) -> list[str]:
    """The rules of a built-in chain of nat."""
    saved = subprocess.check_output([f"{family}-save", "-t", "nat"], text=True)
    return re.findall(rf"(?m)^-A {built_in} .*$", saved)


def insist(family: str) -> bool:
    """Puts those jumps back to the front that are not there; whether it had to."""
    changes = []
    for built_in, jump in _JUMPS.items():
        found = rules(family, built_in)
        if found[:1] != [jump] or found.count(jump) > 1:
            changes += [f"-D{rule[2:]}" for rule in found if rule == jump]
            changes.append(f"-I {built_in} 1{jump[len(f'-A {built_in}') :]}")
    if changes:
        chains = [f":{name} - [0:0]" for name in _RULES]
        inside = [f"-A {name} {rule}" for name, own in _RULES.items() for rule in own]
        restore(family, chains + inside + changes)
    return bool(changes)


def leave(family: str) -> None:
    """Takes all of it away."""
    jumps = [
        f"-D{rule[2:]}" for built_in in _JUMPS for rule in rules(family, built_in) if "cali" in rule
    ]
    emptied = [f":{name} - [0:0]" for name in _RULES]
    restore(family, emptied + jumps + [f"-X {name}" for name in _RULES])


def restore(family: str, lines: list[str]) -> None:
    """Has iptables do all of this at once."""
    text = "\n".join(["*nat", *lines, "COMMIT", ""])
    subprocess.run([f"{family}-restore", "-w", "5", "--noflush"], input=text, text=True, check=True)


def main() -> None:
    """Does what it is told."""
    families = ("iptables", "ip6tables")
    if sys.argv[1] == "leave":
        for family in families:
            leave(family)
        return
    written, pause = 0, _SOON
    with open(sys.argv[2], "w", buffering=1) as log:
        while True:
            wrote = sum(insist(family) for family in families)
            written, pause = written + wrote, _SOON if wrote else min(2 * pause, _PERIOD)
            log.write(f"{written}\n")
            time.sleep(pause / _SHORTER)


if __name__ == "__main__":
    main()
