"""Run a test against a real restate-server that an earlier test has left ready.

1. While a block is open, it has a server to itself. Blocks that are open together never see each other's services,
   state or crashes, whatever their services are called.
2. A server is handed on only after it was seen to be empty: no invocation, no state, no deployment. One that cannot be
   emptied, or was killed, is stopped instead, and the next block starts another.
3. The event loop is never blocked. What runs in a thread is waited for even when its caller is cancelled, so that no
   server and no application is left without somebody who ends it.
4. Nothing outlives the process: idle servers are stopped when the interpreter exits, and the guards of
   :mod:`restate_steps.server` end everything when the process is killed.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from restate import HttpError, JournalValueCodec
from restate.types import HarnessEnvironment

from restate_steps.errors import ServerError
from restate_steps.server import AppServer, ASGIApp, JournalEntry, RestateServer
from restate_steps.server._admin import quoted
from restate_steps.server._child import Child
from restate_steps.server._extra import missing_extra
from restate_steps.server._journal import read_journal
from restate_steps.server._ports import LOOPBACK, free_ports
from restate_steps.testing._server_client import ServerClient, signals_app
from restate_steps.testing._simulation.simulator import output_of

if TYPE_CHECKING:
    import httpx

__all__ = ["ServerEnvironment", "close_servers", "server"]

T = TypeVar("T")

_CALL_WITHIN = 60.0
_CLEAN_WITHIN = 5.0
_CLEAN_EVERY = 0.005
_START_APP_WITHIN = 60.0
_CUT_WITHIN = 0.05
_POLL_EVERY = 0.02
_FOLLOW_EVERY = 0.1
# Emptying a server takes about 2 ms for each invocation it remembers, and starting another takes half a second.
_EMPTY_AT_MOST = 250
# Those who open many blocks at once do it rarely; a server takes some 150 MB.
_IDLE_AT_MOST = 4

# Where an entry of a journal keeps bytes that a codec has encoded.
_ENCODED = ("Success", "payload", "value")


class ServerEnvironment(HarnessEnvironment, ServerClient):
    """A server and the application it runs, for the length of a test; :func:`server` makes it.

    It is a ``restate.types.HarnessEnvironment``, so what was written for the SDK's own harness takes it as it is.

    Attributes:
        ingress_url: Where calls go.
        admin_api_url: Where the admin API is.
        client: The SDK's client, connected to the ingress. An answer may take a minute.

    Example:
        >>> import restate, restate_steps
        >>> greeter = restate.Service("Greeter")
        >>> @greeter.handler()
        ... async def greet(ctx: restate.Context, name: str) -> str:
        ...     return f"hello {name}"
        >>> async with server(restate_steps.app([greeter])) as env:
        ...     sent = await env.client.service_send(greet, "Ada")
        ...     await env.restart_server()
        ...     await env.attach(sent.invocation_id)
        'hello Ada'
    """

    def __init__(self, block: _Block, http: httpx.AsyncClient, codec: JournalValueCodec | None) -> None:
        from restate.client import Client

        super().__init__(
            ingress_url=block.server.ingress_url,
            admin_api_url=block.server.admin_url,
            client=Client(http, journal_codec=codec),
        )
        self._block = block
        self._serves_signals = False
        self.http = http
        self.codec = codec

    @property
    def server(self) -> RestateServer:
        """The server itself, whose methods block; it has its log, its process id, and what is missing here."""
        return self._block.server

    def serve_signals(self) -> None:
        """Serve what sends signals for clients, once."""
        if not self._serves_signals:
            self._serves_signals = True
            self._block.serve_beside(signals_app())

    @property
    def app_url(self) -> str:
        """Where the application is served; it stays the same when the application is served again."""
        return self._block.app.url

    @property
    def deployment_id(self) -> str:
        """The id that the application was registered as."""
        return self._block.deployment_id

    @property
    def services(self) -> Sequence[str]:
        """The names of the application's services, sorted."""
        return self._block.services

    async def kill_app(self) -> None:
        """End the application as a crash would. Does nothing if it does not run.

        An application that was given as an import string is a process, and gets SIGKILL: no handler cleans up. One
        that was given as an object runs in this process: its connections are cut, so that the server hears nothing
        more of it, then its handlers are cancelled; a thread that works for one goes on to its end. In both cases
        Restate tries the invocations again, unless retries are disabled.

        Raises:
            ServerError: If a handler blocks the event loop of an application in this process.
        """
        await _in_thread(self._block.kill_app)

    async def restart_app(self) -> None:
        """Serve the application again, at the same URL; one that runs is killed first.

        Invocations that wait for their next attempt are tried at once, however long the application was dead.

        Raises:
            ServerError: If the application does not start.
        """
        await _in_thread(self._block.restart_app)

    async def kill_server(self) -> None:
        """End the server with SIGKILL, and keep its data and ports. Does nothing if it does not run."""
        await _in_thread(self._block.kill_server)

    async def restart_server(self) -> None:
        """Start the server again, on the same data and ports; one that runs is asked to end first.

        The client and the URLs stay valid; calls that were open fail.

        Raises:
            ServerError: If the server is not ready in time.
        """
        await _in_thread(self._block.restart_server)

    async def invocation(self, invocation_id: str) -> dict[str, Any]:
        """Look an invocation up.

        Args:
            invocation_id: Its id, which starts with ``inv_``.

        Returns:
            Its row of ``sys_invocation``: ``status``, ``target``, ``retry_count``, ``last_failure`` and more.

        Raises:
            ServerError: If the server cannot be reached, or does not know the invocation.
        """
        return await _in_thread(self.server.invocation, invocation_id)

    async def find_invocations(
        self,
        service: str | None = None,
        handler: str | None = None,
        *,
        key: str | None = None,
        status: str | None = None,
    ) -> list[str]:
        """Find the invocations of a service or a handler, among all of this block.

        Args:
            service: The name of the service; of any if left out.
            handler: The name of the handler; of any if left out.
            key: The key of the object or the workflow; of any if left out.
            status: What ``sys_invocation`` calls their status, for example ``running``, ``suspended``,
                ``backing-off`` or ``completed``; any if left out.

        Returns:
            Their ids, the oldest first.

        Raises:
            ServerError: If the server cannot be reached.
        """
        wanted = {
            "target_service_name": service,
            "target_handler_name": handler,
            "target_service_key": key,
            "status": status,
        }
        tests = [f"{column} = {quoted(value)}" for column, value in wanted.items() if value is not None]
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        rows = await _in_thread(self.server.query, f"SELECT id FROM sys_invocation{where} ORDER BY created_at, id")
        return [str(row["id"]) for row in rows]

    async def journal(self, invocation_id: str) -> list[JournalEntry]:
        """Read the journal of an invocation, with the codec of this block if it has one.

        Args:
            invocation_id: Its id, which starts with ``inv_``.

        Returns:
            Its entries in order, with decoded values; none if the server does not know the invocation.

        Raises:
            ServerError: If the server cannot be reached, or the id is malformed.
        """
        if self.codec is None:
            return await _in_thread(self.server.journal, invocation_id)
        columns = '"index", entry_type, name, entry_json'
        sql = f'SELECT {columns} FROM sys_journal WHERE id = {quoted(invocation_id)} ORDER BY "index"'
        rows = await _in_thread(self.server.query, sql)
        for row in rows:
            entry: Any = json.loads(row.get("entry_json") or "{}")
            await _decode(entry, self.codec)
            row["entry_json"] = json.dumps(entry)
        return read_journal(rows)

    async def attach(self, invocation_id: str, *, timeout: float = _CALL_WITHIN) -> Any:
        """Wait until an invocation that was sent before has ended.

        Args:
            invocation_id: Its id, for example that of the handle that ``client.service_send`` returns.
            timeout: How long to wait, in seconds.

        Returns:
            What the handler returned, decoded from JSON, or as ``bytes`` if it is not JSON.

        Raises:
            restate.HttpError: If the handler failed, or the server does not know the invocation.
            TimeoutError: If it has not ended in time.
        """
        import httpx

        try:
            answer = await self.http.get(f"/restate/invocation/{invocation_id}/attach", timeout=timeout)
        except httpx.TimeoutException as error:
            raise TimeoutError(f"the invocation {invocation_id} has not ended within {timeout:g} s.") from error
        if answer.is_error:
            raise HttpError(answer.status_code, answer.reason_phrase, answer.text)
        return await output_of(answer.content, None, self.codec)


