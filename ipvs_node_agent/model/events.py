"""What is followed of the API server, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Union

from ipvs_node_agent.errors import AgentError

# The resources that are followed.
SERVICES, NODES = "services", "nodes"


@dataclass(frozen=True)
class Resource:
    """What to list and watch. `read` makes a value of a raw object, or raises UnknownObject.

    `selector` gives the request's selectors; it is asked each time, and may raise AgentError.
    `sparing` are further ones, for what `read` would make nothing of: a server that does not know
    them is asked without. `streamed` says that there is enough of it for a streaming list.
    """

    name: str
    path: str
    kind: str
    read: Callable[[Any], Any]
    selector: Callable[[], Mapping[str, str]]
    sparing: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = False


class Listed(NamedTuple):
    """Everything there is of a resource, at one moment. `arrived` is monotonic, as everywhere."""

    resource: str
    items: tuple[Any, ...]
    arrived: float


class Changed(NamedTuple):
    """An object was made or changed."""

    resource: str
    item: Any
    arrived: float


class Deleted(NamedTuple):
    """An object is gone."""

    resource: str
    key: str
    arrived: float


class Skipped(NamedTuple):
    """Something in the stream was no such object; it was passed over."""

    resource: str
    text: str


class Trouble(NamedTuple):
    """The resource cannot be followed right now."""

    resource: str
    error: AgentError


class Recovered(NamedTuple):
    """The resource is being followed."""

    resource: str


class Restarted(NamedTuple):
    """A watch, or the attempt at one, has ended, and there will be another. See RESTART_REASONS."""

    resource: str
    reason: str


Event = Union[Listed, Changed, Deleted, Skipped, Trouble, Recovered, Restarted]

# Why a watch ended, one word each, for counting.
RESTART_REASONS = {
    "Ended": "the server ended it in time",
    "Expired": "the server no longer knows the version to go on from",
    "Unreadable": "the stream could not be read on",
    "Unreachable": "the server could not be reached, or the connection broke",
    "Refused": "the server refused it",
    "CredentialsChanged": "the credentials it was made with were replaced",
    "NoCredentials": "there are no credentials that can be used",
}
