"""Find the waits that only the outside world can end: a response, the end of a program, a thread.

An open connection proves nothing, because it may be idle. What counts is the tasks that the simulator waits for: the
bodies of steps, and the handlers. A library's task that reads from a connection is not one of them.

O1. Three things come from inside: what virtual time brings, what the server sends, and the results of other tasks that
    do not wait for the outside themselves, if those tasks are visible: in a task group, ``gather``, ``wait``,
    ``wait_for`` or ``shield``.
O2. Everything else may come from outside, such as an event that the reader of a connection sets. So a wait that is not
    understood takes real time. If it were skipped, a timeout could win that does not win on a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable
from types import CodeType, FrameType
from typing import Any, Final, cast

from restate.server_types import ReceiveChannel

from restate_steps._loop import frames_of
from restate_steps._loop._asyncio import is_sleep, waiting_on
from restate_steps._loop._driver import Driver
from restate_steps._sdk import SdkPort

__all__ = ["external_waits"]

_LOCAL: Final = Driver._wait_for_local_operation.__code__  # pyright: ignore[reportPrivateUsage]
_FROM_THE_SERVER: Final = frozenset({ReceiveChannel.__call__.__code__, SdkPort.hold_back.__code__})
_ARGUMENTS: Final[dict[CodeType, str]] = {
    cast(Any, asyncio.tasks)._wait.__code__: "fs",
    asyncio.wait_for.__code__: "fut",
}
"""The variable of an asyncio function that holds what it waits for."""
_SHIELD: Final = asyncio.shield.__code__.co_consts


def external_waits(
    tasks: Iterable[asyncio.Task[Any]], timers: Iterable[asyncio.TimerHandle], inside: Container[asyncio.Future[Any]]
) -> list[asyncio.Future[Any]]:
    """Return the futures that tasks wait for, if the outside world may complete them.

    Args:
        tasks: The tasks; none of them can run.
        timers: The timers of their event loop.
        inside: More futures that are completed from inside.
    """
    found: list[asyncio.Future[Any]] = []
    sleepers = {id(each._args[0]) for each in cast(Any, timers) if is_sleep(each._callback)}
    seen: set[int] = set()
    left: list[asyncio.Future[Any]] = [*tasks]
    while left:
        future = left.pop()
        if id(future) in seen or future.done() or future in inside:
            continue
        seen.add(id(future))
        if isinstance(future, asyncio.Task):
            left += _awaited_by(future)
        elif (children := getattr(future, "_children", None)) is not None:
            left += children
        elif id(future) not in sleepers:
            found.append(future)
    return found


def _awaited_by(task: asyncio.Task[Any]) -> list[asyncio.Future[Any]]:
    """Return what a task waits for: a future, or those that this one stands for."""
    awaited = waiting_on(task)
    if awaited is None:
        return []
    frames = frames_of(task.get_coro())
    for frame in frames:
        if frame.f_code in _FROM_THE_SERVER:
            return []
        if frame.f_code is _LOCAL:
            return [frame.f_locals["operation"].outer]
    return [awaited] if not frames else _stands_for(awaited, frames[-1])


def _stands_for(awaited: asyncio.Future[Any], innermost: FrameType) -> list[asyncio.Future[Any]]:
    names = innermost.f_locals
    if (argument := _ARGUMENTS.get(innermost.f_code)) is not None:
        given = names[argument]
        return [given] if asyncio.isfuture(given) else list(given)
    group: Any = names.get("self")
    if getattr(group, "_on_completed_fut", None) is awaited:
        return list(group._tasks)
    for callback, _ in getattr(awaited, "_callbacks", None) or ():
        code: Any = getattr(callback, "__code__", None)
        if code in _SHIELD and "inner" in code.co_freevars:
            return [callback.__closure__[code.co_freevars.index("inner")].cell_contents]
    return [awaited]
