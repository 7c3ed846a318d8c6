"""Hostile Services and hostile bytes: never a crash, and never a rule that nobody asked for.

`tests/support/asked.py` is the judge of the rules; tests/kernel/test_hostile.py has the kernels
judge them. That what is read is well formed, and that lists are read right, is in
unit/test_properties.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from logging.handlers import BufferingHandler
from typing import Any, Callable, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.apiserver.resources import resources
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.config.settings import DEFAULTS, Chains, Config, ServiceOptions
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from ipvs_node_agent.model.events import NODES, SERVICES, Event, Listed, Skipped, Trouble
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.rules.planner import plan
from ipvs_node_agent.sync.agent import Agent
from tests.support.asked import Asked
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.examples import hunt
from tests.support.faketable import FakeTable
from tests.support.rawobjects import configs, json_value, mostly, nodes, read_services, services
from tests.support.tables import MARK_MASQ
from tests.support.wire import Response, WiredApi

HOSTS = ("192.168.7.11", "10.19.0.2")
NODE = read_node(
    {
        "metadata": {"name": "worker-1"},
        "spec": {"podCIDRs": [*POD_CIDRS]},
        "status": {"addresses": [{"type": "InternalIP", "address": host} for host in HOSTS]},
    }
)
# Whatever others do, it gets what it asks for: nobody else knows its addresses.
WITNESS = service("witness", ["10.231.9.9", "fd00:231::99"], ["10.19.0.0", "fd00:19::"])

# With one Service a chain, which no file can ask for, a few are a tree already.
layouts = st.builds(
    dataclasses.replace,
    configs,
    chains=st.sampled_from([Chains(), Chains(services_per_chain=1)]),
)


def read_all(raw: Sequence[Any]) -> Snapshot:
    return Snapshot(read_services(raw), NODE)


def witnessed(chains: Mapping[str, Sequence[str]], family: Family) -> bool:
    """Whether the witness has its two pairs of rules."""
    found = [rule for rules in chains.values() for rule in rules if '"default/witness"' in rule]
    external, cluster_ip = (
        ("10.19.0.0/32", "10.231.9.9") if family is IPV4 else ("fd00:19::/128", "fd00:231::99")
    )
    to = [rule for rule in found if rule.endswith(f"-j DNAT --to-destination {cluster_ip}")]
    return len(to) == 2 and all(f"-d {external} " in rule for rule in found)


# Services.


@hunt(400)
@given(
    raw=st.lists(services, min_size=1, max_size=6), config=layouts, family=st.sampled_from(FAMILIES)
)
def test_every_rule_was_asked_for(raw: list[Any], config: Config, family: Family) -> None:
    planned = plan(config, read_all([*raw, WITNESS]), family).ruleset
    asked = Asked([*raw, WITNESS], config, POD_CIDRS, HOSTS)
    assert not asked.faults(planned.chains)
    assert witnessed(planned.chains, family)


HUGE = {
    "1,000 ingress IPs": service(
        "many",
        ["10.231.0.7"],
        [f"10.19.{high}.{low}" for high in range(16, 20) for low in range(250)],
    ),
    "a long name": service("n" * 63, ["10.231.0.7"], ["10.19.0.9"]),
    "too long a name": service("n" * 1_000_000, ["10.231.0.7"], ["10.19.0.9"]),
    "an address of megabytes": service("web", ["10.231.0.7"], ["1" * 5_000_000, "10.19.0.9"]),
    "20,000 wrong addresses": service("web", ["10.231.0.7"], ["10.19.0.256"] * 20_000),
    "100,000 equal addresses": service("web", ["10.231.0.7"], ["10.19.0.9"] * 100_000),
}


@pytest.mark.parametrize("raw", HUGE.values(), ids=[*HUGE])
def test_a_huge_service_takes_nothing_from_others(raw: Any) -> None:
    snapshot = read_all([raw, WITNESS])
    planned = plan(DEFAULTS, snapshot, IPV4).ruleset
    assert not Asked([raw, WITNESS], DEFAULTS, POD_CIDRS, HOSTS).faults(planned.chains)
    assert witnessed(planned.chains, IPV4)
    said = [str(p) for each in snapshot.services.values() for p in each.problems]
    assert len(said) <= 10
    assert all(len(each) < 500 for each in said)


# Lists and watches.


class Answer(NamedTuple):
    """What the server says next: to a list, and to a watch."""

    status: int = 200
    listed: Sequence[bytes] = ()
    watched: Sequence[bytes] = ()
    breaks: bool = False


# Lists are not streamed.
REFUSED = Answer(422)


class Wire:
    """Answers with what was drawn; then, as a server that is well again, with `objects`."""

    def __init__(self, drawn: Sequence[Answer], objects: Sequence[Any]) -> None:
        self._drawn, self._objects = list(drawn), objects
        self.stopped = threading.Event()
        self.urls: list[str] = []
        self._well = False

    def request(self, method: str, url: str, **_: Any) -> Response:
        assert method == "GET"
        self.urls.append(url)
        watched = "watch=" in url
        if self._drawn:
            answer = self._drawn.pop(0)
            data = answer.watched if watched else answer.listed
            return Response(answer.status, data, answer.breaks)
        if self._well:
            self.stopped.set()
            return Response(200, [])
        if watched and "sendInitialEvents" not in url:
            return Response(410, [])
        self._well = True
        return Response(200, [self._streamed() if watched else listed(self._objects, "9")])

    def _streamed(self) -> bytes:
        note = {"k8s.io/initial-events-end": "true"}
        end = {"metadata": {"resourceVersion": "9", "annotations": note}}
        events = [{"type": "ADDED", "object": each} for each in self._objects]
        lines = [*events, {"type": "BOOKMARK", "object": end}]
        return b"".join(encoded(line) + b"\n" for line in lines)


def listed(items: Sequence[Any], version: Any) -> bytes:
    """A list as it is sent."""
    return encoded({"metadata": {"resourceVersion": version}, "items": items})


class NoBackoff(Backoff):
    """Never waits."""

    def next(self) -> float:
        return 0.0


def follow(which: int, wire: Wire, take: Callable[[Event], None]) -> None:
    """Follows a resource of the agent's (0 are Services, 1 are Nodes) to the wire's end."""
    api = WiredApi(wire)
    resource = resources(api, Config(node_name="worker-1"))[which]
    Follower(api, resource, take, wire.stopped, NoBackoff()).run()
    assert {urlsplit(url).path for url in wire.urls} == {resource.path}
    assert all(len(url) < 1000 for url in wire.urls)


class Machine:
    """An agent, with tables in memory and time that passes with each event."""

    def __init__(self, config: Config) -> None:
        self.now = 1000.0
        self.tables = {family: FakeTable(MARK_MASQ) for family in FAMILIES}
        self._owns = owner(frozenset({"IPVS_PREROUTING", "IPVS_OUTPUT"}))
        programmers = {family: Programmer(self.tables[family], self._owns) for family in FAMILIES}
        self.agent = Agent(config, programmers, lambda: self.now)
        self.seen: list[Event] = []

    def take(self, event: Event) -> bool:
        """Has the agent take `event`, and do what is due a moment later; whether it wrote."""
        before = [table.restores for table in self.tables.values()]
        self.seen.append(event)
        self.agent.take(event)
        self.now += 0.1
        self.agent.tick()
        return before != [table.restores for table in self.tables.values()]

    def settle(self) -> None:
        """Lets the agent do all that is left to do."""
        for _ in range(3):
            self.now += 10.0
            self.agent.tick()

    def chains(self, family: Family) -> dict[str, list[str]]:
        """The agent's chains in the table."""
        text = self.tables[family].save()
        names = re.findall(r"^:(\S+)", text, re.MULTILINE)
        found: dict[str, list[str]] = {name: [] for name in names if self._owns(name)}
        for name, rule in re.findall(r"^-A (\S+) (.*)", text, re.MULTILINE):
            if name in found:
                found[name].append(rule)
        return found