def server(
    app: ASGIApp | str,
    follow_logs: bool = False,
    restate_image: None = None,
    always_replay: bool = False,
    disable_retries: bool = False,
    journal_value_codec: JournalValueCodec | None = None,
    *,
    http1: bool = False,
) -> AbstractAsyncContextManager[ServerEnvironment]:
    """Run an application on a real restate-server, until the block ends.

    It takes the place of the SDK's ``restate.create_test_harness``, with the same arguments in the same order, and
    needs no Docker. The first block starts a server; later ones find it ready, and empty: when a block ends, what is
    left of its invocations is killed, and its results, state and services are forgotten. Blocks that are open
    together have a server each.

    Use it in any test that runs on asyncio: under pytest-asyncio, under anyio's asyncio backend, or in
    ``asyncio.run``. Needs the ``server`` extra: ``pip install 'restate-steps[server]'``.

    Args:
        app: The application, such as ``restate_steps.app(...)`` returns, which is served from a thread; or an import
            string, ``"module:app"``, which is served by a process of its own. That process finds the modules that
            this one finds.
        follow_logs: Whether to print the server's log while the block is open.
        restate_image: Not supported, since there is no image: leave it out. Another version of the server is chosen
            with the environment variable ``RESTATE_SERVER``, which names its binary.
        always_replay: Whether the server shall suspend a handler at every wait, so that each goes on by replay. It
            finds code that does not behave the same way twice.
        disable_retries: Whether the first failed attempt ends an invocation.
        journal_value_codec: The codec of the application, if it has one, for the client and for reading journals.
        http1: Whether to serve the application over HTTP/1.1, so that Restate uses its request/response mode.

    Returns:
        A context manager that yields the :class:`ServerEnvironment`.

    Raises:
        TypeError: If there is an image, or the application is none.
        ServerError: If the server or the application does not start (when the block is entered).

    Example:
        >>> import restate, restate_steps
        >>> greeter = restate.Service("Greeter")
        >>> @greeter.handler()
        ... async def greet(ctx: restate.Context, name: str) -> str:
        ...     return f"hello {name}"
        >>> async with server(restate_steps.app([greeter]), always_replay=True) as env:
        ...     await env.client.service_call(greet, "Ada")
        'hello Ada'
    """
    # Both are checked for callers without a type checker; restate_image comes from tests for the SDK's harness.
    image = cast("object", restate_image)
    if image is not None:
        raise TypeError(
            f"server() runs restate-server without a container, so it cannot use restate_image={image!r}. Leave the "
            "argument out. To test with another version of the server, let the environment variable RESTATE_SERVER "
            "name its binary."
        )
    if isinstance(app, str):
        if not all(app.partition(":")):
            raise TypeError(f"server() cannot serve {app!r}: write an import string as 'module:app'.")
        return _serve(_AppProcess(app, http1=http1), follow_logs, always_replay, disable_retries, journal_value_codec)
    if not callable(app):
        raise TypeError(
            "server() needs the application that restate_steps.app([...]) returns, or an import string, not an object "
            f"of type {type(app).__name__}."
        )
    return _serve(_AppThread(app, http1=http1), follow_logs, always_replay, disable_retries, journal_value_codec)


