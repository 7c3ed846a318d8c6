"""Where kube-proxy's mode is not IPVS, no Service gets rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from ipvs_node_agent.host import kubeproxy as asking
from ipvs_node_agent.host.procfs import users_listening_on
from ipvs_node_agent.iptables.command import launch
from ipvs_node_agent.iptables.proxymode import ProxyMode, proxy_mode
from ipvs_node_agent.iptables.table import BACKENDS
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nft import listing
from tests.kernel.conftest import WEB, Bed
from tests.support import kubeproxy
from tests.support.agentprocess import altered
from tests.support.netns import Namespace
from tests.support.tables import add_foreign_rules
from tests.support.topology import NODE, Topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

NOBODY = 65534
# The agent looks every ten seconds, and acts within fifteen.
LOOKED = 15.0


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


def asked(namespace: Namespace, known: str | None = None, backend: str = "nft") -> ProxyMode:
    with namespace.enter(), closing(launch()) as launcher:
        return proxy_mode(launcher, known, backend)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", *NODE.values()])
@pytest.mark.parametrize("known", [None, "ipvs"])
def test_kube_proxy_is_heard_wherever_it_serves_its_metrics(
    around: Topology, address: str, known: str | None
) -> None:
    node = around.node
    with kubeproxy.proxy_mode(node, "nftables", address):
        assert asked(node, known).mode == known
        kubeproxy.add_tables(node, "nftables")
        assert asked(node, known) == ProxyMode("nftables")


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("said", ["iptables", "nftables"])
def test_a_mode_that_takes_rules_away_needs_its_tables_too(
    namespace: Namespace, said: str, backend: str
) -> None:
    with kubeproxy.proxy_mode(namespace, said):
        found = asked(namespace, "ipvs")
        assert (found.mode, "has no tables of that mode" in found.doubt) == ("ipvs", True)
        kubeproxy.add_tables(namespace, said, backend)
        assert asked(namespace, "ipvs") == ProxyMode(said)


def test_beside_the_rule_on_ipvs_mode_s_set_another_mode_s_jumps_prove_nothing(
    namespace: Namespace,
) -> None:
    add_foreign_rules(namespace, IPV4, "nft")
    chain = ("iptables-nft", "-t", "nat", "-N", "KUBE-SVC-NPX46M4PTMTKRN6Y")
    namespace.run(*chain)
    namespace.run(*chain[:3], "-A", "KUBE-SERVICES", "-j", chain[-1])
    with kubeproxy.proxy_mode(namespace, "iptables"):
        assert asked(namespace, "ipvs").mode == "ipvs"


@pytest.mark.parametrize("used", BACKENDS)
@pytest.mark.parametrize(
    ("was", "known"), [("ipvs", None), ("ipvs", "ipvs"), ("iptables", "iptables")]
)
def test_what_a_move_left_in_the_other_backend_keeps_no_mode_in_doubt(
    namespace: Namespace, used: str, was: str, known: str | None
) -> None:
    """kube-proxy was in the mode `was` in the other backend, and is in the other mode in `used`."""
    (other,) = set(BACKENDS) - {used}
    now = "iptables" if was == "ipvs" else "ipvs"
    for mode, backend in ((was, other), (now, used)):
        if mode == "ipvs":
            add_foreign_rules(namespace, IPV4, backend)
        else:
            kubeproxy.add_tables(namespace, mode, backend)
    with kubeproxy.proxy_mode(namespace, now):
        assert asked(namespace, known, used) == ProxyMode(now)
        # The tables of the backend in use say another thing: that is a doubt.
        found = asked(namespace, "ipvs" if now == "iptables" else "iptables", other)
        assert (found.mode, bool(found.doubt)) == (was, True)


@pytest.mark.parametrize(("said", "known"), [("nftables", "ipvs"), ("ipvs", "nftables")])
def test_where_the_kernel_does_not_tell_its_tables_the_mode_stays(
    namespace: Namespace, said: str, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "tables", lambda: None)
    with kubeproxy.proxy_mode(namespace, said):
        found = asked(namespace, known)
    assert (found.mode, "its tables cannot be read" in found.doubt) == (known, True)


@pytest.mark.parametrize(("said", "known"), [("iptables", "ipvs"), ("ipvs", "iptables")])
def test_where_the_tables_of_iptables_cannot_be_read_the_mode_stays(
    namespace: Namespace, said: str, known: str
) -> None:
    kubeproxy.add_tables(namespace, "iptables")
    # As only nft makes it.
    rule = "add rule ip nat KUBE-SERVICES meta mark set numgen random mod 2"
    namespace.run("nft", *rule.split())
    with kubeproxy.proxy_mode(namespace, said):
        found = asked(namespace, known)
    assert (found.mode, "its tables cannot be read" in found.doubt) == (known, True)


@pytest.mark.parametrize("said", ["iptables", "nftables"])
def test_a_node_is_back_in_ipvs_mode_where_the_other_mode_s_tables_are_gone(
    namespace: Namespace, said: str
) -> None:
    kubeproxy.add_tables(namespace, said)
    with kubeproxy.proxy_mode(namespace, "ipvs"):
        assert asked(namespace) == ProxyMode("ipvs")
        assert asked(namespace, said).mode == said
        kubeproxy.remove_tables(namespace, said)
        assert asked(namespace, said) == ProxyMode("ipvs")


def test_where_answers_differ_none_counts(namespace: Namespace) -> None:
    kubeproxy.add_tables(namespace, "nftables")
    with (
        kubeproxy.proxy_mode(namespace, "ipvs"),
        kubeproxy.proxy_mode(namespace, "nftables", "::1"),
    ):
        found = asked(namespace, "ipvs")
    assert found == ProxyMode("ipvs", "kube-proxy answers both ipvs and nftables")


@pytest.mark.parametrize("said", ["", "ipvs; rm -rf /", "x" * 21, "IPVS", "\x00"])
def test_an_answer_that_is_no_mode_is_none(namespace: Namespace, said: str) -> None:
    with kubeproxy.proxy_mode(namespace, said):
        assert [asked(namespace).mode, asked(namespace, "ipvs").mode] == [None, "ipvs"]


def test_while_it_does_not_answer_its_last_mode_counts(namespace: Namespace) -> None:
    assert [asked(namespace).mode, asked(namespace, "ipvs").mode] == [None, "ipvs"]


def test_no_other_account_is_believed(namespace: Namespace) -> None:
    kubeproxy.add_tables(namespace, "iptables")
    with answered_by(0, namespace, "iptables"):
        assert asked(namespace, "ipvs").mode == "iptables"
    with answered_by(NOBODY, namespace, "iptables"):
        assert asked(namespace, "ipvs") == ProxyMode("ipvs")


@pytest.mark.parametrize("keeps", [True, False])
def test_who_has_taken_the_question_before_kube_proxy_came_is_not_believed(
    namespace: Namespace, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The port was kube-proxy's when it was looked up.
    monkeypatch.setattr(asking, "addresses_listening_on", lambda *_, **__: {"127.0.0.1"})
    kubeproxy.add_tables(namespace, "iptables")
    program = LATE_ANSWER.format(port=kubeproxy.PORT, keeps=keeps)
    with run_by(NOBODY, namespace, program) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answer = ThreadPoolExecutor(1).submit(asked, namespace, "ipvs")
        assert process.stdout.readline() == b"\n"
        with kubeproxy.proxy_mode(namespace, "ipvs"), namespace.enter():
            assert users_listening_on("127.0.0.1", kubeproxy.PORT) == {0}
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"\n"
            assert answer.result(10) == ProxyMode("ipvs")


@pytest.mark.parametrize("backend", ["nft"], indirect=True)
def test_the_agent_takes_the_rules_away_and_brings_them_back(bed: Bed) -> None:
    bed.put(WEB)
    with kubeproxy.proxy_mode(bed.namespace, "ipvs"):
        bed.agent.start()
        bed.expect(WEB)
    with kubeproxy.proxy_mode(bed.namespace, "nftables"):
        # A container that is root without rights could say that too.
        doubt = "has no tables of that mode"
        eventually(lambda: bed.agent.log.count(doubt) == 1, doubt, 2 * LOOKED)
        assert "in doubt: kube-proxy says" in bed.agent.call("status").stdout
        bed.expect(WEB)
        kubeproxy.add_tables(bed.namespace, "nftables")
        eventually(lambda: not bed.has(WEB[0]), "its rules are gone", LOOKED)
        assert bed.agent.log.count("kube-proxy is in nftables mode") == 1
        assert bed.agent.call("diff").returncode == 0
        assert "\nok    rules: in sync" in bed.agent.call("check").stdout
        status = bed.agent.call("status")
        assert "Not needed: kube-proxy is in nftables mode" in status.stdout

        def told() -> bool:
            return any(r.resource == "events" and r.status == 201 for r in bed.api.requests)

        eventually(told, "an Event says so", LOOKED)
    kubeproxy.remove_tables(bed.namespace, "nftables")
    with kubeproxy.proxy_mode(bed.namespace, "ipvs"):
        # The look that the tables' end causes may come before this one answers.
        eventually(lambda: bed.has(WEB[0]), "its rules are back", 2 * LOOKED)
    bed.expect(WEB)


@pytest.mark.parametrize("backend", ["nft"], indirect=True)
@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_a_move_is_noticed_by_the_tables_that_it_makes(bed: Bed, mode: str) -> None:
    bed.agent.program = altered({"commands.mainloop._PROXY_PERIOD": 3600.0})
    bed.put(WEB)
    with kubeproxy.proxy_mode(bed.namespace, "ipvs"):
        bed.agent.start()
        bed.expect(WEB)
    with kubeproxy.proxy_mode(bed.namespace, mode):
        kubeproxy.add_tables(bed.namespace, mode)
        eventually(lambda: not bed.has(WEB[0]), "its rules are gone", LOOKED)
