"""What happens when an invocation is cancelled (E2).

Restate tells of it once. Everything that waits then is told, in the order in which it began to wait: what is durable,
``asyncio.sleep``, and if there is nothing of that kind, whatever a timer has been put around. A task that has been
told, and those that will hear of it through that one, may undo things; until they have, no other cancellation reaches
them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ._asyncio import waiting_on
from ._task import HandlerTask
from ._waits import Cancelled, DurableWait

if TYPE_CHECKING:
    from ._execution import Execution

__all__ = ["release_deferred", "stop_undoing", "tell_of_cancellation", "undo"]


def tell_of_cancellation(execution: Execution) -> None:
    """Tell everything that waits that the invocation is cancelled (E2)."""
    told = False
    for wait in execution.port.waits():
        if isinstance(wait, DurableWait):
            told = True
            execution.port.discard(wait)
            undo(wait.task)
            wait.end(Cancelled())
    for timer, future in list(execution.timers.sleepers()):
        told = _tell(execution, future) or told
        timer.cancel()
    if told:
        return
    # Only local waits are left: those at the ends of the tree of tasks are told, and the others hear of it from them.
    tasks = execution.live_tasks()
    parents = {task.parent for task in tasks}
    for task in tasks:
        inner = waiting_on(task)
        if task not in parents and inner is not None and not isinstance(inner, HandlerTask):
            _tell(execution, inner, task)


def _tell(execution: Execution, future: asyncio.Future[Any], task: HandlerTask | None = None) -> bool:
    if future.done():
        return False
    if task is None:
        task = next((each for each in execution.live_tasks() if waiting_on(each) is future), None)
    undo(task)
    future.set_exception(Cancelled())
    return True


def release_deferred(execution: Execution) -> bool:
    """Deliver the cancellations of tasks that undo nothing durable any more; return whether there are any."""
    deferred = [task for task in execution.live_tasks() if task.deferred]
    for task in deferred:
        task.stop_undoing()
    return bool(deferred)


def undo(task: HandlerTask | None) -> None:
    """Mark a task that is told of the invocation's cancellation, and those that will hear of it through it (E2)."""
    if task is not None:
        task.told = True
    while task is not None and not task.undoing:
        task.undoing = True
        task = task.parent


def stop_undoing(task: HandlerTask) -> None:
    """Take note that a task has handled the cancellation, and that those above it will not hear of it any more."""
    above = task
    while above.undoing:
        above.stop_undoing()
        parent = above.parent
        if parent is None or parent.told:
            return
        if any(each.undoing and each.parent is parent for each in parent.execution.live_tasks()):
            return
        above = parent
