"""Requests with a node's credentials, and what came of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

from ipvs_node_agent.apiserver.client import Api, ApiError
from tests.support.kubeconfigs import document, write
from tests.support.pki import Pki, plain_kubeconfig, point_to

if TYPE_CHECKING:
    from tests.support.apiserver import ApiServer

SERVICES = "/api/v1/services"
TOKEN = "s3cret-s3cret"


class NodeFiles:
    """A node's kubeconfig and certificate, rotated as the kubelet does it."""

    def __init__(self, directory: Path, pki: Pki, url: str) -> None:
        self._directory, self._pki = directory, pki
        self.kubeconfig = directory / "kubelet.conf"
        self.current = directory / "kubelet-client-current.pem"
        self.serial = 0
        self._issued = 0
        self.rotate()
        pki.write_kubeconfig(self.kubeconfig, url, self.current)

    def issue(self) -> Path:
        """Writes a dated file with the next certificate and key."""
        self._issued += 1
        dated = self._directory / f"kubelet-client-{self._issued}.pem"
        self.serial = self._pki.write_node_client(dated, "worker-1")
        return dated

    def rotate(self) -> None:
        """Puts the next certificate in place of the current one."""
        point_to(self.current, self.issue())

    @property
    def secrets(self) -> list[str]:
        """The lines of all keys so far."""
        texts = [path.read_text() for path in self._directory.glob("kubelet-client-?.pem")]
        return [line for text in texts for line in text.partition("PRIVATE KEY")[2].splitlines()]


def get(api: Api, watch: bool = False, timeout: float = 10.0) -> bytes:
    """The whole body of a list or, as soon as it has ended, of a watch."""
    parameters = {"watch": "true"} if watch else {}
    with api.get(SERVICES, parameters, f"{'watch' if watch else 'list'} services", timeout) as got:
        return b"".join(got.pieces())


def failure(api: Api, **arguments: Any) -> ApiError:
    """The error that a request ends with: one short sentence."""
    with pytest.raises(ApiError) as caught:
        get(api, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    for noise in ("HTTPConnectionPool", "HTTPSConnectionPool", "object at 0x", "Errno", "Retry"):
        assert noise not in text
    return caught.value


class Asking:
    """A thread that asks for something, and what it got."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._got: Any = None
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], Any]) -> None:
        try:
            self._got = ask()
        except Exception as error:
            self._got = error

    def got(self) -> Any:
        """The answer, or the error."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self._got


def watching(api: Api) -> Asking:
    """A watch in a thread of its own."""
    return Asking(lambda: get(api, watch=True, timeout=60.0))


@contextmanager
def watched(api: Api, server: ApiServer) -> Iterator[Asking]:
    """An open watch."""
    watch = watching(api)
    server.wait_for(lambda: server.watches("services") == 1)
    yield watch


def plain(tmp_path: Path, url: str) -> Api:
    plain_kubeconfig(tmp_path / "plain.conf", url, "worker-1")
    return Api(tmp_path / "plain.conf")


def token_kubeconfig(path: Path, server: ApiServer, pki: Pki) -> Path:
    """Writes a kubeconfig of a user with the token."""
    pki.write_ca(path.with_name("ca.crt"))
    cluster = {"server": server.url, "certificate-authority": "ca.crt"}
    return write(path, document({"token": TOKEN}, **cluster))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
