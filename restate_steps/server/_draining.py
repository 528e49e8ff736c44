"""Serve an application until a signal, and then drain it within a grace period."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from restate_steps._app import drainable
from restate_steps._drain import DrainingApp
from restate_steps.server._identity import verified
from restate_steps.server._serving import UNLIMITED, ASGIApp, Listener, http1_only, serve_until

__all__ = ["GRACE", "ending_signals", "guarded", "leave_threads", "serve_and_drain", "warn_if_open"]

GRACE: Final = 10.0
"""The default grace period, in seconds."""

_JOIN_WITHIN = 0.5

_logger = logging.getLogger("restate_steps.server")


def ending_signals() -> list[signal.Signals]:
    """Return the signals that end this process: SIGTERM, and those of SIGINT and SIGHUP that are not ignored."""
    others = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    return [signal.SIGTERM, *others]


def guarded(app: ASGIApp, *, http1: bool, identity_keys: Sequence[str]) -> DrainingApp:
    """Wrap an application so that it can be drained, and accepts only the requests that it should.

    Args:
        app: The application.
        http1: Whether to reject requests over HTTP/2.
        identity_keys: Public keys of Restate. Requests that are not signed with one of them are rejected.

    Raises:
        ServerError: If a key is invalid.
    """
    if identity_keys:
        app = verified(app, identity_keys)
    return drainable(http1_only(app) if http1 else app)


def warn_if_open(app: ASGIApp, host: str, identity_keys: Sequence[str]) -> None:
    """Warn if other machines can call an application that does not verify who calls it."""
    if not identity_keys and not (isinstance(app, DrainingApp) and app.verifies) and not _is_loopback(host):
        _logger.warning(
            "every machine that reaches %s can call the handlers, because no identity key is set. Pass the public key "
            "of your Restate with --identity-key, or restrict access to the port.",
            host,
        )


def at_signals(stop: Callable[[], None]) -> None:
    """Call a function at each signal that ends this process, on the running loop."""
    for number in ending_signals():
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def serve_and_drain(
    app: DrainingApp,
    listener: Listener,
    *,
    grace: float,
    ready: Callable[[], None] = lambda: None,
    streams: int = UNLIMITED,
    stop_at: Callable[[Callable[[], None]], None] = at_signals,
) -> None:
    """Serve an application until it is stopped, and then drain it. When it is stopped again, cut the connections.

    Args:
        app: The application.
        listener: The socket to serve from, which is closed at the end.
        grace: The grace period, in seconds.
        ready: A callback for when requests are accepted.
        streams: The maximum number of HTTP/2 streams of a connection.
        stop_at: A function that takes one to call whenever the application is to be stopped.

    Raises:
        ServerError: If Hypercorn is not installed.
    """
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(thread_name_prefix="restate-steps-handler")
    loop.set_default_executor(executor)
    draining, ended = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (ended if draining.is_set() else draining).set()

    async def drain() -> None:
        await draining.wait()
        app.drain()
        await asyncio.wait([asyncio.ensure_future(app.drained())], timeout=grace)
        ended.set()

    stop_at(stop)
    drainer = asyncio.ensure_future(drain())
    try:
        await serve_until(ended, app, listener, ready=ready, streams=streams)
    finally:
        drainer.cancel()
        executor.shutdown(wait=False, cancel_futures=True)
        # asyncio waits for the threads of the loop's executor, and a body in a thread cannot be stopped.
        loop.set_default_executor(ThreadPoolExecutor())


def leave_threads() -> None:
    """End this process at once if a body still runs in a thread, which the interpreter would wait for."""
    deadline = time.monotonic() + _JOIN_WITHIN
    for thread in threading.enumerate():
        if thread is threading.main_thread() or thread.daemon:
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(0)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
