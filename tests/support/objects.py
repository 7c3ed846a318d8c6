"""Requests about single objects."""

from __future__ import annotations

import json
from typing import Any

from tests.support.rest import (
    KINDS,
    Request,
    bad_request,
    exists_already,
    no_such_object,
    not_allowed,
)
from tests.support.store import Store


def answer(store: Store, request: Request, body: bytes) -> tuple[int, Any]:
    """Do what a request asks for; returns the status and the object to answer with."""
    if request.verb == "get":
        return 200, _find(store, request)
    if request.verb == "create" and request.namespace and not request.name:
        return _create(store, request, body)
    if request.verb == "update" and request.resource == "services":
        _find(store, request)
        return 200, _put(store, request, _read(body))
    if request.verb == "delete" and request.resource == "services":
        return _delete(store, request)
    raise not_allowed()


def _find(store: Store, request: Request) -> Any:
    try:
        return store.get(KINDS[request.resource], request.namespace, request.name)
    except KeyError:
        raise no_such_object(request.resource, request.name) from None


def _create(store: Store, request: Request, body: bytes) -> tuple[int, Any]:
    obj = _read(body)
    request.name = obj["metadata"]["name"]
    try:
        store.get(KINDS[request.resource], request.namespace, request.name)
    except KeyError:
        return 201, _put(store, request, obj)
    raise exists_already(request.resource, request.name)


def _delete(store: Store, request: Request) -> tuple[int, Any]:
    _find(store, request)
    store.delete(KINDS[request.resource], request.namespace, request.name)
    success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    return 200, {**success, "details": {"name": request.name, "kind": request.resource}}


def _put(store: Store, request: Request, obj: dict[str, Any]) -> dict[str, Any]:
    metadata = {**obj["metadata"], "name": request.name, "namespace": request.namespace}
    return store.put({**obj, "kind": KINDS[request.resource], "metadata": metadata})


def _read(body: bytes) -> dict[str, Any]:
    try:
        obj = json.loads(body)
        obj["metadata"]["name"]
    except (ValueError, LookupError, TypeError):
        raise bad_request("the object provided is unrecognized") from None
    return dict(obj)
