"""The program's own errors: one sentence each, and the exit status that goes with it.

Anything that a user or the outside world can cause is raised as an `AgentError` and printed in one
place, at the edge of the command line. Other exceptions are bugs.
"""

from __future__ import annotations


class AgentError(Exception):
    """What went wrong, why, and what to do about it; printed as `WHAT: WHY (HINT)`."""

    exit_status = 3

    def __init__(self, what: str, why: str, hint: str = "") -> None:
        self.what = one_line(what)
        self.why = one_line(why)
        self.hint = one_line(hint)
        super().__init__(f"{self.what}: {self.why}" + (f" ({self.hint})" if self.hint else ""))


class UsageError(AgentError):
    """Bad usage or a bad configuration; nothing was tried."""

    exit_status = 2


class RefusedError(AgentError):
    """The API server or the kernel said no."""


def one_line(text: str, limit: int = 500) -> str:
    """`text` as one line, control characters escaped, at most `limit` characters long."""
    # Cut first: somebody else's text may be megabytes, and no character becomes less than one.
    start = text[: limit + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in start)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
