"""Who a request comes from, and what Kubernetes lets a node do."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tests.support.rest import KINDS, Refusal, Request, forbidden, unauthorized
from tests.support.selection import Term, parse_selector

ADMIN = "admin"


def certificate_of(http: web.BaseRequest) -> dict[str, Any]:
    """The client's certificate, as `ssl` describes it; empty if it showed none."""
    return (http.transport and http.transport.get_extra_info("peercert")) or {}


def common_name(certificate: Mapping[str, Any]) -> str | None:
    """The user that a certificate stands for."""
    subject = [pair for group in certificate.get("subject", ()) for pair in group]
    return next((str(value) for key, value in subject if key == "commonName"), None)


def bearer_token(http: web.BaseRequest) -> str:
    """The token that came with a request, or nothing."""
    scheme, _, token = http.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authenticate(request: Request, certificate: Mapping[str, Any]) -> None:
    """Refuse a request without a user, or with a certificate that has expired."""
    expires = ssl.cert_time_to_seconds(certificate["notAfter"]) if certificate else None
    if request.user is None or (expires is not None and expires < time.time()):
        raise unauthorized()


def authorize(request: Request) -> None:
    """Refuse what a user may not do, in the words of the Node authorizer."""
    if request.user == ADMIN or request.resource not in KINDS:
        return
    prefix, _, node = (request.user or "").rpartition(":")
    if prefix != "system:node" or not _is_for_nodes(request):
        raise forbidden(request)
    if request.resource == "nodes" and not _is_about(request, node):
        what = f"'{request.name}'" if request.name else "all nodes"
        raise forbidden(request, f"node '{node}' cannot read {what}, only its own Node object")


def _is_for_nodes(request: Request) -> bool:
    if request.resource == "events":
        return request.verb == "create"
    return request.verb in ("get", "list", "watch")


def _is_about(request: Request, node: str) -> bool:
    if request.name:
        return request.name == node
    try:
        selector = parse_selector(request.params.get("fieldSelector", ""), "")
    except Refusal:
        return False
    return Term("metadata.name", "=", node) in selector.fields
