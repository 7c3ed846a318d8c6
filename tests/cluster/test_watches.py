"""Watches that end, die, or go on for long; versions that are gone."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.bed import Worker, add_service, moved, streams, worker
from tests.cluster.controlplane import ControlPlane, KubeApiServer
from tests.cluster.rest import Client
from tests.support.meanwhile import meanwhile
from tests.support.topology import CLUSTER_IP, EXTERNAL_IP, ask, topology
from tests.support.waiting import eventually

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def listings(node: Worker) -> int:
    """How often everything was asked for: lists, and watches that begin with one."""
    # Whose an address without rules is, here the control plane's, is no matter of watches.
    entries = [entry for entry in node.server.asked(node.name) if entry.resource != "pods"]
    plain = sum(entry.verb == "list" for entry in entries)
    streamed = sum(
        entry.stage == "ResponseStarted" and "sendInitialEvents" in entry.params
        for entry in entries
    )
    return plain + streamed


@pytest.mark.xdist_group("ends")
def test_ends_of_watches_cost_no_list(node: Worker, admin: Client) -> None:
    """Each is resumed at once, as it had lived; the simulation has thousands that had not."""
    web = add_service(admin, "web", "10.19.20.0")
    node.start(web)
    before, took = listings(node), []
    for number in range(1, 13):
        node.watching()
        # A watch that ends sooner is backed off.
        time.sleep(7)
        cut = set(node.connections())
        node.cut()
        if number % 3 == 0:
            # Nothing new is known, so nothing but the end itself can have it resumed.
            began = time.monotonic()
            eventually(lambda gone=cut: not gone & node.connections().keys(), timeout=30)  # type: ignore[misc]
            node.watching(timeout=30)
            took.append(time.monotonic() - began)
        node.holds(moved(admin, web, f"10.19.20.{number}"))
    assert listings(node) == before
    # With a back-off all of them were slow; one may meet a machine that is busy otherwise.
    assert sorted(took)[-2] < 2, took


@pytest.mark.xdist_group("bookmarks")
def test_bookmarks_keep_the_version_of_a_quiet_watch_young(
    node: Worker, admin: Client, second: KubeApiServer
) -> None:
    web = add_service(admin, "web", "10.19.20.0")
    node.start(web)
    version = admin.get("/api/v1/services")["metadata"]["resourceVersion"]
    for number in range(30):
        admin.post(CONFIG_MAPS, {"metadata": {"name": f"other-{node.name}-{number}"}})
    # Whatever it knows is younger than the last change of a Service.
    second.start()
    assert is_gone(second.client(), version), "without bookmarks this would prove nothing"
    node.watching()
    young = streams(admin)
    if young:
        start = node.connections()
        eventually(
            lambda: all(node.connections().get(port, 0) > got for port, got in start.items()),
            "a bookmark on each watch",
            timeout=250,
        )
    node.use(second)
    node.watching()
    node.holds(moved(admin, web, "10.19.20.1"))
    # Counted by the second server: whoever resumes there lists nothing. Without bookmarks, as with
    # an etcd that is too old for them, it is one list of each.
    assert listings(node) == (0 if young else 2)


def is_gone(client: Client, version: str) -> bool:
    """Whether a watch from there ends with 410."""
    path = f"/api/v1/services?watch=true&resourceVersion={version}&timeoutSeconds=1"
    return '"code":410' in client.text("GET", path)


def test_a_connection_that_dies_without_a_word_is_replaced_within_a_minute(
    node: Worker, admin: Client
) -> None:
    web = add_service(admin, "web", "10.19.20.0")
    node.start()
    node.watching()
    before = listings(node)
    ports = list(node.connections())
    for port in ports:
        for chain, there in (("INPUT", "--sport"), ("OUTPUT", "--dport")):
            rule = ["-s" if chain == "INPUT" else "-d", node.address, "-p", "tcp", there, port]
            node.plane.namespace.run("iptables", "-I", chain, *rule, "-j", "DROP")
    started = time.monotonic()
    node.holds(moved(admin, web, "10.19.20.1"), timeout=60)
    print(f"noticed and replaced within {time.monotonic() - started:.1f} s")
    # Each is noticed by itself.
    eventually(lambda: not set(ports) & node.connections().keys(), "other connections", 60)
    assert listings(node) == before


def test_a_server_that_accepts_and_never_answers_is_left_within_a_minute(
    node: Worker, admin: Client, second: KubeApiServer
) -> None:
    web = add_service(admin, "web", "10.19.20.0")
    second.start()
    node.use(second)
    node.agent.options = ["--log-level", "debug"]
    node.start()
    node.watching()
    second.send(signal.SIGSTOP)
    node.cut()
    node.agent.said("timed out")
    changed = moved(admin, web, "10.19.20.1")
    second.send(signal.SIGCONT)
    node.holds(changed, timeout=60)


def test_compaction_leads_to_a_list_and_no_rule_is_missing_for_a_moment(
    plane: ControlPlane, second: KubeApiServer, tmp_path: Path
) -> None:
    with topology() as hosts, worker(plane, tmp_path, hosts.node) as node:
        second.start()
        admin = second.client()
        web = add_service(admin, "web", EXTERNAL_IP[4], CLUSTER_IP[4])
        gone = add_service(admin, "gone", "10.19.20.7")
        node.start(web, gone)
        node.watching()
        before = listings(node)
        answers: dict[str, set[str]] = {"pod": set(), "node": set()}
        counts = {"pod": 0, "node": 0}

        def connect(name: str) -> None:
            # Without its rules a connection never comes about, however long one waits.
            answers[name].add(ask(getattr(hosts, name), EXTERNAL_IP[4], timeout=10))
            counts[name] += 1

        with meanwhile(partial(connect, "pod")), meanwhile(partial(connect, "node")):
            node.server.kill()
            admin.delete("/api/v1/namespaces/default/services/gone")
            new = add_service(admin, "new", "10.19.20.8")
            plane.etcd.compact()
            node.server.start()
            node.holds(web, new)
        assert listings(node) > before
        assert min(counts.values()) > 100
        # Both are masqueraded: the server saw the node, every time.
        assert answers == {"pod": {"10.200.0.1"}, "node": {"10.200.0.1"}}
