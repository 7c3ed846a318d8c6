"""What a rule says, as text: the one place that writes its parts, and that reads them back.

A rule is the text that iptables-save prints after `-A CHAIN `, since a rule given in that very form
comes back byte for byte. `match` and `rule` write one of ours, and `read` is their inverse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# What iptables-save puts into quotes, such as a comment. Names of chains, interfaces and sets may
# have a quote in them, or begin with one, and are printed as they are.
_NAMED = ("-A ", "-i ", "-o ", "-j ", "-g ", "sdev-in ", "sdev-out ", "match-set ", "-name ")
_OPENING = r"(?<!\S)" + "".join(f"(?<!{each})" for each in _NAMED) + '"'
QUOTED = re.compile(rf'{_OPENING}(?:[^"\\]|\\.)*"', re.DOTALL)
OPENED = re.compile(_OPENING)
# The overlap matters: a comment may be `-j`, which is printed without quotes.
_TARGETS = re.compile(r" -[jg](?= (\S+))")
_COMMENT = r'-m comment --comment "(?P<service>[^"]*)"'
_SERVICE = re.compile(_COMMENT)
_RULE = re.compile(
    r"(?:-s (?P<source>\S+) )?-d (?P<destination>\S+)(?: -i (?P<interface>\S+))?"
    r"(?: -p (?P<protocol>\w+)(?: -m \w+ --dport (?P<ports>[\d:]+))?)?"
    rf"(?: {_COMMENT})?(?P<local> -m addrtype --src-type LOCAL)?"
    r" -j (?P<target>\S+)(?: --to-destination (?P<to>\S+))?"
)
_COUNTED = re.compile(r"\[(\d+):(\d+)\] -A (\S+) (.*)")


# Those of a chain; in this order, a packet meets them.
Rules = Sequence[str]


class Rule(NamedTuple):
    """A rule of ours; what it does not ask for is empty.

    `source` and `destination` are prefixes, and `local` asks for a source address of this host.
    `interface` is the one that a packet comes in by; `+` at its end stands for any more characters.
    `ports` is one of the protocol's, or a range. `service` is the key of the Service that it is
    for, `target` where it leads, and `to` where a DNAT sends the packet.
    """

    source: str
    destination: str
    interface: str
    protocol: str
    ports: str
    service: str
    local: bool
    target: str
    to: str


def match(
    destination: str,
    source: str = "",
    protocol: str = "",
    ports: str = "",
    service: str = "",
    local: bool = False,
    interface: str = "",
) -> str:
    """The first part of a rule, as `Rule` names its parts: which packets it is about."""
    return (
        (f"-s {source} " if source else "")
        + f"-d {destination}"
        + (f" -i {interface}" if interface else "")
        + (f" -p {protocol}" if protocol else "")
        + (f" -m {protocol} --dport {ports}" if ports else "")
        # The key is checked to be two DNS labels, so nothing in it can end the quotes.
        + (f' -m comment --comment "{service}"' if service else "")
        + (" -m addrtype --src-type LOCAL" if local else "")
    )


def rule(match: str, target: str, to: str = "") -> str:
    """The rule that leads packets that `match` to `target`; a DNAT sends them `to` an address."""
    return f"{match} -j {target} --to-destination {to}" if to else f"{match} -j {target}"


def read(text: str) -> Rule | None:
    """What a rule says; None where it has not the form of ours."""
    found = _RULE.fullmatch(text)
    if found is None:
        return None
    parts = found.groupdict("")
    local = bool(parts.pop("local"))
    return Rule(**parts, local=local)


def service(text: str) -> str:
    """The key of the Service that a rule (or a line with it) is for; empty where it is none's."""
    found = _SERVICE.search(text)
    return found["service"] if found else ""


def target(text: str) -> str:
    """The chain or target that a rule without quotes after its `-j` leads to; empty for none."""
    return f" {text}".rpartition(" -j ")[2].partition(" ")[0]


def targets(text: str) -> set[str]:
    """The chains or targets that a rule, whoever's, may lead to, whatever its comments say."""
    return set(_TARGETS.findall(" " + QUOTED.sub('""', text)))


def goes_to(text: str) -> bool:
    """Whether a rule, whoever's, may be a goto, from which no packet comes back to its chain."""
    return " -g " in " " + QUOTED.sub('""', text)


def counted(line: str) -> tuple[int, int, str, str] | None:
    """The packets, bytes, chain and rule in a line of `iptables-save -c`; None without a rule."""
    found = _COUNTED.fullmatch(line)
    return (int(found[1]), int(found[2]), found[3], found[4]) if found else None
