"""A Follower against a server in simulated time: what it tells, when it asks, and how often.

A history is what happens to the server, its answers and the credentials. In the end the server is
well again. The judge reads the same bytes as the Follower, in its own and plainer way.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.reading import object_key
from ipvs_node_agent.apiserver.resources import Resource
from ipvs_node_agent.backoff import Backoff
from tests.simulation.judge import Judge
from tests.simulation.search import Violation
from tests.simulation.servers import SPARING, Event, Server, event

# A connection that is dead is noticed after 630 s at most, whatever is doubted is so three times,
# and no wait is longer than a minute.
WELL_WITHIN = 1000.0


class Chance(NamedTuple):
    """The dice of the back-off."""

    after: float
    seed: int

    def happen(self, server: Server) -> None:
        pass


class Put(NamedTuple):
    """An object is made or changed."""

    after: float
    name: str
    value: int

    def happen(self, server: Server) -> None:
        server.put(self.name, self.value)


class Delete(NamedTuple):
    """An object is removed."""

    after: float
    name: str

    def happen(self, server: Server) -> None:
        server.delete(self.name)


class Odd(NamedTuple):
    """Lists have items that are no objects, and streaming lists some that go at once."""

    after: float

    def happen(self, server: Server) -> None:
        server.odd = True


class Knows(NamedTuple):
    """What the server knows: streaming lists, and field selectors."""

    after: float
    streaming: bool
    selecting: bool

    def happen(self, server: Server) -> None:
        server.streaming, server.selecting = self.streaming, self.selecting


class Bookmark(NamedTuple):
    """The open watch gets a bookmark."""

    after: float

    def happen(self, server: Server) -> None:
        server.send(server.bookmark())


class Send(NamedTuple):
    """The open watch gets these bytes."""

    after: float
    data: bytes

    def happen(self, server: Server) -> None:
        server.send(self.data)


class Spoil(NamedTuple):
    """Something happens to the next event's line."""

    after: float
    how: str

    def happen(self, server: Server) -> None:
        server.spoils.append(self.how)


class Pieces(NamedTuple):
    """Bodies arrive in pieces of these sizes from now on."""

    after: float
    sizes: tuple[int, ...]

    def happen(self, server: Server) -> None:
        server.sizes = itertools.cycle(self.sizes)


class Cut(NamedTuple):
    """The body that comes, or the next one, ends after so many bytes more."""

    after: float
    size: int
    reset: bool

    def happen(self, server: Server) -> None:
        server.limit = (self.size, self.reset)


class Late(NamedTuple):
    """The next streaming list has this in the place of its end, and stops."""

    after: float
    data: bytes

    def happen(self, server: Server) -> None:
        server.unmarked = self.data


class NoList(NamedTuple):
    """The next list is this."""

    after: float
    data: bytes

    def happen(self, server: Server) -> None:
        server.no_list = self.data


class Close(NamedTuple):
    """The open answer ends."""

    after: float
    reset: bool

    def happen(self, server: Server) -> None:
        server.close(self.reset)


class Silence(NamedTuple):
    """Nothing more comes over the open connection, not even its end."""

    after: float

    def happen(self, server: Server) -> None:
        if server.body is not None:
            server.body.silent = True


class Compact(NamedTuple):
    """Versions before now are gone."""

    after: float
    as_event: bool

    def happen(self, server: Server) -> None:
        server.oldest, server.gone_as_event = server.version, self.as_event


class Restore(NamedTuple):
    """The server is another one, with versions that were seen before."""

    after: float

    def happen(self, server: Server) -> None:
        server.newest = max(server.newest, server.version)
        server.version = max(server.oldest, 10, server.version - 5)
        server.log = [entry for entry in server.log if entry[1] <= server.version]
        server.lossy = True
        server.close(reset=True)


class Refuse(NamedTuple):
    """The next requests are refused: with a status, no connection, or no answer.

    A server that is "flapping" takes connections only to break them.
    """

    after: float
    what: Any
    times: int
    retry_after: float

    def happen(self, server: Server) -> None:
        server.refusals.extend([(self.what, self.retry_after)] * self.times)


class Mend(NamedTuple):
    """Requests are no longer refused, and there are credentials."""

    after: float

    def happen(self, server: Server) -> None:
        server.refusals.clear()
        server.keyless = False


class Keyless(NamedTuple):
    """There are no credentials any more."""

    after: float

    def happen(self, server: Server) -> None:
        server.keyless = True


class Rotate(NamedTuple):
    """There are other credentials."""

    after: float

    def happen(self, server: Server) -> None:
        server.supersede()


