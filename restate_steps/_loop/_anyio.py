"""anyio's threads in handler code.

anyio has its own threads, which wake the event loop at any time. On the handler loop, such a call is a local operation
instead, on the server's event loop. This needs one private name, the method
``AsyncIOBackend.run_sync_in_worker_thread``, which behaves as before everywhere else. If it is renamed,
``anyio.to_thread.run_sync`` in handler code is refused as a wake-up from a thread; ``asyncio.to_thread`` still works.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
from typing import Any, Final, cast

from restate_steps._loop._loop import HandlerLoop

__all__ = ["adapt_anyio"]

_METHOD: Final = "run_sync_in_worker_thread"

_adapted = False


def adapt_anyio() -> None:
    """Make anyio's threads local operations on the handler loop, if anyio is imported."""
    global _adapted
    if _adapted or "anyio" not in sys.modules:
        return
    _adapted = True
    # anyio imports its backend on first use, which may be in the middle of a handler.
    backend: Any = importlib.import_module("anyio._backends._asyncio").AsyncIOBackend
    methods = cast("dict[str, Any]", vars(backend))
    if _METHOD not in methods:
        return
    original = methods[_METHOD]
    from anyio import CancelScope

    @functools.wraps(original.__func__)
    async def run(cls: Any, func: Any, args: Any, abandon_on_cancel: bool = False, limiter: Any = None) -> Any:
        call: Any = original.__get__(None, cls)
        loop = asyncio.get_running_loop()
        if not isinstance(loop, HandlerLoop) or loop.driving is None:
            return await call(func, args, abandon_on_cancel, limiter)
        with CancelScope(shield=not abandon_on_cancel):
            return await loop.driving.local.run(call(func, args, abandon_on_cancel, limiter))

    setattr(backend, _METHOD, classmethod(run))
