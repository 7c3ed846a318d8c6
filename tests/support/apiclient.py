"""Requests with a node's credentials, and what came of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ipvs_node_agent.apiserver.client import Api, ApiError
from tests.support.pki import Pki, plain_kubeconfig, point_to

if TYPE_CHECKING:
    from tests.support.apiserver import ApiServer

SERVICES = "/api/v1/services"
TOKEN = "s3cret-s3cret"


class NodeFiles:
    """A node's kubeconfig and certificate, rotated as the kubelet does it."""

    def __init__(self, directory: Path, pki: Pki, url: str) -> None:
        self._directory, self._pki, self._url = directory, pki, url
        self.kubeconfig = directory / "kubelet.conf"
        self.current = directory / "kubelet-client-current.pem"
        self.serial = 0
        self._issued = 0
        point_to(self.current, self.issue())
        pki.write_kubeconfig(self.kubeconfig, url, self.current)

    def issue(self) -> Path:
        """Writes a dated file with the next certificate and key."""
        self._issued += 1
        dated = self._directory / f"kubelet-client-{self._issued}.pem"
        self.serial = self._pki.write_node_client(dated, "worker-1")
        return dated

    def rotate(self) -> int:
        """Puts the next certificate in place of the current one, and gives its serial number."""
        point_to(self.current, self.issue())
        return self.serial

    @property
    def secrets(self) -> list[str]:
        """The lines of all keys so far."""
        texts = [path.read_text() for path in self._directory.glob("kubelet-client-?.pem")]
        return [line for text in texts for line in text.partition("PRIVATE KEY")[2].splitlines()]


def get(
    api: Api, watch: bool = False, timeout: float = 10.0, selectors: Mapping[str, str] | None = None
) -> bytes:
    """The whole body of a list or, as soon as it has ended, of a watch."""
    parameters = {**(selectors or {}), **({"watch": "true"} if watch else {})}
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


class Watch:
    """A watch in a thread of its own, and how it ended."""

    def __init__(self, api: Api) -> None:
        self.outcome: Any = None
        self._api = api
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = get(self._api, watch=True, timeout=60.0)
        except Exception as error:
            self.outcome = error

    def ended(self) -> Any:
        """What the watch ended with."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.outcome


@contextmanager
def watching(api: Api, server: ApiServer) -> Iterator[Watch]:
    """An open watch."""
    watch = Watch(api)
    server.wait_for(lambda: server.watches("services") == 1)
    yield watch


def plain(tmp_path: Path, url: str) -> Api:
    plain_kubeconfig(tmp_path / "plain.conf", url, "worker-1")
    return Api(tmp_path / "plain.conf")


def write_token_kubeconfig(path: Path, server: ApiServer, pki: Pki) -> None:
    pki.write_kubeconfig(path, server.url, path)
    lines = path.read_text().splitlines()
    kept = [line for line in lines if "client-certificate" not in line]
    text = "\n".join(kept)
    path.write_text(text.replace(f"client-key: {path.absolute()}", f"token: {TOKEN}") + "\n")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
