"""JSON over HTTPS with a client certificate: the tests' own way to the API server and to etcd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import urllib3

from tests.support.netns import Namespace
from tests.support.pki import Pki

_MERGE = "application/merge-patch+json"

NO_ANSWER = (urllib3.exceptions.HTTPError, OSError)


class HttpError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


class Client:
    """Requests to one server, made inside a network namespace; safe to use from many threads."""

    def __init__(self, namespace: Namespace, url: str, pki: Pki, certificate: Path) -> None:
        self._namespace, self._url = namespace, url
        context = pki.client_context(certificate)
        # urllib3 looks at the name itself; before 2.0 it could not have an address looked at here.
        context.check_hostname = False
        self._pool = urllib3.PoolManager(maxsize=32, retries=False, ssl_context=context)

    def text(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> str:
        """The answer's body. Raises HttpError, or urllib3's own errors without an answer."""
        with self._namespace.enter():
            answer = self._pool.request(
                method,
                self._url + path,
                body=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": kind, "Accept": "application/json"},
                timeout=30,
            )
        text = answer.data.decode()
        if answer.status >= 300:
            raise HttpError(answer.status, text)
        return text

    def get(self, path: str) -> Any:
        """What is there."""
        return json.loads(self.text("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """What was made of `body`."""
        return json.loads(self.text("POST", path, body))

    def put(self, path: str, body: Any) -> Any:
        """What replaced what was there."""
        return json.loads(self.text("PUT", path, body))

    def patch(self, path: str, body: Any) -> Any:
        """What the fields in `body` changed."""
        return json.loads(self.text("PATCH", path, body, _MERGE))

    def delete(self, path: str) -> None:
        """Removes what is there."""
        self.text("DELETE", path)
