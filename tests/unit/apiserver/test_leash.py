"""Where the API server is reached: what each of those who know tells, and what stays known."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.apiserver import leash
from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.leash import Leash, Places, endpoints
from ipvs_node_agent.backoff import Backoff, between
from tests.support.apiclient import plain
from tests.support.apiserver import ApiServer
from tests.support.kubeconfigs import document, write
from tests.support.waiting import eventually
from tests.support.wire import Response, WiredApi

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")


def subset(*ips: Any, ports: Any = 6443, key: str = "addresses") -> dict[str, Any]:
    """A part of Endpoints with these addresses, and a port unless others are given."""
    ports = [{"port": ports}] if isinstance(ports, int) else ports
    return {key: [{"ip": ip} for ip in ips], "ports": ports}


def shown(places: Any) -> list[str]:
    return sorted(f"{address} {port}" for address, port in places)


ODD: list[Any] = [None, [], 7, {}, [[7]], {"subsets": {}}, {"subsets": [None, [], "a"]}]
REAL = {"subsets": [subset("192.0.2.1", "2001:db8::1")]}


# 1. Endpoints


@pytest.mark.parametrize(
    ("raw", "places"),
    [
        (REAL, ["192.0.2.1 6443", "2001:db8::1 6443"]),
        ({"subsets": [subset("192.0.2.1", key="notReadyAddresses")]}, ["192.0.2.1 6443"]),
        (
            {"subsets": [subset("192.0.2.1", ports=[{"port": 1}, {"port": 2, "protocol": "TCP"}])]},
            ["192.0.2.1 1", "192.0.2.1 2"],
        ),
        ({"subsets": [subset("192.0.2.1", ports=[{"port": 1, "protocol": "UDP"}])]}, []),
        ({"subsets": [subset("192.0.2.1", ports=[{"port": p} for p in ("1", 1.0, True)])]}, []),
        (
            {"subsets": [subset("010.0.0.1", "a.b", "", None, 7, "::ffff:10.0.0.1", "fe80::1%e")]},
            [],
        ),
        *((odd, []) for odd in ODD),
        *(({"subsets": [{"addresses": odd, "ports": odd}]}, []) for odd in ODD),
    ],
)
def test_what_endpoints_say_counts_and_what_is_odd_is_left_out(raw: Any, places: list[str]) -> None:
    assert shown(endpoints(raw)) == places


# 2. One look


class Wire:
    """In the place of the API server: answers with Endpoints, or whatever else."""

    def __init__(self, body: object = REAL, status: int = 200) -> None:
        self.body, self.status = body, status

    def request(self, method: str, url: str, **_: Any) -> Response:
        assert url.partition("?")[0] == "http://api/api/v1/namespaces/default/endpoints/kubernetes"
        if isinstance(self.body, BaseException):
            raise self.body
        data = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return Response(self.status, [data[:100], data[100:]])


class Counting(Wire):
    """One who counts who asks, whether a connection stays open, and how long one is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bool] = []
        self.patience: list[float] = []

    def request(self, method: str, url: str, **options: Any) -> Response:
        self.kept.append("Connection" not in options["headers"])
        self.patience.append(options["timeout"].connect_timeout)
        return super().request(method, url, **options)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names stand for, besides what is an address; one that is not in it is unknown."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def ask(host: str, port: int, *options: Any, **more: Any) -> list[Any]:
        if host in known:
            return [(0, 0, 0, "", (address, port)) for address in known[host]]
        return real(host, port, *options, **{**more, "flags": socket.AI_NUMERICHOST})

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return known


FROM_ENDPOINTS = ["192.0.2.1 6443", "2001:db8::1 6443"]


