"""What the main thread waits for, and that nothing which was put is ever slept through."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from typing import Any

from ipvs_node_agent.host.inbox import Inbox
from tests.support.waiting import eventually


def taken(inbox: Inbox) -> list[object]:
    return [work() for work in iter(inbox.take, None)]


def test_work_comes_in_the_order_in_which_it_was_put() -> None:
    inbox = Inbox()
    for number in range(100_000):
        inbox.put(lambda number=number: number)  # type: ignore[misc]
    inbox.wait([], math.inf)
    assert taken(inbox) == [*range(100_000)]


def test_it_waits_no_longer_than_it_may_and_not_at_all_where_there_is_work() -> None:
    inbox = Inbox()
    for timeout, work in ((0.0, False), (-1.0, False), (0.2, False), (60.0, True)):
        if work:
            inbox.put(lambda: None)
        began = time.monotonic()
        assert inbox.wait([], timeout) is work
        waited = time.monotonic() - began
        assert waited < 10
        assert waited >= (0.0 if work else timeout)
    # What was said is not said again.
    taken(inbox)
    began = time.monotonic()
    assert not inbox.wait([], 0.2)
    assert time.monotonic() - began >= 0.2


def test_another_descriptor_wakes_it() -> None:
    inbox, (reading, writing) = Inbox(), os.pipe()
    os.write(writing, b"x")
    assert inbox.wait([reading], math.inf)
    assert inbox.take() is None


def test_what_many_threads_put_wakes_it_each_time() -> None:
    inbox, count, found = Inbox(), 20_000, 0

    def put() -> None:
        for _ in range(count):
            inbox.put(lambda: None)

    threads = [threading.Thread(target=put) for _ in range(3)]
    for thread in threads:
        thread.start()
    while found < 3 * count:
        began = time.monotonic()
        inbox.wait([], 30.0)
        assert time.monotonic() - began < 25, "it slept though there was work"
        found += len(taken(inbox))
    for thread in threads:
        thread.join()


def test_who_may_wait_does_so_while_there_is_much() -> None:
    inbox, over, count = Inbox(), threading.Event(), 5_000

    def put(which: str) -> None:
        for number in range(count):
            inbox.put_in_turn(lambda number=number: (which, number), over)  # type: ignore[misc]

    threads = [threading.Thread(target=put, args=(which,)) for which in "abc"]
    for thread in threads:
        thread.start()
    found: list[Any] = []
    while len(found) < 3 * count:
        inbox.wait([], 30.0)
        eventually(lambda: all(not t.is_alive() for t in threads) or len(inbox) >= 200, "much")
        # Each thread may have looked before the others put theirs.
        assert len(inbox) <= 202
        found += taken(inbox)
    for thread in threads:
        thread.join()
    for which in "abc":
        assert [number for whose, number in found if whose == which] == [*range(count)]


def test_who_had_to_wait_goes_on_before_anything_is_made_of_it() -> None:
    inbox, over, count = Inbox(), threading.Event(), 5_000

    def put() -> None:
        for number in range(count):
            inbox.put_in_turn(lambda number=number: number, over)  # type: ignore[misc]

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    eventually(lambda: len(inbox) >= 200, "much")
    found = taken(inbox)
    while inbox.goes_on(5.0 if len(found) < count else 0.0):
        found += taken(inbox)
    assert found == [*range(count)]
    thread.join()


def test_nobody_waits_for_more_where_nobody_had_to_wait() -> None:
    inbox = Inbox()
    inbox.put_in_turn(lambda: None, threading.Event())
    taken(inbox)
    began = time.monotonic()
    assert not inbox.goes_on(60.0)
    assert time.monotonic() - began < 25


def test_who_may_not_wait_never_does() -> None:
    inbox, over = Inbox(), threading.Event()
    for _ in range(1_000):
        inbox.put(lambda: None)
    waiting = threading.Thread(target=inbox.put_in_turn, args=(lambda: "late", over))
    waiting.start()
    for _ in range(1_000):
        inbox.put(lambda: None)
    assert len(inbox) == 2_000
    assert waiting.is_alive()
    over.set()
    waiting.join()
    assert "late" not in taken(inbox)


def test_what_is_over_is_not_put() -> None:
    inbox, over = Inbox(), threading.Event()
    over.set()
    inbox.put_in_turn(lambda: None, over)
    assert inbox.take() is None


def test_a_signal_wakes_it() -> None:
    inbox = Inbox()
    before = signal.signal(signal.SIGUSR1, lambda *_: inbox.put(lambda: "signal"))
    alarm = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        alarm.start()
        began = time.monotonic()
        inbox.wait([], 30.0)
        assert 0.1 < time.monotonic() - began < 25
        assert "signal" in taken(inbox)
    finally:
        alarm.join()
        signal.signal(signal.SIGUSR1, before)
