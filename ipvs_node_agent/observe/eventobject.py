"""An Event on a Node, in the form that `kubectl describe node` shows."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any, Callable

# What the API server takes.
_MOST_BYTES = 1024


def event(
    node: str, reason: str, message: str, clock: Callable[[], int] = time.time_ns
) -> dict[str, Any]:
    """The Event, as of now; `clock` gives nanoseconds since the epoch."""
    now = clock()
    moment = datetime.fromtimestamp(now // 10**9, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # As client-go names them.
        "metadata": {"name": f"{node}.{now:x}", "namespace": "default"},
        # As with the kubelet's own, the UID is the name: that is what kubectl looks for.
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": "Warning",
        "reason": reason,
        "message": message.encode()[:_MOST_BYTES].decode(errors="ignore"),
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": "ipvs-node-agent", "host": node},
        "reportingComponent": "ipvs-node-agent",
        "reportingInstance": node,
    }
