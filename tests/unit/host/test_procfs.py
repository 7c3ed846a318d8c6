"""What /proc tells: read from the real one, about sockets and locks of this very process."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from ipvs_node_agent.host.procfs import (
    listener_on,
    lock_holder,
    process_called,
    user_at_the_far_end,
    users_listening_on,
)


def test_who_holds_a_lock_is_found_without_asking_for_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock_holder(path) is None
    with path.open("w") as file:
        assert lock_holder(path) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holder(path) == os.getpid()


@pytest.mark.parametrize(
    ("at", "asked", "there"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        # Whatever is every address meets each of them, also of the other family.
        *(("127.0.0.1", every, True) for every in ("", "0.0.0.0", "::", "a-name")),
        ("0.0.0.0", "127.0.0.2", True),
        ("::1", "::1", True),
    ],
)
def test_who_listens_is_found_where_nobody_else_could_then(
    at: str, asked: str, there: bool
) -> None:
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    with socket.create_server((at, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert users_listening_on(asked, port) == ({os.geteuid()} if there else set())
        # This process itself is left out; so the socket is nobody's that can be seen.
        found = listener_on(asked, port)
        assert (found and found.number) == (0 if there else None)
    assert listener_on(asked, port) is None


def test_the_user_at_the_far_end_is_known_while_it_has_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as ours:
            ends = ours.getsockname(), ours.getpeername()
            assert user_at_the_far_end(*ends) is None, "it was not accepted yet"
            far, _ = listener.accept()
            with far:
                assert user_at_the_far_end(*ends) == os.geteuid()
        assert user_at_the_far_end(*ends) is None


def test_no_process_is_called_by_a_name_that_none_has() -> None:
    assert process_called("no-such-program") is None
