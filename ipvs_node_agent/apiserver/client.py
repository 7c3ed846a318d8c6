"""Requests to the API server, with credentials that are read again when they change."""

from __future__ import annotations

import http.client
import json
import logging
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from ipvs_node_agent import __version__
from ipvs_node_agent.apiserver.answer import Answer, Superseded
from ipvs_node_agent.backoff import Once
from ipvs_node_agent.errors import AgentError, RefusedError, one_line
from ipvs_node_agent.kubeconfig.contents import fingerprint
from ipvs_node_agent.kubeconfig.credentials import Credentials, load_credentials
from ipvs_node_agent.kubeconfig.reader import Reader
from ipvs_node_agent.model.addresses import Address

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 10.0
_LOOK_TIMEOUT = 2.0
# How often changed files are tried again that could not be loaded.
_RELOAD_SECONDS = 60.0
_MAX_STATUS_BYTES = 64 << 10
# A server may ask for a pause, but not for hours of silence.
_MAX_RETRY_AFTER = 60.0
_PEERS = 16
# What an API server answers that is well, and will not or has nothing to give.
_ANSWERS = (403, 404, 410)
_UNACCEPTED = "the server's certificate is not accepted"
_CUT = "it ended in the middle"
_BROKEN = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class ApiError(RefusedError):
    """No answer (`status` 0), or one with an error status; `retry_after` are seconds to wait."""

    def __init__(
        self, what: str, why: str, hint: str = "", status: int = 0, retry_after: float = 0.0
    ) -> None:
        super().__init__(what, why, hint)
        self.status, self.retry_after = status, retry_after


