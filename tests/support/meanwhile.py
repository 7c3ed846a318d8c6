"""Something that goes on in a thread of its own while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable


@contextmanager
def meanwhile(step: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Calls `step` again and again, `pause` seconds apart, until the block ends.

    Raises what `step` raised, at the end of a block that raised nothing itself.
    """
    ended = threading.Event()
    raised: list[Exception] = []

    def go_on() -> None:
        try:
            while not ended.is_set():
                step()
                ended.wait(pause)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if raised:
        raise raised[0]
