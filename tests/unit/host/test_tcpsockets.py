"""TCP sockets of this very process, told by the kernel and read in /proc alike."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

import pytest

from ipvs_node_agent.host import netlink, tcpsockets
from ipvs_node_agent.host.tcpsockets import End, Tcp, connected, listening

# Where one listens, and where one then connects to.
PLACES = [
    ("127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.2"),
    ("::1", "::1"),
    ("::", "::1"),
    ("::", "127.0.0.1"),
]


def end(address: Any) -> End:
    host, port = address[:2]
    found = ipaddress.ip_address(host)
    return getattr(found, "ipv4_mapped", None) or found, port


@pytest.fixture(params=["told", "read"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Told by the kernel, or not, so that it is read; what must not be used fails."""

    def refuse(*_: object) -> None:
        raise OSError(95, "the kernel refuses to tell")

    def fail(_: object) -> None:
        pytest.fail("it was told")

    if request.param == "read":
        monkeypatch.setattr(netlink, "_answers", refuse)
    else:
        monkeypatch.setattr(tcpsockets, "_end", fail)
    return str(request.param)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(("at", "to"), PLACES)
def test_who_listens_and_who_has_a_connection_is_known(at: str, to: str) -> None:
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    with socket.create_server((at, 0), family=family, dualstack_ipv6=at == "::") as listener:
        port = listener.getsockname()[1]
        inode = os.fstat(listener.fileno()).st_ino
        (found,) = listening(port)
        nowhere = (ipaddress.ip_address("::" if ":" in at else "0.0.0.0"), 0)
        here = end(listener.getsockname())
        assert found == Tcp(here, nowhere, True, os.geteuid(), inode)
        with socket.create_connection((to, port)) as ours:
            far, _ = listener.accept()
            with far:
                ends = end(far.getsockname()), end(far.getpeername())
                inode = os.fstat(far.fileno()).st_ino
                assert connected(*ends) == Tcp(*ends, False, os.geteuid(), inode)
                assert [one.listens for one in listening(port)] == [True]
                own = connected(*reversed(ends))
                assert own is not None
                assert own.inode == os.fstat(ours.fileno()).st_ino


def test_what_nobody_has_is_nobodys() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as ours:
            ends = end(ours.getpeername()), end(ours.getsockname())
            # It was not accepted, and the kernel names a user of its own choice.
            assert connected(*ends) is None
        # Where there is no connection, the kernel would tell of who listens.
        assert connected(ends[0], (ends[1][0], 1)) is None
        port = ends[0][1]
    assert not listening(port)


def test_an_answer_that_is_cut_off_is_no_socket() -> None:
    for size in range(68):
        with pytest.raises(netlink.Lost):
            tcpsockets._told(bytes([2]) * size)
