"""Local operations: threads, DNS lookups, and :func:`restate_steps.local`.

They run outside of the handler loop. Their results are not recorded, and every replay repeats them. Invariants:

* **O1** While an operation is in flight, no other handler code runs, and the driver does not ask the VM. So the order
  of everything else does not depend on how long the operation takes, or on whether another attempt runs it at all.
* **O2** Results are delivered in the order in which the operations began.
* **O3** A coroutine in :func:`restate_steps.local` does not count as in flight while it waits for something durable.
* **O4** The handler waits for a cancelled operation to end, except for a thread, which cannot be cancelled. After the
  attempt, the driver waits for the operations that are left.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from restate_steps._loop._asyncio import get_running_loop_or_none
from restate_steps._loop._ready import Handle
from restate_steps._loop._task import HandlerTask

if TYPE_CHECKING:
    from restate_steps._loop._execution import Execution

__all__ = ["OPERATION", "LocalContext", "LocalOperation", "LocalOperations", "running_operation"]

T = TypeVar("T")

_CLEAN_UP_SECONDS: Final = 10.0

OPERATION: Final[ContextVar[LocalOperation | None]] = ContextVar("restate_steps_local_operation", default=None)
"""The local operation that code on the server's loop belongs to."""


class LocalOperation:
    """One local operation.

    Args:
        execution: The execution that it belongs to.
        can_be_cancelled: True if it ends when it is cancelled.

    Attributes:
        owner: The task that began it.
        outer: The future or task on the server's loop that runs it.
        result: The future on the handler loop that the handler awaits.
        waits: True while it waits for something durable (O3).
        is_cancelled: True once the handler has cancelled it.
    """

    def __init__(self, execution: Execution, *, can_be_cancelled: bool) -> None:
        self.execution = execution
        self.can_be_cancelled = can_be_cancelled
        self.owner: HandlerTask | None = execution.current_task()
        self.outer: asyncio.Future[Any]
        self.result: asyncio.Future[Any] = execution.loop.create_future()
        self.waits = False
        self.is_cancelled = False

    @property
    def in_flight(self) -> bool:
        """True while the rest of the handler has to wait for it."""
        return not self.waits

    def begin_wait(self) -> None:
        """Let the rest of the handler run while this waits for something durable (O3)."""
        self.waits = True
        self.execution.local.hold()
        self.execution.signal()

    def end_wait(self) -> None:
        """Block the rest of the handler again."""
        self.waits = False
        self.execution.local.hold()

    def start(self, outer: asyncio.Future[Any]) -> None:
        """Block the rest of the handler until ``outer`` is done."""
        self.outer = outer
        self.execution.local.add(self)
        outer.add_done_callback(self._ended)
        self.result.add_done_callback(self._abandoned)

    def _ended(self, outer: asyncio.Future[Any]) -> None:
        if not outer.cancelled():
            # Mark it as retrieved: asyncio must not report the error of an operation that was abandoned.
            outer.exception()
        self.execution.signal()

    def _abandoned(self, result: asyncio.Future[Any]) -> None:
        if not result.cancelled() or self.outer.done():
            return
        self.is_cancelled = True
        self.waits = False
        self.outer.cancel()
        if self.can_be_cancelled:
            self.execution.local.hold()
        else:
            self.execution.local.remove(self)

    def deliver(self) -> None:
        """Deliver the result to the handler; called while its execution is driven."""
        outer, result = self.outer, self.result
        if result.done():
            return
        if outer.cancelled():
            result.cancel()
        elif (error := outer.exception()) is not None:
            result.set_exception(error)
        else:
            result.set_result(outer.result())


