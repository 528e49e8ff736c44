"""The state of one execution: an attempt's handler, or a part of it, on the handler loop.

Handler code calls its methods to create tasks, to wait for something durable, and to fail. The driver runs it; see
``_driver`` for the invariants.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import zlib
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar, cast

from restate_steps._loop._asyncgens import AsyncGenerators
from restate_steps._loop._asyncio import get_running_loop_or_none, must_cancel, set_running_loop, swap_current_task
from restate_steps._loop._cancellation import begin_undoing, note_local_waits, stop_undoing_outside_of_handlers
from restate_steps._loop._endings import again
from restate_steps._loop._frames import describe
from restate_steps._loop._local import LocalOperation, LocalOperations, running_operation
from restate_steps._loop._loop import EXECUTION, HandlerLoop, loop_for
from restate_steps._loop._ready import Handle, ReadyQueue, owner_of
from restate_steps._loop._task import HandlerTask
from restate_steps._loop._timers import Timers
from restate_steps._loop._waits import Cancelled, DurableWait, Port, Wait
from restate_steps._step_info import running_step
from restate_steps.errors import ConcurrencyError, ContextInStepError, StepsError

__all__ = ["Execution", "name_of"]

T = TypeVar("T")

logger = logging.getLogger("restate_steps")

_STARTS_EAGERLY: Final = sys.version_info >= (3, 12)
"""True if this Python has eager tasks, which run inside another task's turn."""


