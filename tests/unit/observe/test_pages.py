"""What probes are told: health and readiness, and where to look."""

from __future__ import annotations

import pytest

from ipvs_node_agent.observe.pages import Monitoring
from ipvs_node_agent.sync.state import Published
from tests.support.clock import Clock

NOW = Clock().now
INDEX = "ipvs-node-agent: see /metrics, /healthz and /readyz\n"


@pytest.mark.parametrize(
    ("path", "published", "status", "text"),
    [
        ("/healthz", Published(NOW - 60), 200, "ok\n"),
        ("/healthz", Published(NOW - 61), 503, "the main loop has been hanging for 61 s\n"),
        ("/readyz", Published(0.0, sentence="Waiting"), 503, "not ready: Waiting\n"),
        ("/readyz", Published(0.0, ready=True), 200, "ok\n"),
        ("/", Published(NOW), 200, INDEX),
        ("/metrics/x", Published(NOW), 404, INDEX),
    ],
)
def test_what_is_told_at_a_path(path: str, published: Published, status: int, text: str) -> None:
    monitoring = Monitoring(Clock())
    monitoring.published = published
    page = monitoring.page(path)
    assert (page.status, page.body.decode()) == (status, text)
