"""Scopes: a set of tasks opened together, that end together.

Inside a handler the tasks run on the handler loop, in an order that the journal decides; elsewhere they are plain
asyncio tasks. The functions in ``_api`` are built on this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from restate_steps._loop import Cancelled, HandlerTask

__all__ = ["Scope", "Task"]

T = TypeVar("T")


class Task(Generic[T]):
    """A coroutine that runs beside others; what :meth:`TaskGroup.create_task` returns.

    It has the methods of :class:`asyncio.Task` that matter to those who wait for it, and can be awaited by any task.
    """

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._task.done()

    def cancelled(self) -> bool:
        """Return whether it ended by cancellation."""
        return self._task.cancelled()

    def result(self) -> T:
        """Return its result.

        Raises:
            asyncio.InvalidStateError: It has not ended.
            BaseException: What it raised.
        """
        return self._task.result()

    def exception(self) -> BaseException | None:
        """Return what it raised, or None.

        Raises:
            asyncio.InvalidStateError: It has not ended.
            asyncio.CancelledError: It was cancelled.
        """
        return self._task.exception()

    def cancel(self, msg: Any = None) -> bool:
        """Have it receive :class:`asyncio.CancelledError` at its next turn; return False if it has ended."""
        return self._task.cancel(msg)

    def get_name(self) -> str:
        """Return its name."""
        return self._task.get_name()

    @property
    def undoing(self) -> bool:
        """True while it handles the cancellation of the invocation."""
        return isinstance(self._task, HandlerTask) and self._task.undoing and not self._task.done()

    def __await__(self) -> Generator[Any, Any, T]:
        return _join(self._task).__await__()


async def _join(task: asyncio.Task[T]) -> T:
    # Whoever waits may be cancelled without the task.
    if not task.done():
        await asyncio.wait([task])
    return task.result()


class Scope:
    """Tasks opened together.

    Args:
        fail_fast: Whether the first failure cancels the others.
        interrupts: Whether it also cancels the code that opened the scope, when that waits elsewhere.

    Attributes:
        finished: The tasks that ended, in the order in which they did.
        failure: What the first of them to fail raised; cancellation is not a failure.
        others: What further tasks raised after that.
        live: How many have not ended.
        interrupted: Whether the code that opened the scope has been cancelled.
    """

    def __init__(self, *, fail_fast: bool, interrupts: bool = False) -> None:
        self.tasks: list[Task[Any]] = []
        self.finished: list[Task[Any]] = []
        self.failure: BaseException | None = None
        self.others: list[BaseException] = []
        self.live = 0
        self.fail_fast = fail_fast
        self.interrupts = interrupts
        self.interrupted = False
        self._opener = asyncio.current_task()
        self._cancelled = False
        self._condition: Callable[[], bool] | None = None
        self._wake: asyncio.Future[None] | None = None

    def spawn(self, coro: Coroutine[Any, Any, T], name: str | None = None) -> Task[T]:
        """Open a task."""
        plain = asyncio.get_running_loop().create_task(coro, name=name)
        task = Task(plain)

        def on_done(done: asyncio.Task[T]) -> None:
            self._task_ended(task, asyncio.CancelledError() if done.cancelled() else done.exception())

        plain.add_done_callback(on_done)
        self.tasks.append(task)
        self.live += 1
        return task

    @property
    def closing(self) -> bool:
        """True if its tasks are being cancelled, so that it accepts no new one."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel every task that has not ended, once: a task that cleans up already is left to it."""
        if self._cancelled:
            return
        self._cancelled = True
        for task in self.tasks:
            if not task.done():
                task.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is checked whenever a task ends."""
        while not condition():
            self._condition = condition
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._condition = self._wake = None

    async def join(self) -> None:
        """Wait until every task has ended; if interrupted meanwhile, cancel them and still wait."""
        interruption: BaseException | None = None
        while self.live:
            try:
                await self.until(lambda: self.live == 0)
            except asyncio.CancelledError as error:
                interruption = interruption or error
                self.cancel()
        if interruption is not None:
            raise interruption

    async def abort(self) -> None:
        """Cancel every task and wait until all have ended."""
        self.cancel()
        await self.join()

    def raise_if_cancelled(self) -> None:
        """Raise the error that tells of the invocation's cancellation, if a task has ended with it.

        Restate tells it once. A task whose outcome is discarded must not swallow it.
        """
        for task in self.finished:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Cancelled):
                raise error

    def accept_interruption(self) -> None:
        """Take note that the opener has received its cancellation, so that it is not taken for another's."""
        if self._opener is not None:
            self._opener.uncancel()

    def _task_ended(self, task: Task[Any], error: BaseException | None) -> None:
        self.live -= 1
        self.finished.append(task)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            if self.failure is None:
                self.failure = error
                if self.fail_fast:
                    self.cancel()
                if self.interrupts and self._condition is None and self._opener is not None:
                    self.interrupted = True
                    self._opener.cancel()
            else:
                self.others.append(error)
        if self._wake is not None and self._condition is not None and self._condition() and not self._wake.done():
            self._wake.set_result(None)
