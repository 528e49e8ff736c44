"""Run a server, or serve an application, in the main thread until a signal arrives."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from restate_steps.errors import ServerError
from restate_steps.server._draining import GRACE, ending_signals, guarded, leave_threads, serve_and_drain, warn_if_open
from restate_steps.server._failures import log_failures
from restate_steps.server._ports import LOOPBACK
from restate_steps.server._process import RestateServer
from restate_steps.server._serving import ASGIApp, listen, url_of

__all__ = ["ended_by_signals", "run_app", "run_server"]

_LOOK_EVERY = 0.2


def run_app(
    app: ASGIApp,
    *,
    host: str = LOOPBACK,
    port: int = 9080,
    http1: bool = False,
    ready: Callable[[str], None] = lambda url: None,
    grace: float = GRACE,
    identity_keys: Sequence[str] = (),
) -> None:
    """Serve an application with Hypercorn until SIGINT, SIGTERM or SIGHUP, and then drain it.

    Draining takes no new work, and suspends the handlers that wait. Bodies of steps that are running may end, and their
    results are sent, until the grace period is over. Then the connections are cut. A second signal cuts them at once.
    SIGINT and SIGHUP stay ignored if this process inherited that, for example from nohup.

    Each attempt that fails is logged in one line, with the lines of the user's code the first time.

    Args:
        app: The application, for example the result of ``restate_steps.app(...)``.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        ready: A callback that receives the URL when the application accepts requests.
        grace: The grace period, in seconds.
        identity_keys: Public keys of Restate. Requests that are not signed with one of them are rejected.

    Raises:
        ServerError: If Hypercorn is not installed, the port is in use, or a key is invalid.
    """
    warn_if_open(app, host, identity_keys)
    served = guarded(log_failures(app), http1=http1, identity_keys=identity_keys)
    listener = listen(host, port)
    url = url_of(listener)
    asyncio.run(serve_and_drain(served, listener, grace=grace, ready=lambda: ready(url)))
    leave_threads()


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

    SIGINT and SIGHUP stay ignored if they are, for example because nohup started this process.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
