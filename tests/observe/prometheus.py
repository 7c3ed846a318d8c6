"""A real Prometheus beside an agent, in its network namespace and on its loopback alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.netns import Namespace
from tests.support.promlint import fetch
from tests.support.waiting import eventually

ADDRESS = "127.0.0.1:9090"

# The times are seconds since the epoch.
Points = tuple[tuple[float, float], ...]


class Prometheus:
    """It scrapes the agents each `period` seconds."""

    def __init__(self, namespace: Namespace, period: float) -> None:
        self._namespace, self.period = namespace, period

    @property
    def rate_interval(self) -> str:
        """What Grafana would make of $__rate_interval: four scrapes; more where they are hasty."""
        return f"{max(self.period * 4, 6) * 1000:.0f}ms"

    def value(self, expr: str) -> float:
        """The sum of what `expr` has now; 0 where it has nothing."""
        found = self._ask("query", query=f"sum({expr})")
        return float(found[0]["value"][1]) if found else 0.0

    def reaches(self, expr: str, least: float = 1, timeout: float = 30) -> None:
        """Waits until `expr` is `least`, or more."""
        what = f"{expr} >= {least}"
        eventually(lambda: self.value(expr) >= least, what, timeout, self.period / 5)

    @contextmanager
    def growing(self, counter: str, by: float = 1, timeout: float = 30) -> Iterator[None]:
        """Waits at its end until `counter` is larger than at its beginning."""
        before = self.value(counter)
        yield
        self.reaches(counter, before + by, timeout)

    def range(self, expr: str, start: float, end: float) -> Iterator[tuple[dict[str, str], Points]]:
        """The series of `expr` from `start` to `end`, with their labels."""
        parameters = {"query": expr, "start": start, "end": end, "step": self.period}
        for found in self._ask("query_range", **parameters):
            yield found["metric"], tuple((float(t), float(v)) for t, v in found["values"])

    def ready(self) -> bool:
        try:
            with self._namespace.enter():
                return fetch(f"http://{ADDRESS}/-/ready")[0] == 200
        except urllib.error.URLError:
            return False

    def _ask(self, kind: str, **parameters: Any) -> list[Any]:
        with self._namespace.enter():
            query = urllib.parse.urlencode(parameters)
            status, text = fetch(f"http://{ADDRESS}/api/v1/{kind}?{query}")
        assert status == 200, text
        found: list[Any] = json.loads(text)["data"]["result"]
        return found


@contextmanager
def prometheus(
    namespace: Namespace, directory: Path, targets: Mapping[str, str], period: float
) -> Iterator[Prometheus]:
    """A Prometheus that answers; it ends with the block, and its data with `directory`.

    `targets` are the agents' addresses by the names of their nodes.
    """
    directory.mkdir()
    milliseconds = f"{period * 1000:.0f}ms"
    config = {
        "global": {"scrape_interval": milliseconds, "scrape_timeout": milliseconds},
        "scrape_configs": [
            {
                "job_name": "ipvs-node-agent",
                "static_configs": [
                    {"targets": [target], "labels": {"instance": instance}}
                    for instance, target in targets.items()
                ],
            }
        ],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={directory}/prometheus.yaml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address={ADDRESS}",
        "--log.level=warn",
    ]
    log = directory / "log"
    with log.open("wb") as file:
        process = namespace.popen(command, stdout=file, stderr=file)
    made = Prometheus(namespace, period)
    try:
        eventually(made.ready, "Prometheus", timeout=30)
        yield made
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from error
    finally:
        process.kill()
        process.wait(timeout=10)
