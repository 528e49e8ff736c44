"""Run a server, or serve an application, in the main thread until a signal arrives."""

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
        app: The application, for example the result of ``restate_steps.app(...)``.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        ready: A callback that receives the URL when the application accepts requests.

    Raises:
        ServerError: If Hypercorn is not installed, or the port is in use.
    """
    served = http1_only(app) if http1 else app
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"

    async def serve() -> None:
        # Not `loop.add_signal_handler`: the SDK's handler for SIGTERM, added at the first request, would replace it.
        # The SDK runs all of its shutdown hooks.
        from restate.server import install_shutdown_hook

        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            install_shutdown_hook(asyncio.get_running_loop(), stopping.set, number)
        await serve_until(stopping, served, listener, ready=lambda: ready(url))

    asyncio.run(serve())


def run_server(server: RestateServer, *, ready: Callable[[RestateServer], None] = lambda server: None) -> None:
    """Run a server until SIGINT or SIGTERM.

    Args:
        server: A server that has not been started.
        ready: A callback that receives the server when it accepts calls.

    Raises:
        ServerError: If the server does not start, or exits by itself.
    """
    with suppress(KeyboardInterrupt), ended_by_signals(), server:
        ready(server)
        while server.running:
            time.sleep(_LOOK_EVERY)
        raise ServerError(f"restate-server exited unexpectedly. See its log: {server.log_path}")


@contextmanager
def ended_by_signals() -> Generator[None, None, None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP too, so that the block cleans up.

    SIGINT is set explicitly, because a shell without job control makes background processes ignore it.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