class Api:
    """The API server, as the node's credentials name it. Safe to use from several threads.

    `contact` is the monotonic time of the last good answer, or byte of one; `connecting` is set by
    each request, so that whoever has it refreshed looks at the files then.
    """

    def __init__(self, kubeconfig: Path, reader: Reader | None = None) -> None:
        self._reader = reader or Reader(kubeconfig)
        # Nothing is waited for with it: who reads credentials may wait for a program.
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._loading: Future[Credentials] | None = None
        self._files = fingerprint(kubeconfig)
        self._failed = ""
        # Changed files that could not be loaded, and when that is tried again.
        self._tried, self._again, self._lasting = self._files, 0.0, Once()
        # Credentials are read again at every rotation.
        self._warning = Once()
        self._open: set[Answer] = set()
        # The last ends of connections, in the order in which they were last seen.
        self._peers: dict[tuple[Address, int], None] = {}
        # Counts the times that everything under way was ended.
        self._ended = 0
        self.contact = -math.inf
        self.connecting = threading.Event()

    def credentials(self) -> Credentials:
        """The credentials to use now. Raises RefusedError while there are none.

        Who asks while they are being loaded gets what comes of that.
        """
        with self._lock:
            if self._credentials is not None:
                return self._credentials
            others = self._loading
            mine = self._loading = others or Future()
        if others is None:
            self._load_into(mine)
        return mine.result()

    def _load_into(self, mine: Future[Credentials]) -> None:
        try:
            loaded = self._loaded()
            with self._lock:
                # A refresh may have been as fast.
                self._credentials = self._credentials or loaded
                mine.set_result(self._credentials)
        except BaseException as error:
            mine.set_exception(error)
        finally:
            with self._lock:
                self._loading = None

    @property
    def expires(self) -> float | None:
        """When the credentials in use end, as seconds since the epoch, where that is known."""
        credentials = self._credentials
        return credentials.valid[1] if credentials and credentials.valid else None

    @property
    def is_torn(self) -> bool:
        """Whether the files could not be loaded at the last look, as in the midst of a rotation."""
        return bool(self._failed)

    def refresh(self) -> bool:
        """Loads the credentials again if a file of theirs has changed; True where they were.

        Connections made with the old ones are then closed, as a revoked or expired certificate
        must not live on in them. Files that cannot be loaded leave the old credentials in use.
        To be called by one thread only.
        """
        files = fingerprint(self._reader.path)
        if files == self._files or (files == self._tried and time.monotonic() < self._again):
            self._failed = ""
            return False
        try:
            # Requests go on meanwhile.
            new = self._loaded()
        except AgentError as error:
            # A rotation removes the file before it renames the next one into place: the state is
            # looked at again next time, and said only if it lasts.
            lasts = str(error) == self._failed
            if lasts and self._credentials is not None and self._lasting.new(str(error)):
                log.warning("cannot read the changed credentials, using the old ones: %s", error)
            if lasts:
                # What kept them from being loaded may pass without a change of theirs.
                self._tried, self._again = files, time.monotonic() + _RELOAD_SECONDS
            self._failed = str(error)
            return False
        self._files, self._failed = files, ""
        self._lasting.new("")
        with self._lock:
            self._credentials, old = new, self._credentials
        log.info("read the credentials in %s again, since they changed", self._reader.path)
        self._close_connections()
        if old is not None:
            old.pool.clear()
        return True

    def _loaded(self) -> Credentials:
        credentials = load_credentials(self._reader)
        with self._lock:
            new = self._warning.new(credentials.warning)
        if new:
            log.warning("%s", credentials.warning)
        return credentials

    def get(
        self,
        path: str,
        parameters: Mapping[str, str],
        doing: str,
        read_timeout: float,
        once: bool = False,
    ) -> AbstractContextManager[Answer]:
        """The answer to a GET, its body still to be read. Raises ApiError.

        `doing` says what the request is for, such as "list services", in messages. The answer has
        to begin within `read_timeout`, and no pause in it may be longer; see `Answer.be_patient`.
        With `once`, no connection is kept for another request.
        """
        target = path + (f"?{urlencode(parameters)}" if parameters else "")
        return self._request("GET", target, None, doing, read_timeout, once)

    def post(self, path: str, body: object, doing: str, read_timeout: float) -> None:
        """Creates an object; see `get`. Raises ApiError."""
        try:
            with self._request("POST", path, json.dumps(body).encode(), doing, read_timeout, True):
                pass  # What it became is nobody's business.
        except Superseded:
            raise ApiError("API server", "the credentials were just replaced") from None

    @contextmanager
    def _request(
        self,
        method: str,
        target: str,
        body: bytes | None,
        doing: str,
        read_timeout: float,
        once: bool,
    ) -> Iterator[Answer]:
        self.connecting.set()
        ended = self._ended
        credentials = self.credentials()
        url = f"{credentials.server}{target}"
        headers = {"Accept": "application/json", "User-Agent": f"ipvs-node-agent/{__version__}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if once:
            # Else the server would keep one more connection of each node's.
            headers["Connection"] = "close"
        what = f"API server {credentials.server}"
        log.debug("%s %s", method, url)
        try:
            response: Any = credentials.pool.request(
                method,
                url,
                body=body,
                headers={**headers, **credentials.headers()},
                preload_content=False,
                redirect=False,
                timeout=urllib3.Timeout(
                    connect=min(_CONNECT_TIMEOUT, read_timeout), read=read_timeout
                ),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if self._ended != ended:
                # Its connections were closed before it had one.
                raise Superseded from None
            # Not what for: whatever else is asked of it meanwhile fails for the same reason.
            why = reason(error)
            raise ApiError(what, f"cannot be reached: {why}", _way_hint(why)) from None
        answer = Answer(response, self._heard)
        with self._lock:
            if answer.peer is not None:
                self._peers.pop(answer.peer, None)
                self._peers[answer.peer] = None
                if len(self._peers) > _PEERS:
                    del self._peers[next(iter(self._peers))]
            self._open.add(answer)
            superseded = self._ended != ended
        try:
            if superseded:
                raise Superseded
            if response.status == 401 and credentials.short_lived:
                # Have the program that made them asked again.
                with self._lock:
                    if self._credentials is credentials:
                        self._credentials = None
            if response.status not in (200, 201):
                message = _message(response)
                if message is not None and response.status in _ANSWERS:
                    self._heard()
                raise _refusal(what, doing, response, credentials, message)
            self._heard()
            yield answer
        except _BROKEN as error:
            if answer.ended:
                raise Superseded from None
            raise ApiError(what, f"the connection broke: {reason(error)}") from None
        finally:
            with self._lock:
                self._open.discard(answer)
            # Half-read, it must not serve another request with older credentials.
            answer.close()

    def _heard(self) -> None:
        self.contact = time.monotonic()

    @property
    def peers(self) -> list[tuple[Address, int]]:
        """The addresses and ports that the last connections led to."""
        with self._lock:
            return list(self._peers)

    def answers(self) -> bool:
        """Whether anybody takes connections where the requests go to; it is not asked anything."""
        try:
            socket.create_connection(self.credentials().address, _LOOK_TIMEOUT).close()
        except (AgentError, OSError):
            return False
        return True

    def close(self) -> None:
        """Ends all requests, which raise Superseded, and all reading of kubeconfigs, at once."""
        self._reader.close()
        self._close_connections()
        credentials = self._credentials
        if credentials is not None:
            credentials.pool.clear()

    def _close_connections(self) -> None:
        """Ends the open responses, from whichever thread reads them."""
        with self._lock:
            self._ended += 1
            answers, self._open = self._open, set()
        for answer in answers:
            answer.end()


def reason(error: BaseException) -> str:
    """The innermost reason of a transport error, in a few words."""
    # urllib3 wraps an error as its `reason`, as an argument, or as what it was raised from. Before
    # 2.0 it often left only the context.
    context = error.__context__ if isinstance(error.__context__, OSError) else None
    candidates = (getattr(error, "reason", None), *error.args, error.__cause__, context)
    inner = next((c for c in candidates if isinstance(c, BaseException)), None)
    if inner is not None:
        return reason(inner)
    words = next((words for kinds, words in _PLAIN if isinstance(error, kinds)), "")
    if isinstance(error, ssl.CertificateError):
        words = f"{_UNACCEPTED}: {getattr(error, 'verify_message', '') or error}"
    elif isinstance(error, ssl.SSLError) and error.reason:
        named = error.reason.lower().replace("_", " ")
        words = words or _PLAIN_TLS.get(error.reason, f"TLS failed: {named}")
    text = words or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(str(text), 300)


# What libraries say of these is about their own insides; the first that fits counts.
_PLAIN: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((http.client.RemoteDisconnected,), "it was closed without an answer"),
    ((http.client.IncompleteRead, urllib3.exceptions.IncompleteRead), _CUT),
    ((urllib3.exceptions.InvalidChunkLength, ssl.SSLEOFError, ssl.SSLZeroReturnError), _CUT),
    ((http.client.HTTPException,), "what answers there does not speak valid HTTP"),
    ((socket.timeout,), "timed out"),
    ((urllib3.exceptions.TimeoutError,), "timed out"),
)
_PLAIN_TLS = {
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS",
    "UNEXPECTED_EOF_WHILE_READING": _CUT,
}


def _way_hint(why: str) -> str:
    """What to do where a connection fails for a reason that is not the network's."""
    if _UNACCEPTED not in why and "doesn't match" not in why:
        return ""
    if "expired" in why:
        return "renew it on the control plane: kubeadm certs renew apiserver"
    if "not yet valid" in why:
        return "set the clock: timedatectl set-ntp true"
    if "match" in why:
        return "set the kubeconfig's server, or tls-server-name, to a name in its certificate"
    return "the kubeconfig needs /etc/kubernetes/pki/ca.crt of a control-plane node as its CA"


def _message(response: urllib3.HTTPResponse) -> str | None:
    """What a refusal says, in the words of an API server's own; None where it is another's."""
    try:
        body = json.loads(response.read(_MAX_STATUS_BYTES, decode_content=False))
        message = body.get("message") if isinstance(body, dict) else None
    except (ValueError, RecursionError, *_BROKEN):
        return None
    return message if isinstance(message, str) else None


def _refusal(
    what: str,
    doing: str,
    response: urllib3.HTTPResponse,
    credentials: Credentials,
    message: str | None,
) -> ApiError:
    status = f"{response.status} {response.reason or ''}".strip()
    why = f"refused to {doing}: {status}" + (f": {message}" if message is not None else "")
    hint = _hint(response.status, doing, credentials)
    return ApiError(what, why, hint, response.status, _retry_after(response))


def _retry_after(response: urllib3.HTTPResponse) -> float:
    """The seconds that a busy server asks to be left alone for; 0 where it names none."""
    asked = response.headers.get("Retry-After", "")
    # A date, which may stand there too, would need clocks that agree.
    if response.status not in (429, 503) or not re.fullmatch("[0-9]+", asked):
        return 0.0
    return min(float(asked), _MAX_RETRY_AFTER)


def _hint(status: int, doing: str, credentials: Credentials) -> str:
    user = credentials.user or "the kubeconfig's user"
    if status == 401:
        return f"the server does not accept the credentials of {user}; have they expired?"
    if status == 403:
        return f"{user} lacks the permission to {doing}; a node's own credentials have it"
    return ""
