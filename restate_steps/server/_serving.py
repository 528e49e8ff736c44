"""Serve an ASGI application with Hypercorn until an event is set.

1. The caller binds the port, so that the URL is known, and errors are raised, before serving starts.
2. Over HTTP/2 with prior knowledge, handlers stream in both directions. Over HTTP/1.1 they use request/response mode,
   and HTTP/2 requests are rejected, so that the mode does not depend on the client.
3. Stopping takes seconds at most, whatever the handlers do. It first cuts the connections, as a crash would, and then
   cancels the tasks that are still running.
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

__all__ = ["UNLIMITED", "ASGIApp", "Listener", "http1_only", "listen", "serve_until", "url_of"]

ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application, for example the result of ``restate_steps.app(...)``."""

UNLIMITED = 2**31 - 1
"""The number of streams of a connection that HTTP/2 allows at most."""

_BACKLOG = 1024
_GRACE = 0.2
_CANCEL_WITHIN = 2.0
_CANCEL_EVERY = 0.1

_logger = logging.getLogger("restate_steps.server")
# The SDK's applications do not support lifespan. Hypercorn warns about that at every start.
_logger.addFilter(lambda record: "continuing without Lifespan support" not in record.getMessage())


class Listener(socket.socket):
    """A listening socket that can close the connections it has accepted.

    Hypercorn shuts down cleanly when clients disconnect, but raises errors if it is cancelled with open connections.
    """

    _accepted: weakref.WeakSet[socket.socket] | None = None
    _hung_up = False

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, like :meth:`socket.socket.accept`, and remember it.

        After :meth:`hang_up`, reject connections. asyncio creates a connection's transport in a later iteration of the
        loop, and leaves it half initialized if the server was closed before that (CPython gh-109564).
        """
        connection, address = self._accept_one()
        if self._hung_up:
            connection.close()
            raise BlockingIOError
        if self._accepted is None:
            self._accepted = weakref.WeakSet()
        self._accepted.add(connection)
        return connection, address

    def _accept_one(self) -> tuple[socket.socket, Any]:
        return super().accept()

    def hang_up(self) -> None:
        """Shut down every connection, and reject new ones."""
        self._hung_up = True
        for connection in list(self._accepted or ()):
            _end(connection)


def listen(host: str, port: int) -> Listener:
    """Bind a port for :func:`serve_until`.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.

    Returns:
        A listening socket, which :func:`serve_until` closes.

    Raises:
        ServerError: If the port cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is given explicitly: a round trip then takes 1 ms instead of 40 ms.
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


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def http1_only(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that it rejects requests over HTTP/2, with a reason.

    Args:
        app: The application.

    Returns:
        An application for a server that also accepts HTTP/2.
    """

    async def guarded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["http_version"].startswith("1"):
            await app(scope, receive, send)
            return
        reason = b"this application is served over HTTP/1.1 only. Register it with http1=True, or with --http1."
        await send({"type": "http.response.start", "status": 505, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": reason})

    return guarded


async def serve_until(
    stopping: asyncio.Event,
    app: ASGIApp,
    listener: Listener,
    *,
    ready: Callable[[], None] = lambda: None,
    streams: int = UNLIMITED,
) -> None:
    """Serve an application until an event is set, then end all tasks of the event loop.

    Args:
        stopping: The event that ends serving.
        app: The application.
        listener: The socket to serve from, which is closed at the end.
        ready: A callback for when requests are accepted.
        streams: The maximum number of HTTP/2 streams of a connection.

    Raises:
        ServerError: If Hypercorn is not installed.
    """
    try:
        # Its annotations have untyped parts for WSGI applications.
        from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise missing_extra("hypercorn", "serve an application") from error

    async def until_stopped() -> None:
        # Hypercorn awaits this after it has started to listen.
        ready()
        await stopping.wait()
        # Before Hypercorn closes its server, so that every accepted connection already has its transport.
        listener.hang_up()

    config = _config(listener, streams)
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


def _config(listener: Listener, streams: int) -> Config:
    from hypercorn.config import Config, Sockets

    class Bound(Config):
        def create_sockets(self) -> Sockets:
            return Sockets([], [listener], [])

    config = Bound()
    # A stream lives as long as an attempt, and a connection as long as the server.
    config.h2_max_concurrent_streams = streams
    config.keep_alive_max_requests = UNLIMITED
    config.keep_alive_timeout = UNLIMITED
    config.graceful_timeout = _GRACE
    config.backlog = _BACKLOG
    config.errorlog = _logger
    return config


async def _cancel_the_rest() -> None:
    """Cancel all other tasks, repeatedly, because a handler may swallow a cancellation while it cleans up."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CANCEL_WITHIN
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    while rest and loop.time() < deadline:
        for task in rest:
            task.cancel()
        done, rest = await asyncio.wait(rest, timeout=_CANCEL_EVERY)
        for task in done:
            if not task.cancelled():
                # Retrieve the exception, so that asyncio does not log it: the task was cut off on purpose.
                task.exception()
    # Let the callbacks run that close transports.
    await asyncio.sleep(0)


def _end(connection: socket.socket) -> None:
    # The connection may be closed already.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
