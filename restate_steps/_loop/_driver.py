"""One execution of handler code: an attempt's handler, or a part of it, driven from the server's task.

The driver runs in the task that the SDK made for the attempt. It runs what is ready; then it asks the VM for the next
completion, delivers it, and runs what that makes ready. Step bodies run on the server's loop. Invariants, beside those
of ``_ready`` (R1 to R6), ``_loop`` (L1 to L3), ``_timers`` (T1 to T4) and ``_local`` (O1 to O4):

* **E1** The driver asks the VM only when nothing is ready and no local operation is in flight, and for everything
  that is waited for. One completion is delivered at a time.
* **E2** Restate delivers the cancellation of an invocation once. Everything that waits then receives it: durable waits
  in the order in which they began, then each ``asyncio.sleep``, then, as soon as nothing durable could end them, local
  waits. A task that undoes things because of it is not cancelled for another reason meanwhile.
* **E3** A handler that returns, or fails for good, has ended when its tasks have: those left are cancelled, may clean
  up with steps, and are waited for. Then its async generators are closed, in the order in which they were begun.
* **E4** An attempt that ends for any other reason (suspension, failure, disconnection, refusal) takes no command any
  more. Whatever waits for something durable receives the SDK's exception, everything else
  :class:`asyncio.CancelledError`, so that a lock or a semaphore is released. The driver raises, even if the code
  caught that.
* **E5** A wake-up from outside is accepted where nothing of the journal could come before or after it: while a local
  operation is in flight, or while nothing durable is waited for, as when another invocation releases a semaphore that
  the process shares. Everywhere else it fails the attempt, as does a wake-up from the body of a step.
* **E6** A handler in which nothing can continue fails with a report of what waits for what, unless another invocation
  of the process may still wake it.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar, cast

from restate import SdkInternalBaseException

from restate_steps._loop._anyio import adapt_anyio
from restate_steps._loop._asyncio import waiting_on
from restate_steps._loop._cancellation import release_deferred, release_settled, tell_local_waits, tell_of_cancellation
from restate_steps._loop._code_mode import adapt_code_mode
from restate_steps._loop._endings import again, ends_the_invocation
from restate_steps._loop._execution import Execution, name_of
from restate_steps._loop._frames import describe
from restate_steps._loop._loop import EXECUTION
from restate_steps._loop._task import HandlerTask
from restate_steps._loop._waits import DurableWait
from restate_steps._loop._watchdog import watchdog

__all__ = ["Driver"]

T = TypeVar("T")

STALL_LIMIT_SECONDS: Final = 60.0
_CLEAN_UP_ROUNDS: Final = 100
_LONGEST_PAUSE_SECONDS: Final = 0.25


class Driver:
    """Drives an execution from the server's task.

    Args:
        execution: The execution.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        # Whether more is ready, but the server's loop has its turn first.
        self._is_busy = False
        self._pause = 0.001
        self._watching: asyncio.TimerHandle
        self._has_warned = False

    async def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the handler loop until it, and all that it started, has ended.

        Raises:
            BaseException: What the coroutine raised, or what ended the attempt.
        """
        execution = self._execution
        adapt_anyio()
        adapt_code_mode()
        execution.loop.executions.add(execution)
        context = contextvars.copy_context()
        context.run(EXECUTION.set, execution)
        try:
            main = self._start(coro, context)
            await self._until(main.done)
            failure = None if main.cancelled() else main.exception()
            if failure is not None and not ends_the_invocation(failure):
                # The next attempt may take another way, so nothing of a clean-up must get into the journal.
                raise failure
            await self._end_what_is_left()
            if execution.local.has_context_managers:
                await execution.local.ended()
        except BaseException as error:
            reason = self._tear_down(error)
            if not isinstance(error, GeneratorExit):
                await execution.local.ended()
            if reason is not error:
                raise reason from error
            raise
        finally:
            execution.is_over = True
            # So that they leave asyncio's set of all tasks.
            execution.forget_tasks()
            execution.ready.clear()
            execution.condition = bool
            execution.loop.executions.discard(execution)
        return cast(T, main.result())

    def _start(self, coro: Coroutine[Any, Any, Any], context: Context) -> HandlerTask:
        execution = self._execution
        with execution.driving:
            return execution.create_task(coro, name="handler", context=context)

    async def _end_what_is_left(self) -> None:
        """Cancel the tasks that the handler left, and close its generators (E3)."""
        execution = self._execution
        while left := execution.live_tasks():
            with execution.driving:
                for task in left:
                    task.cancel()
            await self._until(functools.partial(_all_done, left))
        while (generator := execution.generators.take_first()) is not None:
            closing = self._start(_close(generator), execution.own_context())
            await self._until(closing.done)
            if not closing.cancelled() and (error := closing.exception()) is not None:
                execution.log_error({"message": f"an error occurred while closing {generator!r}", "exception": error})

    async def _until(self, condition: Callable[[], bool]) -> None:
        execution = self._execution
        port, local = execution.port, execution.local
        execution.condition = condition
        while True:
            asked = self._drive(condition)
            if execution.closed is not None:
                raise execution.closed
            if condition():
                return
            if local.in_flight is not None:
                await self._wait_for_local_operation()
            elif self._is_busy:
                await self._let_others_run(0.0)
            elif asked:
                if execution.begun:
                    self._refuse_driving_by_hand()
                if execution.closed is None:
                    await port.wait()
            elif execution.ready:
                # Local work that takes many turns, or code that polls for what other invocations do.
                await self._let_others_run(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            else:
                await self._wait_for_others()

    def _drive(self, condition: Callable[[], bool]) -> bool:
        """Run what is ready, and what completions make ready (E1).

        Returns:
            Whether the server has to send something before anything can continue.
        """
        execution = self._execution
        ready, local, timers, port = execution.ready, execution.local, execution.timers, execution.port
        with execution.driving:
            while True:
                self._is_busy = ready.run()
                if ready.held:
                    if local.deliver():
                        ready.refill()
                        continue
                    return False
                if self._is_busy:
                    return False
                if execution.closed is not None or condition():
                    return False
                if (ready.is_polling or ready.is_exhausted) and (port or timers.was_read):
                    timers.poll()
                if timers:
                    timers.make_durable()
                if self._deliver_late():
                    ready.refill()
                    continue
                if not port:
                    ready.refill()
                    # Nothing of the journal can come, so what polls need not sleep durably.
                    ready.unpark()
                    return False
                try:
                    done = port.ask()
                except BaseException as error:  # the SDK's control flow is not an Exception
                    execution.closed = error
                    return False
                if done is None:
                    ready.refill()
                    tell_of_cancellation(execution)
                elif not done:
                    return True
                else:
                    ready.refill()
                    # All of them first: the first to continue takes the value, and the VM does not show it again.
                    for wait in done:
                        port.discard(wait)
                        wait.complete()

    def _deliver_late(self) -> bool:
        """Deliver what was held back of a cancellation, if its time has come; return whether anything was (E2)."""
        execution = self._execution
        if execution.is_unheard and tell_of_cancellation(execution):
            return True
        if execution.deferring and release_settled(execution):
            return True
        if execution.untold and not execution.ready and execution.timers.only_limit() and tell_local_waits(execution):
            return True
        # What follows only if nothing durable is waited for.
        return not execution.port and self._deliver_what_is_left()

    def _deliver_what_is_left(self) -> bool:
        execution = self._execution
        # Another invocation may wake what undoes something.
        if len(execution.loop.executions) < 2 and release_deferred(execution):
            return True
        return not execution.ready and tell_local_waits(execution, parents=True)

    async def _wait_for_signal(self, seconds: float | None) -> None:
        execution = self._execution
        loop = execution.server_loop
        timers = [] if seconds is None else [loop.call_later(max(seconds, 0.0), execution.signal)]
        timers.append(loop.call_later(STALL_LIMIT_SECONDS, watchdog(self._local_operation_stalls)))
        try:
            await execution.signalled()
        finally:
            for timer in timers:
                timer.cancel()

    async def _wait_for_local_operation(self) -> None:
        execution = self._execution
        await execution.port.flush()
        operation = execution.local.in_flight
        if operation is None or operation.outer.done():
            return
        around = execution.timers.next_around(operation.owner)
        seconds = None if around is None else around[0] - execution.server_loop.time()
        await self._wait_for_signal(seconds)
        if around is not None and not operation.outer.done() and around[0] <= execution.server_loop.time() + 1e-6:
            with execution.driving:
                # T3: only the timer's turn, and what descends from it.
                execution.timers.end(around[1])
                execution.ready.refill()
                execution.ready.run_descendants()

    def _local_operation_stalls(self) -> None:
        execution = self._execution
        operation = execution.local.in_flight
        if operation is None or operation.outer.done() or not (execution.port or execution.ready):
            return
        where = describe(operation.owner.get_coro()) if operation.owner is not None else ""
        execution.refuse(
            f"a local operation has held up the rest of the handler for {STALL_LIMIT_SECONDS:.0f} s: task "
            f"{name_of(operation.owner)} waits{where}. Between steps only one task of a handler runs at a time. If it "
            "waits for something slow, put that into a step; if it waits for another task, use asyncio's Lock, Event "
            "or Queue.",
            pause=False,
        )

    def _refuse_driving_by_hand(self) -> None:
        """Refuse coroutines that code resumes by itself: :meth:`has` would resume them in another order on replay."""
        execution = self._execution
        begun, execution.begun = execution.begun, []
        for wait in begun:
            if wait.task is None or wait.future.done() or waiting_on(wait.task) is wait.future:
                continue
            if wait in execution.port.waits():
                execution.refuse(
                    f"task {name_of(wait.task)} resumes a coroutine that waits for something durable by itself, with "
                    f"send(), instead of awaiting it{describe(wait.task.get_coro())}. A replay would resume it at "
                    "another time. Await it, or make a task of it with asyncio.create_task."
                )

    async def _let_others_run(self, seconds: float) -> None:
        execution = self._execution
        execution.waits_outside = not execution.port
        try:
            await asyncio.sleep(seconds)
        finally:
            execution.waits_outside = False

    async def _wait_for_others(self) -> None:
        """Wait until another invocation wakes a task, or refuse if none could (E5, E6)."""
        execution = self._execution
        port = execution.port
        if len(execution.loop.executions) < 2:
            self._refuse_deadlock(pause=True)
            return
        execution.waits_outside = True
        self._watch_others()
        try:
            while not execution.ready and execution.closed is None:
                await port.wait()
        finally:
            self._watching.cancel()
            execution.waits_outside = False

    def _watch_others(self) -> None:
        loop = self._execution.server_loop
        self._watching = loop.call_later(STALL_LIMIT_SECONDS, watchdog(self._look_at_others))

    def _look_at_others(self) -> None:
        """Refuse the handler if every other one waits in the same way, so that none can wake another."""
        execution = self._execution
        others = execution.loop.executions
        if execution.deferring:
            with execution.driving:
                released = release_deferred(execution)
            if released:
                execution.port.interrupt()
                return
        if all(other.waits_outside and other.closed is None for other in others):
            self._refuse_deadlock(pause=False)
            return
        if not self._has_warned:
            self._has_warned = True
            execution.log_warning(
                f"a handler has waited for {STALL_LIMIT_SECONDS:.0f} s for another invocation of this process: "
                f"{self._waiting()}. Until it continues, it hears of no cancellation."
            )
        self._watch_others()

    def _waiting(self) -> str:
        tasks = self._execution.live_tasks()[:10]
        return "; ".join(f"task {name_of(task)} waits{describe(task.get_coro())}" for task in tasks)

    def _refuse_deadlock(self, *, pause: bool) -> None:
        execution = self._execution
        if execution.ready or execution.closed is not None:
            return
        execution.refuse(
            "no task of the handler can continue, because nothing is left that could end the waiting: "
            f"{self._waiting()}. Release the lock, set the event or fill the queue before waiting for it.",
            pause=pause,
        )

    def _tear_down(self, error: BaseException) -> BaseException:
        """End everything that is left without a command (E4), and return why the attempt is over."""
        execution = self._execution
        if execution.closed is None:
            execution.closed = error
        told = execution.closed if isinstance(execution.closed, SdkInternalBaseException) else asyncio.CancelledError()
        execution.local.abandon()
        if isinstance(error, GeneratorExit):
            execution.drive_wherever()
        with execution.driving:
            for wait in execution.port.waits():
                execution.port.discard(wait)
                if isinstance(wait, DurableWait):
                    wait.end(again(told))
            for _ in range(_CLEAN_UP_ROUNDS):
                execution.ready.held = False
                execution.ready.refill()
                execution.ready.run()
                left = execution.live_tasks()
                for task in left:
                    task.cancel()
                if not left:
                    generator = execution.generators.take_first()
                    if generator is None:
                        break
                    execution.create_task(_close(generator), name=None, context=execution.own_context())
        for task in execution.live_tasks():
            cast(Any, task)._log_destroy_pending = False
            # It catches whatever ends it. Were it ever freed, Python would close its coroutine, and it might never end.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(task.get_coro()))
        execution.timers.clear()
        execution.ready.clear()
        return execution.closed


def _all_done(tasks: list[HandlerTask]) -> bool:
    return all(task.done() for task in tasks)


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()
