"""One execution of handler code: an attempt's handler, or a part of it, driven from the server's task.

The driver runs in the task that the SDK made for the attempt. It runs what is ready; then it asks the VM for the next
completion, delivers it, and runs what that makes ready. Step bodies run on the server's loop. Invariants, beside those
of ``_ready`` (R1 to R5), ``_loop`` (L1 to L3), ``_timers`` (T1 to T3) and ``_local`` (O1 to O4):

* **E1** The VM is asked only when nothing is ready and no local operation is in flight, and always for everything
  that is waited for. One completion is delivered at a time.
* **E2** Restate tells of an invocation's cancellation once. Everything that waits then is told, in the order in which
  it began to wait. A task that undoes things because of that is not cancelled for another reason meanwhile.
* **E3** A handler that returns, or fails for good, has ended when its tasks have: those left are cancelled, may clean
  up with steps, and are waited for. Then its async generators are closed, in the order in which they were begun.
* **E4** An attempt that ends for any other reason (suspension, failure, disconnection, refusal) takes no command any
  more. Whatever waits for something durable receives the SDK's exception, everything else
  :class:`asyncio.CancelledError`, so that a lock or a semaphore is released. The driver raises, even if the code
  caught that.
* **E5** A wake-up from outside is accepted where nothing of the journal could come before or after it: while a local
  operation is in flight, or while nothing durable is waited for, as when another invocation releases a semaphore that
  the process shares. Everywhere else it fails the attempt, as does a wake-up from the body of a step.
* **E6** A handler in which nothing can go on, and that no other invocation could wake, fails with a report of what
  waits for what. Nothing waits forever.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import sys
import threading
import weakref
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Protocol, TypeVar, cast

from restate import SdkInternalBaseException, TerminalError

from .._step_info import running_step
from ..errors import ConcurrencyError, ContextInStepError, StepsError
from ._anyio import adapt_anyio
from ._asyncgens import AsyncGenerators
from ._asyncio import Running, get_running_loop_or_none, must_cancel, swap_current_task, waiting_on
from ._frames import describe
from ._local import LocalOperation, LocalOperations, running_operation
from ._loop import EXECUTION, HandlerLoop, loop_for
from ._ready import Handle, ReadyQueue, owner_of
from ._task import HandlerTask
from ._timers import Timers
from ._watchdog import watchdog

__all__ = ["CANCELLED", "Cancelled", "DurableWait", "Execution", "Port", "again", "ends_the_invocation", "executions"]

T = TypeVar("T")

logger = logging.getLogger("restate_steps")

CANCELLED: Final = 409
"""Status code of the error that tells of the invocation's cancellation, as in the SDK."""

STALL_LIMIT_SECONDS: Final = 60.0
_CLEAN_UP_ROUNDS: Final = 100
_STARTS_EAGERLY: Final = sys.version_info >= (3, 12)
"""Whether a task may run inside of another's turn."""


class Cancelled(TerminalError):
    """Tells code that waits of the invocation's cancellation."""

    def __init__(self) -> None:
        super().__init__("cancelled", CANCELLED)


class Wait(Protocol):
    """Something durable that is waited for.

    Attributes:
        source: What the VM is asked for.
        context: Context variables that a body runs in that is started for this wait.
    """

    @property
    def source(self) -> Any: ...
    @property
    def context(self) -> Context: ...

    def complete(self) -> None:
        """Let whatever waits go on."""
        ...


class Port(Protocol):
    """What an execution needs of the durable world."""

    def add(self, wait: Any) -> None:
        """Ask for a wait from now on."""
        ...

    def discard(self, wait: Any) -> None:
        """Ask for a wait no longer."""
        ...

    def __bool__(self) -> bool:
        """Return whether anything is asked for."""
        ...

    def waits(self) -> list[Any]:
        """Return what is asked for, in the order in which it was added."""
        ...

    def ask(self) -> list[Any] | None:
        """Go on to the next completion, and return the waits that it ends; None if the invocation was cancelled."""
        ...

    def ask_for(self, handle: int) -> bool | None:
        """Return whether the only thing that is waited for is there; None if the invocation was cancelled."""
        ...

    def sleep(self, seconds: float) -> Any:
        """Begin a durable sleep, and return what to ask for."""
        ...

    async def wait(self) -> None:
        """Wait until asking again may give more."""
        ...

    async def flush(self) -> None:
        """Send what there is to send."""
        ...

    def interrupt(self) -> None:
        """Make :meth:`wait` return."""
        ...

    def fail(self, error: BaseException, *, pause: bool = False) -> None:
        """Make the attempt fail, so that Restate retries it, or pauses the invocation."""
        ...


