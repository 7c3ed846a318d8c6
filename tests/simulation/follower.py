"""A Follower against a server in simulated time: what it tells, when it asks, and how often.

A history is what happens to the server, its answers and the credentials, as calls of `Server`'s
methods. In the end the server is well again. The judge reads the same bytes as the Follower, in its
own and plainer way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, cast

from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.reading import object_key
from ipvs_node_agent.apiserver.resources import Resource
from ipvs_node_agent.backoff import Backoff
from tests.simulation.search import Simulation, Step, Violation, step
from tests.simulation.servers import SPARING, Event, Server, Timed, event

# A connection that is dead is noticed after 630 s at most, whatever is doubted is so three times,
# and no wait is longer than a minute.
WELL_WITHIN = 1000.0

NAMES = ("a", "b", "c")
SPOILS = (
    *("no version", "a number", "two lines", "a long one", "nonsense", "old", "future"),
    *("unknown type", "unknown kind", "unknown name", "twice", "cut"),
)
JUNK = (
    b"garbage\n",
    b"\n",
    b" \r\n",
    b"\xff\xfe\n",
    b'"\xc3"\n',
    b"[" * 3000 + b"\n",
    b"[1]\n",
    b'{"type":"ADDED"}\n',
    b'{"object":{}}\n',
    b'{"type":"ADDED","obj',
    event("ADDED", None),
    event("ADDED", []),
    event("ADDED", {"kind": "Pod", "metadata": {"name": "a"}}),
    event("DELETED", {"metadata": {"name": 7}}),
    event(None, {}),
    event("BOOKMARK", None),
    event("BOOKMARK", {"metadata": {"resourceVersion": 7}}),
    event("ERROR", None),
    event("ERROR", {"code": 0}),
    *(event("ERROR", {"code": code}) for code in (400, 401, 403, 410, 422, 429, 500, 503)),
    event("ERROR", {"reason": "Expired"}),
)
NO_LISTS = (
    b"",
    b"[]",
    b"<html>",
    b'{"a" 1}',
    b"{1: 2}",
    b'{"items": [1 2]}',
    b'{"items": [1,]}',
    b'{"items": ["\xff"]}',
    b'{"items": [' + b"[" * 3000,
    b'{"items": [nothing]}',
    b'{"items": []}',
    b'{"items": [], "metadata": {"resourceVersion": 7}}',
    b'{"items": [], "metadata": {"resourceVersion": "\\n"}}',
    b'{"items": [], "metadata": null}',
)
# Those steps that have no more to say.
BARE = ("odd", "bookmark", "silence", "restore", "mend", "keyless", "rotate", "hurry")
STATUSES = (302, 400, 401, 403, 404, 410, 422, 429, 429, 500, 503, 503, 504)
SIZES = ((1,), (1, 2, 3), (7,), (64,), (1, 1000), (1 << 16,))
_PAUSES = (0.0, 0.0, 0.01, 0.3, 1.0, 2.0, 6.0, 6.0, 20.0, 70.0, 400.0)


def _kinds(dice: random.Random) -> dict[str, Callable[[], Step]]:
    """How to make a step of each kind."""
    choice = dice.choice

    def refuse() -> Step:
        what: Any = choice((*STATUSES, "connection", "connection", "flapping", "silence"))
        busy = what in (429, 503) and dice.random() < 0.7
        retry_after = choice((1, 5, 20, 60)) if busy else 0.0
        return step("refuse", what, choice((1, 1, 2, 4, 9, 40)), retry_after)

    def cut() -> Step:
        return step("cut", choice((1, 10, dice.randrange(600))), dice.random() < 0.5)

    return {
        "put": lambda: step("put", choice(NAMES), dice.randrange(100)),
        "delete": lambda: step("delete", choice(NAMES)),
        "knows": lambda: step("knows", dice.random() < 0.5, dice.random() < 0.5),
        "send": lambda: step("send", choice(JUNK)),
        "spoil": lambda: step("spoil", choice(SPOILS)),
        "pieces": lambda: step("pieces", choice(SIZES)),
        "cut": cut,
        "late": lambda: step("late", choice((b"", *JUNK))),
        "no list": lambda: step("no_list", choice(NO_LISTS)),
        "close": lambda: step("close", dice.random() < 0.4),
        "compact": lambda: step("compact", dice.random() < 0.5),
        "refuse": refuse,
        **{name: partial(step, name) for name in BARE},
    }


def history(seed: int) -> Sequence[Timed]:
    """Each seed has some of the kinds of steps, and those often."""
    dice = random.Random(seed)
    make = _kinds(dice)
    kinds = dice.sample(sorted(make), dice.randrange(2, 9))
    kinds += ["put", "put", "delete", *kinds[:2]]
    steps: list[Timed] = [(0.0, step("dice", dice.randrange(1000)))]
    steps.append((0.0, step("knows", dice.random() < 0.7, dice.random() < 0.7)))
    steps.append((0.0, step("pieces", dice.choice(SIZES))))
    pauses = _PAUSES[: dice.choice((4, 7, len(_PAUSES)))]
    for _ in range(dice.randrange(3, 30)):
        kind = dice.choice(kinds)
        steps.append((dice.choice(pauses), make[kind]()))
    if dice.random() < 0.1:
        steps.append((dice.choice(_PAUSES), step("stop")))
    return steps


def play(steps: Sequence[Timed]) -> None:
    """Has a Follower live through `steps`, and a while more."""
    seed = next((each.arguments[0] for _, each in steps if each.name == "dice"), 0)
    chance = random.Random(seed).random
    end = [
        (1.0, step("heal")),
        (WELL_WITHIN, step("agree")),
        (1.0, step("put", "last", 1)),
        (1.0, step("agree")),
        (0.0, step("stop")),
    ]
    server = Server([*steps, *end])
    server.follower = Follower(
        cast(Any, server),
        Resource("services", "/s", "Service", _read, dict, SPARING, streamed=True),
        server.judge.told_of,
        cast(Any, server.stopped),
        Backoff(server.clock, chance),
        server.clock,
        chance,
        cast(Any, lambda: Event(server)),
    )
    server.follower.run()
    if not server.stopped.is_set():
        raise Violation("it ended by itself")


def _read(raw: Any) -> tuple[str, Any]:
    return object_key(raw, "Service"), raw.get("value")


SIMULATION = Simulation("follower", history, play)
