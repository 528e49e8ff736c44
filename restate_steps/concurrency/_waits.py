"""Tells, from the frames of a suspended coroutine, what kind of thing it waits for.

Between steps a branch keeps the baton (see ``_scheduler``, B2) while it waits for a timer, a socket or a thread:
those end by themselves. A lock, event or queue that branches share ends only when another branch acts, so the baton
has to go on. The two look alike to asyncio (both are a plain future); the frames tell them apart.
"""

from __future__ import annotations

import asyncio.locks
import asyncio.queues
from types import FrameType
from typing import Any, Final

from .._sdk import frames_of

__all__ = ["describe", "waits_for_another_strand"]

_PRIMITIVE_MODULES: Final = frozenset({asyncio.locks.__name__, asyncio.queues.__name__})

# anyio's synchronisation classes, which wrap the above or hold futures of their own. Its memory streams are left out:
# client libraries use them between a socket's reader and its user, where nothing but the socket ends the wait.
_ANYIO_MODULE: Final = "anyio._backends._asyncio"
_ANYIO_WAITS: Final = frozenset(
    {
        "Event.wait",
        "Lock.acquire",
        "Semaphore.acquire",
        "CapacityLimiter.acquire",
        "CapacityLimiter.acquire_on_behalf_of",
    }
)

# Libraries that wait for the network through an event or a queue of their own. A primitive awaited by one of these is
# not shared between branches.
_CLIENT_LIBRARIES: Final = frozenset(
    {
        "aiohttp", "anyio", "asyncio", "asyncpg", "fastmcp", "grpc", "httpcore", "httpcore2", "httpx", "httpx2", "mcp",
        "motor", "psycopg", "pydantic_ai", "pydantic_graph", "redis", "sqlalchemy", "websockets",
    }
)  # fmt: skip


def waits_for_another_strand(chain: Any) -> bool:
    """Whether a suspended coroutine waits for a primitive that only another strand can be expected to set.

    Args:
        chain: The outermost coroutine of the task.
    """
    primitive = False
    for frame in reversed(frames_of(chain)):
        module = frame.f_globals.get("__name__", "")
        if module in _PRIMITIVE_MODULES or (module == _ANYIO_MODULE and frame.f_code.co_qualname in _ANYIO_WAITS):
            primitive = True
        elif module == "anyio._core._synchronization" and primitive:
            continue
        else:
            return primitive and module.partition(".")[0] not in _CLIENT_LIBRARIES
    return primitive


def describe(chain: Any) -> str:
    """Say where a suspended coroutine waits, for an error message: `` in wait (pay at app.py:31)``."""
    frames = frames_of(chain)
    if not frames:
        return ""
    own = next((frame for frame in reversed(frames) if not _is_plumbing(frame)), frames[-1])
    where = f"{own.f_code.co_qualname} at {own.f_code.co_filename}:{own.f_lineno}"
    if frames[-1] is own:
        return f" in {where}"
    if frames[-1].f_globals.get("__name__", "").startswith("restate_steps."):
        return f" for its branches in {where}"
    return f" for {frames[-1].f_code.co_qualname} in {where}"


def _is_plumbing(frame: FrameType) -> bool:
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in ("asyncio", "anyio", "restate", "restate_steps")
