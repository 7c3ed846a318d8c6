"""What probes and browsers are told: health and readiness, and where to look."""

from __future__ import annotations

import re

import pytest

from ipvs_node_agent import __version__
from ipvs_node_agent.observe.pages import Monitoring
from ipvs_node_agent.sync.state import Published
from tests.support.clock import Clock

NOW = Clock().now
NOT_HERE = "not here: see /metrics, /healthz, /livez, /readyz\n"
HEALTH = ("/healthz", "/livez")
HANGS = "the main loop has been hanging for 61 s\n"


@pytest.mark.parametrize(
    ("path", "published", "status", "text"),
    [
        *((path, Published(NOW - 60), 200, "ok\n") for path in HEALTH),
        *((path, Published(NOW - 61), 503, HANGS) for path in HEALTH),
        ("/readyz", Published(0.0, sentence="Waiting"), 503, "not ready: Waiting\n"),
        ("/readyz", Published(0.0, ready=True), 200, "ok\n"),
        ("/metrics/x", Published(NOW), 404, NOT_HERE),
    ],
)
def test_what_is_told_at_a_path(path: str, published: Published, status: int, text: str) -> None:
    monitoring = Monitoring(Clock())
    monitoring.published = published
    page = monitoring.page(path)
    assert (page.status, page.body.decode()) == (status, text)


def test_a_browser_is_shown_the_version_the_sentence_and_where_to_look() -> None:
    monitoring = Monitoring(Clock())
    monitoring.published = Published(NOW, ready=True, sentence="In sync <script>&\udc80")
    page = monitoring.page("/")
    text = page.body.decode()
    assert (page.status, page.content_type) == (200, "text/html; charset=utf-8")
    assert f"<p>Version {__version__}</p>" in text
    assert "<p>In sync &lt;script&gt;&amp;?</p>" in text
    links = re.findall(r'href="(.*?)"', text)
    assert links == ["/metrics", "/healthz", "/livez", "/readyz"]
    assert [monitoring.page(link).status for link in links] == [200] * 4
