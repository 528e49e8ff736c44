"""Scopes: a set of tasks opened together, and the two ways to run them.

:class:`DurableScope` runs them as branches of a handler, in journal order. :class:`LocalScope` runs them as plain
asyncio tasks: outside a handler, and inside a step's body, there is no journal whose order could matter. The functions
in ``_api`` are written once, against :class:`Scope`.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

from restate import TerminalError

from ..context import current_invocation
from ._scheduler import CANCELLED, Scheduler
from ._strand import Branch, Strand

__all__ = ["Scope", "Task", "open_scope"]

T = TypeVar("T")


class Task(abc.ABC, Generic[T]):
    """A coroutine running beside others; what :meth:`TaskGroup.create_task` returns.

    Has the methods of :class:`asyncio.Task` that make sense for a durable branch, and can be awaited by any branch.
    """

    @abc.abstractmethod
    def done(self) -> bool:
        """Return whether it has ended."""

    @abc.abstractmethod
    def cancelled(self) -> bool:
        """Return whether it ended by cancellation."""

    @abc.abstractmethod
    def result(self) -> T:
        """Return its result.

        Raises:
            asyncio.InvalidStateError: It has not ended.
            BaseException: What it raised.
        """

    @abc.abstractmethod
    def exception(self) -> BaseException | None:
        """Return what it raised, or None.

        Raises:
            asyncio.InvalidStateError: It has not ended.
            asyncio.CancelledError: It was cancelled.
        """

    @abc.abstractmethod
    def cancel(self, msg: Any = None) -> bool:
        """Have it receive :class:`asyncio.CancelledError` at its next turn; return False if it has ended."""

    @abc.abstractmethod
    def get_name(self) -> str:
        """Return its name."""

    @abc.abstractmethod
    def __await__(self) -> Generator[Any, Any, T]: ...


class Scope(abc.ABC):
    """Tasks opened together.

    Attributes:
        finished: The tasks that ended, in the order in which they did.
        failure: What the first of them to fail raised; cancellation is no failure.
        others: What further tasks raised after that.
        live: How many have not ended.
        fail_fast: Whether the first failure cancels the others.
        interrupts: Whether it also cancels the code that opened the scope, when that waits elsewhere.
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
        self._cancelled = False
        self._condition: Callable[[], bool] | None = None
        self._wake: Callable[[], None] | None = None

    @abc.abstractmethod
    def spawn(self, coro: Coroutine[Any, Any, T], name: str | None = None) -> Task[T]:
        """Open a task."""

    @abc.abstractmethod
    async def _wait(self) -> None:
        """Wait until :attr:`_wake` is called, having set it."""

    @abc.abstractmethod
    def _interrupt_opener(self) -> None:
        """Cancel whatever the code that opened the scope waits for."""

    @property
    @abc.abstractmethod
    def over(self) -> BaseException | None:
        """What ended the attempt, so that there is nothing to wait for any more; None while it goes on."""

    @abc.abstractmethod
    def is_cleaning_up(self, task: Task[Any]) -> bool:
        """Whether a task has been told that the invocation is cancelled, and still handles it."""

    @abc.abstractmethod
    def accept_interruption(self) -> None:
        """Take note that the opener has received its cancellation, so that it is not taken for another's."""

    @property
    def closing(self) -> bool:
        """Whether its tasks are being cancelled, so that it takes no new one."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel every task that has not ended, once: what cleans up already is left to it."""
        if self._cancelled:
            return
        self._cancelled = True
        for task in self.tasks:
            if not task.done():
                self._cancel_task(task)

    def _cancel_task(self, task: Task[Any]) -> None:
        task.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is looked at whenever a task ends."""
        while not condition():
            self._condition = condition
            try:
                await self._wait()
            finally:
                self._condition = self._wake = None

    async def join(self) -> None:
        """Wait until every task has ended; if interrupted meanwhile, cancel them and still wait.

        Raises:
            BaseException: What ended the attempt, if it did.
        """
        interruption: BaseException | None = None
        while self.live and self.over is None:
            try:
                await self.until(lambda: self.live == 0)
            except asyncio.CancelledError as error:
                interruption = interruption or error
                self.cancel()
        if self.over is not None:
            raise self.over
        if interruption is not None:
            raise interruption

    async def abort(self) -> None:
        """Cancel every task and wait until all have ended."""
        self.cancel()
        await self.join()

    def raise_if_cancelled(self) -> None:
        """Raise what tells of the invocation's cancellation, if a task has ended with it.

        Restate tells it once. A task whose outcome nobody looks at must not swallow it.
        """
        for task in self.finished:
            if isinstance(task, _BranchTask) and task.branch.told_cancelled:
                error = None if task.cancelled() else task.exception()
                if isinstance(error, TerminalError) and error.status_code == CANCELLED:
                    raise error

    def task_ended(self, task: Task[Any], error: BaseException | None) -> None:
        """Account for a task that ended."""
        self.live -= 1
        self.finished.append(task)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            if self.failure is None:
                self.failure = error
                if self.fail_fast:
                    self.cancel()
                if self.interrupts and self._condition is None and self.over is None:
                    self.interrupted = True
                    self._interrupt_opener()
            else:
                self.others.append(error)
        if self._wake is not None and self._condition is not None and self._condition():
            self._wake()


# --- durable ----------------------------------------------------------------------------------------------------


class _BranchTask(Task[T]):
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: list[Callable[[], None]] = []
        self.branch: Branch

    def ended(self) -> None:
        for wake in self._waiters:
            wake()
        self._waiters.clear()

    def done(self) -> bool:
        return self.branch.over

    def cancelled(self) -> bool:
        return self.branch.over and isinstance(self.branch.error, asyncio.CancelledError)

    def result(self) -> T:
        if not self.branch.over:
            raise asyncio.InvalidStateError("Result is not set.")
        if self.branch.error is not None:
            raise self.branch.error
        return cast(T, self.branch.result)

    def exception(self) -> BaseException | None:
        if not self.branch.over:
            raise asyncio.InvalidStateError("Exception is not set.")
        if isinstance(self.branch.error, asyncio.CancelledError):
            raise self.branch.error
        return self.branch.error

    def cancel(self, msg: Any = None) -> bool:
        if self.branch.over:
            return False
        error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self._scheduler.interrupt(self.branch, error)
        return True

    def get_name(self) -> str:
        return self.branch.name

    async def _join(self) -> T:
        while not self.branch.over:
            await self._scheduler.wait_for_strands(self._waiters.append)
        return self.result()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._join().__await__()


class DurableScope(Scope):
    """Tasks that are branches of the running handler."""

    def __init__(self, scheduler: Scheduler, *, fail_fast: bool, interrupts: bool = False) -> None:
        super().__init__(fail_fast=fail_fast, interrupts=interrupts)
        self._scheduler = scheduler
        self._opener: Strand = scheduler.current()

    @property
    def over(self) -> BaseException | None:
        return self._scheduler.closed

    def is_cleaning_up(self, task: Task[Any]) -> bool:
        return isinstance(task, _BranchTask) and not task.done() and task.branch.cleaning_up

    def spawn(self, coro: Coroutine[Any, Any, T], name: str | None = None) -> Task[T]:
        task: _BranchTask[T] = _BranchTask(self._scheduler)

        def on_done(branch: Branch) -> None:
            task.ended()
            self.task_ended(task, branch.error)

        task.branch = self._scheduler.spawn(coro, name, on_done)
        self.tasks.append(task)
        self.live += 1
        return task

    async def _wait(self) -> None:
        def register(wake: Callable[[], None]) -> None:
            self._wake = wake

        await self._scheduler.wait_for_strands(register)

    def _cancel_task(self, task: Task[Any]) -> None:
        if isinstance(task, _BranchTask):
            self._scheduler.cancel_when_cleaned_up(task.branch)

    def _interrupt_opener(self) -> None:
        self._scheduler.interrupt(self._opener, asyncio.CancelledError())

    def accept_interruption(self) -> None:
        self._scheduler.accept_cancellation(self._opener)


# --- local ------------------------------------------------------------------------------------------------------


class _LocalTask(Task[T]):
    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task

    def done(self) -> bool:
        return self._task.done()

    def cancelled(self) -> bool:
        return self._task.cancelled()

    def result(self) -> T:
        return self._task.result()

    def exception(self) -> BaseException | None:
        return self._task.exception()

    def cancel(self, msg: Any = None) -> bool:
        return self._task.cancel(msg)

    def get_name(self) -> str:
        return self._task.get_name()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._task.__await__()


class LocalScope(Scope):
    """Tasks that are plain asyncio tasks."""

    def __init__(self, *, fail_fast: bool, interrupts: bool = False) -> None:
        super().__init__(fail_fast=fail_fast, interrupts=interrupts)
        self._opener = asyncio.current_task()

    @property
    def over(self) -> BaseException | None:
        return None

    def is_cleaning_up(self, task: Task[Any]) -> bool:
        return False

    def spawn(self, coro: Coroutine[Any, Any, T], name: str | None = None) -> Task[T]:
        plain = asyncio.create_task(coro, name=name)
        task = _LocalTask(plain)

        def on_done(done: asyncio.Task[T]) -> None:
            self.task_ended(task, asyncio.CancelledError() if done.cancelled() else done.exception())

        plain.add_done_callback(on_done)
        self.tasks.append(task)
        self.live += 1
        return task

    async def _wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        self._wake = wake
        await future

    def _interrupt_opener(self) -> None:
        if self._opener is not None:
            self._opener.cancel()

    def accept_interruption(self) -> None:
        if self._opener is not None:
            self._opener.uncancel()


def open_scope(*, fail_fast: bool, interrupts: bool = False) -> Scope:
    """Open a scope fit for where the caller runs: in a handler, or anywhere else."""
    invocation = current_invocation()
    if invocation is None:
        return LocalScope(fail_fast=fail_fast, interrupts=interrupts)
    return DurableScope(invocation.scheduler(), fail_fast=fail_fast, interrupts=interrupts)
