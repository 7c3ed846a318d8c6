"""What a Kubernetes API looks like over HTTP: paths, JSON, and the words of its refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

KINDS = {"services": "Service", "nodes": "Node", "events": "Event"}
_PATH = re.compile(
    r"/api/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def _resource(name: str, short: str, kind: str, namespaced: bool, verbs: str) -> dict[str, Any]:
    return {
        "name": name,
        "singularName": kind.lower(),
        "namespaced": namespaced,
        "kind": kind,
        "verbs": verbs.split(),
        "shortNames": [short],
    }


# As much of discovery as kubectl needs to find a Service.
DISCOVERY: dict[str, dict[str, Any]] = {
    "version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0", "platform": "linux/amd64"},
    "api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            _resource("events", "ev", "Event", True, "create get list watch"),
            _resource("nodes", "no", "Node", False, "get list watch"),
            _resource("services", "svc", "Service", True, "create delete get list update watch"),
        ],
    },
}


class Target(NamedTuple):
    """What a request is about; `namespace` and `name` are empty where there is none."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""


@dataclass
class Request:
    """One request as it arrived; `status` is 0 as long as it has no answer."""

    verb: str
    resource: str
    name: str
    params: dict[str, str]
    user: str | None
    status: int
    peer_port: int
    serial: int | None
    namespace: str = ""


class Refusal(Exception):
    """Ends a request with a Status object."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
        }
        if details:
            self.status["details"] = details
        self.status["code"] = code

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with the Status object."""
        seconds = self.status.get("details", {}).get("retryAfterSeconds")
        return {"Retry-After": str(seconds)} if seconds else {}


def encode(obj: Any) -> bytes:
    """JSON as Go's encoder prints it: compact, with the characters of HTML escaped."""
    text = json.dumps(obj, ensure_ascii=False, separators=(",", ":"))
    # These only occur inside of strings, so the whole text can be treated alike.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace") + b"\n"


def parse_target(method: str, path: str, params: Mapping[str, str]) -> Target:
    """What a request asks for; an unknown path keeps its text as the resource."""
    match = _PATH.fullmatch(path)
    if not match or match["resource"] not in KINDS:
        return Target(_VERBS.get(method, "get"), path.strip("/"))
    return Target(
        _verb(method, match["name"], params),
        match["resource"],
        match["namespace"] or "",
        match["name"] or "",
    )


def _verb(method: str, name: str | None, params: Mapping[str, str]) -> str:
    if method != "GET":
        return _VERBS.get(method, method.lower())
    if name:
        return "get"
    return "watch" if is_true(params, "watch") else "list"


def is_true(params: Mapping[str, str], name: str) -> bool:
    """Whether a query parameter is set to true."""
    return params.get(name, "") in ("true", "1")


def unauthorized() -> Refusal:
    """No credentials, or none that count."""
    return Refusal(401, "Unauthorized", "Unauthorized")


def forbidden(request: Request, why: str = "") -> Refusal:
    """The user may not do that."""
    resource, name, namespace = request.resource, request.name, request.namespace
    subject = f'{resource} "{name}"' if name else resource
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = (
        f'{subject} is forbidden: User "{request.user or "system:anonymous"}" cannot '
        f'{request.verb} resource "{resource}" in API group "" {where}'
    )
    details = {"name": name, "kind": resource} if name else {"kind": resource}
    return Refusal(403, "Forbidden", f"{message}: {why}" if why else message, **details)


def bad_request(message: str) -> Refusal:
    """The request makes no sense."""
    return Refusal(400, "BadRequest", message)


def no_such_path() -> Refusal:
    """The path names no resource."""
    return Refusal(404, "NotFound", "the server could not find the requested resource")


def no_such_object(resource: str, name: str) -> Refusal:
    """The path names an object that is not there."""
    return Refusal(404, "NotFound", f'{resource} "{name}" not found', name=name, kind=resource)


def exists_already(resource: str, name: str) -> Refusal:
    """An object of that name is there already."""
    message = f'{resource} "{name}" already exists'
    return Refusal(409, "AlreadyExists", message, name=name, kind=resource)


def not_allowed() -> Refusal:
    """The resource has no such verb."""
    message = "the server does not allow this method on the requested resource"
    return Refusal(405, "MethodNotAllowed", message)


def expired(since: int, oldest: int) -> Refusal:
    """The history does not reach back that far."""
    return Refusal(410, "Expired", f"too old resource version: {since} ({oldest})")


def invalid_options(field: str, problem: str) -> Refusal:
    """A combination of query parameters that this server does not take."""
    cause = {"reason": "FieldValueForbidden", "message": f"Forbidden: {problem}", "field": field}
    return Refusal(
        422,
        "Invalid",
        f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {problem}',
        group="meta.k8s.io",
        kind="ListOptions",
        causes=[cause],
    )


def failure(code: int, request: Request) -> Refusal:
    """A refusal of a given code, in the words that a real server has for it."""
    if code == 401:
        return unauthorized()
    if code == 403:
        return forbidden(request)
    if code == 404:
        return no_such_path()
    if code == 410:
        return expired(1, 2)
    if code == 429:
        message = "storage is (re)initializing"
        return Refusal(429, "TooManyRequests", message, retryAfterSeconds=1)
    if code == 503:
        message = "the server is currently unable to handle the request"
        return Refusal(503, "ServiceUnavailable", message)
    problem = "etcdserver: request timed out"
    message = f"Internal error occurred: {problem}"
    return Refusal(code, "InternalError", message, causes=[{"message": problem}])
