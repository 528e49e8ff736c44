"""The cancellation of an invocation (E2).

Restate delivers it once, and every waiting task receives it: first durable waits, in the order in which they began,
then each ``asyncio.sleep``. A local wait, such as for a lock or a queue, receives it once nothing durable is left that
could end the wait.

A task that has received it is *undoing* its work, in steps for example, until it leaves the ``except`` and ``finally``
blocks that handle it. So are the task's parents, because the cancellation may reach them through the task. While they
are undoing, other cancellations of them are deferred.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from restate_steps._loop._asyncio import leave_primitive, waiting_on
from restate_steps._loop._task import HandlerTask
from restate_steps._loop._waits import Cancelled, DurableWait

if TYPE_CHECKING:
    from restate_steps._loop._execution import Execution

__all__ = [
    "begin_undoing",
    "cancel_local_waits",
    "deliver_cancellation",
    "note_local_waits",
    "release_deferred",
    "release_unnotified",
    "stop_undoing_outside_of_handlers",
]


def deliver_cancellation(execution: Execution) -> bool:
    """Deliver the invocation's cancellation to everything that waits (E2); return whether anything does."""
    delivered = False
    note_local_waits(execution)
    for wait in execution.port.waits():
        if isinstance(wait, DurableWait):
            delivered = True
            execution.port.discard(wait)
            begin_undoing(wait.task)
            wait.end(Cancelled())
    sleepers = list(execution.timers.sleepers())
    tasks = {waiting_on(task): task for task in execution.live_tasks()} if sleepers else {}
    for timer, future in sleepers:
        delivered = _cancel_wait(future, tasks.get(future)) or delivered
        timer.cancel()
    delivered = delivered or cancel_local_waits(execution) or bool(execution.pending_local_waits)
    execution.is_undelivered = not delivered
    return delivered


def note_local_waits(execution: Execution) -> None:
    """Note which tasks wait for something local, to deliver the cancellation to them later (E2)."""
    execution.is_cancelled = True
    # The code of a local operation receives the cancellation, and the task that awaits it receives it from there.
    results = execution.local.results()
    execution.pending_local_waits = [
        (task, inner)
        for task in execution.live_tasks()
        if (inner := waiting_on(task)) is not None and not isinstance(inner, HandlerTask) and inner not in results
    ]


def cancel_local_waits(execution: Execution, *, parents: bool = False) -> bool:
    """Deliver the cancellation to the local waits that have not ended; return whether there are any (E2).

    Only the leaves of the task tree receive it. Their parents receive it through them, unless the leaves wait for the
    parents.

    Args:
        execution: The execution.
        parents: True to deliver it also to parents that have no child left to receive it.
    """
    if not execution.pending_local_waits:
        return False
    waiting = [(task, inner) for task, inner in execution.pending_local_waits if waiting_on(task) is inner]
    above = _above([task for task, _ in waiting] if parents else execution.live_tasks())
    execution.pending_local_waits = [(task, inner) for task, inner in waiting if task in above]
    delivered = [_cancel_wait(inner, task) for task, inner in waiting if task not in above]
    return any(delivered)


def _above(tasks: list[HandlerTask]) -> set[HandlerTask]:
    above: set[HandlerTask] = set()
    for task in tasks:
        parent = task.parent
        while parent is not None and parent not in above:
            above.add(parent)
            parent = parent.parent
    return above


def _cancel_wait(future: asyncio.Future[Any], task: HandlerTask | None) -> bool:
    if future.done():
        return False
    if task is not None and not leave_primitive(task, future):
        return False
    begin_undoing(task)
    future.set_exception(Cancelled())
    return True


def release_unnotified(execution: Execution) -> bool:
    """Deliver the deferred cancellations of tasks that the invocation's cancellation will not reach after all.

    The children that could have passed it on have ended, and the tasks themselves have not run since.

    Returns:
        True if any was delivered.
    """
    unnotified = [
        task
        for task in execution.deferring
        if not task.was_notified and waiting_on(task) is task.awaited is not None and not task.undoes_below()
    ]
    return _release(execution, unnotified)


def release_deferred(execution: Execution) -> bool:
    """Deliver all deferred cancellations, because no durable wait is left; return whether there were any."""
    return _release(execution, list(execution.deferring))


def _release(execution: Execution, tasks: list[HandlerTask]) -> bool:
    released = False
    for task in tasks:
        del execution.deferring[task]
        if task.deferred and not task.done():
            released = True
            task.stop_undoing()
    return released


def begin_undoing(task: HandlerTask | None) -> None:
    """Mark a task that receives the invocation's cancellation, and its parents, as undoing (E2)."""
    if task is not None:
        task.was_notified = True
    while task is not None and not task.undoing:
        task.undoing = True
        parent = task.parent
        if parent is not None:
            if parent.below is None:
                parent.below = {}
            parent.below[task] = None
            if not parent.undoing:
                parent.awaited = waiting_on(parent)
        task = parent


def stop_undoing_outside_of_handlers(task: HandlerTask) -> None:
    """Mark a running task as done with undoing if it has left the blocks that handle the cancellation.

    While one of its children is undoing, the task may not have received the cancellation yet.
    """
    if sys.exc_info()[1] is None and (task.was_notified or not task.undoes_below()):
        _stop_undoing(task)


def _stop_undoing(task: HandlerTask) -> None:
    """Mark a task as done with undoing, and its parents, which the cancellation will not reach any more."""
    above = task
    while above.undoing:
        above.stop_undoing()
        parent = above.parent
        if parent is None or parent.was_notified or parent.undoes_below():
            return
        above = parent
