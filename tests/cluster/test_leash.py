"""A Service that claims the API server's own address and port: nobody loses his way to it.

By which words a kubeconfig may lead there is tried in tests/kernel/test_leash.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.bed import SERVICES, Worker, add_service
from tests.cluster.controlplane import API_ADDRESS
from tests.cluster.rest import Client
from tests.support.relay import relay
from tests.support.waiting import eventually

_ENDPOINTS = "/api/v1/namespaces/default/endpoints"


@pytest.fixture(params=["its address", "a proxy of the node's own"])
def reached(request: pytest.FixtureRequest, node: Worker, admin: Client) -> Iterator[Worker]:
    """The node, whose kubeconfig names the API server by what the parameter says."""
    if request.param == "its address":
        yield node
        return
    port, target = node.server.port, (API_ADDRESS[4], node.server.port)
    # What the API server keeps there by itself, if it is let.
    subset = {"addresses": [{"ip": API_ADDRESS[4]}], "ports": [{"name": "https", "port": port}]}
    admin.post(_ENDPOINTS, {"metadata": {"name": "kubernetes"}, "subsets": [subset]})
    with relay(node.namespace, "127.0.0.1", target) as here:
        url = f"https://127.0.0.1:{here}"
        node.plane.pki.write_kubeconfig(node.kubeconfig, url, node.certificate.path)
        yield node
        node.agent.kill_if_running()
    admin.delete(f"{_ENDPOINTS}/kubernetes")


def test_it_gets_its_other_ports_and_its_end_is_followed(reached: Worker, admin: Client) -> None:
    def rules() -> list[str]:
        """What leads somewhere, or is marked; chains' names and jumps are left out."""
        return [rule for rule in reached.rules() if "default/thief" in rule]

    port = reached.server.port
    ports = [{"name": f"p{each}", "port": each} for each in (80, port)]
    add_service(admin, "thief", API_ADDRESS[4], ports=ports)
    reached.start()
    reached.agent.said(f"tcp {port} is refused: this node reaches the API server there")
    eventually(
        lambda: len(rules()) == 4, f"a pair for pods, and one for the host\n{reached.rules()}"
    )
    assert all(f"-d {API_ADDRESS[4]}/32" in rule and "--dport 80 " in rule for rule in rules())
    # Connections that are there would not show it.
    reached.cut()
    reached.agent.said("answers again")
    add_service(admin, "web", "10.19.20.201")
    eventually(
        lambda: any("10.19.20.201" in rule for rule in reached.rules()), lambda: reached.agent.log
    )
    admin.delete(f"{SERVICES}/thief")
    eventually(lambda: rules() == [], lambda: reached.agent.log)
