"""Run tests against a real restate-server, and reuse the server from one test to the next.

1. An open block has a server to itself. Blocks that are open at the same time never see each other's services, state
   or crashes, even if their services have the same names.
2. A server is reused only after a check that it is empty: no invocation, no state, no deployment. A server that cannot
   be emptied, or was killed, is stopped instead, and the next block starts another.
3. The event loop is never blocked. Threads are joined even on cancellation, so that no server and no application leaks.
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
from restate_steps.testing._simulation.calls import output_of

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
# Emptying a server takes about 2 ms for each invocation, and starting another takes half a second.
_EMPTY_AT_MOST = 250
# Few tests open more blocks at once, and a server takes about 150 MB.
_IDLE_AT_MOST = 4

# The fields of a journal entry that hold bytes encoded by a codec.
_ENCODED = ("Success", "payload", "value")


class ServerEnvironment(HarnessEnvironment, ServerClient):
    """A server and its application, for the duration of a test; made by :func:`server`.

    It is a ``restate.types.HarnessEnvironment``, so code written for the SDK's own harness accepts it.

    Attributes:
        ingress_url: The URL of the ingress, which takes calls.
        admin_api_url: The URL of the admin API.
        client: The SDK's client, connected to the ingress. An answer may take up to a minute.

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
        """The server itself, with its log, its process id, and methods that this class lacks. Its methods block."""
        return self._block.server

    def serve_signals(self) -> None:
        """Serve the application that sends signals for clients, once."""
        if not self._serves_signals:
            self._serves_signals = True
            self._block.serve_beside(signals_app())

    @property
    def app_url(self) -> str:
        """The URL of the application; it does not change when the application restarts."""
        return self._block.app.url

    @property
    def deployment_id(self) -> str:
        """The id of the application's deployment."""
        return self._block.deployment_id

    @property
    def services(self) -> Sequence[str]:
        """The names of the application's services, sorted."""
        return self._block.services

    async def kill_app(self) -> None:
        """Kill the application as a crash would. Does nothing if it is not running.

        An application given as an import string is a process, and is killed with SIGKILL: no handler cleans up. One
        given as an object runs in this process. Its connections are cut, so that the server receives nothing more from
        it, and then its handlers are cancelled; a thread of a handler runs to its end. In both cases Restate retries
        the invocations, unless retries are disabled.

        Raises:
            ServerError: A handler blocks the event loop of an application in this process.
        """
        await _in_thread(self._block.kill_app)

    async def restart_app(self) -> None:
        """Start the application again at the same URL; kill it first if it is running.

        Invocations that wait for their next attempt are retried immediately.

        Raises:
            ServerError: The application does not start.
        """
        await _in_thread(self._block.restart_app)

    async def kill_server(self) -> None:
        """Kill the server with SIGKILL, and keep its data and ports. Does nothing if it is not running."""
        await _in_thread(self._block.kill_server)

    async def restart_server(self) -> None:
        """Start the server again with the same data and ports; stop it first if it is running.

        The client and the URLs stay valid; open calls fail.

        Raises:
            ServerError: The server is not ready in time.
        """
        await _in_thread(self._block.restart_server)

    async def invocation(self, invocation_id: str) -> dict[str, Any]:
        """Look up an invocation.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.

        Returns:
            The invocation's row of ``sys_invocation``: ``status``, ``target``, ``retry_count``, ``last_failure`` and
            more.

        Raises:
            ServerError: The server cannot be reached, or does not know the invocation.
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
        """Find the invocations in this block that match all arguments.

        Args:
            service: The name of the service; any by default.
            handler: The name of the handler; any by default.
            key: The key of the object or the workflow; any by default.
            status: The status in ``sys_invocation``, for example ``running``, ``suspended``, ``backing-off`` or
                ``completed``; any by default.

        Returns:
            The invocations' ids, the oldest first.

        Raises:
            ServerError: The server cannot be reached.
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
            invocation_id: The invocation's id, which starts with ``inv_``.

        Returns:
            The entries in order, with decoded values; empty if the server does not know the invocation.

        Raises:
            ServerError: The server cannot be reached, or the id is malformed.
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
        """Wait until an invocation ends, and return its result.

        Args:
            invocation_id: The invocation's id, for example from the handle that ``client.service_send`` returns.
            timeout: How long to wait, in seconds.

        Returns:
            The handler's return value, decoded from JSON, or as ``bytes`` if it is not JSON.

        Raises:
            restate.HttpError: The handler failed, or the server does not know the invocation.
            TimeoutError: The invocation did not end in time.
        """
        import httpx

        try:
            answer = await self.http.get(f"/restate/invocation/{invocation_id}/attach", timeout=timeout)
        except httpx.TimeoutException as error:
            raise TimeoutError(f"the invocation {invocation_id} did not end within {timeout:g} s.") from error
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
    """Run an application on a real restate-server for the duration of a block.

    A replacement for the SDK's ``restate.create_test_harness`` with the same arguments in the same order, without
    Docker. The first block starts a server, and later blocks reuse it. When a block ends, its open invocations are
    killed, and its results, state and services are removed. Each of several blocks that are open at the same time has
    its own server.

    Use it in any test that runs on asyncio: under pytest-asyncio, under anyio's asyncio backend, or in
    ``asyncio.run``. Needs the ``server`` extra: ``pip install 'restate-steps[server]'``.

    Args:
        app: The application, as ``restate_steps.app(...)`` returns it, which is served from a thread; or an import
            string, ``"module:app"``, which is served from a separate process. That process finds the same modules as
            this one.
        follow_logs: Print the server's log while the block is open.
        restate_image: Not supported, because there is no image: omit it. To use another version of the server, set the
            environment variable ``RESTATE_SERVER`` to the path of its binary.
        always_replay: Suspend handlers at every wait, so that each continues by replay. This finds nondeterministic
            code.
        disable_retries: End an invocation at the first failed attempt.
        journal_value_codec: The codec of the application, if it has one, for the client and for reading journals.
        http1: Serve the application over HTTP/1.1, so that Restate uses its request/response mode.

    Returns:
        A context manager that yields the :class:`ServerEnvironment`.

    Raises:
        TypeError: An image was passed, or ``app`` is neither an application nor an import string.
        ServerError: The server or the application does not start (raised on entering the block).

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
    # Tests written for the SDK's harness pass restate_image, and not all callers use a type checker.
    image = cast("object", restate_image)
    if image is not None:
        raise TypeError(
            f"server() runs restate-server without a container, so it cannot use restate_image={image!r}. Leave the "
            "argument out. To test with another version of the server, set the environment variable RESTATE_SERVER to "
            "the path of its binary."
        )
    if isinstance(app, str):
        if not all(app.partition(":")):
            raise TypeError(f"server() cannot serve {app!r}, which is not an import string. Write it as 'module:app'.")
        return _serve(_AppProcess(app, http1=http1), follow_logs, always_replay, disable_retries, journal_value_codec)
    if not callable(app):
        raise TypeError(
            "server() needs the application that restate_steps.app([...]) returns, or an import string, not an object "
            f"of type {type(app).__name__}."
        )
    return _serve(_AppThread(app, http1=http1), follow_logs, always_replay, disable_retries, journal_value_codec)


def close_servers() -> None:
    """Stop idle servers now, and each server in use when its block ends.

    Calling this is optional, because all servers stop when the interpreter exits. It frees their memory earlier, about
    150 MB each.

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
    """An application in a thread of this process, which sends nothing more once it is stopped.

    Handlers are cancelled after their connections are cut and before Hypercorn stops. Otherwise, what they send while
    they clean up would reach task groups that have ended, and each would log an error.
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
            # An ephemeral port could be taken by an outgoing connection before the application restarts on it.
            [port] = free_ports(1)
            self._server = AppServer(self._run, http1=self._http1, port=port)
        self._silent = False
        self._handlers.clear()
        self._server.start()

    def stop(self) -> None:
        self._silent = True
        for task, loop in list(self._handlers.items()):
            # The loop may already be closed.
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
    """An application in a separate process."""

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
            # The test runner has added the folders of the tests to sys.path.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._process = process
        deadline = time.monotonic() + _START_APP_WITHIN
        while time.monotonic() < deadline:
            if (code := process.poll()) is not None:
                self.stop()
                raise ServerError(
                    f"the process that should serve {self._target!r} at {self.url} ended with exit code {code}. Its "
                    "stderr says why."
                )
            with suppress(OSError), socket.create_connection((LOOPBACK, self._port), timeout=1):
                return
            time.sleep(_POLL_EVERY)
        self.stop()
        raise ServerError(
            f"the process that should serve {self._target!r} did not accept connections within {_START_APP_WITHIN:g} s."
        )

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


@dataclass(frozen=True, slots=True)
class _Kind:
    """The settings that a server starts with; only blocks with equal settings can reuse it."""

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
    """A server in use."""

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
        """Take an idle server, or start one without holding the lock, so that others need not wait."""
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
        """Keep a server for the next block if it is clean, and stop it otherwise."""
        if lease.reusable:
            with self._lock:
                idle = self._idle.setdefault(lease.kind, [])
                if lease.generation == self._generation and len(idle) < _IDLE_AT_MOST:
                    idle.append(lease.server)
                    return
        lease.server.stop()

    def retire(self) -> None:
        """Stop idle servers now, and those in use when they are given back."""
        with self._lock:
            idle = [server for servers in self._idle.values() for server in servers]
            self._idle.clear()
            self._generation += 1
        for found in idle:
            found.stop()


_pool = _Pool()


def _disown() -> None:
    """Start a forked process without servers: they belong to its parent, which still uses them."""
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
            raise ServerError(
                "this block of server() has ended, and another block may use its server now. Use the environment "
                "inside its block only."
            )
        return self._lease.server

    def open(self) -> None:
        """Take a server, serve the application, and register it; :meth:`close` undoes what was done."""
        pool = _pool
        lease = self._lease = pool.take(self._kind)
        self._cleanup.callback(pool.give_back, lease)
        if self._kind.talkative:
            self._cleanup.callback(_Follower(lease.server.log_path).stop)
        self._cleanup.callback(_clean, lease)
        self.app.start()
        # Stop the application before the server is cleaned, so that it starts nothing new meanwhile.
        self._cleanup.callback(self.app.stop)
        self.deployment_id = lease.server.register(self.app.url, http1=self.app.http1)
        self.services = tuple(lease.server.services(self.deployment_id))

    def serve_beside(self, app: ASGIApp) -> None:
        """Serve another application on the same server."""
        beside = AppServer(app)
        beside.start()
        self._cleanup.callback(beside.stop)
        self.server.register(beside.url)

    def close(self) -> None:
        with self._lock:
            # An environment that outlives its block must not reach the server, which another block may use.
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
                # The server may already have retried it.
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
    """Remove everything from a server, and return whether that was possible.

    Each round queries first and then acts, so that the last round verifies that nothing is left.
    """
    import httpx

    # Use one connection, and no certificates: loading those takes longer than everything else.
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
                    # A refusal means that it has just ended; the next round handles it.
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
                # Promises are removed with their workflow; those of a workflow that never ran cannot be removed.
                return not _rows(admin, "SELECT key FROM sys_promise LIMIT 1")
            time.sleep(_CLEAN_EVERY)
    return False


def _rows(admin: httpx.Client, sql: str) -> list[dict[str, Any]]:
    answer = admin.post("/query", json={"query": sql}, headers={"accept": "application/json"})
    answer.raise_for_status()
    return cast("list[dict[str, Any]]", answer.json()["rows"])


class _Follower:
    """Prints what is appended to a file, from a thread."""

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

    # Clients from the SDK's own factory time out after five seconds, queue calls above a hundred, and use a proxy even
    # for a server on loopback.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=ingress_url, timeout=_CALL_WITHIN, limits=limits, trust_env=False, verify=False)


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run a blocking function in a thread, and wait until it has ended, even on cancellation."""
    # A future of the executor, not a task, because a task can be cancelled while its thread continues.
    working = asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            # anyio repeats a cancellation until the task has ended.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        # Retrieve the exception, so that asyncio does not report it: after a cancellation, no caller wants it.
        working.exception()
        raise


async def _decode(node: Any, codec: JournalValueCodec) -> None:
    """Decode, in place, all bytes of a journal entry that the codec has encoded; they are lists of integers."""
    if not isinstance(node, dict):
        return
    body = cast("dict[str, Any]", node)
    for name, value in body.items():
        if name in _ENCODED and isinstance(value, list):
            body[name] = list(await codec.decode(bytes(cast("list[int]", value))))
        else:
            await _decode(value, codec)