class DurableWait:
    """Code that waits for something durable.

    Attributes:
        future: What the code awaits.
        operation: The local operation that the code is a part of, if it is one's.
        is_awaited: Whether it is known that the task waits for it, and nothing in between.
    """

    __slots__ = ("context", "future", "is_awaited", "operation", "source", "task")

    def __init__(self, source: Any, task: HandlerTask | None, operation: LocalOperation | None) -> None:
        self.source = source
        self.task = task
        self.operation = operation
        self.is_awaited = operation is not None
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[None] = asyncio.Future()

    def complete(self) -> None:
        """Let the code go on."""
        if self.operation is not None:
            self.end(None)
        elif not self.future.done():
            self.future.set_result(None)

    def end(self, error: BaseException | None) -> None:
        """Let the code go on, or raise ``error`` in it."""
        operation = self.operation
        if operation is not None:
            operation.waits = False
            operation.execution.local.hold()
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            self.future.cancel()
        else:
            self.future.set_exception(error)


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
        self._port = port
        self._thread = threading.get_ident()
        self._tasks: list[HandlerTask] = []
        self._made = 0
        self._prune_at = 1000
        self._batch: list[int] = []
        self._signal: asyncio.Future[None] | None = None
        self._waits_outside = False
        self._ends_itself = False
        self._driving = _Driving(self)
        self._condition: Callable[[], bool] = bool

    # --- running ------------------------------------------------------------------------------------------------

    async def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the handler loop until it, and all that it started, has ended.

        Raises:
            BaseException: What the coroutine raised, or what ended the attempt.
        """
        adapt_anyio()
        executions(self.loop).add(self)
        context = contextvars.copy_context()
        context.run(EXECUTION.set, self)
        try:
            main = self._start(coro, context)
            await self._until(main.done)
            failure = None if main.cancelled() else main.exception()
            if failure is not None and not ends_the_invocation(failure):
                # The next attempt may take another way, so nothing of a clean-up must get into the journal.
                raise failure
            await self._end_what_is_left()
        except BaseException as error:
            reason = self._tear_down(error)
            if reason is not error:
                raise reason from error
            raise
        finally:
            self.is_over = True
            # Tasks refer to the execution: without the cycle they go at once, and leave asyncio's set of all tasks.
            self._tasks.clear()
            self.ready.clear()
            self._condition = bool
            executions(self.loop).discard(self)
        return cast(T, main.result())

    def _start(self, coro: Coroutine[Any, Any, Any], context: Context) -> HandlerTask:
        with self._driving:
            return self.create_task(coro, name="handler", context=context)

    async def _end_what_is_left(self) -> None:
        """Cancel the tasks that the handler left, and close its generators (E3)."""
        while left := self.live_tasks():
            with self._driving:
                for task in left:
                    task.cancel()
            await self._until(functools.partial(_all_done, left))
        while (generator := self.generators.take_first()) is not None:
            closing = self._start(_close(generator), self._own_context())
            await self._until(closing.done)
            if not closing.cancelled() and (error := closing.exception()) is not None:
                self.log_error({"message": f"an error occurred while closing {generator!r}", "exception": error})

    def _own_context(self) -> Context:
        context = contextvars.copy_context()
        context.run(EXECUTION.set, self)
        return context

    async def _until(self, condition: Callable[[], bool]) -> None:
        port, local = self._port, self.local
        self._condition = condition
        while True:
            asked = self._drive(condition)
            if self.closed is not None:
                raise self.closed
            if condition():
                return
            if local.in_flight is not None:
                await self._wait_for_local_operation()
            elif asked:
                self._refuse_driving_by_hand()
                if self.closed is None:
                    await port.wait()
            elif self.ready.unpark():
                # Something yields again and again, and nothing durable could end that.
                await self._let_others_run()
            else:
                await self._wait_for_others()

    def _drive(self, condition: Callable[[], bool]) -> bool:
        """Run what is ready, and what completions make ready (E1).

        Returns:
            Whether the server has to send something before anything can go on.
        """
        ready, local, timers, port = self.ready, self.local, self.timers, self._port
        with self._driving:
            while True:
                ready.run()
                if ready.held:
                    if local.deliver():
                        continue
                    return False
                if self.closed is not None or condition():
                    return False
                if timers:
                    timers.make_durable()
                if not port:
                    if self._release_deferred():
                        continue
                    return False
                try:
                    done = port.ask()
                except BaseException as error:  # the SDK's control flow is not an Exception
                    self.closed = error
                    return False
                if done is None:
                    self._tell_of_cancellation()
                elif not done:
                    return True
                else:
                    # All of them before anything goes on: the first to go on takes the value, and it is not seen again.
                    for wait in done:
                        port.discard(wait)
                        wait.complete()

    def driven_by_this_thread(self) -> bool:
        """Return whether the calling thread is the one that drives it at this moment."""
        return self.loop.driving is self and threading.get_ident() == self._thread

    # --- waiting for what is not in the journal -----------------------------------------------------------------

    def signal(self) -> None:
        """Let the driver look again."""
        if self._signal is not None and not self._signal.done():
            self._signal.set_result(None)

    async def _wait_for_signal(self, seconds: float | None = None, stalled: Callable[[], None] | None = None) -> None:
        loop = self.server_loop
        self._signal = loop.create_future()
        timers = [] if seconds is None else [loop.call_later(max(seconds, 0.0), self.signal)]
        if stalled is not None:
            timers.append(loop.call_later(STALL_LIMIT_SECONDS, watchdog(stalled)))
        try:
            await self._signal
        finally:
            self._signal = None
            for timer in timers:
                timer.cancel()

    async def _wait_for_local_operation(self) -> None:
        await self._port.flush()
        operation = self.local.in_flight
        if operation is None or operation.outer.done():
            return
        around = self.timers.next_around(operation.owner)
        seconds = None if around is None else around[0] - self.server_loop.time()
        await self._wait_for_signal(seconds, self._local_operation_stalls)
        if around is not None and not operation.outer.done() and around[0] <= self.server_loop.time() + 1e-6:
            with self._driving:
                # T3: only the timer's turn, and what descends from it.
                self.timers.end(around[1])
                self.ready.run_descendants()

    def _local_operation_stalls(self) -> None:
        operation = self.local.in_flight
        if operation is None or operation.outer.done() or not (self._port or self.ready):
            return
        where = describe(operation.owner.get_coro()) if operation.owner is not None else ""
        self.refuse(
            f"a local operation has held up the rest of the handler for {STALL_LIMIT_SECONDS:.0f} s: task "
            f"{_name(operation.owner)} waits{where}. Between steps only one task of a handler runs at a time. If it "
            "waits for something slow, put that into a step; if it waits for another task, use asyncio's Lock, Event "
            "or Queue.",
            pause=False,
        )

    def _refuse_driving_by_hand(self) -> None:
        """Refuse coroutines that code resumes by itself: :meth:`has` would resume them in another order on replay."""
        for wait in self._port.waits():
            if not isinstance(wait, DurableWait) or wait.is_awaited:
                continue
            wait.is_awaited = True
            if wait.task is not None and waiting_on(wait.task) is not wait.future:
                self.refuse(
                    f"task {_name(wait.task)} resumes a coroutine that waits for something durable by itself, with "
                    f"send(), instead of awaiting it{describe(wait.task.get_coro())}. When the coroutine goes on would "
                    "differ on replay. Await it, or make a task of it with asyncio.create_task."
                )

    async def _let_others_run(self) -> None:
        self._waits_outside = True
        try:
            await self._wait_for_signal(0.0)
        finally:
            self._waits_outside = False

    async def _wait_for_others(self) -> None:
        """Wait until another invocation wakes a task, or refuse if none could (E5, E6)."""
        if len(executions(self.loop)) < 2:
            self._refuse_deadlock()
            return
        self._waits_outside = True
        try:
            await self._port.flush()
            if not self.ready and self.closed is None:
                await self._wait_for_signal(None, self._refuse_deadlock)
        finally:
            self._waits_outside = False

    def _refuse_deadlock(self) -> None:
        if self.ready or self.closed is not None:
            return
        waiting = "; ".join(f"task {_name(task)} waits{describe(task.get_coro())}" for task in self.live_tasks()[:10])
        self.refuse(
            f"no task of the handler can go on, because nothing is left that could end the waiting: {waiting}. Release "
            "the lock, set the event or fill the queue before waiting for it.",
            pause=len(executions(self.loop)) < 2,
        )

    def wake_from_outside(self, handle: Handle) -> None:
        """Decide about a callback that was scheduled while no code of the execution runs (E5)."""
        if self.is_over:
            return
        if self.closed is not None:
            self.ready.append(handle)
            return
        body = running_step.get()
        if body is None and (self.local.in_flight is not None or self._waits_outside):
            self.ready.append(handle)
            self.signal()
            return
        task = owner_of(handle)
        what = f"task {_name(task)}" if isinstance(task, HandlerTask) else "a task"
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

    def live_tasks(self) -> list[HandlerTask]:
        """Return the tasks that have not ended, in the order in which they were made."""
        return [task for task in self._tasks if not task.done()]

    # --- durable waits ------------------------------------------------------------------------------------------

    def check(self, operation: str) -> None:
        """Refuse what may not enter the journal at this moment.

        Raises:
            BaseException: The attempt is over, or the caller is not code of the execution whose turn it is.
        """
        if self.closed is not None:
            raise again(self.closed)
        driving = self.loop.driving
        if driving is self and get_running_loop_or_none() is self.loop:
            return
        local = running_operation()
        if local is not None and local.execution is self and local.in_flight and threading.get_ident() == self._thread:
            return
        if (step := running_step.get()) is not None:
            raise ContextInStepError(operation, step.name)
        raise self.refuse(
            f"{operation} was called beside the handler, by another thread, event loop or task of the server's event "
            "loop, where its place in the journal would depend on timing. Use the Restate context in the handler, and "
            "do in the thread or task what belongs into a step."
        )

    async def wait(self, source: Any) -> None:
        """Wait for something durable."""
        self.check("awaiting a durable future")
        task = self.current_task()
        if task is not None and task.undoing and sys.exc_info()[1] is None:
            # It has left the except and finally blocks in which it handled the cancellation of the invocation.
            task.stop_undoing()
        operation = None if self.loop.driving is self else running_operation()
        wait = DurableWait(source, task, operation)
        self._port.add(wait)
        if operation is not None:
            operation.waits = True
            self.local.hold()
            self.signal()
        try:
            await wait.future
        except BaseException as error:
            self._port.discard(wait)
            if operation is None:
                raise
            operation.waits = False
            self.local.hold()
            if isinstance(error, asyncio.CancelledError) and not operation.is_cancelled and self.closed is None:
                raise self.refuse(
                    "a local operation cancelled its own wait for something durable, as asyncio.timeout and "
                    "asyncio.wait_for do. Inside of restate_steps.local timers are not durable, so a replay could not "
                    "repeat it. Put the timeout around restate_steps.local, or use restate_steps.wait_for."
                ) from error
            raise

    def has(self, handle: int) -> bool:
        """Return whether a durable future is there, if the code may go on with it at once.

        It may where nothing could run before the driver would ask the VM for that future alone, as in a handler that
        does one step after another. It saves most of what a wait costs. If it returns False, :meth:`wait` says more.
        """
        task = self.ready.last
        if (
            task is None
            or (_STARTS_EAGERLY and task is not asyncio.current_task())
            or self.loop.driving is not self
            or get_running_loop_or_none() is not self.loop
            or self.closed is not None
            or self._port
            or self.timers
            or task.undoing
            or must_cancel(task)
            or self._condition()
        ):
            return False
        try:
            found = self._port.ask_for(handle)
        except BaseException as error:  # the SDK's control flow is not an Exception
            self.closed = error
            return False
        if found is False:
            return False
        self.ready.begin_turn()
        if found is None:
            _undo(task)
            raise Cancelled
        return True

    def watch(self, wait: Wait) -> None:
        """Ask for a wait from now on."""
        self._port.add(wait)

    def forget(self, wait: Wait) -> None:
        """Ask for a wait no longer."""
        self._port.discard(wait)

    def begin_sleep(self, seconds: float) -> Any:
        """Begin a durable sleep, and return what to ask for."""
        return self._port.sleep(seconds)

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
            operation.waits = False
            self.local.hold()
            if not ended.done():
                ended.set_result(None)

        operation.waits = True
        self.ready.prepend(Handle(start, (), self.loop, context))
        self.local.hold()
        self.signal()
        cancelled = False
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                if self.closed is not None:
                    raise
                cancelled = operation.waits = True
                self.local.hold()
                self.ready.prepend(Handle(tasks[0].cancel, (), self.loop, context))
                self.signal()
        if cancelled and tasks[0].cancelled():
            raise asyncio.CancelledError
        return cast(T, tasks[0].result())

    def _tell_of_cancellation(self) -> None:
        """Tell everything that waits that the invocation is cancelled (E2)."""
        told = False
        for wait in self._port.waits():
            if isinstance(wait, DurableWait):
                told = True
                self._port.discard(wait)
                _undo(wait.task)
                wait.end(Cancelled())
        for timer, future in list(self.timers.sleepers()):
            told = self._tell(future) or told
            timer.cancel()
        if told:
            return
        # Only timers are left, around waits for something local.
        for task in self.timers.makers():
            while isinstance(inner := waiting_on(task), HandlerTask):
                task = inner
            if inner is not None:
                self._tell(inner, task)

    def _tell(self, future: asyncio.Future[Any], task: HandlerTask | None = None) -> bool:
        if future.done():
            return False
        if task is None:
            task = next((each for each in self.live_tasks() if waiting_on(each) is future), None)
        _undo(task)
        future.set_exception(Cancelled())
        return True

    def _release_deferred(self) -> bool:
        """Deliver the cancellations of tasks that undo nothing durable any more; return whether there are any."""
        deferred = [task for task in self.live_tasks() if task.deferred is not None]
        for task in deferred:
            task.stop_undoing()
        return bool(deferred)

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
            self._port.fail(error, pause=pause)
            self.closed = error
            if self.loop.driving is not self:
                # The driver waits for the server, or for something local.
                self.signal()
                self._port.interrupt()

    def _tear_down(self, error: BaseException) -> BaseException:
        """End everything that is left without a command (E4), and return why the attempt is over."""
        if self.closed is None:
            self.closed = error
        told = self.closed if isinstance(self.closed, SdkInternalBaseException) else asyncio.CancelledError()
        self.local.abandon()
        with self._driving:
            for wait in self._port.waits():
                self._port.discard(wait)
                if isinstance(wait, DurableWait):
                    wait.end(again(told))
            for _ in range(_CLEAN_UP_ROUNDS):
                self.ready.held = False
                self.ready.run()
                left = self.live_tasks()
                for task in left:
                    task.cancel()
                if not left:
                    generator = self.generators.take_first()
                    if generator is None:
                        break
                    self.create_task(_close(generator), name=None, context=self._own_context())
        for task in self.live_tasks():
            cast(Any, task)._log_destroy_pending = False
        self.timers.clear()
        self.ready.clear()
        return self.closed

    def _callback_failed(self, error: BaseException, handle: asyncio.Handle) -> None:
        self.loop.call_exception_handler(
            {"message": f"Exception in callback {handle!r}", "exception": error, "handle": handle}
        )

    def log_error(self, context: dict[str, Any]) -> None:
        """Log an error that nothing waited for."""
        if self.closed is None:
            error = context.get("exception")
            logger.error("%s", context.get("message") or "Unhandled exception in a handler", exc_info=error)


class _Driving:
    """Makes the handler loop the running loop, for code of one execution; a context manager, to be used again."""

    __slots__ = ("_before", "_execution", "_loop", "_running")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._loop = execution.loop
        self._running = Running(execution.loop, execution.generators.hooks)

    def __enter__(self) -> None:
        self._before, self._loop.driving = self._loop.driving, self._execution
        self._running.start()

    def __exit__(self, *error: object) -> None:
        self._running.stop()
        self._loop.driving = self._before


_all: weakref.WeakKeyDictionary[HandlerLoop, set[Execution]] = weakref.WeakKeyDictionary()


def executions(loop: HandlerLoop) -> set[Execution]:
    """Return the executions that have not ended."""
    return _all.setdefault(loop, set())


def _all_done(tasks: list[HandlerTask]) -> bool:
    return all(task.done() for task in tasks)


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


def _undo(task: HandlerTask | None) -> None:
    """Mark a task that is told of the invocation's cancellation, and those that will hear of it through it (E2)."""
    while task is not None and not task.undoing:
        task.undoing = True
        task = task.parent


def _name(task: HandlerTask | None) -> str:
    return repr(task.get_name()) if task is not None else "of the handler"


def again(error: BaseException) -> BaseException:
    """Return a copy of an exception, to be raised in another place.

    The same exception raised in several places gets a context that leads back to itself, and code that follows it, such
    as :class:`contextlib.AsyncExitStack`, never comes to an end.
    """
    copied = type(error).__new__(type(error), *error.args)
    copied.args = error.args
    vars(copied).update(vars(error))
    copied.__cause__ = error.__cause__
    return copied


def ends_the_invocation(error: BaseException) -> bool:
    """Return whether Restate ends the invocation with an error that leaves the handler, instead of retrying."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TerminalError) or (isinstance(seen, BaseExceptionGroup) and _all_terminal(seen)):
            return True
        seen = seen.__cause__
    return False


def _all_terminal(group: Any) -> bool:
    errors: tuple[BaseException, ...] = group.exceptions
    return all(ends_the_invocation(error) for error in errors)
