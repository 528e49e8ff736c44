"""Serve an ASGI application with Hypercorn until told to stop.

1. The caller binds the port, so that a URL is known, and an error is raised, before anything is served.
2. Over HTTP/2 with prior knowledge an application streams in both directions; over HTTP/1.1 it answers a request with
   a response, and a client that speaks HTTP/2 is refused, so that the mode is never a matter of luck.
3. Stopping ends within seconds, whatever the handlers do: connections are cut first, as a crash would cut them, and
   what has not ended by itself then is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from restate_steps.errors import ServerError
from restate_steps.server._extra import missing_extra

if TYPE_CHECKING:
    from hypercorn.config import Config

__all__ = ["ASGIApp", "Listener", "http1_only", "listen", "serve_until"]

ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application, such as ``restate_steps.app(...)`` returns."""

_UNLIMITED = 2**31 - 1
_BACKLOG = 1024
_GRACE = 0.2
_CANCEL_WITHIN = 2.0
_CANCEL_EVERY = 0.1

_logger = logging.getLogger("restate_steps.server")
# The SDK's applications have no lifespan. Hypercorn warns of that at every start, and there is nothing to be done.
_logger.addFilter(lambda record: "continuing without Lifespan support" not in record.getMessage())


class Listener(socket.socket):
    """A listening socket that can end the connections it has accepted.

    Hypercorn is at its best when clients leave: it tells every handler, and they end in order. Cancelled with its
    connections open, it trips over its own task groups.
    """

    _accepted: weakref.WeakSet[socket.socket] | None = None
    _hung_up = False

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, as :meth:`socket.socket.accept` does, and remember it.

        A listener that has hung up accepts none: asyncio makes a connection's transport in a later turn, and leaves it
        half made if the server was closed before that (CPython gh-109564).
        """
        connection, address = super().accept()
        if self._hung_up:
            connection.close()
            raise BlockingIOError
        if self._accepted is None:
            self._accepted = weakref.WeakSet()
        self._accepted.add(connection)
        return connection, address

    def hang_up(self) -> None:
        """End every connection, and refuse new ones."""
        self._hung_up = True
        for connection in list(self._accepted or ()):
            _end(connection)


def listen(host: str, port: int) -> Listener:
    """Bind a port for :func:`serve_until`.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.

    Returns:
        A socket that listens. Whoever serves from it closes it.

    Raises:
        ServerError: If the port cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends each message at once instead of waiting to fill a packet (TCP_NODELAY):
    # 1 ms for a round trip instead of 40.
    listener = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ServerError(f"cannot serve on port {port} of {host}: {error.strerror or error}") from error
    return listener


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


async def serve_until(
    stopping: asyncio.Event, app: ASGIApp, listener: Listener, *, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve an application until an event is set, and end all it has started.

    Args:
        stopping: What ends it.
        app: The application.
        listener: Where it is served; closed at the end.
        ready: Called when requests are accepted.

    Raises:
        ServerError: If Hypercorn is not installed.
    """
    try:
        # Its annotations leave a WSGI application's types open.
        from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise missing_extra("hypercorn", "serve an application") from error

    async def until_stopped() -> None:
        # Hypercorn waits for this when everything listens.
        ready()
        await stopping.wait()
        # Before Hypercorn closes its server, so that every accepted connection has its transport by then.
        listener.hang_up()

    config = _config(listener)
    try:
        serving = asyncio.ensure_future(serve(cast("Any", app), config, shutdown_trigger=until_stopped, mode="asgi"))
        stopped = asyncio.ensure_future(stopping.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        listener.hang_up()
        await asyncio.wait({serving}, timeout=2 * _GRACE)
        if serving.done():
            serving.result()
    finally:
        await _cancel_the_rest()
        listener.close()


def _config(listener: Listener) -> Config:
    from hypercorn.config import Config, Sockets

    class Bound(Config):
        def create_sockets(self) -> Sockets:
            return Sockets([], [listener], [])

    config = Bound()
    # A stream lives as long as an attempt of an invocation, and a connection as long as the server.
    config.h2_max_concurrent_streams = _UNLIMITED
    config.keep_alive_max_requests = _UNLIMITED
    config.keep_alive_timeout = _UNLIMITED
    config.graceful_timeout = _GRACE
    config.backlog = _BACKLOG
    config.errorlog = _logger
    return config


async def _cancel_the_rest() -> None:
    """Cancel every other task until it ends: a handler that cleans up may take a cancellation for something else."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CANCEL_WITHIN
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    while rest and loop.time() < deadline:
        for task in rest:
            task.cancel()
        done, rest = await asyncio.wait(rest, timeout=_CANCEL_EVERY)
        for task in done:
            if not task.cancelled():
                # Looked at, so that asyncio does not report it: it was cut off, and its failure says no more.
                task.exception()
    # Transports close in callbacks of their own.
    await asyncio.sleep(0)


def _end(connection: socket.socket) -> None:
    # It may have ended by itself.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