def close_servers() -> None:
    """Stop the servers that wait for the next block; one that a block is using is stopped when the block ends.

    There is no need to call it, since they end with the interpreter. It frees what they hold before that, some 150 MB
    each.

    Example:
        >>> close_servers()
    """
    _pool.retire()


@asynccontextmanager
async def _serve(
    app: _App, follow_logs: bool, always_replay: bool, disable_retries: bool, codec: JournalValueCodec | None
) -> AsyncGenerator[ServerEnvironment, None]:
    block = _Block(app, _Kind(always_replay, disable_retries, follow_logs))
    try:
        await _in_thread(block.open)
        async with _http_client(block.server.ingress_url) as http:
            yield ServerEnvironment(block, http, codec)
    finally:
        await _in_thread(block.close)


class _App(Protocol):
    """An application that can be served, stopped, and served again at the same URL."""

    @property
    def url(self) -> str: ...

    @property
    def http1(self) -> bool: ...

    def start(self) -> object: ...

    def stop(self) -> None: ...


class _AppThread:
    """An application in a thread of this process, which falls silent at once when it is stopped.

    Handlers are cancelled when their connections have been cut, and before Hypercorn is: the other way round, what they
    send in their last moments meets task groups that have ended, and each time an error is logged.
    """

    def __init__(self, app: ASGIApp, *, http1: bool) -> None:
        self._app = app
        self._http1 = http1
        self._server: AppServer | None = None
        self._silent = False
        self._handlers: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}

    @property
    def url(self) -> str:
        assert self._server is not None
        return self._server.url

    @property
    def http1(self) -> bool:
        return self._http1

    def start(self) -> None:
        if self._server is None:
            # A port of the system's choice could be that of somebody's outgoing connection when it is needed again.
            [port] = free_ports(1)
            self._server = AppServer(self._run, http1=self._http1, port=port)
        self._silent = False
        self._handlers.clear()
        self._server.start()

    def stop(self) -> None:
        self._silent = True
        for task, loop in list(self._handlers.items()):
            # The loop may have ended by itself.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_cancel_soon, loop, task)
        if self._server is not None:
            self._server.stop()

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_unless_silent(message: Any) -> None:
            if not self._silent:
                await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = asyncio.get_running_loop()
        try:
            await self._app(scope, receive, send_unless_silent)
        finally:
            self._handlers.pop(task, None)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    loop.call_later(_CUT_WITHIN, task.cancel)


