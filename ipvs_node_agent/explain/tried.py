"""What real connections tell, and what follows from them.

One that comes about says more than all tables: what nobody could tell of these matters no more. One
that does not, where the tables lead it right, is the endpoints' or a network policy's doing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ipvs_node_agent.explain.connect import Attempt
from ipvs_node_agent.explain.lines import FAIL, OK, WARN, Cause, Told
from ipvs_node_agent.explain.services import Naming
from ipvs_node_agent.model.objects import Port

_SUBJECT = "connection"


class Tried(Told):
    """What is told of connections; nothing where none was asked for."""

    def __init__(self, attempts: Collection[Attempt] = ()) -> None:
        super().__init__()
        self._made = frozenset((each.origin == "host", each.port) for each in attempts)

    def covers(self, ports: Sequence[Port]) -> bool:
        """Whether they were made from the host and from a pod, to each of `ports`."""
        wanted = {(is_host, port.number) for is_host in (True, False) for port in ports}
        return bool(wanted) and wanted <= self._made and all(p.protocol == "tcp" for p in ports)


def tell(attempts: Collection[Attempt], named: Sequence[Naming]) -> Tried:
    """A line for each of `attempts` to an address that Services name, or that there was none."""
    told = Tried(attempts)
    if not attempts:
        told.say(WARN, _SUBJECT, "none was made: there is no TCP port, or no result came in time")
    look = "the Service's endpoints, and network policies"
    counted = next((each.service.key for each in named if each.claim), "")
    if counted:
        namespace, _, name = counted.partition("/")
        label = f"kubernetes.io/service-name={name}"
        look = f"kubectl -n {namespace} get endpointslices -l {label}; then network policies"
    for each in attempts:
        text = f"from {_shown(each)} to tcp port {each.port}: {each.text}"
        told.say(OK if each.ok else FAIL, _SUBJECT, text)
        if not each.ok:
            told.causes.append(Cause(False, f"a connection {text}", look))
    if attempts and all(each.origin == "host" for each in attempts):
        text = "none was made from a pod, as no pod of this node can be used for it"
        told.say(WARN, _SUBJECT, text)
    return told


def _shown(attempt: Attempt) -> str:
    return "the host" if attempt.origin == "host" else attempt.origin


def weighed(causes: Sequence[Cause], tried: Told, is_all: bool) -> list[Cause]:
    """The `causes` that are left; connections `tried` to all that they are about end doubts."""
    left = [cause for cause in causes if cause.works is False] if is_all else [*causes]
    return [*(causes if tried.causes else left), *tried.causes]