class LocalOperations:
    """The operations of one execution whose results have not been delivered, in the order they began (O2)."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._operations: dict[LocalOperation, None] = {}
        self._ending: list[asyncio.Future[Any]] = []
        self._contexts: list[LocalContext[Any]] = []
        self._ended: list[LocalOperation] = []

    @property
    def in_flight(self) -> LocalOperation | None:
        """The first operation that the rest of the handler has to wait for, or None."""
        for operation in self._operations:
            if operation.in_flight:
                return operation
        return None

    def results(self) -> list[asyncio.Future[Any]]:
        """Return the futures that the handler awaits."""
        return [operation.result for operation in self._operations]

    @property
    def has_context_managers(self) -> bool:
        """True if the handler has entered a context manager through :func:`restate_steps.local`."""
        return bool(self._contexts)

    def add(self, operation: LocalOperation) -> None:
        """Add an operation that has begun."""
        self._operations[operation] = None
        self._execution.ready.held = True

    def remove(self, operation: LocalOperation) -> None:
        """Forget an operation."""
        self._operations.pop(operation, None)
        self.hold()

    def hold(self) -> None:
        """Block turns while an operation is in flight (O1); if none is, deliver the ended ones in order (O2)."""
        execution = self._execution
        execution.ready.held = self.in_flight is not None
        if not execution.ready.held:
            ended, self._ended = self._ended, []
            for operation in reversed(ended):
                execution.ready.prepend(Handle(operation.deliver, (), execution.loop, contextvars.Context()))

    def deliver(self) -> bool:
        """Take the first operation from those in flight if it has ended; return whether it has."""
        operation = self.in_flight
        if operation is None or not operation.outer.done():
            return False
        del self._operations[operation]
        self._ended.append(operation)
        self.hold()
        return True

    def abandon(self) -> None:
        """Cancel all operations, because the attempt is over."""
        for operation in list(self._operations):
            if operation.can_be_cancelled:
                operation.outer.cancel()
                self._ending.append(operation.outer)
        self._operations.clear()
        self._ended.clear()
        self._execution.ready.held = False

    def remember(self, context: LocalContext[Any]) -> None:
        """Remember a context manager, to close it when the attempt is over."""
        self._contexts.append(context)

    async def wait_ended(self) -> None:
        """Wait until cancelled operations have cleaned up, so that the next attempt does not overlap with them."""
        self._ending += [context.close() for context in self._contexts]
        left = [future for future in self._ending if not future.done()]
        if left:
            await asyncio.wait(left, timeout=_CLEAN_UP_SECONDS)
            for future in left:
                future.cancel()

    # --- kinds of operations ------------------------------------------------------------------------------------

    def begin_thread(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function in a thread, and return the future of its result."""
        self._execution.check("a thread")
        operation = LocalOperation(self._execution, can_be_cancelled=False)
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            # The context identifies this execution when the thread schedules something on the handler loop.
            func = functools.partial(contextvars.copy_context().run, func)
        operation.start(self._execution.server_loop.run_in_executor(executor, func, *args))
        return operation.result

    async def run(self, awaitable: Awaitable[T]) -> T:
        """Run an awaitable on the server's loop, in the caller's context."""
        execution = self._execution
        coro = cast("Coroutine[Any, Any, T]", awaitable if asyncio.iscoroutine(awaitable) else _await(awaitable))
        try:
            await execution.yield_if_closed()
            execution.check("a local operation")
        except BaseException:
            coro.close()
            raise
        operation = LocalOperation(execution, can_be_cancelled=True)
        context = contextvars.copy_context()
        context.run(OPERATION.set, operation)
        # Not create_task: a task factory of the server's loop may start it immediately, within the handler's turn.
        operation.start(asyncio.Task(coro, loop=execution.server_loop, context=context))
        try:
            return cast(T, await operation.result)
        except asyncio.CancelledError:
            # anyio repeats a cancellation until it has an effect, which would end each wait below immediately.
            owner = operation.owner
            if owner is not None:
                owner.is_leaving = True
            while not operation.outer.done() and execution.closed is None:
                # O4: the operation cleans up within this turn.
                operation.result = execution.loop.create_future()
                try:
                    await operation.result
                except asyncio.CancelledError:
                    continue
                except BaseException:
                    break
            if owner is not None:
                owner.is_leaving = False
            if operation.outer.done() and not operation.outer.cancelled():
                return cast(T, operation.outer.result())
            raise


class LocalContext(Generic[T]):
    """An async context manager that is entered and exited on the server's loop, in one task.

    Args:
        execution: The execution that uses it.
        manager: The context manager.
    """

    def __init__(self, execution: Execution, manager: AbstractAsyncContextManager[T, bool | None]) -> None:
        self._execution = execution
        self._manager = manager

    async def __aenter__(self) -> T:
        execution = self._execution
        execution.check("a local operation")
        loop = execution.server_loop
        self._entered: asyncio.Future[T] = loop.create_future()
        self._left: asyncio.Future[tuple[Any, Any, Any]] = loop.create_future()
        self._context = contextvars.copy_context()
        return await execution.local.run(self._wait_until_entered())

    async def __aexit__(self, *error: Any) -> bool | None:
        if self._execution.closed is not None:
            # The attempt is over. The task ends by itself, and the driver waits for it.
            self._leave(error)
            return None
        return await self._execution.local.run(self._wait_until_left(error))

    def __await__(self) -> Generator[Any, Any, Any]:
        # Some objects are both: await session.get(url), async with session.get(url).
        return self._execution.local.run(cast("Awaitable[Any]", self._manager)).__await__()

    def close(self) -> asyncio.Task[Any]:
        """Cancel its task if nothing has exited it, and return the task."""
        if not self._left.done():
            self._task.cancel()
        return self._task

    def _leave(self, error: tuple[Any, ...]) -> None:
        if not self._left.done():
            self._left.set_result(cast("tuple[Any, Any, Any]", error))

    def _enter_operation(self) -> None:
        # Steps that the manager calls belong to the operation that enters or exits it.
        self._context.run(OPERATION.set, OPERATION.get())

    async def _wait_until_left(self, error: tuple[Any, ...]) -> bool | None:
        self._enter_operation()
        self._leave(error)
        return await self._task

    async def _wait_until_entered(self) -> T:
        self._enter_operation()
        # One task for both, because the manager may use an anyio cancel scope or task group.
        self._task = asyncio.Task(self._hold(), loop=self._execution.server_loop, context=self._context)
        self._execution.local.remember(self)
        either: list[asyncio.Future[Any]] = [self._entered, self._task]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Nothing will exit the manager, so it has to clean up now.
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        if self._task.done():
            await self._task
        return self._entered.result()

    async def _hold(self) -> bool | None:
        value = await self._manager.__aenter__()
        if not self._entered.done():
            self._entered.set_result(value)
        try:
            error = await self._left
        except asyncio.CancelledError as cancelled:
            await self._manager.__aexit__(type(cancelled), cancelled, cancelled.__traceback__)
            raise
        return await self._manager.__aexit__(*error)


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def running_operation() -> LocalOperation | None:
    """Return the local operation whose code is running, or None."""
    operation = OPERATION.get()
    if operation is None or operation.outer.done() or get_running_loop_or_none() is operation.execution.loop:
        return None
    return operation