class _AppProcess:
    """An application in a process of its own."""

    def __init__(self, target: str, *, http1: bool) -> None:
        self._target = target
        self._http1 = http1
        self._port: int | None = None
        self._process: Child | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def http1(self) -> bool:
        return self._http1

    def start(self) -> None:
        if self._port is None:
            [self._port] = free_ports(1)
        process = Child(
            [
                *(sys.executable, "-m", "restate_steps", "serve", self._target),
                *("--host", LOOPBACK, "--port", str(self._port), "--quiet"),
                *(["--http1"] if self._http1 else []),
            ],
            # A test runner has put the folders of the tests there.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._process = process
        deadline = time.monotonic() + _START_APP_WITHIN
        while time.monotonic() < deadline:
            if (code := process.poll()) is not None:
                self.stop()
                raise ServerError(
                    f"the process that should serve {self._target!r} at {self.url} ended with exit code {code}; it "
                    "has said why on stderr."
                )
            with suppress(OSError), socket.create_connection((LOOPBACK, self._port), timeout=1):
                return
            time.sleep(_POLL_EVERY)
        self.stop()
        raise ServerError(f"the process that should serve {self._target!r} did not do so in {_START_APP_WITHIN:g} s.")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a server is told when it starts, and so what one block must have in common with the next."""

    always_replay: bool
    disable_retries: bool
    talkative: bool

    def server(self) -> RestateServer:
        return RestateServer(
            always_replay=self.always_replay,
            disable_retries=self.disable_retries,
            log_filter="restate=info" if self.talkative else "warn",
        )


class _Lease:
    """A server that is in use."""

    def __init__(self, kind: _Kind, server: RestateServer, generation: int) -> None:
        self.kind = kind
        self.server = server
        self.generation = generation
        self.reusable = False


class _Pool:
    """The servers of this process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[_Kind, list[RestateServer]] = {}
        self._generation = 0

    def take(self, kind: _Kind) -> _Lease:
        """Take an idle server, or start one; not under the lock, so that others need not wait for it."""
        while True:
            with self._lock:
                idle = self._idle.get(kind)
                found = idle.pop() if idle else None
                lease = _Lease(kind, found or kind.server(), self._generation)
            if found is None:
                lease.server.start()
                return lease
            if found.running:
                return lease
            found.stop()

    def give_back(self, lease: _Lease) -> None:
        """Keep a server for the next block if it is as good as new, and stop it otherwise."""
        if lease.reusable:
            with self._lock:
                idle = self._idle.setdefault(lease.kind, [])
                if lease.generation == self._generation and len(idle) < _IDLE_AT_MOST:
                    idle.append(lease.server)
                    return
        lease.server.stop()

    def retire(self) -> None:
        """Stop idle servers, and those in use when they come back."""
        with self._lock:
            idle = [server for servers in self._idle.values() for server in servers]
            self._idle.clear()
            self._generation += 1
        for found in idle:
            found.stop()


_pool = _Pool()


def _disown() -> None:
    """Start with no servers in a forked process: they are those of its parent, which still uses them."""
    global _pool
    _pool = _Pool()


atexit.register(close_servers)
os.register_at_fork(after_in_child=_disown)


class _Block:
    """An application on a server. Every method blocks; they may be called from any thread."""

    def __init__(self, app: _App, kind: _Kind) -> None:
        self.app = app
        self.deployment_id = ""
        self.services: tuple[str, ...] = ()
        self._kind = kind
        self._lease: _Lease | None = None
        self._cleanup = ExitStack()
        self._lock = threading.Lock()

    @property
    def server(self) -> RestateServer:
        if self._lease is None:
            raise ServerError("this block of server() has ended, and its server may be that of another block by now.")
        return self._lease.server

    def open(self) -> None:
        """Get a server, serve the application, and register it; :meth:`close` undoes what was done."""
        pool = _pool
        lease = self._lease = pool.take(self._kind)
        self._cleanup.callback(pool.give_back, lease)
        if self._kind.talkative:
            self._cleanup.callback(_Follower(lease.server.log_path).stop)
        self._cleanup.callback(_clean, lease)
        self.app.start()
        # Before the rest is killed: an application that is gone starts nothing new meanwhile.
        self._cleanup.callback(self.app.stop)
        self.deployment_id = lease.server.register(self.app.url, http1=self.app.http1)
        self.services = tuple(lease.server.services(self.deployment_id))

    def serve_beside(self, app: ASGIApp) -> None:
        """Serve another application to the same server."""
        beside = AppServer(app)
        beside.start()
        self._cleanup.callback(beside.stop)
        self.server.register(beside.url)

    def close(self) -> None:
        with self._lock:
            # Whoever still has the environment must not reach the server of another block with it.
            self._lease = None
            self._cleanup.close()

    def kill_app(self) -> None:
        with self._lock:
            self.app.stop()

    def restart_app(self) -> None:
        with self._lock:
            server = self.server
            self.app.stop()
            self.app.start()
            if not server.running:
                return
            for row in server.query("SELECT id FROM sys_invocation WHERE status = 'backing-off'"):
                # It may have been tried again by itself.
                with suppress(ServerError):
                    server.resume(row["id"])

    def kill_server(self) -> None:
        with self._lock:
            self.server.kill()

    def restart_server(self) -> None:
        with self._lock:
            self.server.restart()


def _clean(lease: _Lease) -> None:
    lease.reusable = lease.server.running and _emptied(lease.server)


def _emptied(server: RestateServer) -> bool:
    """End and forget all there is on a server, and tell whether that was possible.

    Each round looks first and then acts, so that the last one sees that nothing is left.
    """
    import httpx

    # One connection for everything, and no certificates: loading those takes longer than all the rest.
    with (
        suppress(httpx.HTTPError),
        httpx.Client(base_url=server.admin_url, timeout=_CLEAN_WITHIN, trust_env=False, verify=False) as admin,
    ):
        deadline = time.monotonic() + _CLEAN_WITHIN
        while time.monotonic() < deadline:
            if invocations := _rows(admin, "SELECT id, status FROM sys_invocation"):
                if len(invocations) > _EMPTY_AT_MOST:
                    return False
                for row in invocations:
                    # A refusal means that it has just ended; the next round sees it.
                    verb = "purge" if row["status"] == "completed" else "kill"
                    admin.patch(f"/invocations/{row['id']}/{verb}")
            elif state := _rows(admin, "SELECT DISTINCT service_name, service_key FROM state"):
                for row in state:
                    body: dict[str, Any] = {"object_key": row["service_key"], "new_state": {}}
                    admin.post(f"/services/{row['service_name']}/state", json=body)
            elif deployments := _rows(admin, "SELECT id FROM sys_deployment"):
                for row in deployments:
                    admin.delete(f"/deployments/{row['id']}", params={"force": "true"})
            else:
                # Promises go with the workflow they belong to; those of one that never ran cannot be removed.
                return not _rows(admin, "SELECT key FROM sys_promise LIMIT 1")
            time.sleep(_CLEAN_EVERY)
    return False


def _rows(admin: httpx.Client, sql: str) -> list[dict[str, Any]]:
    answer = admin.post("/query", json={"query": sql}, headers={"accept": "application/json"})
    answer.raise_for_status()
    return cast("list[dict[str, Any]]", answer.json()["rows"])


class _Follower:
    """Prints what is added to a file, from a thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open(errors="replace")
        self._file.seek(0, os.SEEK_END)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restate-steps-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(_FOLLOW_EVERY)
            if added := self._file.read():
                print(added, end="", flush=True)


def _http_client(ingress_url: str) -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError as error:
        raise missing_extra("httpx", "call handlers") from error

    # The SDK's own factory for clients gives up after five seconds, queues calls above a hundred, and lets a proxy
    # come between this process and a server on loopback.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=ingress_url, timeout=_CALL_WITHIN, limits=limits, trust_env=False, verify=False)


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run a blocking function in a thread, and do not leave before it has ended."""
    # As a future of the executor and not as a task, because a task can be cancelled while its thread goes on.
    working = asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            # anyio cancels again and again.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        # Looked at, so that asyncio does not report it: whoever cancelled does not wait for it any more.
        working.exception()
        raise


async def _decode(node: Any, codec: JournalValueCodec) -> None:
    """Decode, in place, all bytes in an entry of a journal that the codec has encoded; they are lists of integers."""
    if not isinstance(node, dict):
        return
    body = cast("dict[str, Any]", node)
    for name, value in body.items():
        if name in _ENCODED and isinstance(value, list):
            body[name] = list(await codec.decode(bytes(cast("list[int]", value))))
        else:
            await _decode(value, codec)
