"""How an attempt at following a resource ends, and what follows from that: the table `FOLLOWS`."""

from __future__ import annotations

from enum import Enum, auto
from typing import Callable, NamedTuple

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.backoff import Backoff, Seldom
from ipvs_node_agent.errors import AgentError


class Ending(Enum):
    """How an attempt ended."""

    LISTED = "a list is whole"
    ENDED = "the server ended a watch"
    OTHER_WAY = "the server does not know this way of asking, which is given up for good"
    EXPIRED = "the server no longer knows the version (410)"
    SUPERSEDED = "the credentials changed"
    UNREADABLE = "what came is no event"
    UNREACHABLE = "nobody answered, or the connection broke"
    PASSING = "refused with what a list would be refused with too, or would do harm (429)"
    REFUSED = "refused, maybe for the version's sake"
    NO_CREDENTIALS = "there is nothing to ask with"


class Version(Enum):
    """What becomes of the version to watch from."""

    KEPT = auto()
    # A list goes around it once that has happened a few times.
    DOUBTED = auto()
    DROPPED = auto()


class Told(Enum):
    """Whether its error is told as Trouble."""

    NEVER = auto()
    # Where no version is left; before, it may be no more than a restart of the server.
    WITHOUT_VERSION = auto()
    ALWAYS = auto()


class Pause(Enum):
    """What comes before the next attempt."""

    NONE = auto()
    # None, but once in half a minute at most; otherwise a back-off.
    SELDOM_NONE = auto()
    # A back-off, but none after an answer that had gone on for some seconds.
    BACKOFF_IF_SHORT = auto()
    BACKOFF = auto()


class Follows(NamedTuple):
    """What follows from an ending; `reason` is for counting, empty where nothing was cut off."""

    reason: str
    told: Told
    version: Version
    pause: Pause


# Why a watch ended where the next one may reach another API server, or it at another address.
CUT_OFF = _CHANGED, _UNREACHABLE = "CredentialsChanged", "Unreachable"
# Why a watch ended whose connection another request may have.
ENDED = "Ended"
# LISTED and OTHER_WAY need no pause, as neither goes on for ever: what follows a list is a watch,
# and there are two ways to give up.
FOLLOWS = {
    Ending.LISTED: Follows("", Told.NEVER, Version.KEPT, Pause.NONE),
    Ending.ENDED: Follows(ENDED, Told.NEVER, Version.KEPT, Pause.BACKOFF_IF_SHORT),
    Ending.OTHER_WAY: Follows("", Told.NEVER, Version.KEPT, Pause.NONE),
    Ending.EXPIRED: Follows("Expired", Told.NEVER, Version.DROPPED, Pause.SELDOM_NONE),
    Ending.SUPERSEDED: Follows(_CHANGED, Told.NEVER, Version.KEPT, Pause.SELDOM_NONE),
    Ending.UNREADABLE: Follows(
        "Unreadable", Told.WITHOUT_VERSION, Version.DOUBTED, Pause.BACKOFF_IF_SHORT
    ),
    Ending.UNREACHABLE: Follows(_UNREACHABLE, Told.ALWAYS, Version.KEPT, Pause.BACKOFF_IF_SHORT),
    Ending.PASSING: Follows("Refused", Told.ALWAYS, Version.KEPT, Pause.BACKOFF),
    Ending.REFUSED: Follows("Refused", Told.ALWAYS, Version.DOUBTED, Pause.BACKOFF),
    Ending.NO_CREDENTIALS: Follows("NoCredentials", Told.ALWAYS, Version.KEPT, Pause.BACKOFF),
}

_PASSING = (401, 403, 429, 503)
# Of an API server that starts, ends or has too much to do, or of a proxy that finds none.
_UNABLE = (429, 500, 502, 503, 504)


class Outcome(NamedTuple):
    """How one attempt ended; `lived` says that an answer had gone on for some seconds."""

    ending: Ending
    error: AgentError | None = None
    lived: bool = False

    @property
    def away(self) -> bool:
        """Whether nobody is there to ask, or nobody who could answer."""
        status = self.error.status if isinstance(self.error, ApiError) else None
        return status == 0 or status in _UNABLE

    @property
    def least(self) -> float:
        """The seconds that the server wants to be left alone for."""
        return self.error.retry_after if isinstance(self.error, ApiError) else 0.0


def failed(error: AgentError) -> Ending:
    """The ending that `error` is."""
    if not isinstance(error, ApiError):
        return Ending.NO_CREDENTIALS
    if error.status == 0:
        return Ending.UNREACHABLE
    if error.status == 410:
        return Ending.EXPIRED
    return Ending.PASSING if error.status in _PASSING else Ending.REFUSED


class Pace:
    """How soon attempts follow each other, so that no server can make them come all the time."""

    def __init__(self, backoff: Backoff, clock: Callable[[], float]) -> None:
        self._backoff = backoff
        self._none = Seldom(Backoff.CAP, clock)

    def after(self, outcome: Outcome) -> float:
        """The seconds to wait after `outcome`."""
        pause = FOLLOWS[outcome.ending].pause
        if pause is Pause.NONE or (pause is Pause.BACKOFF_IF_SHORT and outcome.lived):
            return 0.0
        if pause is Pause.SELDOM_NONE and self._none.due:
            self._none.done()
            return 0.0
        return max(self._backoff.next(), outcome.least)
