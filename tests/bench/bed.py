"""A node to measure on: a network namespace, an API server full of Services, and the agent."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple

import yaml

from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from ipvs_node_agent.model.objects import Service
from ipvs_node_agent.nft.monitor import listen, messages
from tests.bench.connections import restore_all
from tests.bench.measures import ruleset
from tests.support.agentprocess import AgentProcess, agent_process
from tests.support.apiserver import ApiServer
from tests.support.fleet import NODE, raw, raw_node
from tests.support.netns import Namespace, namespaces
from tests.support.pki import Pki
from tests.support.places import PROGRAM
from tests.support.tables import add_mark_masq, restore
from tests.support.waiting import eventually

DEBUG = ["--log-level", "debug"]
_NEWGEN = 15
# A classic BPF program that lets nothing pass but the ends of nftables' transactions: load the two
# bytes of nlmsg_type, compare, return all or nothing (Documentation/networking/filter.rst). A
# hundred rules that are told of first would have the clock go wrong by a millisecond.
_SO_ATTACH_FILTER = 26
_TYPE_AT = 4
_ENDS = ((0x28, 0, 0, _TYPE_AT), (0x15, 0, 1, 0x0F0A), (0x06, 0, 0, 1 << 16), (0x06, 0, 0, 0))
_WROTE = re.compile(
    r"IPv[46]: (?:wrote|repaired) (?:(?P<chains>\d+) chains?)?(?:, )?"
    r"(?:(?P<rules>\d+) rules?)?.* in (?P<ms>\d+) ms$"
)
_MORE = re.compile(r"and (\d+) more Services$")
_CHANGE = re.compile(r"(?P<key>\S+/\S+): .* \((?P<ms>\d+) ms\)$")


class Write(NamedTuple):
    """One restore that the agent reports."""

    chains: int
    rules: int
    milliseconds: int


class Commits:
    """When nftables took changes in a namespace: the kernel tells, a thread looks at the clock."""

    def __init__(self, namespace: Namespace) -> None:
        self._times: list[float] = []
        with namespace.enter():
            self._socket = listen()
        _let_pass(self._socket, _ENDS)
        self._socket.setblocking(True)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                continue  # More came than there was room for; the next change is told again.
            now = time.monotonic()
            if any(kind == _NEWGEN for kind, _, _ in messages(data)):
                self._times.append(now)

    def after(self, moment: float, timeout: float = 15.0) -> float:
        """The time of the first change after `moment`, which others may hear earlier."""
        return self.wait(moment, 1, timeout)[0]

    def wait(self, moment: float, count: int, timeout: float = 15.0) -> list[float]:
        """The times of the first `count` changes after `moment`, once they are made."""

        def made() -> list[float]:
            found = [time for time in list(self._times) if time > moment][:count]
            return found if len(found) == count else []

        return eventually(made, f"{count} commits", timeout, pause=0.005)

    def last_after(self, moment: float, quiet: float) -> float:
        """The time of the last one after `moment`, behind which there were `quiet` seconds."""
        self.wait(moment, 1, 60.0)
        eventually(lambda: time.monotonic() - self._times[-1] > quiet, "no more commits", 60.0)
        return self._times[-1]


def _let_pass(listening: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Has the kernel spare `listening` all that `program` drops."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    filter_program = struct.pack("HL", len(program), ctypes.addressof(code))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)


@dataclass
class BenchBed:
    """A node whose API server has `services`; the agent is down at first."""

    namespace: Namespace
    backend: str
    services: dict[str, Service]
    api: ApiServer
    agent: AgentProcess
    tell: Callable[[Service], dict[str, Any]] = raw
    _seen: int = 0

    def put(self, service: Service) -> None:
        """Makes or changes a Service."""
        self.services[service.key] = service
        self.api.put(self.tell(service))

    def delete(self, service: Service) -> None:
        del self.services[service.key]
        self.api.delete("Service", *service.key.split("/"))

    def settle(self) -> None:
        """Has the agent look for drift in its first round, and not again for minutes."""
        settings = yaml.safe_load(self.agent.config.read_text())
        self.agent.configure({**settings, "driftCheckPeriod": "1h"})

    def start(self, timeout: float = 60.0) -> float:
        """Starts the agent; the seconds until the kernel holds everything."""
        before = self.agent.log.count("ready: ")
        started = time.monotonic()
        self.agent.start(wait=False)
        eventually(lambda: self.agent.log.count("ready: ") > before, "ready", timeout)
        return time.monotonic() - started

    def transfer(self) -> float:
        """The seconds that a client takes for the list of all Services that only throws it away."""
        certificate = str(self.agent.config.parent.parent / "client.pem")
        options = ["--silent", "--insecure", "--fail", "--output", "/dev/null"]
        began = time.monotonic()
        self.namespace.run(
            *("curl", *options, "--cert", certificate, f"{self.api.url}/api/v1/services")
        )
        return time.monotonic() - began

    def news(self) -> list[str]:
        """The lines that the agent has said since the last call."""
        text = self.agent.log
        new, self._seen = text[self._seen :], len(text)
        return new.splitlines()

    def memory(self, what: str) -> float:
        """The agent's resident memory in MiB, now (VmRSS) or at its peak (VmHWM)."""
        status = Path(f"/proc/{self.agent.pid}/status").read_text()
        (found,) = re.findall(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
        return int(found) / 1024


@contextmanager
def bare_bed(backend: str, services: dict[str, Service]) -> Iterator[Namespace]:
    """A node with the rules of `services`, and nobody who would mend them."""
    with namespaces("bare") as (bare,):
        for family in FAMILIES:
            add_mark_masq(bare, family, backend)
        if services:
            restore_all(bare, IPV4, backend, ruleset(services, IPV4))
        yield bare


def bare_change(namespace: Namespace, backend: str, number: int) -> float:
    """Milliseconds that a bare restore of one rule takes, in a chain of kube-proxy's."""
    rule = f"-A KUBE-POSTROUTING -p udp -m udp --dport {1 + number % 65535} -j RETURN"
    started = time.monotonic()
    restore(namespace, IPV4, backend, f"*nat\n{rule}\nCOMMIT\n")
    return (time.monotonic() - started) * 1000


def writes(lines: list[str]) -> list[Write]:
    """The restores that `lines` of the agent's log report: with `DEBUG` all that there are."""
    found = filter(None, map(_WROTE.search, lines))
    return [
        Write(*(int(match[part] or 0) for part in ("chains", "rules", "ms"))) for match in found
    ]


def latencies(lines: list[str]) -> dict[str, int]:
    """For each Service in `lines`, milliseconds from its event's arrival to the kernel."""
    return {match["key"]: int(match["ms"]) for match in filter(None, map(_CHANGE.search, lines))}


def changes(lines: list[str]) -> int:
    """How many Services' changes `lines` report, also those that are only counted."""
    found = [int(match[1]) for match in filter(None, map(_MORE.search, lines))]
    return sum(found) + sum(1 for line in lines if _CHANGE.search(line))


# Python finds what packages have compiled, and the program not in the current folder.
_AS_INSTALLED = {"PYTHONPYCACHEPREFIX": "", "PYTHONSAFEPATH": "1"}


def _install(folder: Path) -> None:
    """Has a copy of the program there, compiled, as a package has it.

    The processes that it starts are isolated, and find nothing that variables tell of.
    """
    shutil.copytree(PROGRAM, folder / PROGRAM.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "compileall", "-q", str(folder)]
    subprocess.run(command, env={**os.environ, **_AS_INSTALLED}, check=True)


@contextmanager
def bench_bed(
    backend: str,
    services: Mapping[str, Service],
    tell: Callable[[Service], dict[str, Any]] = raw,
) -> Iterator[BenchBed]:
    """A node with TLS, a node's own credentials and `services`, as the API server will `tell`."""
    with tempfile.TemporaryDirectory() as name, namespaces("node") as (namespace,):
        directory = Path(name)
        for family in FAMILIES:
            add_mark_masq(namespace, family, backend)
        pki = Pki()
        pki.write_node_client(directory / "client.pem", NODE.name)
        with ApiServer(netns=str(namespace.path), pki=pki, streaming_lists=True) as api:
            for known in (raw_node(), *map(tell, services.values())):
                api.put(known)
            pki.write_kubeconfig(directory / "kubelet.conf", api.url, directory / "client.pem")
            settings = {
                "kubeconfig": str(directory / "kubelet.conf"),
                "iptables": {"backend": backend},
            }
            with agent_process(namespace, directory / "agent", settings) as agent:
                # As it runs on a node. The log of `DEBUG` tells of each write, and takes its time.
                agent.options = []
                _install(directory / "installed")
                agent.path = [directory / "installed", *agent.path]
                agent.variables = dict(_AS_INSTALLED)
                yield BenchBed(namespace, backend, dict(services), api, agent, tell)
