"""Scopes: sets of tasks that start together and end together.

Inside a handler, the tasks run on the handler loop, in an order that the journal determines; elsewhere they are plain
asyncio tasks. The functions in ``_api`` are built on scopes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from restate_steps._loop import Cancelled, HandlerTask

__all__ = ["Scope", "Task"]

T = TypeVar("T")


class Task(Generic[T]):
    """A handle to a running coroutine; returned by :meth:`TaskGroup.create_task`.

    It has the methods of :class:`asyncio.Task` that concern the outcome, and any task may await it.
    """

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task

    def done(self) -> bool:
        """Return whether the task has ended."""
        return self._task.done()

    def cancelled(self) -> bool:
        """Return whether the task was cancelled."""
        return self._task.cancelled()

    def result(self) -> T:
        """Return the task's result.

        Raises:
            asyncio.InvalidStateError: The task has not ended.
            BaseException: The exception that the task raised.
        """
        return self._task.result()

    def exception(self) -> BaseException | None:
        """Return the exception that the task raised, or None.

        Raises:
            asyncio.InvalidStateError: The task has not ended.
            asyncio.CancelledError: The task was cancelled.
        """
        return self._task.exception()

    def cancel(self, msg: Any = None) -> bool:
        """Raise :class:`asyncio.CancelledError` in the task at its next turn; return False if it has ended."""
        return self._task.cancel(msg)

    def get_name(self) -> str:
        """Return the task's name."""
        return self._task.get_name()

    @property
    def undoing(self) -> bool:
        """True while the task handles the cancellation of the invocation."""
        return isinstance(self._task, HandlerTask) and self._task.undoing and not self._task.done()

    def __await__(self) -> Generator[Any, Any, T]:
        return _join(self._task).__await__()


async def _join(task: asyncio.Task[T]) -> T:
    # Cancelling the awaiter must not cancel the task.
    if not task.done():
        await asyncio.wait([task])
    return task.result()


class Scope:
    """A set of tasks that start together and end together.

    Args:
        fail_fast: Cancel the other tasks on the first failure.
        interrupts: Also cancel the code that opened the scope, unless it waits for the scope.

    Attributes:
        finished: The tasks that have ended, in the order in which they did.
        failure: The exception of the first task that failed; cancellation is not a failure.
        others: The exceptions of the tasks that failed after that.
        live: The number of tasks that have not ended.
        interrupted: True once a failure has cancelled the code that opened the scope.
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
        """Start a task."""
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
        """True once the tasks are being cancelled, so that new ones are not accepted."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel every task that has not ended, once, so that a task that cleans up is not interrupted."""
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
        """Raise the error of the invocation's cancellation, if a task has ended with it.

        Restate reports the cancellation once. A task whose outcome is discarded must not swallow it.
        """
        for task in self.finished:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Cancelled):
                raise error

    def accept_interruption(self) -> None:
        """Uncancel the code that opened the scope, once it has received the scope's cancellation."""
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
