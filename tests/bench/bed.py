"""A node to measure on: a network namespace, an API server full of Services, and the agent."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ipvs_node_agent.iptables.nftmonitor import messages
from ipvs_node_agent.model.addresses import FAMILIES, Family
from ipvs_node_agent.model.objects import Service
from tests.support.agentprocess import AgentProcess, agent_process
from tests.support.apiserver import ApiServer
from tests.support.fleet import NODE, raw, raw_node
from tests.support.netns import Namespace, namespaces
from tests.support.pki import Pki
from tests.support.tables import add_mark_masq
from tests.support.waiting import eventually

_TICKS = os.sysconf("SC_CLK_TCK")
_WROTE = re.compile(
    r"(?P<family>IPv[46]): (?:wrote|repaired) (?:(?P<chains>\d+) chains?)?(?:, )?"
    r"(?:(?P<rules>\d+) rules?)?.* in (?P<ms>\d+) ms$"
)
_MORE = re.compile(r"and (\d+) Services more$")
_CHANGE = re.compile(r"(?P<key>\S+/\S+): .* \((?P<ms>\d+) ms\)$")


class Write(NamedTuple):
    """One restore that the agent reports."""

    family: str
    chains: int
    rules: int
    milliseconds: int


class Commits:
    """When nftables took changes in a namespace: the kernel tells, a thread looks at the clock."""

    _NEWGEN, _GROUP = 15, 7

    def __init__(self, namespace: Namespace) -> None:
        self._times: list[float] = []
        with namespace.enter():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind((0, 1 << self._GROUP - 1))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                continue  # More came than there was room for; the next change is told again.
            now = time.monotonic()
            if any(kind == self._NEWGEN for kind, _, _ in messages(data)):
                self._times.append(now)

    def after(self, moment: float) -> float:
        """The time of the first change after `moment`, which others may hear earlier."""
        return eventually(lambda: [t for t in list(self._times) if t > moment], "a commit")[0]


class BenchBed:
    """A node whose API server has `services`; the agent is down at first."""

    def __init__(
        self, namespace: Namespace, backend: str, api: ApiServer, agent: AgentProcess
    ) -> None:
        self.namespace, self.backend, self.api, self.agent = namespace, backend, api, agent
        self._seen = 0
        # Only there it tells of each write.
        agent.options = ["--log-level", "debug"]

    def put(self, service: Service) -> None:
        """Makes or changes a Service."""
        self.api.put(raw(service))

    def delete(self, service: Service) -> None:
        """Removes a Service."""
        self.api.delete("Service", *service.key.split("/"))

    def start(self, timeout: float = 60.0) -> float:
        """Starts the agent; the seconds until the kernel holds everything."""
        before = self.agent.log.count("ready: ")
        started = time.monotonic()
        self.agent.start(wait=False)
        eventually(lambda: self.agent.log.count("ready: ") > before, "ready", timeout)
        return time.monotonic() - started

    def news(self) -> list[str]:
        """The lines that the agent has said since the last call."""
        text = self.agent.log
        new, self._seen = text[self._seen :], len(text)
        return new.splitlines()

    def memory(self) -> dict[str, int]:
        """The agent's resident memory now and at its peak, in KiB."""
        status = Path(f"/proc/{self.agent.pid}/status").read_text()
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
        return {"now": int(found["VmRSS"]), "peak": int(found["VmHWM"])}

    def cpu_seconds(self) -> float:
        """What the agent and its ended children have used of a core."""
        fields = Path(f"/proc/{self.agent.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS

    def bare_change(self, family: Family, number: int) -> float:
        """Seconds that a bare restore of one rule takes, in a chain of kube-proxy's."""
        rule = f"-A KUBE-MARK-MASQ -p udp -m udp --dport {1 + number % 65535} -j RETURN"
        command = f"{family.command}-{self.backend}-restore"
        started = time.monotonic()
        self.namespace.run(command, "-w", "5", "--noflush", stdin=f"*nat\n{rule}\nCOMMIT\n")
        return time.monotonic() - started


def writes(lines: list[str]) -> list[Write]:
    """The restores that `lines` of the agent's log report."""
    found = filter(None, map(_WROTE.search, lines))
    return [
        Write(m["family"], int(m["chains"] or 0), int(m["rules"] or 0), int(m["ms"])) for m in found
    ]


def latencies(lines: list[str]) -> dict[str, int]:
    """For each Service in `lines`, milliseconds from its event's arrival to the kernel."""
    return {match["key"]: int(match["ms"]) for match in filter(None, map(_CHANGE.search, lines))}


def changes(lines: list[str]) -> int:
    """How many Services' changes `lines` report, also those that are only counted."""
    found = [int(match[1]) for match in filter(None, map(_MORE.search, lines))]
    return sum(found) + sum(1 for line in lines if _CHANGE.search(line))


@contextmanager
def bench_bed(backend: str, services: Mapping[str, Service]) -> Iterator[BenchBed]:
    """A node with TLS, a node's own credentials and `services`."""
    with tempfile.TemporaryDirectory() as name, namespaces("node") as (namespace,):
        directory = Path(name)
        for family in FAMILIES:
            add_mark_masq(namespace, family, backend)
        pki = Pki()
        pki.write_node_client(directory / "client.pem", NODE.name)
        with ApiServer(netns=str(namespace.path), pki=pki) as api:
            api.put(raw_node())
            for service in services.values():
                api.put(raw(service))
            pki.write_kubeconfig(directory / "kubelet.conf", api.url, directory / "client.pem")
            settings = {
                "kubeconfig": str(directory / "kubelet.conf"),
                "iptables": {"backend": backend},
                "metricsBindAddress": "",
            }
            with agent_process(namespace, directory / "agent", settings) as agent:
                yield BenchBed(namespace, backend, api, agent)
