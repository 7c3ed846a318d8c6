"""What others do to one family's table: how often it is undone, and what is said of it.

Who fights with us is said to do so once, and is not given more than a share of our time.
"""

from __future__ import annotations

from collections import Counter

from ipvs_node_agent.nat.ruleset import DRIFT, Change

# A repair of the same kind within this time is counted, and not said again.
QUIET = 60.0
# After so many of the same kind: this long between two repairs, and no more than a share of a core.
_PATIENCE, _REST, _REPAIR_SHARE = 5, 0.5, 0.2
# Who has been passed by so often within that time wants to be in front.
_INSISTING = 3
# Looks that others cause, and that find nothing changed, take no more than this share of a core,
# but are no rarer than that.
_LOOK_SHARE, _LOOK_REST = 0.05, 2.0


class Repairs:
    """Counts repairs by their reason; there is to be no look for drift before `rest_until`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rest_until = 0.0
        # The last one: when it was, and what had been done by whom.
        self.last: tuple[float, str] | None = None
        self._times: dict[str, list[float]] = {}
        self._passed: dict[tuple[str, str], list[float]] = {}

    def note(self, change: Change, seconds: float, now: float) -> bool:
        """Notes what a look or a write came to; False where that need not be said again."""
        self.counts.update(change.repairs)
        if change.repairs:
            self.last = now, done_by_others(change)
        fresh = not change.repairs
        # A look for nothing is of a kind, too.
        for reason in change.repairs or (() if change else ("",)):
            last = [time for time in self._times.get(reason, ()) if now - time < QUIET]
            self._times[reason] = [*last, now]
            fresh = fresh or not last
            if len(last) >= _PATIENCE:
                rest = max(_REST, seconds / _REPAIR_SHARE)
                if not reason:
                    rest = min(seconds / _LOOK_SHARE, _LOOK_REST)
                self.rest_until = max(self.rest_until, now + rest)
        return fresh

    def insisting(self, change: Change, now: float) -> list[tuple[str, str]]:
        """Those in front whom `change` passes by, as often as nobody is who does not mean it."""
        found = []
        for other in change.passed if "JumpNotFirst" in change.repairs else ():
            times = [time for time in self._passed.get(other, ()) if now - time < QUIET]
            self._passed[other] = [*times, now]
            if len(times) + 1 == _INSISTING:
                found.append(other)
        return found


def size(change: Change) -> str:
    """How much was written, in a few words."""
    parts = (
        (len(change.written), "chain", ""),
        (change.rules, "rule", ""),
        (len(change.dropped), "chain", " removed"),
        (len(change.hooked), "jump", ""),
    )
    shown = (
        f"{count} {what}{'' if count == 1 else 's'}{then}" for count, what, then in parts if count
    )
    return ", ".join(shown) or "jumps removed"


def done_by_others(change: Change) -> str:
    """What others had done, and who they are, as far as the kernel tells."""
    by = f", by {' and '.join(change.by)}" if change.by else ""
    return " and ".join(DRIFT[reason] for reason in change.repairs) + by
