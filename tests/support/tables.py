"""Other owners' rules, and nat tables as text that can be compared.

The kube-proxy rules have the shape that its IPVS mode gives them (facts about it: the packet's
walk in docs/design.md); comments are shortened.
"""

from __future__ import annotations

import re

from ipvs_node_agent.model.addresses import IPV4, Family
from tests.support.netns import Namespace

KUBE_PROXY_SETS = ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER")

MARK_MASQ = """*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "service traffic requiring SNAT" -j MASQUERADE
-A POSTROUTING -m comment --comment "kubernetes postrouting" -j KUBE-POSTROUTING
COMMIT
"""

# What kube-proxy has made between the beginning and the end of its first sync.
EMPTY_MARK_MASQ = "".join(
    line for line in MARK_MASQ.splitlines(keepends=True) if not line.startswith("-A KUBE-")
)

KUBE_SERVICES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-NODE-PORT - [0:0]
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m comment --comment "lb portal" -m set --match-set {prefix}KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set {prefix}KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-SERVICES -m set --match-set {prefix}KUBE-LOAD-BALANCER dst,dst -j ACCEPT
-I PREROUTING 1 -m comment --comment "service portals" -j KUBE-SERVICES
-I OUTPUT 1 -m comment --comment "service portals" -j KUBE-SERVICES
COMMIT
"""  # noqa: E501

DOCKER = """*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {bridge} ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination {container}
COMMIT
"""

# Names that look like ours, odd comments, and a jump of their own at the first place.
ADMINISTRATOR = """*nat
:IPVS_OUT - [0:0]
:IPVS_PREROUTING2 - [0:0]
:my.chain/1 - [0:0]
-A IPVS_PREROUTING2 -p udp -m udp --dport 53 -m comment --comment "a \\"quoted\\" : note" -j RETURN
-A IPVS_OUT -m comment --comment "-A IPVS_OUTPUT -j ACCEPT" -j RETURN
-A my.chain/1 -p tcp -m multiport --dports 80,443 -j RETURN
-I PREROUTING 1 -i eth9 -j IPVS_PREROUTING2
-I OUTPUT 1 -j IPVS_OUT
-A POSTROUTING -o eth9 -p tcp -m tcp --dport 25 -j MASQUERADE --to-ports 1024-65535
COMMIT
"""


def restore(namespace: Namespace, family: Family, backend: str, text: str) -> None:
    """Applies `text` as somebody else would."""
    namespace.run(f"{family.command}-{backend}-restore", "-w", "10", "--noflush", stdin=text)


def add_mark_masq(namespace: Namespace, family: Family, backend: str) -> None:
    """The two chains of kube-proxy that masquerade."""
    restore(namespace, family, backend, MARK_MASQ)


def add_foreign_rules(namespace: Namespace, family: Family, backend: str) -> None:
    """The rules of kube-proxy, Docker and an administrator."""
    prefix, inet = ("", "inet") if family is IPV4 else ("6-", "inet6")
    for name in KUBE_PROXY_SETS:
        namespace.run(
            *("ipset", "create", "-exist", f"{prefix}{name}", "hash:ip,port", "family", inet)
        )
    add_mark_masq(namespace, family, backend)
    restore(namespace, family, backend, KUBE_SERVICES.format(prefix=prefix))
    if family is IPV4:
        docker = ("127.0.0.0/8", "172.17.0.0/16", "172.17.0.2:80")
    else:
        docker = ("::1/128", "fd00:172:17::/64", "[fd00:172:17::2]:80")
    restore(
        namespace,
        family,
        backend,
        DOCKER.format(loopback=docker[0], bridge=docker[1], container=docker[2]),
    )
    restore(namespace, family, backend, ADMINISTRATOR)


def saved(namespace: Namespace, family: Family, backend: str) -> list[str]:
    """The lines of the nat table, less the time stamps and the packet counts of built-in chains."""
    text = namespace.run(f"{family.command}-{backend}-save", "-t", "nat")
    lines = [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines()]
    return [line for line in lines if not line.startswith("#")]


def ours(lines: list[str]) -> list[str]:
    """Those of `lines` that declare, fill or plainly jump to the agent's chains."""
    return [line for line in lines if _OURS.match(line)]


def foreign(lines: list[str]) -> list[str]:
    """All the other lines."""
    return [line for line in lines if not _OURS.match(line)]


_OUR_CHAIN = r"IPVS_(?:PREROUTING|OUTPUT|MARK_MASQ|POSTROUTING)(?:-\S+)?"
_OURS = re.compile(
    rf":{_OUR_CHAIN} |-A {_OUR_CHAIN} |-A (?:PREROUTING|OUTPUT|POSTROUTING) -j {_OUR_CHAIN}$"
)
