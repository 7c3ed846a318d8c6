"""Who a request comes from, and what Kubernetes lets a node do."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tests.support.rest import KINDS, Request, failure, forbidden
from tests.support.selection import Term, selector_of


def certificate_of(http: web.BaseRequest) -> dict[str, Any]:
    """The client's certificate, as `ssl` describes it; empty if it showed none."""
    return (http.transport and http.transport.get_extra_info("peercert")) or {}


def common_name(certificate: Mapping[str, Any]) -> str | None:
    """The user that a certificate stands for."""
    subject = [pair for group in certificate.get("subject", ()) for pair in group]
    return next((str(value) for key, value in subject if key == "commonName"), None)


def bearer_token(http: web.BaseRequest) -> str:
    """The token that came with a request, or nothing."""
    return http.headers.get("Authorization", "").removeprefix("Bearer ")


def authenticate(request: Request, certificate: Mapping[str, Any]) -> None:
    """Refuse a request without a user, or with a certificate that has expired."""
    expires = ssl.cert_time_to_seconds(certificate["notAfter"]) if certificate else None
    if request.user is None or (expires is not None and expires < time.time()):
        raise failure(401, request)


def authorize(request: Request) -> None:
    """Refuse what a user may not do, in the words of the Node authorizer."""
    if request.resource not in KINDS:
        return
    prefix, _, node = (request.user or "").rpartition(":")
    verbs = ("create",) if request.resource == "events" else ("list", "watch")
    if (
        request.resource in ("endpointslices", "servicecidrs")
        or prefix != "system:node"
        or request.verb not in verbs
    ):
        raise forbidden(request)
    # AuthorizeNodeWithSelectors, for both of them.
    for resource, field, why in (
        ("nodes", "metadata.name", "cannot read all nodes, only its own Node object"),
        ("pods", "spec.nodeName", "can only list/watch pods with spec.nodeName field selector"),
    ):
        if request.resource == resource and Term(field, True, node) not in selector_of(request):
            raise forbidden(request, f"node '{node}' {why}")
