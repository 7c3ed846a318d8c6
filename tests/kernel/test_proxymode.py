"""Where kube-proxy's mode is not IPVS, no Service gets rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from ipvs_node_agent.host.kubeproxy import proxy_mode
from ipvs_node_agent.host.procfs import users_listening_on
from tests.kernel.conftest import WEB, Bed
from tests.support import kubeproxy
from tests.support.netns import Namespace
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

NOBODY = 65534
# The agent looks every ten seconds.
LOOKED = 20.0


@contextmanager
def run_by(user: int, namespace: Namespace, program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program of that user's on the node, once it has printed a line."""
    process = namespace.popen(
        [sys.executable, "-c", f"import os\nos.setuid({user})\n{program}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def answered_by(user: int, namespace: Namespace, mode: str) -> Iterator[None]:
    """A server of that user's where kube-proxy would tell its mode."""
    program = f"""
import http.server as h
class Handler(h.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "{len(mode)}")
        self.end_headers()
        self.wfile.write(b"{mode}")
server = h.HTTPServer(("127.0.0.1", {kubeproxy.PORT}), Handler)
print(flush=True)
server.serve_forever()
"""
    with run_by(user, namespace, program):
        yield


# Takes one question, leaves the port, and answers when told to; then keeps the connection or not.
LATE_ANSWER = """
import socket
listening = socket.create_server(("127.0.0.1", {port}))
print(flush=True)
one, _ = listening.accept()
listening.close()
one.recv(4096)
one.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 8\\r\\nX: ")
print(flush=True)
input()
one.sendall(b"x\\r\\n\\r\\niptables")
if not {keeps}:
    one.close()
print(flush=True)
input()
"""


@pytest.mark.parametrize("said", ["ipvs", "iptables", "nftables"])
def test_kube_proxy_is_believed(namespace: Namespace, said: str) -> None:
    with kubeproxy.proxy_mode(namespace, said), namespace.enter():
        assert [proxy_mode(), proxy_mode("ipvs")] == [said, said]


@pytest.mark.parametrize("said", ["", "ipvs; rm -rf /", "x" * 21, "IPVS", "\x00"])
def test_an_answer_that_is_no_mode_is_none(namespace: Namespace, said: str) -> None:
    with kubeproxy.proxy_mode(namespace, said), namespace.enter():
        assert [proxy_mode(), proxy_mode("ipvs")] == [None, "ipvs"]


def test_while_it_does_not_answer_its_last_mode_counts(namespace: Namespace) -> None:
    with namespace.enter():
        assert [proxy_mode(), proxy_mode("ipvs")] == [None, "ipvs"]


def test_no_other_account_is_believed(namespace: Namespace) -> None:
    with answered_by(0, namespace, "iptables"), namespace.enter():
        assert proxy_mode("ipvs") == "iptables"
    with answered_by(NOBODY, namespace, "iptables"), namespace.enter():
        assert [proxy_mode(), proxy_mode("ipvs")] == [None, "ipvs"]


@pytest.mark.parametrize("keeps", [True, False])
def test_who_has_taken_the_question_before_kube_proxy_came_is_not_believed(
    namespace: Namespace, keeps: bool
) -> None:
    def ask() -> str | None:
        with namespace.enter():
            return proxy_mode("ipvs")

    program = LATE_ANSWER.format(port=kubeproxy.PORT, keeps=keeps)
    with run_by(NOBODY, namespace, program) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked = ThreadPoolExecutor(1).submit(ask)
        assert process.stdout.readline() == b"\n"
        with kubeproxy.proxy_mode(namespace, "ipvs"), namespace.enter():
            assert users_listening_on("127.0.0.1", kubeproxy.PORT) == {0}
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"\n"
            assert asked.result(10) == "ipvs"


@pytest.mark.parametrize("backend", ["nft"], indirect=True)
def test_the_agent_takes_the_rules_away_and_brings_them_back(bed: Bed) -> None:
    bed.put(WEB)
    with kubeproxy.proxy_mode(bed.namespace, "ipvs"):
        bed.agent.start()
        bed.expect(WEB)
    with kubeproxy.proxy_mode(bed.namespace, "nftables"):
        eventually(lambda: not bed.has(WEB[0]), "its rules are gone", LOOKED)
        assert bed.agent.log.count("kube-proxy is in nftables mode") == 1
        assert bed.agent.call("diff").returncode == 0
        assert "\nok    rules: in sync" in bed.agent.call("check").stdout
        status = bed.agent.call("status")
        assert "Not needed: kube-proxy is in nftables mode" in status.stdout

        def told() -> bool:
            return any(r.resource == "events" and r.status == 201 for r in bed.api.requests)

        eventually(told, "an Event says so", LOOKED)
    with kubeproxy.proxy_mode(bed.namespace, "ipvs"):
        eventually(lambda: bed.has(WEB[0]), "its rules are back", LOOKED)
    bed.expect(WEB)
