"""What a list or watch asks for: selectors, on objects that may lack any field, and options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support.rest import Request, bad_request, invalid_options, is_true

_METADATA_FIELDS = {"metadata.name", "metadata.namespace"}
_FIELDS = {
    "services": _METADATA_FIELDS | {"spec.clusterIP", "spec.type"},
    "nodes": {"metadata.name", "spec.unschedulable"},
    "events": _METADATA_FIELDS,
}
_FIELD = re.compile(r"(?P<key>[^=!]+)(?P<operator>!=|==|=)(?P<value>.*)")
_LABEL = re.compile(r"(?P<not>!?)(?P<key>[^=!,\s]+)(?:(?P<operator>!=|==|=)(?P<value>.*))?")


class Term(NamedTuple):
    """One requirement; `operator` is `=`, `!=`, `exists` or `absent`."""

    key: str
    operator: str
    value: str = ""

    def holds(self, actual: str | None) -> bool:
        """Whether a value, or None where there is none, meets the requirement."""
        if self.operator in ("exists", "absent"):
            return (actual is not None) == (self.operator == "exists")
        return (actual == self.value) == (self.operator == "=")


class Selector(NamedTuple):
    """The terms that an object has to meet, all of them."""

    fields: tuple[Term, ...] = ()
    labels: tuple[Term, ...] = ()

    def matches(self, obj: Any) -> bool:
        """Whether an object meets all terms."""
        return all(term.holds(_field(obj, term.key)) for term in self.fields) and all(
            term.holds(_label(obj, term.key)) for term in self.labels
        )


def selector_of(request: Request, service_fields: bool) -> Selector:
    """What a request selects; before 1.31 servers did not know the fields of Services."""
    params = request.params
    selector = parse_selector(params.get("fieldSelector", ""), params.get("labelSelector", ""))
    for term in selector.fields:
        if request.resource == "services" and not service_fields:
            if term.key not in _METADATA_FIELDS:
                known = 'only "metadata.name", "metadata.namespace"'
                raise bad_request(f'"{term.key}" is not a known field selector: {known}')
        elif term.key not in _FIELDS[request.resource]:
            raise bad_request(f"field label not supported: {term.key}")
    return selector


def parse_selector(field_selector: str, label_selector: str) -> Selector:
    """Read both query parameters."""
    fields = tuple(_field_term(text) for text in field_selector.split(",") if text)
    labels = tuple(_label_term(text.strip()) for text in label_selector.split(",") if text)
    return Selector(fields, labels)


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


def _field_term(text: str) -> Term:
    match = _FIELD.fullmatch(text)
    if not match:
        raise bad_request(f"invalid selector: '{text}'; can't understand '{text}'")
    return Term(match["key"], match["operator"].replace("==", "="), match["value"])


def _label_term(text: str) -> Term:
    match = _LABEL.fullmatch(text)
    if not match or (match["not"] and match["operator"]):
        raise bad_request(f"unable to parse requirement: {text}")
    if not match["operator"]:
        return Term(match["key"], "absent" if match["not"] else "exists")
    return Term(match["key"], match["operator"].replace("==", "="), match["value"])


def _field(obj: Any, path: str) -> str:
    for key in path.split("."):
        obj = obj.get(key) if isinstance(obj, dict) else None
    return obj if isinstance(obj, str) else ""


def _label(obj: Any, key: str) -> str | None:
    metadata = obj.get("metadata") if isinstance(obj, dict) else None
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    value = labels.get(key) if isinstance(labels, dict) else None
    return value if isinstance(value, str) else None
