"""What a Kubernetes API looks like over HTTP: paths, JSON, and the words of its refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {
    "services": "Service",
    "nodes": "Node",
    "events": "Event",
    "pods": "Pod",
    "endpointslices": "EndpointSlice",
    "servicecidrs": "ServiceCIDR",
}
# Of the kinds that are not of the core group.
API_VERSIONS = {
    "EndpointSlice": "discovery.k8s.io/v1",
    "ServiceCIDR": "networking.k8s.io/v1",
}
CLUSTER_WIDE = ("Node", "ServiceCIDR")
# The single object that the agent asks for.
_SINGLE = "/api/v1/namespaces/default/endpoints/kubernetes"
_PATH = re.compile(
    r"/(?:api|apis/(?:discovery|networking)\.k8s\.io)/v1"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)"
)


@dataclass
class Request:
    """One request as it arrived; `status` is 0 as long as it has no answer.

    It came from the client's `port`, and `keeps` says whether that is to serve another one.
    """

    verb: str
    resource: str
    namespace: str
    params: dict[str, str]
    user: str | None
    serial: int | None
    port: int
    keeps: bool
    status: int = 0


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
            "details": details,
            "code": code,
        }


def encode(obj: Any) -> bytes:
    """JSON as Go's encoder prints it: compact, with the characters of HTML escaped."""
    text = json.dumps(obj, ensure_ascii=False, separators=(",", ":"))
    # These only occur inside of strings, so the whole text can be treated alike.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace") + b"\n"


def parse_target(method: str, path: str, params: Mapping[str, str]) -> tuple[str, str, str]:
    """Verb, resource and namespace ("" for all); an unknown path stands for the resource."""
    match = _PATH.fullmatch(path)
    verb = method.lower()
    if path == _SINGLE:
        return verb, "endpoints", "default"
    if method == "GET":
        verb = "watch" if is_true(params, "watch") else "list"
    elif method == "POST":
        verb = "create"
    if not match or match["resource"] not in KINDS:
        return verb, path, ""
    return verb, match["resource"], match["namespace"] or ""


def is_true(params: Mapping[str, str], name: str) -> bool:
    """Whether a query parameter is set to true."""
    return params.get(name, "") in ("true", "1")


def forbidden(request: Request, why: str = "") -> Refusal:
    """The user may not do that."""
    where = f'in the namespace "{request.namespace}"' if request.namespace else ""
    message = (
        f'{request.resource} is forbidden: User "{request.user}" cannot {request.verb} resource'
        f' "{request.resource}" in API group "" {where or "at the cluster scope"}'
    )
    return Refusal(403, "Forbidden", f"{message}: {why}" if why else message)


def bad_request(message: str) -> Refusal:
    """The request makes no sense."""
    return Refusal(400, "BadRequest", message)


def no_such_path() -> Refusal:
    """The path names no resource."""
    return Refusal(404, "NotFound", "the server could not find the requested resource")


def expired(since: int, oldest: int) -> Refusal:
    """The history does not reach back that far."""
    return Refusal(410, "Expired", f"too old resource version: {since} ({oldest})")


def invalid_options(field: str, problem: str) -> Refusal:
    """A combination of query parameters that this server does not take."""
    message = f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {problem}'
    return Refusal(422, "Invalid", message)


def failure(code: int, request: Request) -> Refusal:
    """A refusal of a given code, in the words that a real server has for it."""
    if code == 401:
        return Refusal(401, "Unauthorized", "Unauthorized")
    if code == 403:
        return forbidden(request)
    if code == 503:
        message = "the server is currently unable to handle the request"
        return Refusal(503, "ServiceUnavailable", message)
    return Refusal(code, "InternalError", "Internal error occurred: request timed out")
