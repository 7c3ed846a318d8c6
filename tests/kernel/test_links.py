"""The addresses and routes of a node, as a real kernel tells of them while they change."""

from __future__ import annotations

import queue
import select
import subprocess
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from ipvs_node_agent.host import links
from ipvs_node_agent.host.links import LinkFollower, Links, Route
from ipvs_node_agent.model.addresses import parse_address, parse_network
from tests.support.meanwhile import meanwhile
from tests.support.netns import Namespace
from tests.support.sockets import enter_netns
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once]


class Told:
    """What `follow` tells in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._queue: queue.Queue[Links] = queue.Queue()
        self._namespace, self.listening = namespace, threading.Lock()
        self._follower = LinkFollower(self._take)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self.links = self._queue.get(timeout=10)

    def _follow(self) -> None:
        enter_netns(f"/run/netns/{self._namespace.name}")
        self._follower.run()

    def _take(self, links: Links) -> None:
        with self.listening:
            self._queue.put(links)

    def stop(self) -> None:
        self._follower.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def addresses(self) -> set[tuple[str, str]]:
        return {(name, str(address)) for name, address in self.links.addresses}

    def next(self) -> None:
        """Waits for the next news."""
        self.links = self._queue.get(timeout=10)

    def until(self, addresses: set[tuple[str, str]]) -> None:
        """Waits until these are told."""
        while self.addresses() != addresses:
            self.next()

    def quiet(self) -> bool:
        """Whether nothing was told that has not been asked for."""
        return self._queue.empty()


@pytest.fixture
def node(namespace: Namespace) -> Namespace:
    for name in ("eth0", "kube-ipvs0", "cali1"):
        namespace.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"peer-{name[:4]}")
        namespace.run("ip", "link", "set", f"peer-{name[:4]}", "up")
        namespace.run("ip", "link", "set", name, "up")
    namespace.run("ip", "link", "set", "lo", "up")
    namespace.add_address("eth0", "192.0.2.1/24", "2001:db8::1/64")
    return namespace


HERE = {("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", "192.0.2.1"), ("eth0", "2001:db8::1")}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["192.0.2.9/24"], ["192.0.2.9/32"]),
        (["192.0.2.9", "peer", "192.0.2.20"], ["192.0.2.9", "peer", "192.0.2.21"]),
    ],
    ids=["two prefixes", "two peers"],
)
def test_an_address_that_is_there_twice_is_there_until_both_are_gone(
    node: Namespace, first: list[str], second: list[str]
) -> None:
    """As where somebody gives it another prefix, and adds that first."""
    told = Told(node)
    there = HERE | {("eth0", "192.0.2.9")}
    node.run("ip", "address", "add", *first, "dev", "eth0")
    told.until(there)
    node.run("ip", "address", "add", *second, "dev", "eth0")
    node.run("ip", "address", "delete", *first, "dev", "eth0")
    with node.enter():
        assert {str(address) for _, address in links.ask().addresses} >= {"192.0.2.9"}
    node.add_address("cali1", "192.0.2.10/32")
    after = there | {("cali1", "192.0.2.10")}
    told.until(after)
    node.run("ip", "address", "delete", *second, "dev", "eth0")
    told.until(after - {("eth0", "192.0.2.9")})
    told.stop()


def test_what_is_there_at_the_start_is_told(node: Namespace) -> None:
    node.add_address("kube-ipvs0", "10.19.0.1/32", "fd00:19::1/128")
    told = Told(node)
    assert told.addresses() == HERE
    told.stop()


@pytest.mark.parametrize("vip", ["192.0.2.77/32", "2001:db8::77/128"])
def test_an_address_that_comes_and_goes_is_told(node: Namespace, vip: str) -> None:
    told = Told(node)
    for action, more in (("add", {("eth0", vip.partition("/")[0])}), ("delete", set())):
        node.run("ip", "address", action, vip, "dev", "eth0")
        told.next()
        assert told.addresses() == HERE | more


def test_what_kube_proxy_binds_is_nobodys_news(node: Namespace) -> None:
    told = Told(node)
    for number in range(1, 51):
        node.add_address("kube-ipvs0", f"10.19.0.{number}/32", f"fd00:19::{number:x}/128")
    node.add_address("eth0", "192.0.2.2/24")
    told.next()
    assert told.addresses() == HERE | {("eth0", "192.0.2.2")}
    assert told.quiet()


def test_what_is_news_is_told_while_kube_proxy_goes_on_binding(node: Namespace) -> None:
    told = Told(node)
    lines = [f"address {do} 10.0.0.1/32 dev kube-ipvs0\n" for do in ("add", "delete")]
    with node.popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True, bufsize=1) as binding:
        assert binding.stdin is not None
        # Without an end, and not so fast that some is lost: then all is read anew.
        with meanwhile(partial(binding.stdin.writelines, lines), pause=0.005):
            node.add_address("eth0", "192.0.2.2/24")
            told.next()
            assert ("eth0", "192.0.2.2") in told.addresses()
        assert binding.poll() is None


def test_nothing_is_asked_for_while_nothing_changes(
    node: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits without an end, and not for a time."""
    waits: list[object] = []

    def waiting(*arguments: Any) -> Any:
        waits.append(arguments[3:])
        return select.select(*arguments)

    monkeypatch.setattr(links, "select", SimpleNamespace(select=waiting))
    told = Told(node)
    for number in range(3):
        eventually(lambda: waits and waits[-1] == ())
        node.add_address("eth0", f"192.0.2.{number + 2}/24")
        told.next()
    eventually(lambda: waits[-1] == ())