@pytest.mark.parametrize(
    ("wire", "known", "is_all"),
    [
        pytest.param(Wire(), FROM_ENDPOINTS, True, id="there are some"),
        pytest.param(Wire({}), [], True, id="there are none"),
        pytest.param(Wire({}, 403), [], True, id="we may not know"),
        pytest.param(Wire({}, 404), [], True, id="it knows of none"),
        pytest.param(Wire(b"{"), [], True, id="no JSON"),
        pytest.param(Wire(b"[" * 100_000), [], True, id="deep"),
        pytest.param(Wire(b" " * (2 << 20)), [], True, id="large"),
        *(
            pytest.param(Wire({}, status), [], False, id=f"{status}")
            for status in (401, 429, 500, 503)
        ),
        pytest.param(Wire(ConnectionRefusedError()), [], False, id="nobody there"),
        pytest.param(Wire(Superseded()), [], False, id="ended by ourselves"),
    ],
)
def test_what_comes_of_asking_for_the_endpoints(
    wire: Wire, known: list[str], is_all: bool, names: dict[str, list[str]]
) -> None:
    names["api"] = ["198.51.100.1"]
    places, complete = leash.ask(WiredApi(wire))
    assert shown(places) == sorted(["127.0.0.1 1", "198.51.100.1 80", *known])
    assert complete is is_all


def test_of_more_than_any_cluster_has_some_are_taken_at_once() -> None:
    many = [f"10.0.{n // 250}.{n % 250}" for n in range(5_000)]
    wire = Wire({"subsets": [subset(*many, ports=[{"port": n} for n in range(1, 5_000)])]})
    places, _ = leash.ask(WiredApi(wire))
    # What others wrote pushes out nothing that we know ourselves.
    assert "127.0.0.1 1" in shown(places)
    assert len(places) == 256


@pytest.mark.parametrize(
    ("spelled", "address"),
    [("fe80::1%eth0", "fe80::1"), ("::ffff:192.0.2.9", "192.0.2.9"), ("2001:db8::9",) * 2],
)
def test_a_name_counts_by_all_its_addresses(
    spelled: str, address: str, names: dict[str, list[str]]
) -> None:
    names["api"] = ["198.51.100.1", spelled]
    assert {f"{address} 80", "198.51.100.1 80"} < {*shown(leash.ask(WiredApi(Wire()))[0])}


def test_behind_a_proxy_nobody_need_know_the_server(
    names: dict[str, list[str]], tmp_path: Path
) -> None:
    cluster = {"server": "https://real.example", "proxy-url": "http://proxy.example:1"}
    # Nobody listens at either.
    names["proxy.example"] = ["127.0.0.7"]
    api = Api(write(tmp_path / "kubelet.conf", document({}, **cluster)))
    assert shown(leash.ask(api)[0]) == ["127.0.0.7 1"]
    names["real.example"] = ["127.0.0.8"]
    assert shown(leash.ask(api)[0]) == ["127.0.0.7 1", "127.0.0.8 443"]


def test_a_name_that_stands_for_nothing_is_asked_for_again(
    names: dict[str, list[str]], tmp_path: Path
) -> None:
    places, complete = leash.ask(plain(tmp_path, "http://unknown.example:1"))
    assert (places, complete) == (frozenset(), False)


def test_connections_count_by_their_other_ends(server: ApiServer, api: Api) -> None:
    server.fail(404, verb="get")
    places, complete = leash.ask(api)
    assert shown(api.peers) == shown(places) == [f"127.0.0.1 {server.port}"]
    assert complete


# 3. Again and again


class Told:
    """A leash that runs, and what it tells."""

    def __init__(self, api: Api) -> None:
        self._told: queue.Queue[tuple[Places, bool]] = queue.Queue()
        self.has_been_complete = False
        self.leash = Leash(api, lambda *told: self._told.put(told))
        self.thread = threading.Thread(target=self.leash.run, daemon=True)
        self.thread.start()

    def wait_for(self, *places: str, complete: bool = True) -> None:
        """Waits until these are told, in any order."""
        eventually(lambda: self._next() == (sorted(places), complete))

    def _next(self) -> tuple[list[str], bool]:
        places, complete = self._told.get(timeout=10)
        self.has_been_complete |= complete
        return shown(places), complete

    def quiet(self) -> bool:
        return self._told.empty()


@contextmanager
def telling(api: Api) -> Iterator[Told]:
    told = Told(api)
    try:
        yield told
    finally:
        told.leash.stop()
        told.thread.join(10)
        assert not told.thread.is_alive()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leash, "_LEAST", 0.01)


PROXY = "127.0.0.1 1"


