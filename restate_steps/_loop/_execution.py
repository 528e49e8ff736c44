"""One execution of handler code: an attempt's handler, or a part of it.

It holds what the code has made, and is what the code calls: to make tasks, to wait for something durable, to fail. The
driver runs it; see ``_driver`` for the invariants.
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
from restate_steps._loop._cancellation import note_local_waits, stop_undoing_outside_of_handlers, undo
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
"""True if a task may run inside another task's turn."""


class Execution:
    """Handler code that runs on the handler loop.

    Args:
        port: The way to the durable world.
        server_loop: The loop of the server, on which bodies run.
        name: A name that is the same in each attempt, and different for each invocation.

    Attributes:
        first_hash: What the numbers of tasks are added to for their hashes.
        loop: What the code takes for its event loop.
        closed: Why the attempt is over, or None.
        is_over: Whether the code has ended.
        driving: Makes the handler loop the running loop, as a context manager.
        condition: What the driver drives until.
        waits_outside: Whether wake-ups from outside are accepted, because nothing durable is waited for.
        begun: The durable waits that have begun since the driver looked at them.
        is_cancelled: Whether the cancellation of the invocation has been delivered.
        is_unheard: Whether nothing waited then, so that what waits next is told.
        deferring: The tasks of which a cancellation is deferred.
        untold: The tasks that are still to be told of the invocation's cancellation, and what each waits for.
        task_factory: What the code has set as the loop's task factory.
        exception_handler: What the code has set as the loop's exception handler.
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
        self.waits_outside = False
        self.begun: list[DurableWait] = []
        self.is_cancelled = self.is_unheard = False
        self.deferring: dict[HandlerTask, None] = {}
        self.untold: list[tuple[HandlerTask, asyncio.Future[Any]]] = []
        self.driving = _Driving(self, server_loop)
        self.condition: Callable[[], bool] = bool

    def own_context(self) -> Context:
        """Return a context for code of the execution."""
        context = contextvars.copy_context()
        context.run(EXECUTION.set, self)
        return context

    def drive_wherever(self) -> None:
        """Let it be driven by code that no longer runs on the server's loop, such as the garbage collector."""
        self.driving = _Driving(self, get_running_loop_or_none())

    def driven_by_this_thread(self) -> bool:
        """Return whether the calling thread is the one that drives it at this moment."""
        return self.loop.driving is self and threading.get_ident() == self._thread

    # --- from outside -------------------------------------------------------------------------------------------

    def signal(self) -> None:
        """Let the driver look again."""
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
        """Decide about a callback that was scheduled while no code of the execution runs (E5)."""
        if threading.get_ident() != self._thread:
            self.server_loop.call_soon_threadsafe(self.wake_from_outside, handle)
            return
        if self.is_over:
            return
        if self.closed is not None:
            self.ready.append(handle)
            return
        body = running_step.get()
        if body is None and (self.local.in_flight is not None or self.waits_outside):
            self.ready.append(handle)
            self.signal()
            if self.waits_outside:
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
            f"{what} was woken by {source} while it waited{where}. When that happens is not in the journal, so a "
            "replay could not repeat it. Return the value from a step, or wait for it with an awakeable; share a lock "
            "or semaphore with other invocations only where the handler runs nothing else at the same time.",
            pause=body is not None,
        )

    # --- tasks --------------------------------------------------------------------------------------------------

    def current_task(self) -> HandlerTask | None:
        """Return the task whose code runs at this moment."""
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
        """Make a task.

        Args:
            coro: What it does.
            name: Its name; made of its number if None.
            context: Its context variables; a copy of the current ones if None.
            given: For one of several that are made in an order that means nothing: its position, and their number.
            eager_start: Whether to run it at once, until it first waits for something.
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
            # Not by asyncio, whose eager tasks end their turn when they yield without waiting (R2).
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
        """Forget the tasks: they refer to the execution, and without the cycle they go at once."""
        self._tasks.clear()

    def live_tasks(self) -> list[HandlerTask]:
        """Return the tasks that have not ended, in the order in which they were made."""
        return [task for task in self._tasks if not task.done()]

    def notice_end_of_undoing(self) -> None:
        """Let the running task be cancelled again if it has left the code that handles the cancellation (E2)."""
        if self.is_cancelled and self.loop.driving is self:
            task = self.current_task()
            if task is not None and task.undoing:
                stop_undoing_outside_of_handlers(task)

    # --- durable waits ------------------------------------------------------------------------------------------

    def check(self, operation: str) -> None:
        """Refuse what may not enter the journal at this moment.

        Raises:
            BaseException: The attempt is over, or the caller is not code of the execution whose turn it is.
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
            f"{operation} was called beside the handler, by another thread, event loop or task of the server's event "
            "loop, where its place in the journal would depend on timing. Use the Restate context in the handler, and "
            "do in the thread or task what belongs into a step."
        )

    async def yield_if_closed(self) -> None:
        """Give the turn away if the attempt is over: code that tries again and again must not block the server."""
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
            self.begun.append(wait)
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
        """Return whether a durable future is completed, if the code may continue with it at once.

        It may where nothing could run before the driver would ask the VM for that future alone, as in a handler that
        does one step after another. It saves most of what a wait costs. If it returns False, :meth:`wait` says more.
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
            or self.is_unheard
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
            undo(task)
            note_local_waits(self)
            raise Cancelled
        return True

    def watch(self, wait: Wait) -> None:
        """Ask for a wait from now on."""
        self.port.add(wait)

    def forget(self, wait: Wait) -> None:
        """Ask for a wait no longer."""
        self.port.discard(wait)

    def begin_sleep(self, seconds: float) -> Any:
        """Begin a durable sleep, and return what to ask for."""
        return self.port.sleep(seconds)

    async def run_for(self, operation: LocalOperation, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function on the handler loop, for a local operation that waits for it meanwhile."""
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
        """Fail the attempt because going on could not be replayed, and return the error to raise.

        Args:
            reason: What happened, why it cannot be replayed, and what to do.
            pause: Whether only a change of code can help, so that Restate should not retry.
        """
        error = ConcurrencyError(reason)
        self.fail(error, pause=pause)
        return error

    def fail(self, error: StepsError, *, pause: bool = False) -> None:
        """Fail the attempt with a retryable error, whatever the handler does from now on."""
        if self.closed is None and not self.is_over:
            self.port.fail(error, pause=pause)
            self.closed = error
            if self.loop.driving is not self:
                # The driver waits for the server, or for something local.
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
        """Log an error that nothing waited for."""
        if self.closed is None:
            error = context.get("exception")
            logger.error("%s", context.get("message") or "Unhandled exception in a handler", exc_info=error)


class _Driving:
    """Makes the handler loop the running loop, for code of one execution; a context manager, to be used again.

    Args:
        execution: The execution.
        outer: The loop that runs already.
    """

    __slots__ = ("_before", "_execution", "_hooks", "_loop", "_outer", "_outer_hooks", "_task")

    def __init__(self, execution: Execution, outer: asyncio.AbstractEventLoop | None) -> None:
        self._execution = execution
        self._loop = execution.loop
        self._hooks = execution.generators.hooks
        # A loop sets its hooks once, when it begins to run.
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
    """Return how messages call a task."""
    return repr(task.get_name()) if task is not None else "of the handler"
