"""What the API server tells of the Services and of this Node."""

from __future__ import annotations

from typing import Any, NamedTuple, Union

from ipvs_node_agent.errors import AgentError

# The resources that are followed.
SERVICES, NODES = "services", "nodes"


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


# In place of a resource, where it is the API server as such that is silent.
CONNECTION = "connection"


class Trouble(NamedTuple):
    """The resource cannot be followed right now; `away` where nobody is there, or able to."""

    resource: str
    error: AgentError
    away: bool = False


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
    "Expired": "the server no longer has the version to resume from",
    "Unreadable": "the stream could not be read on",
    "Unreachable": "the server could not be reached, or the connection broke",
    "Refused": "the server refused it",
    "CredentialsChanged": "the credentials it was made with were replaced",
    "NoCredentials": "there are no credentials that can be used",
}
