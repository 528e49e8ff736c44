"""Run a server, or serve an application, from the main thread until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

from restate_steps.errors import ServerError
from restate_steps.server._ports import LOOPBACK
from restate_steps.server._process import RestateServer
from restate_steps.server._serving import ASGIApp, http1_only, listen, serve_until

__all__ = ["ended_by_signals", "run_app", "run_server"]

_LOOK_EVERY = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_app(
    app: ASGIApp,
    *,
    host: str = LOOPBACK,
    port: int = 9080,
    http1: bool = False,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve an application with Hypercorn until SIGINT or SIGTERM.

    Args:
        app: The application, such as ``restate_steps.app(...)`` returns.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        ready: Called with the URL when requests are accepted.

    Raises:
        ServerError: If Hypercorn is not installed, or the port is taken.
    """
    served = http1_only(app) if http1 else app
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"

    async def serve() -> None:
        # Not a handler of the loop's own: the SDK installs one for SIGTERM at the first request, and it would
        # replace this one. Hooks run side by side.
        from restate.server import install_shutdown_hook

        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            install_shutdown_hook(asyncio.get_running_loop(), stopping.set, number)
        await serve_until(stopping, served, listener, ready=lambda: ready(url))

    asyncio.run(serve())


def run_server(server: RestateServer, *, ready: Callable[[RestateServer], None] = lambda server: None) -> None:
    """Run a server until SIGINT or SIGTERM.

    Args:
        server: The server, not yet started.
        ready: Called when it takes calls.

    Raises:
        ServerError: If it does not start, or ends by itself.
    """
    with suppress(KeyboardInterrupt), ended_by_signals(), server:
        ready(server)
        while server.running:
            time.sleep(_LOOK_EVERY)
        raise ServerError(f"the server has ended by itself; its log is {server.log_path}.")


@contextmanager
def ended_by_signals() -> Generator[None, None, None]:
    """Treat SIGTERM and a closed terminal as Ctrl-C, so that everything is ended in order.

    Ctrl-C itself is taken care of too: a shell without job control has its background processes ignore it.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
