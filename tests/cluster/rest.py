"""JSON over HTTPS with a client certificate: the tests' own way to the API server and to etcd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from tests.support.netns import Namespace
from tests.support.pki import Pki

FAILED = (HTTPError, OSError)


class Client:
    """Requests to one server, made inside a network namespace. Raises one of FAILED."""

    def __init__(self, namespace: Namespace, url: str, pki: Pki, certificate: Path) -> None:
        self._namespace, self._url = namespace, url
        context = pki.client_context(certificate)
        # urllib3 looks at the name itself; before 2.0 it could not have an address looked at here.
        context.check_hostname = False
        self._pool = PoolManager(retries=False, ssl_context=context)

    def text(self, method: str, path: str, body: Any = None, kind: str = "json") -> str:
        """The answer's body."""
        with self._namespace.enter():
            answer = self._pool.request(
                method,
                self._url + path,
                body=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": f"application/{kind}", "Accept": "application/json"},
                timeout=30,
            )
        text = answer.data.decode()
        if answer.status >= 300:
            raise HTTPError(f"{answer.status}: {text[:500]}")
        return text

    def get(self, path: str) -> Any:
        """What is there."""
        return json.loads(self.text("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """What was made of `body`."""
        return json.loads(self.text("POST", path, body))

    def patch(self, path: str, body: Any) -> Any:
        """What the fields in `body` changed."""
        return json.loads(self.text("PATCH", path, body, "merge-patch+json"))

    def delete(self, path: str) -> None:
        """Removes what is there."""
        self.text("DELETE", path)
