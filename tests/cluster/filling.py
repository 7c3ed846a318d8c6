"""Thousands of Services and EndpointSlices in a real API server, in seconds.

The API server would take minutes to make them all: it makes one, of which etcd gets copies.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from tests.cluster.bed import SERVICES, add_service
from tests.cluster.controlplane import ControlPlane

SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
# How the numbers of both begin, so that all names are of one length.
_FIRST = 10000
# What the API server stores of a Service and of its ClusterIP, and of an EndpointSlice.
_KEYS = ("/registry/ipaddresses/10.231.100.100", f"/registry/services/specs/default/web-{_FIRST}")
_SLICE_KEY = f"/registry/endpointslices/default/web-{_FIRST}-x7k2p"
_UID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT_ONCE = 40


def name(number: int) -> str:
    """The name of a Service."""
    return f"web-{_FIRST + number}"


def slice_name(number: int) -> str:
    """The name of its EndpointSlice."""
    return f"{name(number)}-x7k2p"


def words(number: int) -> list[str]:
    """A Service's name, external IP and ClusterIP, which are of one length in all."""
    place = f"{100 + number // 100}.{100 + number % 100}"
    return [name(number), f"10.19.{place}", f"10.231.{place}"]


def endpoints(number: int, ready: int) -> list[dict[str, Any]]:
    """The pods of a Service as the EndpointSlice controller writes them; one may not be ready."""
    return [
        {
            "addresses": [f"10.{50 + number // 250}.{number % 250}.{10 + pod}"],
            "conditions": {"ready": pod != ready, "serving": pod != ready, "terminating": False},
            "nodeName": f"worker-{pod}.example.internal",
            "targetRef": {
                "kind": "Pod",
                "name": f"{name(number)}-6d4cf56db6-{pod:05x}",
                "namespace": "default",
                "uid": f"00000000-0000-4000-8000-{number:06x}{pod:06x}",
            },
            "zone": "zone-a",
        }
        for pod in range(10)
    ]


def fill(plane: ControlPlane, count: int, whole: bool = False) -> None:
    """Makes so many LoadBalancer Services.

    If they are to be `whole`, with what Helm writes into them and an EndpointSlice of ten pods.
    """
    client = plane.servers[0].client()
    # Local would need one of 2,768 node ports for its health check.
    add_service(client, *words(0), externalTrafficPolicy="Cluster")
    keys = list(_KEYS)
    if whole:
        client.patch(f"{SERVICES}/{name(0)}", {"metadata": _written(name(0))})
        client.post(SLICES, _slice())
        keys.append(_SLICE_KEY)
    stored = {key: plane.etcd.get(key) for key in keys}
    for start in range(1, count, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, count))
        plane.etcd.put(
            (_copied(key.encode(), number).decode(), _copied(value, number))
            for number in numbers
            for key, value in stored.items()
        )


def _written(release: str) -> dict[str, Any]:
    return {
        "labels": {
            "app.kubernetes.io/instance": release,
            "app.kubernetes.io/managed-by": "Helm",
            "app.kubernetes.io/name": "service",
            "app.kubernetes.io/version": "1.27.3",
            "helm.sh/chart": "service-4.11.2",
        },
        "annotations": {
            "meta.helm.sh/release-name": release,
            "meta.helm.sh/release-namespace": "default",
            "metallb.universe.tf/ip-allocated-from-pool": "production-public-addresses",
        },
    }


def _slice() -> dict[str, Any]:
    return {
        "metadata": {
            "name": slice_name(0),
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name(0),
            },
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": name(0),
                    "uid": str(uuid.uuid4()),
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "addressType": "IPv4",
        "endpoints": endpoints(0, -1),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def _copied(text: bytes, number: int) -> bytes:
    """What is stored of the first Service, for another one."""
    for first, own in zip(words(0), words(number)):
        text = text.replace(first.encode(), own.encode())
    return _UID.sub(str(uuid.uuid4()).encode(), text)
