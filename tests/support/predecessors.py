"""What the programs leave on a node that this one takes the place of.

Names and shapes are those of network-node-manager (pkg/rules/rules.go and its neighbours) and of
its earlier form, ipvs-node-controller (controllers/service_controller.go).
"""

from __future__ import annotations

from collections.abc import Mapping

from ipvs_node_agent.model.addresses import Family
from tests.support.netns import Namespace
from tests.support.tables import restore

# Where they run: both are DaemonSets, whose pods have this label with the DaemonSet's own name.
LABEL = "control-plane"
MANAGER, CONTROLLER = "network-node-manager", "ipvs-node-controller"
MANAGERS_CHAINS = (
    "NMANAGER_PREROUTING",
    "NMANAGER_OUTPUT",
    "NMANAGER_EX_CLUS_PREROUTING",
    "NMANAGER_EX_CLUS_OUTPUT",
)

_RULES = """\
-A {prerouting} -s {cidr} -d {external}/{bits} -m comment --comment "default/web" -j KUBE-MARK-MASQ
-A {prerouting} -s {cidr} -d {external}/{bits} -m comment --comment "default/web" -j DNAT --to-destination {cluster}
-A {output} -d {external}/{bits} -m comment --comment "default/web" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A {output} -d {external}/{bits} -m comment --comment "default/web" -m addrtype --src-type LOCAL -j DNAT --to-destination {cluster}
"""  # noqa: E501
_MANAGER = """\
*nat
:NMANAGER_PREROUTING - [0:0]
:NMANAGER_OUTPUT - [0:0]
:NMANAGER_EX_CLUS_PREROUTING - [0:0]
:NMANAGER_EX_CLUS_OUTPUT - [0:0]
-I PREROUTING 1 -j NMANAGER_PREROUTING
-I OUTPUT 1 -j NMANAGER_OUTPUT
-I NMANAGER_PREROUTING 1 -j NMANAGER_EX_CLUS_PREROUTING
-I NMANAGER_OUTPUT 1 -j NMANAGER_EX_CLUS_OUTPUT
{rules}COMMIT
*filter
:NMANAGER_INPUT - [0:0]
:NMANAGER_DROP_INVALID_INPUT - [0:0]
-I INPUT 1 -j NMANAGER_INPUT
-I NMANAGER_INPUT 1 -j NMANAGER_DROP_INVALID_INPUT
-A NMANAGER_DROP_INVALID_INPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
*raw
:NMANAGER_PREROUTING - [0:0]
:NMANAGER_OUTPUT - [0:0]
-I PREROUTING 1 -j NMANAGER_PREROUTING
-I OUTPUT 1 -j NMANAGER_OUTPUT
COMMIT
"""
_CONTROLLER = """\
*nat
:IPVS_PREROUTING - [0:0]
:IPVS_OUTPUT - [0:0]
-I PREROUTING 1 -j IPVS_PREROUTING
-I OUTPUT 1 -j IPVS_OUTPUT
{rules}COMMIT
"""


def network_node_manager(
    namespace: Namespace, family: Family, backend: str, addresses: Mapping[str, Mapping[int, str]]
) -> None:
    """Its chains for one Service; `addresses` has `cidr`, `external` and `cluster` by version."""
    chains = {"prerouting": MANAGERS_CHAINS[2], "output": MANAGERS_CHAINS[3]}
    restore(namespace, family, backend, _filled(_MANAGER, family, addresses, chains))


def ipvs_node_controller(
    namespace: Namespace, family: Family, backend: str, addresses: Mapping[str, Mapping[int, str]]
) -> None:
    """Its chains for one Service, which are called as ours."""
    chains = {"prerouting": "IPVS_PREROUTING", "output": "IPVS_OUTPUT"}
    restore(namespace, family, backend, _filled(_CONTROLLER, family, addresses, chains))


def _filled(
    text: str, family: Family, addresses: Mapping[str, Mapping[int, str]], chains: Mapping[str, str]
) -> str:
    values = {name: by_version[family.version] for name, by_version in addresses.items()}
    return text.format(rules=_RULES.format(bits=family.bits, **values, **chains))
