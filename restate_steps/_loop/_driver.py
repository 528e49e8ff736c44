"""The driver: runs an execution on the handler loop, from the task that the SDK created for the attempt.

It runs ready code until none is left. Then it asks the VM for the next completion, delivers it, and starts over. Step
bodies run on the server's loop. Invariants, in addition to those of ``_ready`` (R1 to R6), ``_loop`` (L1 to L3),
``_timers`` (T1 to T4) and ``_local`` (O1 to O4):

* **E1** The driver asks the VM only when nothing is ready and no local operation is in flight. It always asks for all
  durable waits together, and delivers one completion at a time.
* **E2** Restate delivers an invocation's cancellation once, and every waiting task receives it. Durable waits are
  first, in the order in which they began, then each ``asyncio.sleep``. Local waits follow once nothing durable could
  end them. Until a task has finished undoing its work, no other cancellation reaches it.
* **E3** After a return or a terminal error, the driver cancels the tasks that are left, which may clean up with steps,
  and waits for them. Then it closes async generators, in the order in which they were started.
* **E4** After any other end of an attempt (suspension, failure, disconnection, refusal), no task issues a command.
  Durable waits raise the SDK's exception. All other waits raise :class:`asyncio.CancelledError`, so that locks and
  semaphores are released. The driver raises, even if the code caught that.
* **E5** A wake-up from outside is accepted only while a local operation is in flight, or while there is no durable
  wait: then no journal event could come before or after it. An example is another invocation that releases a shared
  semaphore. Any other wake-up fails the attempt, as does one by the body of a step.
* **E6** A handler in which nothing can continue fails, and the error lists its tasks and their waits, unless another
  invocation of the process may still wake it.
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
from restate_steps._loop._cancellation import (
    cancel_local_waits,
    deliver_cancellation,
    release_deferred,
    release_unnotified,
)
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
        # True if more is ready, but the server's loop gets its turn first.
        self._is_busy = False
        self._pause = 0.001
        self._others_check: asyncio.TimerHandle
        self._has_warned = False

    async def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the handler loop until it and everything that it started has ended.

        Raises:
            BaseException: The coroutine's exception, or the reason why the attempt ended.
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
                # The next attempt may take another path, so clean-up must not add commands to the journal.
                raise failure
            await self._end_leftovers()
            if execution.local.has_context_managers:
                await execution.local.wait_ended()
        except BaseException as error:
            reason = self._tear_down(error)
            if not isinstance(error, GeneratorExit):
                await execution.local.wait_ended()
            if reason is not error:
                raise reason from error
            raise
        finally:
            execution.is_over = True
            # Otherwise they stay in asyncio's set of all tasks.
            execution.forget_tasks()
            execution.ready.clear()
            execution.condition = bool
            execution.loop.executions.discard(execution)
        return cast(T, main.result())

    def _start(self, coro: Coroutine[Any, Any, Any], context: Context) -> HandlerTask:
        execution = self._execution
        with execution.driving:
            return execution.create_task(coro, name="handler", context=context)

    async def _end_leftovers(self) -> None:
        """Cancel the handler's remaining tasks, and close its generators (E3)."""
        execution = self._execution
        while left := execution.live_tasks():
            with execution.driving:
                for task in left:
                    task.cancel()
            await self._until(functools.partial(_all_done, left))
        while (generator := execution.generators.pop_first()) is not None:
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
                if execution.new_waits:
                    self._refuse_driving_by_hand()
                if execution.closed is None:
                    await port.wait()
            elif execution.ready:
                # Local work that needs many turns, or code that polls for a change by another invocation.
                await self._let_others_run(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            else:
                await self._wait_for_others()

    def _drive(self, condition: Callable[[], bool]) -> bool:
        """Run ready code, and deliver completions, until neither is left (E1).

        Returns:
            True if nothing can continue before the server sends something.
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
                    # Without a durable wait no journal event can arrive, so polling needs no durable sleep.
                    ready.unpark()
                    return False
                try:
                    done = port.ask()
                except BaseException as error:  # the SDK's control flow is not an Exception
                    execution.closed = error
                    return False
                if done is None:
                    ready.refill()
                    deliver_cancellation(execution)
                elif not done:
                    return True
                else:
                    ready.refill()
                    # All before any continues: the first one takes the value, and the VM does not report it again.
                    for wait in done:
                        port.discard(wait)
                        wait.complete()

    def _deliver_late(self) -> bool:
        """Deliver held-back parts of a cancellation that are now due; return whether there were any (E2)."""
        execution = self._execution
        if execution.is_undelivered and deliver_cancellation(execution):
            return True
        if execution.deferring and release_unnotified(execution):
            return True
        is_due = execution.pending_local_waits and not execution.ready and execution.timers.only_limit()
        if is_due and cancel_local_waits(execution):
            return True
        return not execution.port and self._deliver_without_durable_waits()

    def _deliver_without_durable_waits(self) -> bool:
        execution = self._execution
        # Another invocation may still wake a task that is undoing its work.
        if len(execution.loop.executions) < 2 and release_deferred(execution):
            return True
        return not execution.ready and cancel_local_waits(execution, parents=True)

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
                # T3: run only the timer's turn and its descendants.
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
            f"a local operation has blocked the rest of the handler for {STALL_LIMIT_SECONDS:.0f} s: task "
            f"{name_of(operation.owner)} waits{where}. Outside of steps, only one task of a handler runs at a time. "
            "Put a slow operation into a step; to wait for another task, use asyncio's Lock, Event or Queue.",
            pause=False,
        )

    def _refuse_driving_by_hand(self) -> None:
        """Refuse coroutines that code resumes with ``send()``: on replay, :meth:`Execution.has` changes their order."""
        execution = self._execution
        new_waits, execution.new_waits = execution.new_waits, []
        for wait in new_waits:
            if wait.task is None or wait.future.done() or waiting_on(wait.task) is wait.future:
                continue
            if wait in execution.port.waits():
                execution.refuse(
                    f"task {name_of(wait.task)} calls send() on a coroutine that waits for something durable, instead "
                    f"of awaiting it{describe(wait.task.get_coro())}. A replay would resume it at another time. "
                    "Await it, or wrap it in asyncio.create_task."
                )

    async def _let_others_run(self, seconds: float) -> None:
        execution = self._execution
        execution.accepts_wake_ups = not execution.port
        try:
            await asyncio.sleep(seconds)
        finally:
            execution.accepts_wake_ups = False

    async def _wait_for_others(self) -> None:
        """Wait until another invocation wakes a task, or refuse if none could (E5, E6)."""
        execution = self._execution
        port = execution.port
        if len(execution.loop.executions) < 2:
            self._refuse_deadlock(pause=True)
            return
        execution.accepts_wake_ups = True
        self._check_others_later()
        try:
            while not execution.ready and execution.closed is None:
                await port.wait()
        finally:
            self._others_check.cancel()
            execution.accepts_wake_ups = False

    def _check_others_later(self) -> None:
        loop = self._execution.server_loop
        self._others_check = loop.call_later(STALL_LIMIT_SECONDS, watchdog(self._check_others))

    def _check_others(self) -> None:
        """Refuse the handler if every handler waits for another one, which is a deadlock."""
        execution = self._execution
        others = execution.loop.executions
        if execution.deferring:
            with execution.driving:
                released = release_deferred(execution)
            if released:
                execution.port.interrupt()
                return
        if all(other.accepts_wake_ups and other.closed is None for other in others):
            self._refuse_deadlock(pause=False)
            return
        if not self._has_warned:
            self._has_warned = True
            execution.log_warning(
                f"a handler has waited for {STALL_LIMIT_SECONDS:.0f} s for another invocation of this process: "
                f"{self._waiting()}. Until it continues, a cancellation does not reach it."
            )
        self._check_others_later()

    def _waiting(self) -> str:
        tasks = self._execution.live_tasks()[:10]
        return "; ".join(f"task {name_of(task)} waits{describe(task.get_coro())}" for task in tasks)

    def _refuse_deadlock(self, *, pause: bool) -> None:
        execution = self._execution
        if execution.ready or execution.closed is not None:
            return
        execution.refuse(
            f"no task of the handler can continue, because nothing is left that could wake one: {self._waiting()}. "
            "Release the lock, set the event or fill the queue before waiting for it.",
            pause=pause,
        )

    def _tear_down(self, error: BaseException) -> BaseException:
        """End all remaining code without issuing a command (E4), and return why the attempt is over."""
        execution = self._execution
        if execution.closed is None:
            execution.closed = error
        reason = execution.closed
        raised = reason if isinstance(reason, SdkInternalBaseException) else asyncio.CancelledError()
        execution.local.abandon()
        if isinstance(error, GeneratorExit):
            execution.drive_from_here()
        with execution.driving:
            for wait in execution.port.waits():
                execution.port.discard(wait)
                if isinstance(wait, DurableWait):
                    wait.end(again(raised))
            for _ in range(_CLEAN_UP_ROUNDS):
                execution.ready.held = False
                execution.ready.refill()
                execution.ready.run()
                left = execution.live_tasks()
                for task in left:
                    task.cancel()
                if not left:
                    generator = execution.generators.pop_first()
                    if generator is None:
                        break
                    execution.create_task(_close(generator), name=None, context=execution.own_context())
        for task in execution.live_tasks():
            cast(Any, task)._log_destroy_pending = False
            # It catches every exception. If it were freed, Python would close its coroutine, which might never end.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(task.get_coro()))
        execution.timers.clear()
        execution.ready.clear()
        return reason


def _all_done(tasks: list[HandlerTask]) -> bool:
    return all(task.done() for task in tasks)


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()
