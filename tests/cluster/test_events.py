"""Events on the Node, as a real API server takes them from a node."""

from __future__ import annotations

from typing import Any

from tests.cluster.bed import Worker, add_service
from tests.cluster.rest import Client
from tests.support.waiting import eventually

LOOKED = 30.0


def test_a_refused_ip_is_an_event_on_the_node(node: Worker, admin: Client) -> None:
    add_service(admin, "bad", "127.0.0.1")
    node.agent.start()

    def events() -> list[dict[str, Any]]:
        # What kubectl asks for.
        wanted = f"involvedObject.kind=Node,involvedObject.uid={node.name}"
        found = admin.get(f"/api/v1/events?fieldSelector={wanted}")
        return [item for item in found["items"] if item["source"]["component"] == "ipvs-node-agent"]

    (event,) = eventually(events, "an Event", LOOKED)
    assert (event["type"], event["reason"]) == ("Warning", "ExternalIPRefused")
    assert "default/bad: 127.0.0.1" in event["message"]
    assert event["involvedObject"]["name"] == node.name
    node.agent.said("refused")
    assert "no Event on the Node" not in node.agent.log
