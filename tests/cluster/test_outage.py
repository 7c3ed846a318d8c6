"""The API server is killed for a minute while the cluster goes on."""

from __future__ import annotations

import time

import pytest

from tests.cluster.bed import Worker, add_service, moved
from tests.cluster.controlplane import KubeApiServer
from tests.cluster.rest import Client

OUTAGE = 60.0
ATTEMPT = " DEBUG GET https://"


@pytest.mark.parametrize("when", ["during", "after"])
def test_rules_stay_through_an_outage_and_converge_within_5_s_of_its_end(
    when: str, node: Worker, admin: Client, second: KubeApiServer
) -> None:
    web = add_service(admin, "web", "10.19.20.1")
    second.start()
    node.agent.options = ["--log-level", "debug"]
    node.start(web)
    rules = node.rules()
    before = node.agent.log.count(ATTEMPT)
    end = time.monotonic() + OUTAGE
    node.server.kill()
    if when == "during":
        changed = moved(second.client(), web, "10.19.20.2")
        new = [add_service(second.client(), "new", "10.19.20.3")]
    while time.monotonic() < end:
        assert node.rules() == rules
        time.sleep(1)
    tried = node.agent.log.count(ATTEMPT) - before
    began = time.monotonic()
    node.server.start()
    started = time.monotonic()
    if when == "after":
        changed, new = moved(node.server.client(), web, "10.19.20.2"), []
    node.holds(changed, *new)
    took = time.monotonic() - started
    print(f"converged in {took:.1f} s, after {tried} attempts")
    # Who asks while it starts waits longer, the longer that takes.
    assert took < 5 + 0.3 * (started - began)
    # Services, Node and Endpoints are asked for each for itself, and by the back-off's delays a
    # minute has six or seven attempts; but a watch that was too young is not resumed at once.
    assert 2 * 5 <= tried <= 3 * 7
    said = [line for line in node.agent.log.splitlines() if " WARNING " in line]
    assert len([line for line in said if "(trying again; the rules stay" in line]) == 1, said
