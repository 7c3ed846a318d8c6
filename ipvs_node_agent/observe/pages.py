"""Metrics and health over HTTP, from what the main loop last published.

Nothing here waits for the main loop: health has to answer just when that hangs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from html import escape
from typing import Callable

from ipvs_node_agent import __version__
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.programmer import Writes
from ipvs_node_agent.model.addresses import FAMILIES
from ipvs_node_agent.observe import metrics
from ipvs_node_agent.observe.counters import Count, Sampler, Series
from ipvs_node_agent.observe.metrics import Meters, Metrics
from ipvs_node_agent.observe.status import Report, report
from ipvs_node_agent.observe.webserver import Page, WebServer
from ipvs_node_agent.sync.state import Published, View, sickness

# How long a scrape waits for packet counters that are new.
_SCRAPE_PATIENCE = 0.25
# How long `status` waits for them, which is asked by people.
_STATUS_PATIENCE = 0.9
_PATHS = ("/metrics", "/healthz", "/livez", "/readyz")
_NOT_HERE = f"not here: see {', '.join(_PATHS)}\n".encode()
_LANDING = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>ipvs-node-agent</title></head>
<body>
<h1>ipvs-node-agent</h1>
<p>Version {version}</p>
<p>{sentence}</p>
<ul>
{links}
</ul>
</body>
</html>
"""


class Monitoring:
    """Serves what is `published` here, at the address that the configuration has."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        contact: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        self._clock, self._contact = clock, contact
        self.published = Published(clock())
        self.meters = Meters()
        self.writes = {family: Writes() for family in FAMILIES}
        self.sampler = Sampler(lambda: self.published, self.writes)
        self._service_metrics = True
        self._metrics = Metrics(self.meters, lambda: self.published, self._sums, contact)
        self._server: WebServer | None = None

    def configure(self, config: Config) -> None:
        """Goes on as `config` has it."""
        self._service_metrics = config.service_metrics
        before, address = self._server, config.metrics_bind_address
        if before is not None:
            if before.address == address:
                return
            before.stop()
        self._server = WebServer(address, self.page, before) if address else None
        if self._server is not None:
            self._server.start()

    def stop(self) -> None:
        """Serves no more."""
        if self._server is not None:
            self._server.stop()
        self.sampler.stop()

    def page(self, path: str) -> Page:
        """What is served at `path`."""
        if path == "/metrics":
            return Page(200, self._metrics.text(), metrics.CONTENT_TYPE)
        if path in ("/healthz", "/livez"):
            return _verdict(sickness(self.published, self._clock()))
        if path == "/readyz":
            published = self.published
            return _verdict("" if published.ready else f"not ready: {published.sentence}")
        if path == "/":
            return Page(200, _landing(self.published.sentence), "text/html; charset=utf-8")
        return Page(404, _NOT_HERE)

    def report(self, view: View | None) -> Report:
        """What `status` tells; `view` is None where the main loop does not answer."""
        sums = self.sampler.sums(_STATUS_PATIENCE) if view is not None else {}
        ahead = time.time() - self._clock()
        return report(self.published, view, sums, lambda moment: moment + ahead, self._contact())

    def _sums(self) -> Mapping[Series, Count] | None:
        return self.sampler.sums(_SCRAPE_PATIENCE) if self._service_metrics else None


def _landing(sentence: str) -> bytes:
    """What a browser shows; the sentence may have words from outside in it."""
    links = "\n".join(f'<li><a href="{path}">{path}</a></li>' for path in _PATHS)
    return _LANDING.format(
        version=escape(__version__), sentence=escape(sentence), links=links
    ).encode(errors="replace")


def _verdict(fault: str) -> Page:
    return Page(503 if fault else 200, f"{fault or 'ok'}\n".encode())
