"""The API server is killed for a minute while the cluster goes on."""

from __future__ import annotations

import re
import time
from datetime import datetime

import pytest

from ipvs_node_agent.backoff import Backoff
from tests.cluster.apiserver import KubeApiServer
from tests.cluster.bed import Worker, add_service, set_external_ips
from tests.cluster.rest import Client

OUTAGE = 60.0
ATTEMPT = re.compile(r"(?m)^(\S+ \S+) DEBUG GET https://")


def attempts(log: str) -> list[float]:
    """When the agent has tried to connect."""
    return [
        datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
        for stamp in ATTEMPT.findall(log)
    ]


def fewest_and_most(seconds: float) -> tuple[int, int]:
    """How often one follower tries within a time, at once and then as the back-off says."""
    counts = []
    for chance in (1.0, 0.0):
        backoff = Backoff(clock=lambda: 0.0, chance=lambda value=chance: value)  # type: ignore[misc]
        passed, count = 0.0, 1
        while True:
            passed += backoff.next()
            if passed > seconds:
                break
            count += 1
        counts.append(count)
    return counts[0], counts[1]


@pytest.mark.parametrize("when", ["during", "after"])
def test_rules_stay_through_an_outage_and_converge_within_5_s_of_its_end(
    when: str, node: Worker, admin: Client, second: KubeApiServer
) -> None:
    web = add_service(admin, "web", "10.19.20.1")
    second.start()
    node.agent.options = ["--log-level", "debug"]
    node.agent.start()
    node.holds(web)
    rules = node.rules()
    began = time.time()
    node.server.kill()
    if when == "during":
        set_external_ips(second.client(), "web", "10.19.20.2")
        new = [add_service(second.client(), "new", "10.19.20.3")]
    while time.time() < began + OUTAGE:
        assert node.rules() == rules
        time.sleep(1)
    ended = time.time()
    node.server.start()
    started = time.monotonic()
    if when == "after":
        set_external_ips(node.server.client(), "web", "10.19.20.2")
        new = []
    node.holds(("10.19.20.2", *web[1:]), *new)
    took = time.monotonic() - started
    tried = [moment for moment in attempts(node.agent.log) if began <= moment <= ended]
    print(f"converged in {took:.1f} s, after {len(tried)} attempts")
    assert took < 5
    # One follower for the Services, one for the Node.
    fewest, most = (2 * count for count in fewest_and_most(ended - began))
    # A watch that was too young is not resumed at once.
    assert fewest - 2 <= len(tried) <= most
    assert node.agent.log.count("Connection refused") == 1
