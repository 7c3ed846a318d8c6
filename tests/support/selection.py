"""What a list or watch asks for: selectors, on objects that may lack any field, and options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.support.rest import Request, bad_request, invalid_options, is_true

_METADATA_FIELDS = {"metadata.name", "metadata.namespace"}
_FIELDS = {
    "services": _METADATA_FIELDS | {"spec.clusterIP", "spec.type"},
    "nodes": {"metadata.name", "spec.unschedulable"},
    "events": _METADATA_FIELDS,
    "pods": _METADATA_FIELDS | {"spec.nodeName", "status.phase"},
    "endpointslices": _METADATA_FIELDS,
    "servicecidrs": {"metadata.name"},
}
_TERM = re.compile(r"(?P<field>[^=!]+)(?P<operator>!=|==|=)(?P<value>.*)")


class Term(NamedTuple):
    """One requirement: that a field has a value, or has not."""

    field: str
    equal: bool
    value: str


def matches(obj: Any, selector: Sequence[Term]) -> bool:
    """Whether an object meets all terms."""
    return all((_field(obj, term.field) == term.value) == term.equal for term in selector)


def _field(obj: Any, path: str) -> str:
    for key in path.split("."):
        obj = obj.get(key) if isinstance(obj, dict) else None
    return obj if isinstance(obj, str) else ""


def selector_of(request: Request) -> list[Term]:
    """What a request selects."""
    texts = request.params.get("fieldSelector", "").split(",")
    selector = [_term(text) for text in texts if text]
    for term in selector:
        if term.field not in _FIELDS[request.resource]:
            raise bad_request(f"field label not supported: {term.field}")
    return selector


def _term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    if not match:
        raise bad_request(f"invalid selector: '{text}'; can't understand '{text}'")
    return Term(match["field"], match["operator"] != "!=", match["value"])


def version_of(params: Mapping[str, str]) -> int:
    """The version to start from; 0 is any."""
    text = params.get("resourceVersion") or "0"
    if not text.isdecimal():
        raise bad_request(f'resourceVersion: Invalid value: "{text}": invalid syntax')
    return int(text)


def wants_initial_events(params: Mapping[str, str], streaming_lists: bool) -> bool:
    """Whether a watch is to begin with a streaming list, which not every server offers."""
    field = "sendInitialEvents"
    if not is_true(params, field):
        return False
    if params.get("resourceVersionMatch") != "NotOlderThan":
        problem = f"{field} requires setting resourceVersionMatch to NotOlderThan"
        raise invalid_options("resourceVersionMatch", problem)
    if not streaming_lists:
        problem = f"{field} is forbidden for watch unless the WatchList feature gate is enabled"
        raise invalid_options(field, problem)
    return True