def test_each_thing_stays_as_it_was_last_known(names: dict[str, list[str]]) -> None:
    names["api"] = ["198.51.100.1"]
    wire = Wire(ConnectionRefusedError())
    with telling(WiredApi(wire)) as told:
        told.wait_for(PROXY, "198.51.100.1 80", complete=False)
        wire.body = REAL
        told.leash.hurry()
        told.wait_for(PROXY, "198.51.100.1 80", *FROM_ENDPOINTS)
        # Another address of the name is told of although nobody answers, and the old one goes.
        wire.body = ConnectionRefusedError()
        names["api"] = ["198.51.100.2"]
        told.leash.hurry(reached=True)
        told.wait_for(PROXY, "198.51.100.2 80", *FROM_ENDPOINTS)
        for status, body in ((403, {}), (200, {}), (200, b"{")):
            wire.status, wire.body = status, body
            told.leash.hurry(reached=True)
            told.wait_for(PROXY, "198.51.100.2 80", *FROM_ENDPOINTS)
        wire.status, wire.body = 200, {"subsets": [subset("192.0.2.3")]}
        told.leash.hurry(reached=True)
        told.wait_for(PROXY, "198.51.100.2 80", "192.0.2.3 6443")


def test_who_has_told_is_not_asked_each_time_that_names_are_looked_up(
    names: dict[str, list[str]],
) -> None:
    names["api"] = ["198.51.100.1"]
    wire = Counting()
    with telling(WiredApi(wire)) as told:
        told.wait_for(PROXY, "198.51.100.1 80", *FROM_ENDPOINTS)
        for last in (2, 3):
            names["api"] = [f"198.51.100.{last}"]
            told.leash.hurry()
            told.wait_for(PROXY, f"198.51.100.{last} 80", *FROM_ENDPOINTS)
        assert wire.kept == [False]
        told.leash.hurry(reached=True)
        eventually(lambda: wire.kept == [False, False])


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 660.0), (0.5, 780.0), (1.0, 900.0)])
def test_nodes_that_started_together_ask_again_at_different_times(
    chance: float,
    seconds: float,
    names: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names["api"] = ["198.51.100.1"]
    waits: list[float] = []

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return super().wait(timeout)

    monkeypatch.setattr(leash, "between", partial(between, chance=lambda: chance))
    monkeypatch.setattr(threading, "Event", Watched)
    with telling(WiredApi(Wire())):
        eventually(lambda: any(seconds - 30 < wait <= seconds for wait in waits))


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed besides those of the clock, of which nothing else is in the list."""
    passed = [0.0]
    monkeypatch.setattr(leash, "monotonic", lambda: time.monotonic() + passed[0])
    return passed


@pytest.fixture
def answered(names: dict[str, list[str]], passing: list[float]) -> Iterator[tuple[Counting, Told]]:
    """Who is asked, and a leash that has its first answer."""
    names["api"] = ["198.51.100.1"]
    wire = Counting()
    with telling(WiredApi(wire)) as told:
        told.wait_for(PROXY, "198.51.100.1 80", *FROM_ENDPOINTS)
        yield wire, told


def test_a_question_in_passing_is_asked_at_once_and_keeps_its_connection(
    answered: tuple[Counting, Told], passing: list[float]
) -> None:
    wire, told = answered
    passing[0] += 300
    wire.body = {"subsets": [subset("192.0.2.3")]}
    told.leash.ask_in_passing()
    assert wire.kept == [False, True]
    # Meanwhile nobody watches the Node.
    assert wire.patience == [10.0, 2.0]
    told.wait_for(PROXY, "198.51.100.1 80", "192.0.2.3 6443")
    # What comes afterwards has a connection of its own.
    told.leash.hurry(reached=True)
    eventually(lambda: wire.kept == [False, True, False])


@pytest.mark.parametrize("status", [200, 403, 503])
def test_however_often_anybody_passes_by_it_asks_every_few_minutes(
    status: int, answered: tuple[Counting, Told], passing: list[float]
) -> None:
    wire, told = answered
    wire.status = status
    for _ in range(50):
        passing[0] += 10
        told.leash.ask_in_passing()
    assert wire.kept == [False, True, True]


def test_an_answer_in_passing_puts_off_the_next_question(
    answered: tuple[Counting, Told], names: dict[str, list[str]], passing: list[float]
) -> None:
    wire, told = answered
    for number in range(5):
        passing[0] += 600
        wire.body = {"subsets": [subset(f"192.0.2.{number}")]}
        told.leash.ask_in_passing()
        told.wait_for(PROXY, "198.51.100.1 80", f"192.0.2.{number} 6443")
    assert wire.kept == [False] + [True] * 5
    # One that has failed does not.
    wire.status = 503
    passing[0] += 600
    told.leash.ask_in_passing()
    names["api"] = ["198.51.100.2"]
    told.leash.hurry()
    told.wait_for(PROXY, "198.51.100.2 80", "192.0.2.4 6443")
    wire.status = 200
    passing[0] += 301
    told.leash.hurry()
    eventually(lambda: wire.kept[6:] == [True, False])


def test_a_kubeconfig_that_changed_is_known_before_anybody_answers_there(tmp_path: Path) -> None:
    api = plain(tmp_path, "http://127.0.0.1:1")
    with telling(api) as told:
        told.wait_for("127.0.0.1 1", complete=False)
        plain(tmp_path, "http://127.0.0.2:2")
        assert api.refresh()
        told.leash.hurry()
        told.wait_for("127.0.0.2 2", complete=False)


def test_what_fails_is_asked_again_soon_and_what_is_refused_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Backoff, "FIRST", 0.01)
    wire = Wire({}, 503)
    with telling(WiredApi(wire)) as told:
        # One look tells after each of its three parts.
        for _ in range(3):
            told.wait_for(PROXY, complete=False)
        wire.status = 403
        told.wait_for(PROXY)
        told.wait_for(PROXY)
        assert told.quiet()


@pytest.mark.parametrize("status", [400, 401, 405, 429, 500, 503])
def test_who_answers_all_but_that_is_waited_for_no_longer_than_a_while(
    status: int,
    server: ApiServer,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(leash, "_PATIENCE", 0.3)
    monkeypatch.setattr(Backoff, "FIRST", 0.05)
    server.fail(status, verb="get")
    here = f"127.0.0.1 {server.port}"
    with telling(api) as told:
        told.wait_for(here, complete=False)
        told.wait_for(here)
        server.heal()
        told.leash.hurry(reached=True)
        told.wait_for(here)
    said = "cannot read the API server's own addresses"
    assert len([line for line in caplog.messages if line.startswith(said)]) == 1


def test_whoever_never_answered_is_waited_for(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leash, "_PATIENCE", 0.0)
    monkeypatch.setattr(Backoff, "FIRST", 0.01)
    names["api"] = ["198.51.100.1"]
    wire = Wire(ConnectionRefusedError())
    with telling(WiredApi(wire)) as told:
        for _ in range(10):
            told.wait_for(PROXY, "198.51.100.1 80", complete=False)
        assert not told.has_been_complete
        wire.body = REAL
        told.wait_for(PROXY, "198.51.100.1 80", *FROM_ENDPOINTS)


def test_who_is_reached_while_a_request_of_ours_hangs_is_asked_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Backoff, "FIRST", 60.0)
    asked, hanging = threading.Event(), threading.Event()

    class Hanging(Wire):
        def request(self, method: str, url: str, **options: Any) -> Response:
            if asked.is_set():
                return super().request(method, url, **options)
            asked.set()
            assert hanging.wait(10)
            raise ConnectionResetError

    with telling(WiredApi(Hanging({}))) as told:
        assert asked.wait(10)
        told.leash.hurry(reached=True)
        hanging.set()
        told.wait_for(PROXY)


def test_what_hangs_holds_up_neither_what_is_known_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, hanging = threading.Event(), threading.Event()

    class Hanging(Wire):
        def request(self, method: str, url: str, **options: Any) -> Response:
            asked.set()
            assert hanging.wait(10)
            return super().request(method, url, **options)

    with telling(WiredApi(Hanging())) as told:
        told.wait_for(PROXY, complete=False)
        assert asked.wait(10)
        told.leash.stop()
        hanging.set()
        told.thread.join(10)
        assert told.quiet()
