"""Tasks of a handler: asyncio's own, with an order of their own."""

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

    Its hash is made of the invocation and its number, so that sets of tasks have the same order in every attempt: anyio
    and ``asyncio.as_completed`` iterate over such sets. asyncio has one set for the tasks of all invocations.

    Attributes:
        execution: What it is a part of.
        number: Its number among the tasks of the execution, in the order in which they were made.
        parent: The task that made it.
        is_leaving: Whether it has been cancelled in a local operation, and waits for that to end.
        swallowed: How many cancellations have come meanwhile; they count, but tell it nothing new.
        told: Whether it has been told that the invocation is cancelled.
        undoing: Whether it has been told, or will be by a task that it made, and may still be undoing things.
        deferred: The cancellations that wait until that is over, as the messages given to :meth:`cancel`.
        below: The tasks that it made and that may still be undoing things.
        awaited: What it waited for when a task below it was told.
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
        self.is_leaving = self.told = self.undoing = False
        self.swallowed = 0
        self.deferred: list[Any] = []
        self.below: dict[HandlerTask, None] | None = None
        self.awaited: asyncio.Future[Any] | None = None
        super().__init__(coro, loop=execution.loop, name=name or f"Task-{number}", context=context, **options)

    def __hash__(self) -> int:
        return self.execution.first_hash + self.number

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the handler loop; other handlers, which share it, do not find this task by it."""
        loop = self.execution.loop
        return loop if loop.driving in (None, self.execution) else self.execution.server_loop

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task, but let it finish what it does about the cancellation of the invocation."""
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
        """Return how many cancellations have been requested, those included that have not been delivered."""
        return super().cancelling() + self.swallowed + len(self.deferred)

    def uncancel(self) -> int:
        """Take a cancellation back, first one that has not been delivered: whoever asked for it has ended."""
        if self.swallowed:
            self.swallowed -= 1
        elif self.deferred:
            self.deferred.pop()
        else:
            super().uncancel()
        return self.cancelling()

    def undoes_below(self) -> bool:
        """Return whether a task that it made may still be undoing things."""
        below = self.below
        while below:
            task = next(iter(below))
            if not task.done():
                return True
            del below[task]
        return False

    def stop_undoing(self) -> None:
        """Record that it has handled the cancellation of the invocation, and let later ones come through."""
        self.told = self.undoing = False
        self.awaited = None
        if self.parent is not None and self.parent.below:
            self.parent.below.pop(self, None)
        deferred, self.deferred = self.deferred, []
        for msg in deferred:
            self.cancel(msg)
