"""Handler tasks: asyncio tasks with a deterministic order."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from restate_steps._loop._asyncio import is_cancelled_by_its_group

if TYPE_CHECKING:
    from restate_steps._loop._execution import Execution

__all__ = ["HandlerTask"]


_GROUPS_UNCANCEL: Final = int(sys.version_info >= (3, 13))
"""1 where an exiting ``TaskGroup`` calls ``uncancel()`` after it has cancelled its own task, else 0."""


class HandlerTask(asyncio.Task[Any]):
    """A task on the handler loop.

    Its hash is computed from the invocation and the task's number. So sets of tasks have the same order in every
    attempt, over which anyio and ``asyncio.as_completed`` iterate. The hash includes the invocation because asyncio has
    one set for the tasks of all invocations.

    Attributes:
        execution: The execution that it belongs to.
        number: Its number among the execution's tasks, in order of creation.
        parent: The task that created it.
        is_leaving: True if it was cancelled in a local operation, and waits for that to end.
        swallowed: The number of cancellations that are never delivered, but that :meth:`cancelling` counts.
        was_notified: True if it has received the invocation's cancellation and has not handled it yet.
        undoing: True if it was notified, or may be through one of its children, and has not handled it yet.
        deferred: The cancellations that wait until it has, as the messages given to :meth:`cancel`.
        below: The tasks that it created and that may still be undoing.
        awaited: The future that it waited for when one of these was notified.
    """

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        execution: Execution,
        number: int,
        name: str | None,
        context: Context | None,
        **options: Any,
    ) -> None:
        # Set first: asyncio puts the task into a set.
        self.execution = execution
        self.number = number
        self.parent = execution.current_task()
        self.is_leaving = self.was_notified = self.undoing = False
        self.swallowed = 0
        self.deferred: list[Any] = []
        self.below: dict[HandlerTask, None] | None = None
        self.awaited: asyncio.Future[Any] | None = None
        super().__init__(coro, loop=execution.loop, name=name or f"Task-{number}", context=context, **options)

    def __hash__(self) -> int:
        return self.execution.first_hash + self.number

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the handler loop, except to other handlers: they share it, and must not find this task there."""
        loop = self.execution.loop
        return loop if loop.driving in (None, self.execution) else self.execution.server_loop

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task; while it is undoing because of the invocation's cancellation, defer this."""
        if self.execution.closed is None and not self.done():
            if self.is_leaving:
                self.swallowed += 1
                return True
            if self.undoing:
                if is_cancelled_by_its_group(sys._getframe(1), self):  # pyright: ignore[reportPrivateUsage]
                    self.swallowed += _GROUPS_UNCANCEL
                    return True
                self.deferred.append(msg)
                self.execution.deferring[self] = None
                return True
        ready = self.execution.ready
        outer, ready.order = ready.order, self.number
        try:
            return super().cancel(msg)
        finally:
            ready.order = outer

    def cancelling(self) -> int:
        """Return the number of requested cancellations, including those that have not been delivered."""
        return super().cancelling() + self.swallowed + len(self.deferred)

    def uncancel(self) -> int:
        """Withdraw a cancellation, preferably one that has not been delivered, and return the number left."""
        if self.swallowed:
            self.swallowed -= 1
        elif self.deferred:
            self.deferred.pop()
        else:
            super().uncancel()
        return self.cancelling()

    def undoes_below(self) -> bool:
        """Return whether a task that it created may still be undoing."""
        below = self.below
        while below:
            task = next(iter(below))
            if not task.done():
                return True
            del below[task]
        return False

    def stop_undoing(self) -> None:
        """Record that it has handled the invocation's cancellation, and deliver the deferred ones."""
        self.was_notified = self.undoing = False
        self.awaited = None
        if self.parent is not None and self.parent.below:
            self.parent.below.pop(self, None)
        deferred, self.deferred = self.deferred, []
        for msg in deferred:
            self.cancel(msg)
