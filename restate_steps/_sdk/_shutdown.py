"""Act at SIGTERM without replacing the ASGI server's handler, as the SDK does."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import restate.server

__all__ = ["add_sigterm_hook", "end_input"]


def add_sigterm_hook(hook: Callable[[], None]) -> None:
    """Call a function at SIGTERM on the running loop, and let the SDK do the same, beside the ASGI server's handler.

    Call it before the SDK's application, which replaces the handler at its first request. A server whose handler is
    gone never ends. If nothing handles SIGTERM, it keeps its default action, and the hook is not called.

    Args:
        hook: The function.
    """
    all_hooks: Any = getattr(restate.server, "_shutdown_hooks", None)
    if all_hooks is None or threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    hooks = all_hooks.setdefault(loop, {})
    # The SDK installs a handler only for a signal that has no list of hooks yet.
    if signal.SIGTERM in hooks:
        hooks[signal.SIGTERM].append(hook)
        return
    registered: list[Callable[[], None]] = [hook]
    hooks[signal.SIGTERM] = registered
    previous = signal.getsignal(signal.SIGTERM)
    if not callable(previous):
        return

    def handle(number: int, frame: FrameType | None) -> None:
        # The loop may be closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_run, registered)
        previous(number, frame)

    # This also works if the server called `loop.add_signal_handler`: the interpreter tells the loop about a signal
    # whatever the handler is.
    signal.signal(signal.SIGTERM, handle)


def _run(hooks: list[Callable[[], None]]) -> None:
    for hook in list(hooks):
        hook()


def end_input(reader: asyncio.Task[Any]) -> None:
    """Make an attempt end as if the server had closed its side of the request.

    Args:
        reader: The SDK's task that reads the request.
    """
    frame = getattr(reader.get_coro(), "cr_frame", None)
    channel: Any = frame.f_locals.get("self") if frame is not None else None
    arrived: asyncio.Queue[Any] | None = getattr(channel, "_queue", None)
    if arrived is not None:
        arrived.put_nowait({"type": "http.request", "body": b"", "more_body": False})
