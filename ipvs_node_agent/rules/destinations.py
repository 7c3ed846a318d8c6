"""A packet's destination as a number, and what it has in the chains.

A destination is the address, two bits of protocol and sixteen of port (zero for any), so that a
prefix of it is a prefix of the address, or a protocol of one, or a range of ports. Nothing here
knows of chains.
"""

from __future__ import annotations

from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address
from ipvs_node_agent.model.objects import Port
from ipvs_node_agent.nat.packed import how_many

PROTOCOLS = ("sctp", "tcp", "udp")
PROTOCOL_BITS, PORT_BITS = 2, 16
LOCAL_BITS = PROTOCOL_BITS + PORT_BITS
# In the rules of an entry, where the port or the range of them goes.
PORTS = "{}"


class Entry(NamedTuple):
    """The rules of one destination for pods and for the host, and for which Service.

    The rules of either are one text, as `nat.packed` makes it. With `continues`, the port before it
    has the same, and where both are in one chain they are one.
    """

    pods: str
    hosts: str
    service: str
    continues: bool = False

    @property
    def length(self) -> int:
        """How many plain Services its rules are as long as; one has a mark and a DNAT."""
        pods, hosts = how_many(self.pods), how_many(self.hosts)
        return ((pods if pods > hosts else hosts) + 1) // 2 or 1


Entries = dict[int, Entry]


def destination(address: Address, port: Port | None) -> int:
    """The number of a destination; `port` is None for every port."""
    number = int(address) << LOCAL_BITS
    if port is None:
        return number
    return number | PROTOCOLS.index(port.protocol) << PORT_BITS | port.number


def listed(entries: Entries) -> tuple[list[str], list[str]]:
    """The texts of `entries` for pods, and those for the host.

    They go by address, and where Services share one by Service.
    """
    order = sorted((key >> LOCAL_BITS, entry.service, key) for key, entry in entries.items())
    runs: list[list[int]] = []
    for _, _, key in order:
        if runs and entries[key].continues and runs[-1][-1] == key - 1:
            runs[-1].append(key)
        else:
            runs.append([key])
    pods: list[str] = []
    hosts: list[str] = []
    for run in runs:
        entry, ports = entries[run[0]], shown_ports(run[0], run[-1])
        pods.append(entry.pods.replace(PORTS, ports))
        hosts.append(entry.hosts.replace(PORTS, ports))
    return pods, hosts


def shown_ports(first: int, last: int) -> str:
    """The ports of two destinations and of those between them, as iptables-save prints them."""
    mask = (1 << PORT_BITS) - 1
    return f"{first & mask}" if first == last else f"{first & mask}:{last & mask}"
