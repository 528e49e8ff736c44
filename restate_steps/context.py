"""Per-invocation state, available implicitly to steps.

Outside a handler there is none, and steps are plain calls. Inside a step's body there is none either: the body is one
journal entry, and must not add another.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from restate_steps import _sdk
from restate_steps._loop import Driver, Execution, HandlerLoop, again, running_operation
from restate_steps._not_awaited import forgotten_await
from restate_steps._spans import current_tracer
from restate_steps._step_info import StepInfo, running_step
from restate_steps.errors import ConcurrencyError, ContextInStepError, StepDefinitionError, StepsError

__all__ = [
    "Invocation",
    "StepInfo",
    "current_invocation",
    "is_replaying",
    "restate_context",
    "running_step",
    "step_info",
    "step_observer",
]

T = TypeVar("T")


step_observer: contextvars.ContextVar[Callable[[bool], None] | None] = contextvars.ContextVar(
    "restate_steps_step_observer", default=None
)
"""Called after each awaited step with True if its body ran in this attempt, and False if its result was recorded."""


def step_info() -> StepInfo:
    """Return the name, invocation and idempotency key of the step whose body is running.

    Returns:
        The running step's information. A step called inside another is part of the outer step, and gets that step's.

    Raises:
        RuntimeError: No step's body is running.

    Example:
        ```python
        @durable_step
        async def charge(order: Order) -> str:
            return await payments.charge(order.total, idempotency_key=step_info().idempotency_key)
        ```
    """
    info = running_step.get()
    if info is None:
        raise RuntimeError(
            "step_info() was called outside the body of a step. Call it in a function decorated with @durable_step."
        )
    return info


class Invocation:
    """The package's state for one attempt of one invocation, attached to the SDK's context.

    Attributes:
        context: The SDK's context.
        id: The invocation's id.
        execution: The execution that orders the handler's code; None while the handler is not on the handler loop.
        awaiting: The name of the step that a handler awaits under ``restate.app``, or None.
        tracer: The tracer for the spans of steps; None if no tracer provider is set.
    """

    def __init__(self, context: _sdk.ServerInvocationContext) -> None:
        self.context = context
        self.id = _sdk.invocation_id(context)
        self.execution: Execution | None = None
        self._port: _sdk.SdkPort | None = None
        self.awaiting: str | None = None
        self.tracer = current_tracer()
        self._loop = _sdk.loop_of(context)
        self._limit = _sdk.limit_of_handler(context)
        self._numbers: dict[str, int] = {}
        _sdk.share_waits(context)
        _sdk.guard_commands(context, self._check)
        _sdk.mark_bodies(context, self.enter_body)
        if _sdk.uses_explicit_recovery(context):
            error = ConcurrencyError(
                "the handler uses the SDK's preview feature explicit_recovery, which runs every step again on every "
                "attempt. Remove explicit_recovery from the handler or service that uses durable steps."
            )
            self.fail(error, pause=True)
            raise error

    def _check(self, operation: str) -> None:
        """Reject a command that could not be replayed; called before each one."""
        if (step := running_step.get()) is not None:
            raise ContextInStepError(f"the Restate context ({operation})", step.name)
        if (failure := _sdk.failure_of(self.context)) is not None:
            raise again(failure)
        if self.execution is not None:
            self.execution.check(f"the Restate context ({operation})")
        elif asyncio._get_running_loop() is not self._loop:
            error = ConcurrencyError(
                f"the Restate context ({operation}) was used in another thread or event loop than the handler's, where "
                "its position in the journal would depend on timing. Use it only in the handler, and make the other "
                "thread's work a step."
            )
            self.fail(error, pause=True)
            raise error

    def enter_body(self, handle: int) -> None:
        """Mark the code that follows as the body of a ``ctx.run``; a step's body replaces this with its own info."""
        running_step.set(StepInfo("ctx.run", self.id, f"{self.id}/run{handle}"))

    async def on_handler_loop(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function on the running handler loop, or on one that is opened for this call."""
        if (execution := self.execution) is not None:
            operation = running_operation()
            if operation is not None and operation.execution is execution:
                return await execution.run_for(operation, function)
            execution.check("handler code")
            return await function()
        if self.awaiting is not None:
            error = plain_concurrency(self.awaiting)
            self.fail(error, pause=True)
            raise error
        _sdk.check_supported()
        self._port = _sdk.SdkPort(self.context, self._loop, self._limit)
        self.execution = execution = Execution(self._port, self._loop, self.id)
        _sdk.set_execution(self.context, execution)
        try:
            return await Driver(execution).run(function())
        finally:
            self._port.close()
            self.execution = None
            _sdk.set_execution(self.context, None)

    def check_time(self, step: str, seconds: float) -> None:
        """Refuse a step that may take longer than the handler allows.

        Args:
            step: The step's name.
            seconds: The step's own time limit.

        Raises:
            StepDefinitionError: The handler allows less. The invocation is paused, because only a new setting helps.
        """
        limit = self._limit
        if limit is None or seconds <= limit.seconds:
            return
        error = StepDefinitionError(
            f"step {step!r} has a timeout of {seconds:g} s, but its handler allows {limit.seconds:g} s: after that, "
            "Restate ends the attempt and runs the body again, without end. Raise "
            f"{limit.setting} to at least {math.ceil(seconds)} s and register the application again, or shorten the "
            "timeout."
        )
        self.fail(error, pause=True)
        raise error

    async def hold_back(self) -> None:
        """Wait until the bodies that run concurrently have ended, in a body that is about to fail the attempt."""
        if self.execution is not None and self._port is not None:
            await self._port.hold_back()

    def number(self, counter: str) -> int:
        """Return the next number of a counter, starting at 0.

        Every attempt counts in the same order, so names built from these numbers are the same.
        """
        number = self._numbers.get(counter, 0)
        self._numbers[counter] = number + 1
        return number

    def next_key(self) -> str:
        """Return the idempotency key of the next step, built from its number among the invocation's steps."""
        return f"{self.id}/{self.number('step')}"

    def fail(self, error: StepsError, *, pause: bool = False) -> None:
        """Fail the attempt with a retryable error, and refuse its further commands.

        The attempt fails even if the handler catches the error.

        Args:
            error: The error.
            pause: True to pause the invocation instead of retrying it, because only a code change helps.
        """
        if self.execution is not None:
            self.execution.fail(error, pause=pause)
        else:
            _sdk.fail_attempt(self.context, error, pause=pause)

    def __close__(self) -> None:
        """Fail an attempt with a better error than its handler ended with; the SDK calls this at its end.

        The SDK reports the error of a handler's output, and a stray ``CancelledError`` would hang the invocation. A
        request that the ASGI server cancelled ends at once.
        """
        error, task = sys.exc_info()[1], asyncio.current_task()
        if (forgotten := forgotten_await(error)) is not None:
            self.fail(forgotten)
        elif not isinstance(error, asyncio.CancelledError) or task is None:
            return
        elif task.cancelling():
            _sdk.forget_input(self.context)
        else:
            self.fail(
                ConcurrencyError(
                    "the handler ended with asyncio.CancelledError although its invocation was not cancelled. A task "
                    "that it awaited was cancelled, or one of its tasks cancelled the handler's own task. Catch the "
                    "error, or check task.cancelled() before awaiting a task."
                ),
                pause=True,
            )


def plain_concurrency(step: str) -> ConcurrencyError:
    """Return the error for concurrent steps under ``restate.app``."""
    return ConcurrencyError(
        f"step {step!r} is already being awaited by another asyncio task of this handler. Under restate.app, steps run "
        "one after another, because the order of asyncio's tasks depends on timing. Serve the handler with "
        "restate_steps.app instead of restate.app, which takes the same arguments and makes plain asyncio replay-safe."
    )


def _context_of_handler_loop() -> _sdk.ServerInvocationContext | None:
    """Return the Restate context of handler code without context variables, as under ``create_task(context=...)``.

    A step there must still be a step: as a plain call, it would run again on every replay.
    """
    loop = asyncio._get_running_loop()
    driving = loop.driving if isinstance(loop, HandlerLoop) else None
    return driving.port.context if driving is not None and isinstance(driving.port, _sdk.SdkPort) else None


def current_invocation() -> Invocation | None:
    """Return the invocation whose handler is running; None outside a handler and inside a step's body."""
    if running_step.get() is not None:
        return None
    context = _sdk.ambient_context() or _context_of_handler_loop()
    return None if context is None else invocation_of(context)


def invocation_of(context: _sdk.ServerInvocationContext) -> Invocation | None:
    """Return the invocation of a context; None if its first step is called in the body of a ``ctx.run``."""
    if (invocation := _sdk.state_of(context)) is None:
        invocation = Invocation(context)
        _sdk.keep_state(context, invocation)
        if (handle := _sdk.running_body()) is not None:
            # This body of a ctx.run started before anything marked it; see enter_body().
            invocation.enter_body(handle)
            return None
    return cast(Invocation, invocation)


def is_replaying() -> bool:
    """Return whether the caller is handler code that repeats what an earlier attempt has recorded."""
    if running_step.get() is not None:
        return False
    context = _sdk.ambient_context() or _context_of_handler_loop()
    return context is not None and _sdk.is_replaying(context)


def restate_context() -> Any:
    """Return the Restate context of the handler that is running.

    Returns:
        The context that the handler received as its first argument: a :class:`restate.Context`, or the
        ``ObjectContext`` or ``WorkflowContext`` of the kind of service.

    Raises:
        RuntimeError: No handler is running.
        ContextInStepError: A step's body is running, which must not use the context.
    """
    if (step := running_step.get()) is not None:
        raise ContextInStepError("restate_context()", step.name)
    context = _sdk.ambient_context()
    if context is None:
        raise RuntimeError(
            "restate_context() was called while no Restate handler is running. Call it in a handler, or in a function "
            "that a handler calls."
        )
    return context