@pytest.fixture(scope="module")
def said() -> Iterator[list[logging.LogRecord]]:
    """What was logged, thousands of lines that nobody wants to see."""
    handler = BufferingHandler(sys.maxsize)
    logger = logging.getLogger("ipvs_node_agent")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler.buffer
    logger.propagate = True
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    "version",
    ["\ud800", "7\n8", "7 ŏ", "7" * 9999, 7, ["7"]],
    ids=["half a character", "two lines", "a letter", "a long one", "a number", "a list"],
)
def test_a_version_that_no_request_could_name_counts_as_none(version: Any) -> None:
    told: list[Event] = []
    object_ = {**WITNESS, "metadata": {"resourceVersion": version}}
    watch = Answer(watched=[encoded({"type": "ADDED", "object": object_}) + b"\n"])
    lists = [Answer(listed=[listed([], each)]) for each in (version, "5")]
    wire = Wire([REFUSED, *lists, watch, watch], [])
    follow(0, wire, told.append)
    assert [each.error.why for each in told if isinstance(each, Trouble)] == [
        "cannot list services: the list has no resourceVersion"
    ]
    assert [parse_qs(url).get("resourceVersion") for url in wire.urls[3:5]] == [["5"], ["5"]]


@pytest.mark.parametrize("depth", [900, 5_000, 20_000, 40_000, 80_000])
@pytest.mark.parametrize("part", ["type", "message", "code"])
def test_what_is_nested_deeply_is_not_shown(part: str, depth: int) -> None:
    """Python can read some of it that it cannot print."""
    nested = b'{"a":' * depth + b"0" + b"}" * depth
    status = {"message": DEEP if part == "message" else "m", "code": DEEP if part == "code" else 1}
    event = {"type": DEEP if part == "type" else "ERROR", "object": status}
    told: list[Event] = []
    watch = Answer(watched=[encoded(event, nested) + b"\n"])
    follow(0, Wire([REFUSED, Answer(listed=[listed([], "5")]), watch], [WITNESS]), told.append)
    said = [str(e.error) for e in told if isinstance(e, Trouble)]
    said += [e.text for e in told if isinstance(e, Skipped)]
    assert all(len(each) < 100 for each in said)
    lists = [each.items for each in told if isinstance(each, Listed)]
    assert lists == [(), (read_service(WITNESS),)]


