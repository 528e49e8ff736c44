"""Call blocking functions from an event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run a blocking function in a thread, and wait until it has ended, even on cancellation."""
    # A future of the executor, not a task, because a task can be cancelled while its thread continues.
    working = asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            # anyio repeats a cancellation until the task has ended.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        # Retrieve the exception, so that asyncio does not report it: after a cancellation, no caller wants it.
        working.exception()
        raise
