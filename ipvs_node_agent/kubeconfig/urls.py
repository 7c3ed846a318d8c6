"""Where connections go to: hosts and URLs, taken only in the form that every library reads alike.

Each function raises BadUrl.
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from ipvs_node_agent.model.addresses import parse_address

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(.*)")
_AUTHORITY = re.compile(r"(?:(.*)@)?(\[[^]]*\]|[^:]*)(?::([^:]*))?")
_MOST_IN_LABEL, _MOST_IN_NAME = 63, 253


class BadUrl(ValueError):
    """Why ends a sentence about what was given, and shows none of it: there may be a password."""


class Url(NamedTuple):
    """A URL in its parts; `host` is without brackets, and `user` may hold a password."""

    scheme: str
    user: str | None
    host: str
    port: int | None
    path: str

    def __str__(self) -> str:
        """The URL without its user."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port or (443 if self.scheme == "https" else 80)


def parse(text: str, *schemes: str) -> Url:
    """The parts of a URL of one of the `schemes`, which are http and https."""
    odd = next((char for char in text if not "!" <= char <= "~" or char == "\\"), None)
    if odd is not None:
        raise BadUrl(f"has a character that is not allowed in URLs (U+{ord(odd):04X})")
    found = _URL.fullmatch(text)
    authority = _AUTHORITY.fullmatch(found[2]) if found else None
    if not found or not authority or found[1].lower() not in schemes or found[4]:
        raise BadUrl(f"is not of the form {schemes[0]}://HOST:PORT")
    scheme = found[1].lower()
    return Url(scheme, authority[1], _host(authority[2]), _port(authority[3]), found[3])


def server(text: str) -> str:
    """The URL of an API server, as it may be shown; paths of requests are appended to it."""
    url = parse(text, "https", "http")
    if url.user is not None:
        raise BadUrl("holds a user or a password, which no API server takes")
    return str(url._replace(path=url.path.rstrip("/")))


def proxy(text: str) -> tuple[str, str | None]:
    """The URL of an HTTP proxy without its user, and what authorizes that one there."""
    url = parse(text, "http")
    if url.path.strip("/"):
        raise BadUrl("is not of the form http://HOST:PORT")
    if url.user is None:
        return str(url), None
    # As bytes, since a password may be of characters that no header has.
    return str(url), f"Basic {base64.b64encode(unquote_to_bytes(url.user)).decode()}"


def host(text: str) -> str:
    """The name or address of a host, as it is."""
    return text if ":" in text and _is_address(text) else _name(text)


def _host(text: str) -> str:
    if not text.startswith("["):
        return _name(text)
    if not _is_address(text[1:-1]) or ":" not in text:
        raise BadUrl("has a host that is not an IPv6 address")
    return text[1:-1]


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


def _name(text: str) -> str:
    """A DNS name, or an IPv4 address."""
    odd = re.search(r"[^A-Za-z0-9_.-]", text)
    if odd:
        raise BadUrl(
            f"has a host with a character that is not allowed in names (U+{ord(odd[0]):04X})"
        )
    labels = text.removesuffix(".").split(".")
    if not text:
        raise BadUrl("has no host")
    if not all(labels):
        raise BadUrl("has a host with an empty label")
    if max(map(len, labels)) > _MOST_IN_LABEL or len(text) > _MOST_IN_NAME:
        raise BadUrl(
            f"has a host of more than {_MOST_IN_NAME} characters, or {_MOST_IN_LABEL} in a label"
        )
    # Others would read 10.1 and 0x0a000001 as addresses, each its own one.
    if re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", labels[-1]) and not _is_address(text):
        raise BadUrl("has a host that is not an IPv4 address")
    return text


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise BadUrl("has a port outside 1 to 65535")
    return int(text)
