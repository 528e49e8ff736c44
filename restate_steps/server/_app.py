"""Serve an application from a thread in this process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from restate_steps.errors import ServerError
from restate_steps.server._admin import AdminClient
from restate_steps.server._ports import LOOPBACK
from restate_steps.server._process import RestateServer, admin_of
from restate_steps.server._serving import ASGIApp, Listener, http1_only, listen, serve_until

__all__ = ["AppServer", "serve_app"]

_JOIN_WITHIN = 10.0

_logger = logging.getLogger("restate_steps.server")


class AppServer:
    """A Hypercorn server that serves an ASGI application from a thread, on loopback.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. It can be started again after a stop, and keeps
    its URL. Stopping cuts the connections, as a crash would; Restate then retries the invocations.

    Args:
        app: The application, for example the result of ``restate_steps.app(...)``.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        port: The port to listen on; a free one by default.

    Example:
        >>> import restate_steps
        >>> with AppServer(restate_steps.app([])) as served:
        ...     served.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(self, app: ASGIApp, *, http1: bool = False, port: int | None = None) -> None:
        self._app = http1_only(app) if http1 else app
        self._http1 = http1
        self._port = port
        self._thread: threading.Thread | None = None
        self._stopper: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def http1(self) -> bool:
        """True if the application is served over HTTP/1.1."""
        return self._http1

    @property
    def url(self) -> str:
        """The URL of the application."""
        if self._port is None:
            raise ServerError("this application has no URL yet, because it was not served. Start it first.")
        return f"http://{LOOPBACK}:{self._port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start serving, and wait until requests are accepted.

        Returns:
            This server.

        Raises:
            ServerError: If it is already running, Hypercorn is not installed, the port is in use, or the application
                fails to start.
        """
        if self._thread is not None:
            raise ServerError(f"this application is already being served at {self.url}. Stop it first.")
        listener = listen(LOOPBACK, self._port or 0)
        self._port = listener.getsockname()[1]
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name="restate-steps-app", daemon=True)
        self._thread.start()
        failure = ready.exception()
        if failure is not None:
            self.stop()
            if isinstance(failure, ServerError):
                raise failure
            raise ServerError(f"the application could not be served: {failure!r}") from failure
        return self

    def stop(self) -> None:
        """Stop serving, and cut open streams. Does nothing if the server is not running.

        Raises:
            ServerError: If the thread does not end because a handler blocks the event loop.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._stopper is not None:
            loop, stopping = self._stopper
            # The loop is already closed if serving failed.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(stopping.set)
        thread.join(_JOIN_WITHIN)
        if thread.is_alive():
            raise ServerError(
                f"the application at {self.url} did not stop within {_JOIN_WITHIN:g} s, because a handler blocks its "
                "event loop. Move blocking work to a thread, for example into a step that is a plain function."
            )

    def _run(self, listener: Listener, ready: Future[None]) -> None:
        loop = asyncio.new_event_loop()
        # A separate executor, so that stopping does not wait for threads that still run a handler's work.
        executor = ThreadPoolExecutor(thread_name_prefix="restate-steps-handler")
        loop.set_default_executor(executor)
        stopping = asyncio.Event()
        self._stopper = loop, stopping
        serving = serve_until(stopping, self._app, listener, ready=lambda: ready.set_result(None))
        try:
            loop.run_until_complete(serving)
        except BaseException as error:
            if ready.done():
                _logger.exception("the application at %s is no longer served", self.url)
            else:
                ready.set_exception(error)
        finally:
            with suppress(Exception):
                loop.run_until_complete(loop.shutdown_asyncgens())
            executor.shutdown(wait=False, cancel_futures=True)
            loop.close()
            listener.close()


@contextmanager
def serve_app(
    app: ASGIApp,
    server: RestateServer | AdminClient,
    *,
    http1: bool = False,
    port: int | None = None,
    force: bool = True,
) -> Generator[AppServer, None, None]:
    """Serve an application and register it; stop serving when the block ends.

    Args:
        app: The application, for example the result of ``restate_steps.app(...)``.
        server: The server to register the application with, or a client of its admin API.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        port: The port to listen on; a free one by default.
        force: Whether to replace an existing deployment with the same URL.

    Yields:
        The running application server.

    Raises:
        ServerError: If the application cannot be served or registered.

    Example:
        >>> import restate, restate_steps
        >>> from restate_steps.server import RestateServer
        >>> greeter = restate.Service("Greeter")
        >>> with RestateServer() as server, serve_app(restate_steps.app([greeter]), server) as served:
        ...     served.http1
        False
    """
    with AppServer(app, http1=http1, port=port) as served:
        admin_of(server).register(served.url, force=force, http1=http1)
        yield served
