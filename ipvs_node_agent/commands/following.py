"""The threads that follow the API server with one set of credentials, until a reload brings others.

What they tell is put to the main thread, which alone touches the agent.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Callable

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.leash import Leash, Places
from ipvs_node_agent.apiserver.outcome import CUT_OFF, ENDED
from ipvs_node_agent.apiserver.resources import node_name, resources
from ipvs_node_agent.apiserver.silence import Silence
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.kubeconfig.reader import Reader
from ipvs_node_agent.model.events import NODES, Event, Recovered, Restarted, Trouble

# How often the credentials' files are looked at besides with each request, and how often at most:
# a rotation takes a file away before the next one is in its place.
_CREDENTIALS_PERIOD, _CREDENTIALS_PAUSE = 10.0, 1.0
# What the main thread is to do, put to it by the others.
Put = Callable[[Callable[[], object]], None]
# The same, by those who may be kept waiting until the main thread has done more, or all is over.
PutInTurn = Callable[[Callable[[], object], threading.Event], None]
# What else uses the API server, as the Node of a name, until it is to stop.
Beside = Callable[[Api, Callable[[], str], threading.Event], None]


def start_thread(run: Callable[[], None], put: Put) -> None:
    """Runs it in a thread of its own; what it raises is raised in the main thread."""

    def until_it_ends() -> None:
        try:
            run()
        except BaseException as error:  # A bug must end the process, not just its thread.
            put(partial(_crash, error))

    threading.Thread(target=until_it_ends, daemon=True).start()


def _crash(error: BaseException) -> None:
    raise error


class Following:
    """The threads that follow the API server with one set of credentials.

    `reader` has the credentials. `take` takes what they tell, in the main thread and by way of
    `put_in_turn`, and `take_places` where they reach it.
    """

    def __init__(
        self,
        config: Config,
        reader: Reader,
        put: Put,
        put_in_turn: PutInTurn,
        take: Callable[[Event], None],
        take_places: Callable[[Places, bool], None],
        beside: Sequence[Beside],
    ) -> None:
        self.api = Api(reader.path, reader)
        self._config, self._put, self._put_in_turn = config, put, put_in_turn
        self._take, self._beside = take, beside
        self._stopped = threading.Event()
        # Those that lost the API server, and have not reached it again.
        self._cut: set[str] = set()
        self._leash = Leash(
            self.api, lambda places, complete: put(partial(take_places, places, complete))
        )
        self._silence = Silence(
            lambda: self.api.contact,
            lambda: self._leash.hurry(reached=True),
            self._tell,
        )
        self._followers = [
            Follower(self.api, resource, self._emit, self._stopped)
            for resource in resources(self.api, config)
        ]

    def start(self) -> None:
        """Follows from now on, until `stop`."""
        name = partial(node_name, self.api, self._config)
        for beside in self._beside:
            start_thread(partial(beside, self.api, name, self._stopped), self._put)
        start_thread(partial(self._silence.run, self._stopped), self._put)
        for run in (self._refresh, self._leash.run, *(one.run for one in self._followers)):
            start_thread(run, self._put)

    def _tell(self, event: Event) -> None:
        # The next set of threads tells everything anew.
        self._put_in_turn(partial(self._take, event), self._stopped)

    def _emit(self, event: Event) -> None:
        if self._stopped.is_set():
            return
        self._tell(event)
        cut = isinstance(event, Restarted) and event.reason in CUT_OFF
        if cut or (isinstance(event, Trouble) and event.away):
            self._cut.add(event.resource)
        if isinstance(event, Restarted) and event.reason == ENDED and event.resource == NODES:
            # Until this thread watches again, its connection is idle.
            self._leash.ask_in_passing()
        if isinstance(event, (Recovered, Restarted, Trouble)):
            # Its name may stand for another address now, which a rule must let go of.
            self._leash.hurry(reached=isinstance(event, Recovered) and self._all_are_back(event))
        if isinstance(event, Recovered):
            # What keeps one resource away mostly keeps the other away too, and is over for both.
            self._hurry(but=event.resource)

    def _all_are_back(self, event: Recovered) -> bool:
        """Whether it is the end of an outage, for the last one of those that had met it."""
        met = event.resource in self._cut
        self._cut.discard(event.resource)
        return met and not self._cut

    def _hurry(self, but: str = "") -> None:
        for follower in self._followers:
            if follower.name != but:
                follower.hurry()

    def _refresh(self) -> None:
        """Follows the credentials' files. To read them may take two minutes (an exec plugin)."""
        while not self._stopped.wait(_CREDENTIALS_PAUSE):
            if self.api.refresh():
                # Their watches are cut off, and its Endpoints are asked for when they are back.
                self._leash.hurry()
                self._hurry()
            if not self.api.is_torn:
                self.api.connecting.wait(_CREDENTIALS_PERIOD)
                self.api.connecting.clear()

    def stop(self) -> None:
        """Lets the threads end; nothing of theirs arrives any more."""
        self._stopped.set()
        self._leash.stop()
        self.api.close()
        self.api.connecting.set()
        self._hurry()
