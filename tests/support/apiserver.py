"""A small Kubernetes API server for tests and for the demo.

It knows Services, Nodes, Pods, Events, the Endpoints of its own Service, and what else kube-proxy
follows, and speaks list, watch, create and get as the real one does. It breaks in all the ways a
real one does when it is told to:

    with ApiServer() as server:
        server.put({"kind": "Service", "metadata": {"name": "web"}, "spec": {}})
        server.wait_for(lambda: server.watches("services") == 1)
        server.drop_watches()
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.support.access import (
    authenticate,
    authorize,
    bearer_token,
    certificate_of,
    common_name,
)
from tests.support.pki import Pki
from tests.support.rest import (
    API_VERSIONS,
    KINDS,
    Refusal,
    Request,
    bad_request,
    encode,
    expired,
    failure,
    is_true,
    no_such_path,
    parse_target,
)
from tests.support.selection import matches, selector_of, version_of, wants_initial_events
from tests.support.sockets import enter_netns
from tests.support.store import Store
from tests.support.watching import Action, Watch

# So often a server tells those who want to know how far they have seen.
_BOOKMARK_SECONDS = 60.0


@dataclass
class _Failure:
    status: int
    verb: str | None
    resource: str | None
    times: int | None

    def meets(self, request: Request) -> bool:
        return self.verb in (None, request.verb) and self.resource in (None, request.resource)


class _Connections(web.Server):
    """Tells when a client goes away, which aiohttp keeps to itself."""

    def __init__(self, handler: Any, on_lost: Callable[[web.RequestHandler], None]) -> None:
        super().__init__(handler, access_log=None)
        self._on_lost = on_lost

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        self._on_lost(handler)
        # Python 3.9 takes a TLS transport for open until it is told otherwise.
        if handler.transport:
            handler.transport.close()
        super().connection_lost(handler, exc)


class ApiServer:
    """The server, in a thread of its own; all methods may be called from any other.

    `netns` is the path of a network namespace to listen in. `pki` turns on TLS and everything
    about users; without it the server is plain HTTP and lets anybody do anything. `names` are
    further names for the server's certificate, `tokens` maps bearer tokens to users. Its objects
    are changed as in a `Store`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        netns: str | None = None,
        pki: Pki | None = None,
        names: Sequence[str] = (),
        tokens: Mapping[str, str] | None = None,
        streaming_lists: bool = False,
    ) -> None:
        self.port = 0
        self._host = host
        self._tokens = dict(tokens or {})
        self._streaming_lists = streaming_lists
        self._store = store = Store(self._store_changed)
        self.put, self.put_raw, self.delete = store.put, store.put_raw, store.delete
        self.compact = store.compact
        self._netns = netns
        self._tls = pki.server_context([host, "localhost", *names]) if pki else None
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._watches: dict[Watch, str] = {}
        self._running: dict[web.RequestHandler, asyncio.Task[Any]] = {}
        self._failures: list[_Failure] = []
        self._hung = False
        self._lists_truncated = False
        self._thread: threading.Thread | None = None

    # Life

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where clients find the server."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def start(self) -> None:
        """Listen; after a `stop` on the same port, with the same objects."""
        listening: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        listening.result()

    def stop(self) -> None:
        """Stop listening and break off all connections."""
        if self._thread and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self._thread = None

    # Faults

    def fail(
        self,
        status: int,
        verb: str | None = None,
        resource: str | None = None,
        times: int | None = None,
    ) -> None:
        """Answer matching requests, the next `times` or all, with a Status of that code."""
        with self._changed:
            self._failures.append(_Failure(status, verb, resource, times))

    def hang(self) -> None:
        """Accept requests but answer nothing, and fall silent on open watches too."""
        self._hung = True
        self._in_loop(lambda: self._healed.clear())

    def truncate_lists(self) -> None:
        """Break off in the middle of every list."""
        self._lists_truncated = True

    def heal(self) -> None:
        """End what `fail`, `hang` and `truncate_lists` began."""
        with self._changed:
            self._failures.clear()
        self._lists_truncated = False
        self._hung = False
        self._in_loop(lambda: self._healed.set())

    def close_watches(self, resource: str | None = None) -> None:
        """End open watches as at the end of their time."""
        self._tell_watches(Watch.end, resource)

    def drop_watches(self) -> None:
        """Reset the connections of open watches."""
        self._tell_watches(Watch.reset)

    def truncate_watches(self, resource: str | None = None) -> None:
        """Send half a line into open watches, then end them."""
        self._tell_watches(Watch.truncate, resource)

    # Observation

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order of their arrival."""
        with self._changed:
            return list(self._requests)

    def objects(self, kind: str) -> list[Any]:
        """The objects of a kind: only to be read."""
        return self._store.items(kind)[0]

    def watches(self, resource: str) -> int:
        """How many watches are open."""
        with self._changed:
            return list(self._watches.values()).count(resource)

    def wait_for(self, predicate: Callable[[], object], timeout: float = 10.0) -> None:
        """Wait until something is true that requests, watches or objects decide."""
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                recent = "".join(f"\n  {request}" for request in self._requests[-10:])
                raise AssertionError(f"not true within {timeout} s; last requests:{recent}")

    # The server's thread

    def _run(self, listening: concurrent.futures.Future[None]) -> None:
        try:
            # A namespace is a property of the thread, so nothing else moves.
            if self._netns:
                enter_netns(self._netns)
            asyncio.run(self._serve(listening))
        except BaseException as error:
            if listening.done():
                raise
            listening.set_exception(error)

    async def _serve(self, listening: concurrent.futures.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._healed = asyncio.Event()
        if not self._hung:
            self._healed.set()
        server = _Connections(self._handle, self._client_left)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.create_server((self._host, self.port), family=family, backlog=128)
        self.port = sock.getsockname()[1]
        listener = await self._loop.create_server(server, sock=sock, ssl=self._tls)
        listening.set_result(None)
        await self._stopping.wait()
        # A connection that is being accepted right now would be left open by `close`, so it is
        # given a few rounds to be among those that are broken off.
        self._loop.remove_reader(sock)
        for _ in range(5):
            await asyncio.sleep(0)
            for connection in server.connections:
                if connection.transport:
                    connection.transport.abort()
        listener.close()

    def _in_loop(self, action: Callable[[], object]) -> None:
        if self._thread and self._thread.is_alive():
            self._loop.call_soon_threadsafe(action)

    def _tell_watches(self, action: Action, resource: str | None = None) -> None:
        def post() -> None:
            for watch, watched in list(self._watches.items()):
                if resource in (None, watched):
                    watch.post(action)

        self._in_loop(post)

    def _store_changed(self) -> None:
        self._tell_watches(Watch.look)
        with self._changed:
            self._changed.notify_all()

    def _client_left(self, connection: web.RequestHandler) -> None:
        task = self._running.get(connection)
        if task:
            task.cancel()

    # One request

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task
        self._running[http.protocol] = task
        request = self._record(http)
        try:
            await self._healed.wait()
            self._fail_if_told(request)
            if self._tls:
                authenticate(request, certificate_of(http))
                authorize(request)
            return await self._answer(http, request)
        except Refusal as refusal:
            return self._reply(request, refusal.code, refusal.status)
        finally:
            del self._running[http.protocol]

    def _record(self, http: web.BaseRequest) -> Request:
        params = dict(http.query)
        verb, resource, namespace = parse_target(http.method, http.path, params)
        certificate = certificate_of(http)
        request = Request(
            verb=verb,
            resource=resource,
            namespace=namespace,
            params=params,
            user=common_name(certificate) or self._tokens.get(bearer_token(http)),
            serial=int(certificate["serialNumber"], 16) if certificate else None,
            port=http.transport.get_extra_info("peername")[1] if http.transport else 0,
            keeps=http.keep_alive,
        )
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
        return request

    def _fail_if_told(self, request: Request) -> None:
        with self._changed:
            told = next((one for one in self._failures if one.meets(request)), None)
            if told and told.times is not None:
                told.times -= 1
                if told.times <= 0:
                    self._failures.remove(told)
        if told:
            raise failure(told.status, request)

    async def _answer(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        if request.resource in KINDS and request.verb == "create" and request.namespace:
            return self._create(request, await http.read())
        if request.resource in KINDS and request.verb == "watch":
            return await self._watch(http, request)
        if request.resource in KINDS and request.verb == "list":
            return await self._list(http, request)
        if request.verb == "get" and request.resource == "endpoints":
            objects, _ = self._store.items("Endpoints")
            if objects:
                return self._reply(request, 200, objects[0])
        raise no_such_path()

    def _answered(self, request: Request, status: int) -> None:
        with self._changed:
            request.status = status
            self._changed.notify_all()

    def _reply(self, request: Request, status: int, body: Any) -> web.Response:
        self._answered(request, status)
        return web.Response(status=status, body=encode(body), content_type="application/json")

    def _create(self, request: Request, body: bytes) -> web.Response:
        try:
            obj = json.loads(body)
            metadata = {**obj["metadata"], "namespace": request.namespace}
            made = self.put({**obj, "kind": KINDS[request.resource], "metadata": metadata})
        except (ValueError, LookupError, TypeError):
            raise bad_request("the object provided is unrecognized") from None
        return self._reply(request, 201, made)

    async def _open_stream(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        self._answered(request, 200)
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        stream.enable_chunked_encoding()
        await stream.prepare(http)
        return stream

    # Lists and watches

    async def _list(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        selector = selector_of(request)
        kind = KINDS[request.resource]
        objects, version = self._store.items(kind)
        items = [_as_item(obj) for obj in objects if matches(obj, selector)]
        metadata = {"resourceVersion": str(version)}
        version_of_api = API_VERSIONS.get(kind, "v1")
        found = {"kind": f"{kind}List", "apiVersion": version_of_api, "metadata": metadata}
        body = encode({**found, "items": items})
        stream = await self._open_stream(http, request)
        if self._lists_truncated:
            await stream.write(body[: len(body) // 2])
            if http.transport:
                http.transport.close()
        else:
            await stream.write(body)
        return stream

    async def _watch(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        params = request.params
        selector = selector_of(request)
        streaming_list = wants_initial_events(params, self._streaming_lists)
        since = version_of(params)
        if 0 < since < self._store.oldest and not streaming_list:
            raise expired(since, self._store.oldest)
        stream = await self._open_stream(http, request)
        watch = Watch(
            http,
            stream,
            self._store,
            KINDS[request.resource],
            selector,
            bookmarks=is_true(params, "allowWatchBookmarks"),
        )
        with self._open(watch, request), contextlib.suppress(ConnectionError):
            if streaming_list or since == 0:
                await watch.send_state(mark_end=streaming_list)
            else:
                watch.start_after(since)
            await watch.run(self._healed)
        return stream

    @contextlib.contextmanager
    def _open(self, watch: Watch, request: Request) -> Iterator[None]:
        with self._changed:
            self._watches[watch] = request.resource
            self._changed.notify_all()
        timers = contextlib.ExitStack()
        if "timeoutSeconds" in request.params:
            seconds = float(request.params["timeoutSeconds"])
            timers.callback(self._loop.call_later(seconds, watch.post, Watch.end).cancel)
        timers.callback(self._loop.create_task(_tick(watch)).cancel)
        try:
            with timers:
                yield
        finally:
            with self._changed:
                del self._watches[watch]
                self._changed.notify_all()


async def _tick(watch: Watch) -> None:
    while True:
        await asyncio.sleep(_BOOKMARK_SECONDS)
        watch.post(Watch.bookmark)


def _as_item(obj: Any) -> Any:
    if not isinstance(obj, dict):
        return obj
    return {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}
