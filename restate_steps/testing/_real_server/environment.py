"""Run an application on a real server for the duration of a block."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from restate import HttpError, JournalValueCodec
from restate.types import HarnessEnvironment

from restate_steps._durations import to_seconds
from restate_steps.server import ASGIApp, JournalEntry, RestateServer, _sql
from restate_steps.server._extra import missing_extra
from restate_steps.server._journal import read_journal
from restate_steps.testing._real_server.apps import App, served
from restate_steps.testing._real_server.block import Block
from restate_steps.testing._real_server.client import ServerClient, signals_app
from restate_steps.testing._real_server.pool import ServerSettings
from restate_steps.testing._real_server.threads import in_thread
from restate_steps.testing._simulation.calls import output_of

if TYPE_CHECKING:
    import httpx

__all__ = ["ServerEnvironment", "restate_server"]

_CALL_WITHIN = 60.0

# The fields of a journal entry that hold bytes encoded by a codec.
_ENCODED = ("Success", "payload", "value")


class ServerEnvironment(HarnessEnvironment, ServerClient):
    """A server and its application, for the duration of a test; made by :func:`restate_server`.

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
        >>> async with restate_server(restate_steps.app([greeter])) as env:
        ...     sent = await env.client.service_send(greet, "Ada")
        ...     await env.restart_server()
        ...     await env.attach(sent.invocation_id)
        'hello Ada'
    """

    def __init__(self, block: Block, http: httpx.AsyncClient, codec: JournalValueCodec | None) -> None:
        from restate.client import Client

        super().__init__(
            ingress_url=block.server.ingress_url,
            admin_api_url=block.server.admin_url,
            client=Client(http, journal_codec=codec),
        )
        self._block = block
        self._serves_signals = False
        self._starting = asyncio.Lock()
        self.http = http
        self.codec = codec

    @property
    def server(self) -> RestateServer:
        """The server itself, with its log, its process id and its admin API. Its methods block."""
        return self._block.server

    async def serve_signals(self) -> None:
        """Serve the application that sends signals for clients, once."""
        async with self._starting:
            if not self._serves_signals:
                await in_thread(self._block.serve_beside, signals_app())
                self._serves_signals = True

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
        await in_thread(self._block.kill_app)

    async def restart_app(self) -> None:
        """Start the application again at the same URL; kill it first if it is running.

        Invocations that wait for their next attempt are retried immediately.

        Raises:
            ServerError: The application does not start.
        """
        await in_thread(self._block.restart_app)

    async def kill_server(self) -> None:
        """Kill the server with SIGKILL, and keep its data and ports. Does nothing if it is not running."""
        await in_thread(self._block.kill_server)

    async def restart_server(self) -> None:
        """Start the server again with the same data and ports; stop it first if it is running.

        The client and the URLs stay valid; open calls fail.

        Raises:
            ServerError: The server is not ready in time.
        """
        await in_thread(self._block.restart_server)

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
        return await in_thread(self.server.admin.invocation, invocation_id)

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
        query = _sql.invocations(service=service, handler=handler, key=key, status=status)
        rows = await in_thread(self.server.admin.query, query)
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
            return await in_thread(self.server.admin.journal, invocation_id)
        rows = await in_thread(self.server.admin.query, _sql.entries_of(invocation_id))
        for row in rows:
            entry: Any = json.loads(row.get("entry_json") or "{}")
            await _decode(entry, self.codec)
            row["entry_json"] = json.dumps(entry)
        return read_journal(rows)

    async def attach(self, invocation_id: str, *, timeout: timedelta | float = _CALL_WITHIN) -> Any:
        """Wait until an invocation ends, and return its result.

        Args:
            invocation_id: The invocation's id, for example from the handle that ``client.service_send`` returns.
            timeout: How long to wait, in seconds or as a timedelta.

        Returns:
            The handler's return value, decoded from JSON, or as ``bytes`` if it is not JSON.

        Raises:
            restate.HttpError: The handler failed, or the server does not know the invocation.
            TimeoutError: The invocation did not end in time.
        """
        import httpx

        seconds = to_seconds("timeout", timeout)
        try:
            answer = await self.http.get(f"/restate/invocation/{invocation_id}/attach", timeout=seconds)
        except httpx.TimeoutException as error:
            raise TimeoutError(f"the invocation {invocation_id} did not end within {seconds:g} s.") from error
        if answer.is_error:
            raise HttpError(answer.status_code, answer.reason_phrase, answer.text)
        return await output_of(answer.content, None, self.codec)


def restate_server(
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
        >>> async with restate_server(restate_steps.app([greeter]), always_replay=True) as env:
        ...     await env.client.service_call(greet, "Ada")
        'hello Ada'
    """
    # Tests written for the SDK's harness pass restate_image, and not all callers use a type checker.
    image = cast("object", restate_image)
    if image is not None:
        raise TypeError(
            "restate_server() runs restate-server without a container, so it cannot use "
            f"restate_image={image!r}. Leave the argument out. To test with another version of the server, set the "
            "environment variable RESTATE_SERVER to the path of its binary."
        )
    settings = ServerSettings(always_replay=always_replay, disable_retries=disable_retries, talkative=follow_logs)
    return _serve(served(app, http1=http1), settings, journal_value_codec)


@asynccontextmanager
async def _serve(
    app: App, settings: ServerSettings, codec: JournalValueCodec | None
) -> AsyncGenerator[ServerEnvironment, None]:
    block = Block(app, settings)
    try:
        await in_thread(block.open)
        async with _http_client(block.server.ingress_url) as http:
            yield ServerEnvironment(block, http, codec)
    finally:
        await in_thread(block.close)


def _http_client(ingress_url: str) -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError as error:
        raise missing_extra("httpx", "call handlers") from error

    # Clients from the SDK's own factory time out after five seconds, queue calls above a hundred, and use a proxy even
    # for a server on loopback.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=ingress_url, timeout=_CALL_WITHIN, limits=limits, trust_env=False, verify=False)


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