def test_an_interface_that_goes_takes_its_addresses_along(node: Namespace) -> None:
    told = Told(node)
    node.run("ip", "link", "delete", "eth0")
    names = {"lo", "kube-ipvs0", "cali1", "peer-kube", "peer-cali"}
    # The kernel tells of it in several messages, and whoever is slow gets them one by one.
    while told.addresses() != {("lo", "127.0.0.1"), ("lo", "::1")} or told.links.names != names:
        told.next()


def test_a_port_that_leaves_its_bridge_is_still_there(node: Namespace) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "link", "set", "cali1", "master", "cni0")
    told = Told(node)
    node.run("ip", "link", "set", "cali1", "nomaster")
    node.add_address("cali1", "192.0.2.3/32")
    told.next()
    assert ("cali1", "192.0.2.3") in told.addresses()


@pytest.mark.parametrize(
    ("arguments", "route"),
    [
        (
            "10.233.90.5 dev cali1 scope link",
            Route(parse_network("10.233.90.5/32"), "cali1", is_blackhole=False),
        ),
        (
            "fd00:233::5 dev cali1 proto 80",
            Route(parse_network("fd00:233::5/128"), "cali1", is_blackhole=False),
        ),
        (
            "blackhole 10.233.90.0/26 proto 80",
            Route(parse_network("10.233.90.0/26"), "", is_blackhole=True),
        ),
    ],
)
def test_routes_to_pods_and_of_their_blocks_are_told(
    node: Namespace, arguments: str, route: Route
) -> None:
    told = Told(node)
    family = "-6" if route.destination.version == 6 else "-4"
    for action, there in (("add", {route}), ("delete", set[Route]())):
        node.run("ip", family, "route", action, *arguments.split())
        told.next()
        assert told.links.routes == there


def test_a_route_that_is_replaced_is_one(node: Namespace) -> None:
    node.run("ip", "route", "add", "10.233.90.5", "dev", "eth0", "scope", "link")
    told = Told(node)
    node.run("ip", "route", "replace", "10.233.90.5", "dev", "cali1", "scope", "link")
    told.next()
    assert [route.interface for route in told.links.routes] == ["cali1"]


@pytest.mark.parametrize("pod", ["10.233.90.5", "fd00:233::5"])
def test_an_interface_that_is_set_down_has_no_routes_any_more(node: Namespace, pod: str) -> None:
    """Of IPv4 ones the kernel tells nothing."""
    node.run("ip", "route", "add", pod, "dev", "cali1")
    told = Told(node)
    for number, state in enumerate(("down", "up"), 3):
        node.run("ip", "link", "set", "cali1", state)
        node.add_address("eth0", f"192.0.2.{number}/24")
        while f"192.0.2.{number}" not in {a for _, a in told.addresses()}:
            told.next()
        assert told.links.routes == set()
    node.run("ip", "route", "add", pod, "dev", "cali1")
    told.next()
    assert [route.interface for route in told.links.routes] == ["cali1"]


def test_routes_of_others_are_nobodys_news(node: Namespace) -> None:
    told = Told(node)
    node.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.9")
    node.add_address("eth0", "192.0.2.2/24")
    told.next()
    assert told.links.routes == set()
    assert parse_address("192.0.2.2") in {address for _, address in told.links.addresses}


def test_what_could_not_be_told_is_asked_for(node: Namespace) -> None:
    told = Told(node)
    batch = "".join(f"address add 10.0.{n // 250}.{n % 250}/32 dev eth0\n" for n in range(2000))
    with told.listening:
        # The one that is not listened to, and so many that they are dropped.
        node.add_address("eth0", "192.0.2.2/24")
        node.run("ip", "-batch", "-", stdin=batch)
    while len(told.addresses()) < 2001 + len(HERE):
        told.next()
