"""Silence of the API server: asked about, told of as one trouble, and its end."""

from __future__ import annotations

import math
import threading

import pytest

from ipvs_node_agent.apiserver.silence import AGAIN, ASKS, SILENT, Silence
from ipvs_node_agent.model.events import CONNECTION, Event, Recovered, Trouble


class Server:
    """Is heard of when a test says so, and answers who asks as long as it is well."""

    def __init__(self) -> None:
        self.now, self.heard, self.well = 1000.0, -math.inf, True
        self.asked: list[float] = []
        self.told: list[tuple[float, str]] = []
        self.silence = Silence(lambda: self.heard, self._ask, self._tell, lambda: self.now)

    def _ask(self) -> None:
        self.asked.append(self.now)
        if self.well:
            self.heard = self.now

    def _tell(self, event: Event) -> None:
        assert isinstance(event, (Trouble, Recovered))
        assert event.resource == CONNECTION
        assert not isinstance(event, Trouble) or event.away
        self.told.append((self.now, type(event).__name__))

    def troubles(self) -> list[tuple[float, str]]:
        """What was told behind the first word."""
        return self.told[1:] if self.told[:1] and self.told[0][1] == "Recovered" else self.told

    def pass_time(self, seconds: float, heard_every: float = math.inf) -> int:
        """Lets it look whenever it wants to, and gives how often it did."""
        end, next_byte, turns = self.now + seconds, self.now + heard_every, 0
        due = self.now
        while min(due, next_byte) <= end:
            self.now = min(due, next_byte)
            if self.now == next_byte:
                self.heard, next_byte = self.now, self.now + heard_every
            if self.now == due:
                wait = self.silence.turn()
                assert wait > 0
                due, turns = self.now + wait, turns + 1
        self.now = end
        return turns


@pytest.fixture
def server() -> Server:
    return Server()


def test_who_is_heard_of_every_minute_is_not_asked(server: Server) -> None:
    # Nor does anybody look more often than has to be.
    assert server.pass_time(3600, heard_every=60) <= 3600 / (ASKS - 60)
    assert (server.asked, server.troubles()) == ([], [])


def test_who_says_nothing_and_answers_is_followed(server: Server) -> None:
    server.pass_time(3600)
    assert len(server.asked) == 3600 // ASKS
    assert server.troubles() == []


def test_who_does_not_answer_is_told_of_once_and_so_is_his_return(server: Server) -> None:
    server.pass_time(600, heard_every=60)
    silent_since, server.well = server.heard, False
    server.pass_time(3600)
    # And then not any more.
    assert server.asked == [silent_since + ASKS + n * AGAIN for n in range(3)]
    assert server.troubles() == [(silent_since + SILENT, "Trouble")]
    server.well, server.heard = True, server.now
    server.pass_time(2)
    ((when, what),) = server.troubles()[1:]
    assert what == "Recovered"
    assert when == pytest.approx(server.now, abs=3)
    server.pass_time(1000)
    assert len(server.troubles()) == 2


def test_who_was_never_heard_of_is_silent_since_the_start(server: Server) -> None:
    server.well = False
    server.pass_time(SILENT - 1)
    assert server.troubles() == []
    server.pass_time(2)
    assert server.troubles() == [(1000 + SILENT, "Trouble")]


def test_the_first_word_ends_what_an_earlier_one_told(server: Server) -> None:
    """As after a reload that mends the kubeconfig: the outage is over."""
    server.pass_time(5)
    assert server.told == []
    server.heard = server.now
    server.pass_time(200)
    assert [what for _, what in server.told] == ["Recovered"]


def test_it_ends_when_everything_ends(server: Server) -> None:
    stopped = threading.Event()
    thread = threading.Thread(target=server.silence.run, args=(stopped,))
    thread.start()
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()
