"""What is to be explained, out of the command line: an address, or a Service."""

from __future__ import annotations

import re
from typing import NamedTuple

from ipvs_node_agent.errors import UsageError, one_line
from ipvs_node_agent.model.addresses import Address, parse_address

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_SERVICE = re.compile(rf"{_LABEL}/{_LABEL}")
_PORT = re.compile(
    r"(?:\[([^\[\]/]+)\]|([^:\[\]/]+)):([0-9]{1,5})(?:/(tcp|udp|sctp))?", re.IGNORECASE
)
_WANTED = "wanted IP, IP:PORT, IP:PORT/udp, [IPv6]:PORT or NAMESPACE/NAME"


class Target(NamedTuple):
    """A Service by its `key`, or an `address`; without a `port`, all that there are."""

    text: str
    key: str = ""
    address: Address | None = None
    protocol: str = "tcp"
    port: int | None = None


def target(text: str) -> Target:
    """What `text` means. Raises UsageError."""
    shown = one_line(text, 80)
    if _SERVICE.fullmatch(text):
        return Target(text, key=text)
    at = _PORT.fullmatch(text)
    host = (at[1] or at[2]) if at else text[1:-1] if re.fullmatch(r"\[.*\]", text) else text
    try:
        address = parse_address(host)
    except ValueError as error:
        why = f"{shown} {error}" if at else f"{shown} is not a target"
        raise UsageError("explain", why, _WANTED) from None
    if at is None:
        return Target(text, address=address)
    if not 0 < int(at[3]) < 65536 or (address.version == 6) != bool(at[1]):
        raise UsageError("explain", f"{shown} has no port of 1 to 65535 behind its IP", _WANTED)
    return Target(text, address=address, protocol=(at[4] or "tcp").lower(), port=int(at[3]))
