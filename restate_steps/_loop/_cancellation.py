"""The cancellation of an invocation (E2).

Restate delivers it once. Everything that waits then is told: durable waits in the order in which they began, then each
``asyncio.sleep``, and a local wait, such as for a lock or a queue, as soon as nothing durable is left that could end
it. A task that has been told, and those that will hear of it through that one, may undo things; until they
have, no other cancellation reaches them.
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
    "note_local_waits",
    "release_deferred",
    "release_settled",
    "stop_undoing_outside_of_handlers",
    "tell_local_waits",
    "tell_of_cancellation",
    "undo",
]


def tell_of_cancellation(execution: Execution) -> bool:
    """Tell everything that waits that the invocation is cancelled (E2); return whether anything does."""
    told = False
    note_local_waits(execution)
    for wait in execution.port.waits():
        if isinstance(wait, DurableWait):
            told = True
            execution.port.discard(wait)
            undo(wait.task)
            wait.end(Cancelled())
    sleepers = list(execution.timers.sleepers())
    tasks = {waiting_on(task): task for task in execution.live_tasks()} if sleepers else {}
    for timer, future in sleepers:
        told = _tell(future, tasks.get(future)) or told
        timer.cancel()
    told = told or tell_local_waits(execution) or bool(execution.untold)
    execution.is_unheard = not told
    return told


def note_local_waits(execution: Execution) -> None:
    """Note which tasks wait for something local, to be told later (E2)."""
    execution.is_cancelled = True
    # What runs there is told, and the task that waits for it hears of it from that.
    results = execution.local.results()
    execution.untold = [
        (task, inner)
        for task in execution.live_tasks()
        if (inner := waiting_on(task)) is not None and not isinstance(inner, HandlerTask) and inner not in results
    ]


def tell_local_waits(execution: Execution, *, parents: bool = False) -> bool:
    """Tell those that have waited for something local ever since; return whether there are any (E2).

    Only those at the ends of the tree of tasks: the others hear of it from them, unless those below wait for them.
    """
    if not execution.untold:
        return False
    waiting = [(task, inner) for task, inner in execution.untold if waiting_on(task) is inner]
    above = _above([task for task, _ in waiting] if parents else execution.live_tasks())
    execution.untold = [(task, inner) for task, inner in waiting if task in above]
    told = [_tell(inner, task) for task, inner in waiting if task not in above]
    return any(told)


def _above(tasks: list[HandlerTask]) -> set[HandlerTask]:
    above: set[HandlerTask] = set()
    for task in tasks:
        parent = task.parent
        while parent is not None and parent not in above:
            above.add(parent)
            parent = parent.parent
    return above


def _tell(future: asyncio.Future[Any], task: HandlerTask | None) -> bool:
    if future.done():
        return False
    if task is not None and not leave_primitive(task, future):
        return False
    undo(task)
    future.set_exception(Cancelled())
    return True


def release_settled(execution: Execution) -> bool:
    """Deliver the deferred cancellations of tasks that will not hear of the invocation's after all.

    What might have told them has ended without doing so: they have not run since.

    Returns:
        Whether any was delivered.
    """
    settled = [
        task
        for task in execution.deferring
        if not task.told and waiting_on(task) is task.awaited is not None and not task.undoes_below()
    ]
    return _release(execution, settled)


def release_deferred(execution: Execution) -> bool:
    """Deliver all deferred cancellations, because nothing durable is undone any more; return whether any was."""
    return _release(execution, list(execution.deferring))


def _release(execution: Execution, tasks: list[HandlerTask]) -> bool:
    released = False
    for task in tasks:
        del execution.deferring[task]
        if task.deferred and not task.done():
            released = True
            task.stop_undoing()
    return released


def undo(task: HandlerTask | None) -> None:
    """Mark a task that hears of the invocation's cancellation, and those that hear of it through this one (E2)."""
    if task is not None:
        task.told = True
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
    """Let a running task stop undoing if it has left the except and finally blocks that handle the cancellation.

    While a task below it undoes things, it may not have heard of the cancellation yet.
    """
    if sys.exc_info()[1] is None and (task.told or not task.undoes_below()):
        _stop_undoing(task)


def _stop_undoing(task: HandlerTask) -> None:
    """Record that a task has handled the cancellation, and that those above it will not hear of it any more."""
    above = task
    while above.undoing:
        above.stop_undoing()
        parent = above.parent
        if parent is None or parent.told or parent.undoes_below():
            return
        above = parent
