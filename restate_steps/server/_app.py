"""Serve an application from a thread of this process.

1. The port is bound before anything else happens, so that its URL is right from the start and stays the same.
2. Over HTTP/2 with prior knowledge an application streams in both directions; over HTTP/1.1 it answers a request with
   a response, and a client that speaks HTTP/2 is refused, so that the mode is never a matter of luck.
3. Stopping ends within seconds, whatever the handlers do: what has not ended by itself is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from restate_steps.errors import ServerError
from restate_steps.server._admin import AdminClient
from restate_steps.server._extra import missing_extra
from restate_steps.server._ports import LOOPBACK

if TYPE_CHECKING:
    from hypercorn.config import Config

__all__ = ["ASGIApp", "AppServer", "http1_only", "hypercorn_config", "serve_app"]

ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application, such as ``restate.app(...)`` returns."""

_UNLIMITED = 2**31 - 1
_BACKLOG = 1024
_GRACE = 0.2
_CANCEL_WITHIN = 2.0
_JOIN_WITHIN = 10.0

_logger = logging.getLogger("restate_steps.server")
# The SDK's applications have no lifespan. Hypercorn warns of that at every start, and there is nothing to be done.
_logger.addFilter(lambda record: "continuing without Lifespan support" not in record.getMessage())


def hypercorn_config() -> Config:
    """Configure Hypercorn for the long streams of a Restate application.

    Returns:
        A configuration without an address to bind.

    Raises:
        ServerError: If Hypercorn is not installed.
    """
    try:
        from hypercorn.config import Config
    except ImportError as error:
        raise missing_extra("hypercorn[h2]", "serve an application") from error

    config = Config()
    # A stream lives as long as an attempt of an invocation, and a connection as long as the server.
    config.h2_max_concurrent_streams = _UNLIMITED
    config.keep_alive_max_requests = _UNLIMITED
    config.keep_alive_timeout = _UNLIMITED
    config.graceful_timeout = _GRACE
    config.backlog = _BACKLOG
    return config


def http1_only(app: ASGIApp) -> ASGIApp:
    """Let an application answer requests over HTTP/1.1 only, and refuse others with a reason.

    Args:
        app: The application.

    Returns:
        An application for a server that may speak HTTP/2 as well.
    """

    async def guarded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["http_version"].startswith("1"):
            await app(scope, receive, send)
            return
        reason = b"this application is served over HTTP/1.1 only: register it as such (http1=True, or --http1)"
        await send({"type": "http.response.start", "status": 505, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": reason})

    return guarded


class AppServer:
    """Serves an ASGI application with Hypercorn, from a thread, on loopback.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. It can be started again after a stop, and
    keeps its URL.

    Args:
        app: The application, such as ``restate.app(...)`` returns.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        port: The port to listen on; a free one if left out.

    Example:
        >>> import restate
        >>> with AppServer(restate.app([])) as served:
        ...     served.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(self, app: ASGIApp, *, http1: bool = False, port: int | None = None) -> None:
        self._app = http1_only(app) if http1 else app
        self._http1 = http1
        self._port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    @property
    def http1(self) -> bool:
        """Whether the application is served over HTTP/1.1."""
        return self._http1

    @property
    def url(self) -> str:
        """Where the application is served."""
        if self._port is None:
            raise ServerError("this application has no URL yet: start its server first.")
        return f"http://{LOOPBACK}:{self._port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start serving, and wait until requests are accepted.

        Returns:
            The server itself.

        Raises:
            ServerError: If it runs already, Hypercorn is not installed, the port is taken, or the application fails
                to start.
        """
        if self._thread is not None:
            raise ServerError(f"this application is being served already, at {self.url}.")
        config = hypercorn_config()
        config.errorlog = _logger
        listener = self._listen()
        self._port = listener.getsockname()[1]
        # Hypercorn owns the file descriptor from here on, and closes it.
        config.bind = [f"fd://{listener.detach()}"]
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(config, ready), name="restate-steps-app", daemon=True)
        self._thread.start()
        if failure := ready.exception():
            self.stop()
            raise ServerError(f"the application could not be served: {failure!r}") from failure
        return self

    def stop(self) -> None:
        """Stop serving; open streams are cut. Does nothing if it is stopped.

        Raises:
            ServerError: If a handler blocks the event loop, so that its thread does not end.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._stopping is not None:
            # The loop may have been closed by a failure of its own.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join(_JOIN_WITHIN)
        if thread.is_alive():
            raise ServerError(
                f"the application at {self.url} did not stop within {_JOIN_WITHIN:g} s: a handler blocks its event "
                "loop. Move blocking work to a thread, for example into a step that is a plain function."
            )

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, self._port or 0))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise ServerError(f"cannot serve on port {self._port} of {LOOPBACK}: {error.strerror}") from error
        return listener

    def _run(self, config: Config, ready: Future[None]) -> None:
        loop = self._loop = asyncio.new_event_loop()
        # An executor of its own: threads that are still busy with a handler's work are left behind, not waited for.
        executor = ThreadPoolExecutor(thread_name_prefix="restate-steps-handler")
        loop.set_default_executor(executor)
        try:
            loop.run_until_complete(self._serve(config, ready))
        except BaseException as error:
            if ready.done():
                _logger.exception("the application at %s is not served any more", self.url)
            else:
                ready.set_exception(error)
        finally:
            with suppress(Exception):
                loop.run_until_complete(loop.shutdown_asyncgens())
            executor.shutdown(wait=False, cancel_futures=True)
            loop.close()

    async def _serve(self, config: Config, ready: Future[None]) -> None:
        # Its annotations leave a WSGI application's types open.
        from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]

        stopping = self._stopping = asyncio.Event()

        async def until_stopped() -> None:
            # Hypercorn waits for this when everything listens.
            ready.set_result(None)
            await stopping.wait()

        serving = asyncio.ensure_future(
            serve(cast("Any", self._app), config, shutdown_trigger=until_stopped, mode="asgi")
        )
        stopped = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({serving}, timeout=2 * _GRACE if stopping.is_set() else None)
            if serving.done():
                serving.result()
        finally:
            await _cancel_the_rest()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        done, _ = await asyncio.wait(rest, timeout=_CANCEL_WITHIN)
        for task in done:
            if not task.cancelled():
                # Looked at, so that asyncio does not report it: it was cut off, and its failure says no more.
                task.exception()
    # Transports close in callbacks of their own.
    await asyncio.sleep(0)


@contextmanager
def serve_app(
    app: ASGIApp, server: AdminClient, *, http1: bool = False, port: int | None = None, force: bool = True
) -> Generator[AppServer, None, None]:
    """Serve an application and register it, until the block ends.

    Args:
        app: The application, such as ``restate.app(...)`` returns.
        server: The server to register it with.
        http1: Whether to serve over HTTP/1.1, in request/response mode.
        port: The port to listen on; a free one if left out.
        force: Whether to replace a deployment that was registered with this URL before.

    Yields:
        The running application server.

    Raises:
        ServerError: If the application cannot be served or registered.

    Example:
        >>> import restate
        >>> greeter = restate.Service("Greeter")
        >>> with RestateServer() as server, serve_app(restate.app([greeter]), server) as served:
        ...     served.http1
        False
    """
    with AppServer(app, http1=http1, port=port) as served:
        server.register(served.url, force=force, http1=http1)
        yield served
