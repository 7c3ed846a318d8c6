"""Pages that programs of this node serve on loopback."""

from __future__ import annotations

import http.client

_TIMEOUT = 2.0
_MOST_BYTES = 1 << 16


def page(address: tuple[str, int], path: str) -> str:
    """The beginning of a page; empty where there is none."""
    connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read(_MOST_BYTES).decode("ascii", "replace")
        return text if response.status == 200 else ""
    except (OSError, http.client.HTTPException, ValueError):
        return ""
    finally:
        connection.close()
