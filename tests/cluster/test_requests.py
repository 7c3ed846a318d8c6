"""What the agent asks a real API server for, by the server's audit log; and what it tells it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from urllib3.exceptions import HTTPError

from ipvs_node_agent.apiserver.bodies import without_managed_fields
from ipvs_node_agent.apiserver.reading import read_node, read_service
from tests.cluster.bed import SERVICES, Worker, add_service, moved, streams
from tests.cluster.controlplane import Asked
from tests.cluster.rest import Client
from tests.support.documents import OPERATIONS
from tests.support.waiting import eventually

SELECTOR = "spec.type!=ExternalName,spec.clusterIP!=None"


def in_sync(node: Worker) -> list[Asked]:
    """The requests that it took, once both watches are open."""
    node.start()
    eventually(lambda: open_watches(node) == {"nodes", "services"}, "both watches", timeout=60)
    # Each once, as the server first spoke of it.
    first: dict[str, Asked] = {}
    for entry in node.server.asked(node.name):
        first.setdefault(entry.id, entry)
    return list(first.values())


def forbidden(client: Client, path: str) -> bool:
    """Whether the user has no right to read what is there, or would be."""
    try:
        client.get(path)
    except HTTPError as error:
        return str(error).startswith("403")
    return False


def open_watches(node: Worker) -> set[str]:
    """What the server has begun to answer, and goes on with."""
    entries = node.server.asked(node.name)
    ended = {entry.id for entry in entries if entry.stage == "ResponseComplete"}
    watches = (e for e in entries if e.stage == "ResponseStarted" and e.verb == "watch")
    return {e.resource for e in watches if e.status == 200 and e.id not in ended}


def test_a_nodes_own_credentials_are_enough(node: Worker, admin: Client) -> None:
    web = add_service(admin, "web", "10.19.20.201")
    node.start(web)
    node.holds(moved(admin, web, "10.19.20.202"))
    entries = node.server.asked(node.name)
    assert {entry.resource for entry in entries} == {"services", "nodes", "endpoints"}
    assert {entry.verb for entry in entries} <= {"list", "watch", "get"}
    assert all(entry.status == 200 for entry in entries if entry.verb == "list")
    # A node may get the Endpoints of the API server's own Service, which has none right away.
    asked = [entry for entry in entries if entry.resource == "endpoints"]
    assert {entry.verb for entry in asked} == {"get"}
    assert {entry.status for entry in asked} <= {200, 404}
    assert all(entry.agent.startswith("ipvs-node-agent/") for entry in entries)
    own = f"metadata.name={node.name}"
    assert {e.params["fieldSelector"] for e in entries if e.resource == "nodes"} == {own}
    for kind in ("clusterrolebindings", "rolebindings"):
        bindings = admin.text("GET", f"/apis/rbac.authorization.k8s.io/v1/{kind}")
        assert "ipvs" not in bindings
        assert node.name not in bindings


def test_the_rights_that_operations_shows_are_enough(
    node: Worker, admin: Client, tmp_path: Path
) -> None:
    roles = list(yaml.safe_load_all(OPERATIONS.block_of_yaml("ClusterRole")))
    rbac, user = "/apis/rbac.authorization.k8s.io/v1", "not-a-kubelet"
    for role in roles:
        kind, space = role["kind"], role["metadata"].get("namespace")
        path = f"{rbac}/namespaces/{space}" if space else rbac
        admin.post(f"{path}/{kind.lower()}s", role)
        name = role["metadata"]["name"]
        binding = {
            "metadata": {"name": name},
            "subjects": [{"kind": "User", "name": user}],
            "roleRef": {"apiGroup": rbac.split("/")[2], "kind": kind, "name": name},
        }
        admin.post(f"{path}/{kind.lower()}bindings", binding)
    certificate = tmp_path / "own.pem"
    node.plane.pki.write_client(certificate, user, "")
    node.plane.pki.write_kubeconfig(node.kubeconfig, node.plane.url(node.server), certificate)
    node.agent.configure(node.settings(nodeName=node.name))
    web = add_service(admin, "web", "10.19.20.201")
    add_service(admin, "bad", "127.0.0.1")
    try:
        node.start(web)
        mine = f"/api/v1/events?fieldSelector=involvedObject.uid={node.name}"
        eventually(lambda: admin.get(mine)["items"], lambda: node.agent.log, timeout=30)
        # What nobody is told of where it is refused, or is asked for only in some trouble.
        own = Client(node.namespace, node.plane.url(node.server), node.plane.pki, certificate)
        assert not forbidden(own, f"/api/v1/pods?fieldSelector=spec.nodeName={node.name}")
        assert not forbidden(own, "/api/v1/namespaces/default/endpoints/kubernetes")
        assert forbidden(own, "/api/v1/namespaces/default/endpoints/another")
        assert "WARNING" not in node.agent.log.replace("WARNING default/bad: ", "")
    finally:
        node.agent.kill_if_running()
        admin.delete(f"{rbac}/clusterrolebindings/ipvs-node-agent")


def test_three_requests_are_enough_and_none_is_repeated(node: Worker, admin: Client) -> None:
    web = add_service(admin, "web", "10.19.20.201")
    requests = in_sync(node)
    node.holds(web)
    of = {kind: [e.verb for e in requests if e.resource == kind] for kind in ("nodes", "services")}
    # Where its etcd is too old, the server finds out late, and says so within the stream.
    services = ["watch"] if streams(admin) else ["watch", "list", "watch"]
    assert of == {"nodes": ["list", "watch"], "services": services}
    distinct = {(e.verb, e.resource, e.params.get("resourceVersion")) for e in requests}
    assert len(distinct) == len(requests)
    assert {e.params["fieldSelector"] for e in requests if e.resource == "services"} == {SELECTOR}


def test_what_a_real_server_says_of_managers_is_not_decoded(node: Worker, admin: Client) -> None:
    add_service(admin, "web", "10.19.20.201")
    for kind, read in (("services", read_service), ("nodes", read_node)):
        watched = f"/api/v1/{kind}?watch=true&timeoutSeconds=1&resourceVersion=0"
        lines = [bytearray(line.encode()) for line in admin.text("GET", watched).splitlines()]
        raw = [(json.loads(line), json.loads(without_managed_fields(line))) for line in lines]
        assert raw
        for whole, left in raw:
            assert whole["object"]["metadata"].pop("managedFields")
            assert left == whole
            assert read(left["object"]).problems == ()


def test_services_without_a_cluster_ip_do_not_travel(node: Worker, admin: Client) -> None:
    headless = {"clusterIP": "None", "ports": [{"port": 80}]}
    admin.post(SERVICES, {"metadata": {"name": "headless"}, "spec": headless})
    elsewhere = {"type": "ExternalName", "externalName": "example.org"}
    admin.post(SERVICES, {"metadata": {"name": "elsewhere"}, "spec": elsewhere})
    plain = admin.post(SERVICES, {"metadata": {"name": "plain"}, "spec": {"ports": [{"port": 80}]}})
    text = admin.text("GET", f"/api/v1/services?fieldSelector={SELECTOR}")
    assert '"name":"plain"' in text
    assert '"name":"headless"' not in text
    assert '"name":"elsewhere"' not in text
    # A ClusterIP that only the agent's full view protects.
    web = add_service(admin, "web", "10.19.20.201")
    add_service(admin, "greedy", plain["spec"]["clusterIP"])
    node.start(web)
    node.agent.said(f"default/greedy: {plain['spec']['clusterIP']} is refused: it is the ClusterIP")


def test_a_server_without_streaming_lists_is_asked_once(node: Worker, admin: Client) -> None:
    web = add_service(admin, "web", "10.19.20.201")
    # As all before 1.32, which answer 422.
    with node.plane.another("--feature-gates=WatchList=false") as without:
        without.start()
        node.use(without)
        requests = in_sync(node)
        node.holds(web)
    assert [(e.verb, e.status) for e in requests if e.resource == "services"] == [
        ("watch", 422),
        ("list", 200),
        ("watch", 200),
    ]
    assert [e.verb for e in requests if e.resource == "nodes"] == ["list", "watch"]


def test_a_server_without_a_watch_cache_will_do(node: Worker, admin: Client) -> None:
    web = add_service(admin, "web", "10.19.20.201")
    with node.plane.another("--watch-cache=false") as without:
        without.start()
        node.use(without)
        in_sync(node)
        node.holds(web)
        node.holds(moved(admin, web, "10.19.20.202"))
        assert "WARNING" not in node.agent.log


def test_a_refused_ip_is_an_event_on_the_node(node: Worker, admin: Client) -> None:
    add_service(admin, "bad", "127.0.0.1")
    node.start()
    # What kubectl asks for.
    wanted = f"involvedObject.kind=Node,involvedObject.uid={node.name}"
    (event,) = eventually(
        lambda: admin.get(f"/api/v1/events?fieldSelector={wanted}")["items"], "an Event", timeout=30
    )
    assert event["source"]["component"] == "ipvs-node-agent"
    assert (event["type"], event["reason"]) == ("Warning", "ExternalIPRefused")
    assert "default/bad: 127.0.0.1" in event["message"]
    assert event["involvedObject"]["name"] == node.name
    node.agent.said("refused")
    assert "no Event on the Node" not in node.agent.log
