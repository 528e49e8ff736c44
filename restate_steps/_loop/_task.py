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
        undoing: Whether it has been told, or will be by a task that it made, and may still be undoing things.
        deferred: A cancellation that waits until that is over, as the message given to :meth:`cancel`, in a tuple.
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
        self.is_leaving = self.undoing = False
        self.deferred: tuple[Any] | None = None
        super().__init__(coro, loop=execution.loop, name=name or f"Task-{number}", context=context, **options)

    def __hash__(self) -> int:
        return self.execution.first_hash + self.number

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the handler loop; other handlers, which share it, do not find this task by it."""
        loop = self.execution.loop
        return loop if loop.driving in (None, self.execution) else self.execution.server_loop

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task, but let it finish what it does about the cancellation of the invocation."""
        if self.is_leaving and self.execution.closed is None:
            return True
        if self.undoing and not self.done() and self.execution.closed is None:
            self.deferred = (msg,)
            return True
        ready = self.execution.ready
        outer, ready.order = ready.order, self.number
        try:
            return super().cancel(msg)
        finally:
            ready.order = outer

    def cancelling(self) -> int:
        """Return how many cancellations have been requested, a deferred one included."""
        return super().cancelling() + (self.deferred is not None)

    def uncancel(self) -> int:
        """Take a cancellation back, a deferred one first: whoever asked for it, such as a timeout, has ended."""
        if self.deferred is None:
            return super().uncancel()
        self.deferred = None
        return super().cancelling()

    def stop_undoing(self) -> None:
        """Take note that it has handled the cancellation of the invocation, and let a later one come through."""
        self.is_leaving = self.undoing = False
        if self.deferred is not None:
            (msg,), self.deferred = self.deferred, None
            self.cancel(msg)
