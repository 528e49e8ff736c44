"""Tasks of a handler: asyncio's own, with an order of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._execution import Execution

__all__ = ["HandlerTask"]


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
                self.deferred.append(msg)
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
        if self.deferred:
            self.deferred.pop()
        elif self.swallowed:
            self.swallowed -= 1
        else:
            super().uncancel()
        return self.cancelling()

    def stop_undoing(self) -> None:
        """Take note that it has handled the cancellation of the invocation, and let later ones come through."""
        self.told = self.undoing = False
        deferred, self.deferred = self.deferred, []
        for msg in deferred:
            self.cancel(msg)