DEEP = "deeper than anybody looks"


def encoded(value: Any, deep: bytes = b"0") -> bytes:
    """`value` as JSON, with `deep` in the place of each DEEP."""
    return json.dumps(value).encode().replace(json.dumps(DEEP).encode(), deep)


deep = st.builds(
    lambda depth, mapping: (
        b'{"a":' * depth + b"0" + b"}" * depth if mapping else b"[" * depth + b"]" * depth
    ),
    st.sampled_from([1, 1, 1, 1, 300, 990, 3000, 20_000, 200_000]),
    st.booleans(),
)
odd = st.just(DEEP) | json_value
versions = mostly(
    st.sampled_from(["7", "8", "9"]),
    st.sampled_from(["", None, "\ud800", "v" * 9999, "7\n"]) | odd,
)


def with_version(raw: Any, version: Any) -> Any:
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    if not isinstance(metadata, dict):
        return raw
    return {**raw, "metadata": {**metadata, "resourceVersion": version}}


@st.composite
def answers(draw: st.DrawFn, objects: st.SearchStrategy[Any], seen: list[Any]) -> Answer:
    """What a server may say that is out of its mind, or not the one it claims to be."""
    raws = draw(st.lists(mostly(objects, odd), min_size=1, max_size=5))
    seen += raws
    whole_list: Any = {"metadata": {"resourceVersion": draw(versions)}, "items": raws}
    if draw(st.integers(0, 5)) == 0:
        whole_list[draw(st.sampled_from(["metadata", "items", "more"]))] = draw(odd)
    kinds = st.sampled_from(["ADDED", "MODIFIED", "DELETED"] * 3 + ["BOOKMARK", "ERROR", DEEP])
    lines = []
    for raw in raws:
        kind: Any = draw(kinds)
        if kind == "DELETED":
            raw = draw(st.sampled_from(seen))
        elif kind == "ERROR":
            raw = {"code": draw(st.sampled_from([410, 500, DEEP])), "message": draw(odd)}
        elif kind == "BOOKMARK":
            raw = {"metadata": {"annotations": {"k8s.io/initial-events-end": "true"}}}
        event: Any = {"type": kind, "object": with_version(raw, draw(versions))}
        if draw(st.integers(0, 9)) == 0:
            event = draw(odd)
        lines.append(encoded(event, draw(deep)))
    if draw(st.integers(0, 5)) == 0:
        lines.append(draw(st.binary(max_size=8)))
    end = draw(mostly(st.just(b"\n"), st.sampled_from([b"\r\n", b""])))
    watched = b"".join(line + b"\n" for line in lines[:-1]) + b"".join(lines[-1:]) + end
    return Answer(
        draw(st.sampled_from([200] * 40 + [301, 400, 401, 403, 410, 422, 429, 500])),
        draw(pieces(encoded(whole_list, draw(deep)))),
        draw(pieces(watched)),
        draw(mostly(st.just(False), st.just(True))),
    )


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data`, or its beginning, in two pieces."""
    kept = draw(mostly(st.just(1.0), st.sampled_from([0.5, 0.9])))
    whole = data[: int(len(data) * kept)]
    cut = draw(st.integers(0, len(whole)))
    return [whole[:cut], whole[cut:]]


@st.composite
def wires(draw: st.DrawFn, objects: st.SearchStrategy[Any]) -> tuple[list[Answer], list[Any]]:
    """The answers of such a server, and the objects that are in them."""
    seen: list[Any] = draw(st.lists(objects, max_size=4))
    # Mostly it is well at first, or there would be few watches.
    well = [REFUSED, Answer(listed=[listed(seen, "6")])]
    first = draw(mostly(st.just(well), st.just([])))
    return [*first, *draw(st.lists(answers(objects, seen), min_size=1, max_size=6))], seen


def survives(
    machine: Machine,
    which: int,
    wire: Wire,
    judge: Callable[[Family], None],
    said: list[logging.LogRecord],
) -> None:
    """Holds that `judge` has nothing against any write, and that all ends well and is told so."""

    def take(event: Event) -> None:
        for family in FAMILIES if machine.take(event) else ():
            judge(family)

    follow(which, wire, take)
    machine.settle()
    assert all(witnessed(machine.chains(family), family) for family in FAMILIES)
    texts = [str(event.error) for event in machine.seen if isinstance(event, Trouble)]
    texts += [event.text for event in machine.seen if isinstance(event, Skipped)]
    texts += [machine.agent.sentence(), *(record.getMessage() for record in said)]
    said.clear()
    assert all(each.isprintable() and len(each) < 2500 for each in texts)


@hunt(200)
@given(drawn=wires(services), config=layouts, last=st.lists(services, max_size=3))
def test_whatever_the_server_says_of_services_every_rule_was_asked_for(
    drawn: tuple[list[Answer], list[Any]],
    config: Config,
    last: list[Any],
    said: list[logging.LogRecord],
) -> None:
    answered, seen = drawn
    asked = Asked([*seen, *last, WITNESS], config, POD_CIDRS, HOSTS, exact=False)
    machine = Machine(config)
    machine.take(Listed(NODES, (NODE,), machine.now))

    def judge(family: Family) -> None:
        assert not asked.faults(machine.chains(family))

    survives(machine, 0, Wire(answered, [*last, WITNESS]), judge, said)
    for family in FAMILIES:
        # Whatever there was before, it is over.
        wanted = plan(config, read_all([*last, WITNESS]), family).ruleset.chains
        assert machine.chains(family) == {name: list(rules) for name, rules in wanted.items()}


@hunt(100)
@given(drawn=wires(nodes))
def test_whatever_the_server_says_of_nodes_every_rule_was_asked_for(
    drawn: tuple[list[Answer], list[Any]], said: list[logging.LogRecord]
) -> None:
    answered, seen = drawn
    machine = Machine(Config(services=ServiceOptions(match_ports="Always")))
    machine.take(Listed(SERVICES, (read_service(WITNESS),), machine.now))

    def judge(family: Family) -> None:
        for rule in machine.chains(family).get("IPVS_PREROUTING", ()):
            source = rule.split()[1]
            assert source in POD_CIDRS or source in json.dumps(seen), rule

    survives(machine, 1, Wire(answered, [node(*POD_CIDRS)]), judge, said)