class Hurry(NamedTuple):
    """Something else has reached the server."""

    after: float

    def happen(self, server: Server) -> None:
        server.hurry()


class _Heal(NamedTuple):
    after: float

    def happen(self, server: Server) -> None:
        server.heal()


class _Agree(NamedTuple):
    after: float

    def happen(self, server: Server) -> None:
        server.witness.well()


class Stop(NamedTuple):
    """Everything ends."""

    after: float

    def happen(self, server: Server) -> None:
        server.stop()


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
STATUSES = (302, 400, 401, 403, 404, 410, 422, 429, 429, 500, 503, 503, 504)
SIZES = ((1,), (1, 2, 3), (7,), (64,), (1, 1000), (1 << 16,))
_PAUSES = (0.0, 0.0, 0.01, 0.3, 1.0, 2.0, 6.0, 6.0, 20.0, 70.0, 400.0)


def _maker(dice: random.Random) -> dict[str, Any]:
    """How to make a step of each kind."""
    choice = dice.choice

    def refuse(after: float) -> Refuse:
        what: Any = choice((*STATUSES, "connection", "connection", "flapping", "silence"))
        busy = what in (429, 503) and dice.random() < 0.7
        retry_after = choice((1, 5, 20, 60)) if busy else 0.0
        return Refuse(after, what, choice((1, 1, 2, 4, 9, 40)), retry_after)

    return {
        "put": lambda after: Put(after, choice(NAMES), dice.randrange(100)),
        "delete": lambda after: Delete(after, choice(NAMES)),
        "odd": Odd,
        "knows": lambda after: Knows(after, dice.random() < 0.5, dice.random() < 0.5),
        "bookmark": Bookmark,
        "send": lambda after: Send(after, choice(JUNK)),
        "spoil": lambda after: Spoil(after, choice(SPOILS)),
        "pieces": lambda after: Pieces(after, choice(SIZES)),
        "cut": lambda after: Cut(after, choice((1, 10, dice.randrange(600))), dice.random() < 0.5),
        "late": lambda after: Late(after, choice((b"", *JUNK))),
        "no list": lambda after: NoList(after, choice(NO_LISTS)),
        "close": lambda after: Close(after, dice.random() < 0.4),
        "silence": Silence,
        "compact": lambda after: Compact(after, dice.random() < 0.5),
        "restore": Restore,
        "refuse": refuse,
        "mend": Mend,
        "keyless": Keyless,
        "rotate": Rotate,
        "hurry": Hurry,
    }


class Simulation:
    """As `search` wants it."""

    name = "follower"

    def history(self, seed: int) -> Sequence[Any]:
        """Each seed has some of the kinds of steps, and those often."""
        dice = random.Random(seed)
        make = _maker(dice)
        kinds = dice.sample(sorted(make), dice.randrange(2, 9))
        kinds += ["put", "put", "delete", *kinds[:2]]
        steps: list[Any] = [Chance(0.0, dice.randrange(1000))]
        steps.append(Knows(0.0, dice.random() < 0.7, dice.random() < 0.7))
        steps.append(Pieces(0.0, dice.choice(SIZES)))
        quick = dice.choice((4, 7, len(_PAUSES)))
        for _ in range(dice.randrange(3, 30)):
            steps.append(make[dice.choice(kinds)](dice.choice(_PAUSES[:quick])))
        if dice.random() < 0.1:
            steps.append(Stop(dice.choice(_PAUSES)))
        return steps

    def play(self, steps: Sequence[Any]) -> None:
        """Has a Follower live through `steps`, and a while more."""
        seed = next((step.seed for step in steps if isinstance(step, Chance)), 0)
        chance = random.Random(seed).random
        judge = Judge()
        end = [_Heal(1.0), _Agree(WELL_WITHIN), Put(1.0, "last", 1), _Agree(1.0), Stop(0.0)]
        server = Server([*steps, *end], judge)
        judge.server = server
        stopped = Event(server)
        resource = Resource("services", "/s", "Service", _read, dict, SPARING, streamed=True)
        follower = Follower(
            cast(Any, server),
            resource,
            judge.told_of,
            cast(Any, stopped),
            Backoff(server.clock, chance),
            server.clock,
            chance,
            cast(Any, lambda: Event(server)),
        )

        def hurry() -> None:
            judge.hurried()
            follower.hurry()

        server.hurry = hurry

        def stop() -> None:
            judge.over = True
            stopped.set()
            server.supersede()

        server.stop = stop
        follower.run()
        if not stopped.is_set():
            raise Violation("it ended by itself")


def _read(raw: Any) -> tuple[str, Any]:
    return object_key(raw, "Service"), raw.get("value")


SIMULATION = Simulation()
