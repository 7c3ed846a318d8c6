"""Many nodes of one cluster: what follows the API server of each agent, and whole kube-proxies."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, NamedTuple
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ipvs_node_agent.commands.following import Following
from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.kubeconfig.reader import Reader, settings
from ipvs_node_agent.model.events import NODES, SERVICES, Changed, Event, Listed
from tests.cluster.controlplane import API_ADDRESS, ControlPlane, KubeApiServer
from tests.support.netns import Namespace, link, namespaces
from tests.support.pki import write_private
from tests.support.waiting import eventually

_PROXY = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: {node}
clientConnection: {{kubeconfig: {kubeconfig}}}
# What it programs costs the API server nothing, and would take the processors: once is enough.
nftables: {{minSyncPeriod: 1h, syncPeriod: 1h}}
conntrack: {{maxPerCore: 0, min: 0}}
"""

_cables = itertools.count(1)
_LOOKS = 4


class Authority:
    """Issues certificates in a millisecond, with keys as the kubelet makes them."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("nodes' own authority")
        self._serial = 1000
        self.pem = self._issue(self._name, self._key, True)

    def write(self, path: Path, user: str, group: str) -> None:
        """Writes a client's certificate and key into one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = self._issue(_common_name(user, group), key, False)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(path, pem + private.decode())

    def _issue(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, is_ca: bool) -> str:
        self._serial += 1
        now = datetime.now(timezone.utc)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(self._serial)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()


def _common_name(user: str, group: str = "") -> x509.Name:
    organization = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*organization, x509.NameAttribute(NameOID.COMMON_NAME, user)])


class Place(NamedTuple):
    """Where nodes are made: the control plane, the one who issues, and a directory."""

    plane: ControlPlane
    authority: Authority
    server: KubeApiServer
    directory: Path

    def node(self, number: int) -> tuple[str, Path]:
        """The name of a node, and a directory of its own."""
        name = f"node-{number:04}"
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        return name, directory


@contextmanager
def wired(place: Place) -> Iterator[Namespace]:
    """A namespace with a cable to the control plane's, which nothing else uses."""
    inside, number = place.plane.namespace, next(_cables)
    with namespaces("crowd") as (made,):
        device = f"crowd{number}"
        link(inside, made, device, "control")
        inside.add_address(device, f"172.21.{number}.1/30")
        made.add_address("control", f"172.21.{number}.2/30")
        made.add_route(API_ADDRESS[4], f"172.21.{number}.1")
        yield made
        # The namespace lasts as long as a thread's socket in it.
        inside.run("ip", "link", "delete", device)


class Agents:
    """What follows the API server, of each of so many agents, in this process."""

    def __init__(self, place: Place, count: int) -> None:
        self._place, self._count = place, count
        self._lock = threading.Lock()
        self._following: list[Following] = []
        # Of Services and of its Node.
        self.watches = 2 * count
        self.events = 0
        self._listed: set[tuple[int, str]] = set()
        self.failures: list[BaseException] = []
        self._stack = ExitStack()
        # A process of its own for each would cost nobody but this machine.
        self._stack.enter_context(
            patch.object(Reader, "_read_elsewhere", lambda reader: settings(reader.path))
        )
        self._namespace = self._stack.enter_context(wired(place))
        for number in range(count):
            self._credentials(number)

    def _credentials(self, number: int) -> Path:
        name, directory = self._place.node(number)
        certificate = directory / "client.pem"
        self._place.authority.write(certificate, f"system:node:{name}", "system:nodes")
        return certificate

    def start(self) -> None:
        """Starts all at once, and waits until each has its list and its Node."""
        for number in range(self._count):
            _, directory = self._place.node(number)
            path = directory / "kubelet.conf"
            plane = self._place.plane
            url = plane.url(self._place.server)
            plane.pki.write_kubeconfig(path, url, directory / "client.pem")
            config = replace(DEFAULTS, kubeconfig=str(path))
            take = self._taker(number)
            reader = Reader(path)
            self._following.append(
                Following(config, reader, self._put, self._put_in_turn, take, lambda *_: None, ())
            )
        with self._namespace.enter():
            for following in self._following:
                following.start()
        self.wait()

    def wait(self) -> None:
        """Waits until each has a list of both."""
        eventually(lambda: len(self._listed) == 2 * self._count, "all in sync", 300, pause=0.2)

    def rotate(self) -> None:
        """Gives each another certificate, all at once."""
        for number in range(self._count):
            self._credentials(number)

    def look(self) -> None:
        """Has each ask where the API server is, as it does now and then; several times."""
        for _ in range(_LOOKS):
            for following in self._following:
                following._leash.hurry(reached=True)
            # Those that come within a second are one.
            time.sleep(1.5)

    def connections(self) -> frozenset[str]:
        """The connections to the API server, by the ends here."""
        lines = self._namespace.run("ss", "-Htn", "state", "established").splitlines()
        return frozenset(line.split()[2] for line in lines)

    def stop(self) -> None:
        """Ends them all."""
        for following in self._following:
            following.stop()
        self._stack.close()
        assert not self.failures, self.failures

    def _put(self, work: Callable[[], object]) -> None:
        try:
            with self._lock:
                work()
        except BaseException as error:
            self.failures.append(error)

    def _put_in_turn(self, work: Callable[[], object], over: threading.Event) -> None:
        if not over.is_set():
            self._put(work)

    def _taker(self, number: int) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            if isinstance(event, Listed) and event.resource in (SERVICES, NODES):
                self._listed.add((number, event.resource))
            self.events += isinstance(event, Changed)

        return take


class Proxies:
    """So many kube-proxies, each a process in a network namespace of its own."""

    def __init__(self, place: Place, count: int) -> None:
        self._place, self._stack = place, ExitStack()
        # Of Services, EndpointSlices, its Node and ServiceCIDRs.
        self.watches = 4 * count
        self._namespaces = [self._stack.enter_context(wired(place)) for _ in range(count)]
        place.authority.write(place.directory / "proxy.pem", "system:kube-proxy", "")

    def start(self) -> None:
        """Starts all at once."""
        plane = self._place.plane
        for number, namespace in enumerate(self._namespaces):
            name, directory = self._place.node(number)
            kubeconfig, config = directory / "proxy.conf", directory / "proxy.yaml"
            url = plane.url(self._place.server)
            plane.pki.write_kubeconfig(kubeconfig, url, self._place.directory / "proxy.pem")
            config.write_text(_PROXY.format(node=name, kubeconfig=kubeconfig))
            with (directory / "proxy.log").open("wb") as log:
                command = [str(plane.binaries / "kube-proxy"), f"--config={config}"]
                process: subprocess.Popen[Any] = namespace.popen(command, stdout=log, stderr=log)
            self._stack.callback(process.wait, 30)
            self._stack.callback(process.kill)

    def stop(self) -> None:
        """Ends them all."""
        self._stack.close()
