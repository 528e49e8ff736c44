"""The private names of asyncio that the handler loop needs, and what happens if one is renamed.

* ``events._set_running_loop`` and ``_get_running_loop``: documented for authors of event loops.
* ``tasks._swap_current_task``: asyncio has one current task per thread from Python 3.14 on, and one per loop before.
  The handler loop runs inside the server's task, so that is not the current one while handler code runs. Neither is a
  task that creates another task, while that one starts eagerly.
* ``futures._set_result_unless_cancelled``: the callback by which ``asyncio.sleep`` wakes up. If it is renamed, a
  cancelled invocation is notified at its next durable wait instead of in ``asyncio.sleep``.
* ``Task._fut_waiter``: the future that a suspended task waits for. It is used for messages, and to deliver the
  invocation's cancellation to a task that waits for nothing durable.
* ``Task._must_cancel``: whether the running task was cancelled and will receive that at its next wait. If it is
  renamed, awaiting a recorded result takes as long as awaiting one that has yet to arrive.
* ``Lock._wake_up_first``, and anyio's ``Lock._waiters`` and ``Semaphore._waiters``: locks clean up their queue only
  after a ``CancelledError``, but a cancelled invocation raises another error in a task that waits for a lock. If one is
  renamed, a lock that such a task waited for may not be passed on.
* ``TaskGroup._on_task_done`` and ``TaskGroup._exiting``: a failing group cancels its parent task to end the body of the
  ``async with`` block, even if the body has ended. If one is renamed, such a group may cancel a task that undoes
  something while it waits for the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from restate_steps._loop._frames import frames_of

__all__ = [
    "get_running_loop_or_none",
    "is_cancelled_by_its_group",
    "is_sleep",
    "leave_primitive",
    "must_cancel",
    "set_running_loop",
    "swap_current_task",
    "waiting_on",
]

_events: Any = asyncio.events
_futures: Any = asyncio.futures
_tasks: Any = asyncio.tasks

get_running_loop_or_none: Final = cast("Callable[[], asyncio.AbstractEventLoop | None]", _events._get_running_loop)
set_running_loop: Final = cast("Callable[[asyncio.AbstractEventLoop | None], None]", _events._set_running_loop)
_group_task_done: Final = getattr(getattr(asyncio.TaskGroup, "_on_task_done", None), "__code__", None)
_wake_sleeper: Final[Any] = getattr(_futures, "_set_result_unless_cancelled", None)


def is_sleep(callback: Any) -> bool:
    """Return whether a timer's callback ends an ``asyncio.sleep``; its first argument is the sleeper's future."""
    return _wake_sleeper is not None and callback is _wake_sleeper


def waiting_on(task: asyncio.Task[Any]) -> asyncio.Future[Any] | None:
    """Return the future that a suspended task waits for."""
    return getattr(task, "_fut_waiter", None)


def must_cancel(task: asyncio.Task[Any]) -> bool:
    """Return whether a running task was cancelled, and will receive that at its next wait."""
    return bool(getattr(task, "_must_cancel", True))


def is_cancelled_by_its_group(caller: Any, task: asyncio.Task[Any]) -> bool:
    """Return whether a task is being cancelled by a task group whose end it awaits already.

    Args:
        caller: The frame that calls ``task.cancel()``.
        task: The task.
    """
    group: Any = caller.f_locals.get("self") if caller.f_code is _group_task_done else None
    return getattr(group, "_parent_task", None) is task and getattr(group, "_exiting", False)


def swap_current_task(
    loop: asyncio.AbstractEventLoop | None, task: asyncio.Task[Any] | None
) -> asyncio.Task[Any] | None:
    """Make a task the current one of a loop, and return the previous one (from Python 3.12 on)."""
    return cast("asyncio.Task[Any] | None", _tasks._swap_current_task(loop, task))


_lock_acquire: Final = asyncio.Lock.acquire.__code__
_condition_wait: Final = asyncio.Condition.wait.__code__


def leave_primitive(task: asyncio.Task[Any], future: asyncio.Future[Any]) -> bool:
    """Remove a task from the queue of the lock that it waits for; the lock does so only for a ``CancelledError``.

    Returns:
        False if the task must not receive an error: it is acquiring the lock of a condition again, and must hold it
        afterwards.
    """
    frames = frames_of(task.get_coro())
    if not frames:
        return True
    frame = frames[-1]
    if frame.f_code is _lock_acquire:
        if len(frames) > 1 and frames[-2].f_code is _condition_wait:
            return False
        lock: Any = frame.f_locals["self"]
        # This runs after the task, which removes its future from the queue.
        future.add_done_callback(lambda _: None if lock.locked() else lock._wake_up_first())
    elif frame.f_code.co_name == "acquire" and str(frame.f_globals.get("__name__")).startswith("anyio."):
        waiters: Any = getattr(frame.f_locals.get("self"), "_waiters", ())
        for waiter in list(waiters):
            # The queue of a semaphore holds futures, and that of a lock holds pairs of a task and a future.
            if waiter is future or (hasattr(waiter, "index") and future in waiter):
                waiters.remove(waiter)
    return True