class Execution:
    """Handler code that runs on the handler loop.

    Args:
        port: The interface to the server.
        server_loop: The server's event loop, on which step bodies run.
        name: A name that is the same in every attempt, and differs between invocations.

    Attributes:
        first_hash: The base of the hashes of tasks; each adds its number.
        loop: The event loop that handler code sees.
        closed: The reason why the attempt is over, or None.
        is_over: True once the code has ended.
        driving: A context manager that makes the handler loop the running loop.
        condition: The condition that ends the driver's cycle.
        accepts_wake_ups: True if wake-ups from outside are accepted, because there is no durable wait.
        new_waits: The durable waits that have begun since the driver last checked them.
        is_cancelled: True once the invocation's cancellation has been delivered.
        is_undelivered: True if nothing waited at that time; the next wait then receives the cancellation.
        deferring: The tasks that have deferred cancellations, in order.
        pending_local_waits: The tasks whose local waits are yet to receive the invocation's cancellation, each with
            the future that it waits for.
        task_factory: The task factory that the code has set.
        exception_handler: The exception handler that the code has set.
    """

    def __init__(self, port: Port, server_loop: asyncio.AbstractEventLoop, name: str = "") -> None:
        self.first_hash = zlib.crc32(name.encode()) << 24
        self.server_loop = server_loop
        self.loop: HandlerLoop = loop_for(server_loop)
        self.closed: BaseException | None = None
        self.is_over = False
        self.ready = ReadyQueue(self._callback_failed)
        self.timers = Timers(self)
        self.local = LocalOperations(self)
        self.task_factory: Any = None
        self.exception_handler: Any = None
        self.generators = AsyncGenerators(self)
        self.port = port
        self._thread = threading.get_ident()
        self._tasks: list[HandlerTask] = []
        self._made = 0
        self._prune_at = 1000
        self._batch: list[int] = []
        self._signalled: asyncio.Future[None] | None = None
        self.accepts_wake_ups = False
        self.new_waits: list[DurableWait] = []
        self.is_cancelled = self.is_undelivered = False
        self.deferring: dict[HandlerTask, None] = {}
        self.pending_local_waits: list[tuple[HandlerTask, asyncio.Future[Any]]] = []
        self.driving = _Driving(self, server_loop)
        self.condition: Callable[[], bool] = bool

    def own_context(self) -> Context:
        """Return a copy of the current context that belongs to this execution."""
        context = contextvars.copy_context()
        context.run(EXECUTION.set, self)
        return context

    def drive_from_here(self) -> None:
        """Drive from the calling code, which no longer runs on the server's loop, such as the garbage collector."""
        self.driving = _Driving(self, get_running_loop_or_none())

    def driven_by_this_thread(self) -> bool:
        """Return whether the calling thread is driving this execution now."""
        return self.loop.driving is self and threading.get_ident() == self._thread

    # --- from outside -------------------------------------------------------------------------------------------

    def signal(self) -> None:
        """Wake the driver."""
        if self._signalled is not None and not self._signalled.done():
            self._signalled.set_result(None)

    async def signalled(self) -> None:
        """Wait for :meth:`signal`; called by the driver."""
        self._signalled = self.server_loop.create_future()
        try:
            await self._signalled
        finally:
            self._signalled = None

    def wake_from_outside(self, handle: Handle) -> None:
        """Accept or refuse a callback that was scheduled while no code of the execution was running (E5)."""
        if threading.get_ident() != self._thread:
            self.server_loop.call_soon_threadsafe(self.wake_from_outside, handle)
            return
        if self.is_over:
            return
        if self.closed is not None:
            self.ready.append(handle)
            return
        body = running_step.get()
        if body is None and (self.local.in_flight is not None or self.accepts_wake_ups):
            self.ready.append(handle)
            self.signal()
            if self.accepts_wake_ups:
                self.port.interrupt()
            return
        task = owner_of(handle)
        what = f"task {name_of(task)}" if isinstance(task, HandlerTask) else "a task"
        where = describe(task.get_coro()) if isinstance(task, HandlerTask) else ""
        if body is not None:
            source = f"the body of step {body.name!r}"
        elif self.loop.driving is not None:
            source = "another invocation"
        else:
            source = "a thread, a callback or a task of the server's event loop"
        self.refuse(
            f"{what} was woken by {source} while it waited{where}. The journal does not record when that happens, so "
            "a replay could not repeat it. Return the value from a step, or wait for it with an awakeable; share a "
            "lock or semaphore with other invocations only where the handler runs nothing else at the same time.",
            pause=body is not None,
        )

    # --- tasks --------------------------------------------------------------------------------------------------

    def current_task(self) -> HandlerTask | None:
        """Return the task whose code is running."""
        if self.loop.driving is not self:
            operation = running_operation()
            return operation.owner if operation is not None else None
        task = asyncio.current_task(self.loop)
        return task if isinstance(task, HandlerTask) else None

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None,
        context: Context | None,
        given: tuple[int, int] | None = None,
        eager_start: bool | None = False,
        **options: Any,
    ) -> HandlerTask:
        """Create a task.

        Args:
            coro: The coroutine to run.
            name: The task's name; if None, a name with its number.
            context: The task's context variables; if None, a copy of the current ones.
            given: For a task of a batch that is created in arbitrary order: its position in the batch, and the
                batch's size.
            eager_start: True to run it immediately, until it first waits for something.
            **options: More arguments for :class:`asyncio.Task`.
        """
        self.notice_end_of_undoing()
        number = self._number(given)
        outer = self.ready.order
        if given is not None:
            self.ready.order = number
        try:
            task = HandlerTask(coro, execution=self, number=number, name=name, context=context, **options)
        finally:
            self.ready.order = outer
        self._tasks.append(task)
        if len(self._tasks) >= self._prune_at:
            self._tasks = self.live_tasks()
            self._prune_at = 2 * len(self._tasks) + 1000
        if eager_start and self.loop.driving is self:
            # asyncio's own eager tasks would end their turn when they yield without waiting (R2).
            creator = swap_current_task(self.loop, None)
            try:
                self.ready.run_within_turn()
            finally:
                swap_current_task(self.loop, creator)
        return task

    def _number(self, given: tuple[int, int] | None) -> int:
        if given is None:
            self._made += 1
            return self._made
        position, count = given
        if not self._batch:
            self._batch = list(range(self._made + 1, self._made + count + 1))
            self._made += count
        first = self._made - count + 1
        self._batch.pop()
        return first + position

    def forget_tasks(self) -> None:
        """Drop the references to the tasks: without the reference cycle, they are freed immediately."""
        self._tasks.clear()

    def live_tasks(self) -> list[HandlerTask]:
        """Return the tasks that have not ended, in the order in which they were created."""
        return [task for task in self._tasks if not task.done()]

    def notice_end_of_undoing(self) -> None:
        """Allow more cancellations of the running task if it has left the code that handles the first (E2)."""
        if self.is_cancelled and self.loop.driving is self:
            task = self.current_task()
            if task is not None and task.undoing:
                stop_undoing_outside_of_handlers(task)

    # --- durable waits ------------------------------------------------------------------------------------------

    def check(self, operation: str) -> None:
        """Refuse an operation that must not enter the journal now.

        Raises:
            BaseException: The attempt is over, or the caller is not the code whose turn it is.
        """
        if self.closed is not None:
            raise again(self.closed)
        if self.driven_by_this_thread():
            return
        local = running_operation()
        if local is not None and local.execution is self and local.in_flight and threading.get_ident() == self._thread:
            return
        if (step := running_step.get()) is not None:
            raise ContextInStepError(operation, step.name)
        if local is not None and local.execution is self:
            raise self.refuse(
                f"{operation} was called inside of restate_steps.local while another step was awaited there. The order "
                "of the two would depend on timing. Await one after the other, or use restate_steps.gather."
            )
        raise self.refuse(
            f"{operation} was called outside of the handler's code, by another thread, event loop, or task of the "
            "server's event loop, where its position in the journal would depend on timing. Use the Restate context "
            "in the handler only; use threads and tasks inside of steps."
        )

    async def yield_if_closed(self) -> None:
        """Yield to the server if the attempt is over: code that retries in a loop must not block it."""
        if self.closed is not None:
            await asyncio.sleep(0)

    async def wait(self, source: Any) -> None:
        """Wait for something durable."""
        if self.closed is not None:
            await self.yield_if_closed()
        self.check("awaiting a durable future")
        task = self.current_task()
        if self.is_cancelled:
            self.notice_end_of_undoing()
        operation = None
        if self.loop.driving is self:
            wait = DurableWait(source, task, None, self.loop)
            self.new_waits.append(wait)
        else:
            operation = running_operation()
            wait = DurableWait(source, task, operation, self.server_loop)
        self.port.add(wait)
        if operation is not None:
            operation.begin_wait()
        try:
            await wait.future
        except BaseException as error:
            self.port.discard(wait)
            if operation is None:
                raise
            operation.end_wait()
            if isinstance(error, asyncio.CancelledError) and not operation.is_cancelled and self.closed is None:
                raise self.refuse(
                    "a local operation cancelled its own wait for something durable, as asyncio.timeout and "
                    "asyncio.wait_for do. Inside of restate_steps.local timers are not durable, so a replay could not "
                    "repeat it. Put the timeout around restate_steps.local, or use restate_steps.wait_for."
                ) from error
            raise

    def has(self, handle: int) -> bool:
        """Return whether a durable future is completed and the code may continue with it immediately.

        This is a shortcut that saves most of a wait's cost. It applies if the driver would ask the VM for this future
        alone, and nothing could run before, as in a handler that awaits one step after another. If it returns False,
        call :meth:`wait`.
        """
        task = self.ready.last
        if (
            task is None
            or (_STARTS_EAGERLY and task is not asyncio.current_task())
            or not self.driven_by_this_thread()
            or self.closed is not None
            or self.port
            or self.timers
            or task.undoing
            or self.deferring
            or self.is_undelivered
            or must_cancel(task)
            or self.condition()
        ):
            return False
        try:
            found = self.port.ask_for(handle)
        except BaseException as error:  # the SDK's control flow is not an Exception
            self.closed = error
            return False
        if found is False:
            return False
        self.ready.begin_turn()
        if found is None:
            begin_undoing(task)
            note_local_waits(self)
            raise Cancelled
        return True

    def add_wait(self, wait: Wait) -> None:
        """Add a wait to ask the VM for."""
        self.port.add(wait)

    def discard_wait(self, wait: Wait) -> None:
        """Remove a wait."""
        self.port.discard(wait)

    def begin_sleep(self, seconds: float) -> Any:
        """Begin a durable sleep, and return its durable future."""
        return self.port.sleep(seconds)

    async def run_for(self, operation: LocalOperation, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function on the handler loop, while the calling local operation waits for it."""
        self.check("handler code")
        ended: asyncio.Future[None] = self.server_loop.create_future()
        context = contextvars.copy_context()
        tasks: list[HandlerTask] = []

        def start() -> None:
            task = self.create_task(function(), name=None, context=context)
            tasks.append(task)
            task.add_done_callback(end)

        def end(task: asyncio.Task[Any]) -> None:
            operation.end_wait()
            if not ended.done():
                ended.set_result(None)

        self.ready.prepend(Handle(start, (), self.loop, context))
        operation.begin_wait()
        cancelled = False
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                if self.closed is not None:
                    raise
                cancelled = True
                operation.begin_wait()
                self.ready.prepend(Handle(tasks[0].cancel, (), self.loop, context))
        if cancelled and tasks[0].cancelled():
            raise asyncio.CancelledError
        return cast(T, tasks[0].result())

    # --- endings ------------------------------------------------------------------------------------------------

    def refuse(self, reason: str, *, pause: bool = True) -> ConcurrencyError:
        """Fail the attempt because a replay could not repeat what happens, and return the error to raise.

        Args:
            reason: The message: what happened, why it cannot be replayed, and what to do.
            pause: True if only a code change helps, so that Restate should pause instead of retrying.
        """
        error = ConcurrencyError(reason)
        self.fail(error, pause=pause)
        return error

    def fail(self, error: StepsError, *, pause: bool = False) -> None:
        """Fail the attempt with a retryable error, even if the handler catches it."""
        if self.closed is None and not self.is_over:
            self.port.fail(error, pause=pause)
            self.closed = error
            if self.loop.driving is not self:
                # The driver may be waiting, for the server or for a local operation.
                self.signal()
                self.port.interrupt()

    def _callback_failed(self, error: BaseException, handle: asyncio.Handle) -> None:
        self.loop.call_exception_handler(
            {"message": f"Exception in callback {handle!r}", "exception": error, "handle": handle}
        )

    def log_warning(self, message: str) -> None:
        """Log a warning."""
        logger.warning("%s", message)

    def log_error(self, context: dict[str, Any]) -> None:
        """Log an unhandled error."""
        if self.closed is None:
            error = context.get("exception")
            logger.error("%s", context.get("message") or "Unhandled exception in a handler", exc_info=error)


class _Driving:
    """A reusable context manager that makes the handler loop the running loop, for code of one execution.

    Args:
        execution: The execution.
        outer: The event loop that is running outside.
    """

    __slots__ = ("_before", "_execution", "_hooks", "_loop", "_outer", "_outer_hooks", "_task")

    def __init__(self, execution: Execution, outer: asyncio.AbstractEventLoop | None) -> None:
        self._execution = execution
        self._loop = execution.loop
        self._hooks = execution.generators.hooks
        # The outer loop set its hooks when it started, and does not change them.
        self._outer = outer
        self._outer_hooks = sys.get_asyncgen_hooks()

    def __enter__(self) -> None:
        loop = self._loop
        self._before, loop.driving = loop.driving, self._execution
        if sys.version_info >= (3, 14):
            self._task = swap_current_task(self._outer, None)
        set_running_loop(loop)
        sys.set_asyncgen_hooks(*self._hooks)

    def __exit__(self, *error: object) -> None:
        sys.set_asyncgen_hooks(*self._outer_hooks)
        set_running_loop(self._outer)
        if sys.version_info >= (3, 14):
            swap_current_task(self._outer, self._task)
        self._loop.driving = self._before


def name_of(task: HandlerTask | None) -> str:
    """Return a task's name for messages."""
    return repr(task.get_name()) if task is not None else "of the handler"
