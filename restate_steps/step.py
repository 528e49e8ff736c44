"""Durable steps: callables whose results Restate records, so that a replay does not call them again."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    overload,
)

from restate import RestateDurableFuture, RunOptions, SdkInternalBaseException, TerminalError
from restate.exceptions import RetryableError
from restate.serde import Serde

from restate_steps._callables import (
    UNRESOLVED,
    copy_metadata,
    innermost,
    is_async,
    journal_names,
    mark_as_coroutine_function,
    names_around,
    reject_uncallable,
    return_type,
)
from restate_steps._not_awaited import forgotten_await, step_calls
from restate_steps._public import publish
from restate_steps._sdk import IN_THREAD, has_body, map_failure, result_of, run_unmarked
from restate_steps._spans import StepSpan
from restate_steps.codec import DEFAULT_CODEC, Codec, is_plain
from restate_steps.codec import type_name as type_name_of
from restate_steps.codec import verify as verify_value
from restate_steps.context import (
    Invocation,
    StepInfo,
    current_invocation,
    plain_concurrency,
    running_step,
    step_observer,
)
from restate_steps.errors import (
    ConcurrencyError,
    ContextInStepError,
    DecodeError,
    EncodeError,
    NotAwaitedError,
    ResultTooLargeError,
    StepDefinitionError,
    StepResultError,
    StepTimeoutError,
)
from restate_steps.failures import decode_failure, encode_failure
from restate_steps.options import ErrorFilter, RetryPolicy, StepOptions

__all__ = ["MAX_RESULT_BYTES", "DurableStep", "durable_step", "run_step"]

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Owner = TypeVar("Owner")
Ts = TypeVarTuple("Ts")

MAX_RESULT_BYTES: Final = 33_521_600
"""The largest result that restate-server 1.7 accepts with its default limits, in bytes.

Measured: the server records up to 33,816,576 bytes. But it cannot send a message of more than 32 MiB - 32 KiB to an
attempt, so the invocation hangs or is paused. The limit applies to each result on its own.
"""


class _Unchanged:
    """The default of an option that a copy shares with its original."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final[Any] = _Unchanged()


class _NamedCalls:
    """A method whose coroutines have the step's name, which Python shows if one is never awaited.

    A coroutine has the name of its function, so each step has its own function with the same code.
    """

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function
        step_calls.add(function.__code__)

    def function_for(self, step: DurableStep[Any, Any]) -> types.FunctionType:
        """Return the function with a step's name."""
        named = types.FunctionType(self._function.__code__, self._function.__globals__, step.__name__)
        named.__qualname__ = getattr(step, "__qualname__", step.__name__)
        return named

    def __get__(self, step: DurableStep[Any, Any] | None, owner: type[Any]) -> Any:
        if step is None:
            return self._function
        return types.MethodType(step._named_call, step)  # pyright: ignore[reportPrivateUsage]


def _named_calls(function: F) -> F:
    return cast(F, _NamedCalls(cast(types.FunctionType, function)))


class DurableStep(Generic[P, T]):
    """A callable whose calls are durable steps; created by :func:`durable_step`.

    Called inside a handler, it runs the body and records the result; a replay returns the recorded result. Called
    inside another step, it runs inline, as part of the outer one. Called outside a handler, it is a plain call.
    """

    __name__: str
    __wrapped__: Callable[P, Any]

    def __init__(self, function: Callable[P, Any], options: StepOptions, caller: types.FrameType | None) -> None:
        if isinstance(inner := innermost(function), DurableStep):
            raise StepDefinitionError(f"{inner!r} is already a step; use with_options() for a copy with other options.")
        reject_uncallable(function)
        namespace = None if caller is None else names_around(function, caller)
        copy_metadata(self, function, namespace)
        self._declared = self._function = function
        self._receiver: tuple[Any, ...] = ()
        self._options = options
        self._named_call = vars(DurableStep)["__call__"].function_for(self)
        self._is_async = is_async(function)
        self._default_name = self.__name__
        # Skip the annotation when `returns=` is given for one call: resolving it dominates the cost.
        needs_annotation = options.returns is None or caller is not None
        self._annotated = return_type(function, namespace) if needs_annotation else UNRESOLVED
        self._apply_options()
        mark_as_coroutine_function(self)

    def __repr__(self) -> str:
        return f"<durable_step {self._default_name}>"

    @_named_calls
    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function as a step, or plainly outside a handler and inside another step."""
        invocation = current_invocation()
        if invocation is None:
            return cast(T, await self._call_plainly(args, kwargs))
        if (execution := invocation.execution) is None:
            return await self._call_alone(invocation, args, kwargs)
        if execution.closed is not None:
            await execution.yield_if_closed()
        return await self._result(self._begin(invocation, args, kwargs))

    async def _call_alone(self, invocation: Invocation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Call the function under ``restate.app``, where steps run one after another."""
        if invocation.awaiting is not None:
            error = plain_concurrency(invocation.awaiting)
            invocation.fail(error, pause=True)
            raise error
        future = self._begin(invocation, args, kwargs)
        invocation.awaiting = self._default_name
        try:
            return await self._result(future)
        except asyncio.CancelledError:
            invocation.fail(_cancelled_locally(self._default_name))
            raise
        finally:
            invocation.awaiting = None

    def _result(self, future: RestateDurableFuture[T]) -> Coroutine[Any, Any, T]:
        observer = step_observer.get()
        return result_of(future) if observer is None else _observed(future, observer)

    def start(self, *args: P.args, **kwargs: P.kwargs) -> RestateDurableFuture[T]:
        """Start the step and return the SDK's durable future, for ``restate.select`` and ``restate.gather``.

        As usual in Restate, the body starts when the future is first awaited, alone or among others.

        Returns:
            The durable future.

        Raises:
            RuntimeError: No handler is running.
            ContextInStepError: A step's body is running.

        Example:
            ```python
            @svc.handler()
            async def ask_in_time(ctx: restate.Context, question: str) -> str:
                answer, late = ask_model.start(question), ctx.sleep(timedelta(seconds=10))
                match await restate.select(answer=answer, late=late):
                    case ["answer", found]:
                        return found
                    case _:
                        return "no answer in time"
            ```
        """
        if (outer := running_step.get()) is not None:
            raise ContextInStepError(f"{self._default_name}.start()", outer.name)
        invocation = current_invocation()
        if invocation is None:
            raise RuntimeError(
                f"{self._default_name}.start() was called while no Restate handler is running. Call it in a handler, "
                f"or use await {self._default_name}(...), which works everywhere."
            )
        return self._begin(invocation, args, kwargs)

    def with_options(
        self,
        *,
        name: str | Callable[..., str] | None = UNCHANGED,
        retry: RetryPolicy = UNCHANGED,
        timeout: timedelta | float | None = UNCHANGED,
        returns: Any = UNCHANGED,
        raises: type[Exception] | tuple[type[Exception], ...] = UNCHANGED,
        codec: Codec = UNCHANGED,
        verify: bool | None = UNCHANGED,
        retry_on: ErrorFilter | None = UNCHANGED,
        no_retry_on: ErrorFilter | None = UNCHANGED,
    ) -> DurableStep[P, T]:
        """Return a copy with other options, for one call site.

        The options are those of :func:`durable_step`. Those that are left out stay the same.

        Raises:
            StepDefinitionError: An option has a wrong value.

        Example:
            ```python
            await charge.with_options(name="charge deposit", timeout=5)(order)
            ```
        """
        given: dict[str, Any] = {
            "name": name,
            "retry": retry,
            "timeout": timeout,
            "returns": returns,
            "raises": raises,
            "codec": codec,
            "verify": verify,
            "retry_on": retry_on,
            "no_retry_on": no_retry_on,
        }
        changed = copy.copy(self)
        changed._options = dataclasses.replace(
            self._options, **{option: value for option, value in given.items() if value is not UNCHANGED}
        )
        changed._apply_options()
        return changed

    # Type checkers see a classmethod as a function here, so only the first parameter tells what gets bound. Pyright
    # checks it; mypy ignores it, and takes the first overload that fits the arguments.
    @overload
    def __get__(
        self: DurableStep[Concatenate[Owner, Q], T], instance: None, owner: type[Owner], /
    ) -> DurableStep[P, T]: ...
    @overload
    def __get__(
        self: DurableStep[Concatenate[type[Owner], Q], T], instance: Owner | None, owner: type[Owner], /
    ) -> DurableStep[Q, T]: ...
    @overload
    def __get__(
        self: DurableStep[Concatenate[Owner, Q], T], instance: Owner, owner: type[Any] | None = None, /
    ) -> DurableStep[Q, T]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> DurableStep[P, T]: ...
    def __get__(self, instance: Any, owner: Any = None, /) -> Any:
        function: Any = self._function
        bind: Any = getattr(function.__class__, "__get__", None)
        if bind is None or isinstance(function, (functools.partial, types.MethodType, types.BuiltinFunctionType)):
            return self
        if instance is None and not isinstance(function, (classmethod, staticmethod)):
            return self
        bound = copy.copy(self)
        bound._function = bound.__wrapped__ = bind(function, instance, owner)
        if isinstance(bound._function, types.MethodType):
            bound._receiver = (bound._function.__self__,)
        return bound

    def _apply_options(self) -> None:
        """Compute everything that depends on the options alone."""
        self._journal_name = journal_names(self._options.name, self._declared)
        self._time_limit = self._options.seconds
        if self._options.returns is not None or self._annotated is not UNRESOLVED:
            self._check_result_type()
        retry = self._options.retry
        self._run_options: RunOptions[T] = RunOptions(
            serde=_ResultSerde(self),
            max_attempts=retry.max_attempts,
            max_duration=retry.max_duration,
            initial_retry_interval=retry.initial_retry_interval,
            max_retry_interval=retry.max_retry_interval,
            retry_interval_factor=retry.retry_interval_factor,
        )

    def _check_result_type(self) -> None:
        # A codec may have a check() method that rejects types it cannot encode; the default codec has one.
        check = getattr(self._options.codec, "check", None)
        if check is not None:
            try:
                check(self._result_type())
            except StepDefinitionError as error:
                raise StepDefinitionError(f"step {self._default_name!r}: {error}") from error

    def _result_type(self) -> Any:
        if self._options.returns is not None:
            return self._options.returns
        if self._annotated is UNRESOLVED:
            # It may name something that is defined below the step.
            self._annotated = return_type(self._function, None)
            if self._annotated is UNRESOLVED:
                raise StepDefinitionError(
                    f"the return annotation of step {self._default_name!r} names something that does not exist "
                    "where the function is defined. Import it at run time, or pass returns=."
                )
            self._check_result_type()
        return self._annotated

    # --- one call -----------------------------------------------------------------------------------------------

    async def _call_plainly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if running_step.get() is not None:
            return await self._call(args, kwargs)
        name = self._journal_name(*self._receiver, *args, **kwargs)
        outer = running_step.set(StepInfo(name, invocation_id="", idempotency_key=""))
        try:
            return await self._call(args, kwargs)
        finally:
            running_step.reset(outer)

    def _begin(
        self,
        invocation: Invocation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> RestateDurableFuture[T]:
        # Resolve the type before anything runs: without it, a result could not be recorded.
        self._result_type()
        name, key = self._journal_name(*self._receiver, *args, **kwargs), invocation.next_key()
        span: StepSpan | None = None
        if (tracer := invocation.tracer) is not None:
            span = StepSpan(tracer, invocation.context, self._default_name, name, self._options.retry.max_attempts)

        async def body() -> bytes:
            try:
                run = self._run_body(StepInfo(name, invocation.id, key), args, kwargs)
                return await (run if span is None else span.around(run))
            except TerminalError:
                raise
            except Exception:
                # The error ends the attempt, and with it the bodies that run concurrently; let them end first.
                await invocation.hold_back()
                raise

        if not self._is_async:
            setattr(body, IN_THREAD, True)
        # The body encodes its result, and the serde passes the bytes on: an error in a serde makes the SDK run the body
        # again.
        future = run_unmarked(invocation.context, name, cast(Any, body), self._run_options)
        if self._time_limit is not None and has_body(future):
            invocation.check_time(name, self._time_limit)
        if self._options.declared:
            map_failure(future, self._declared_failure)
        return future

    async def _run_body(self, info: StepInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        running_step.set(info)
        options = self._options
        try:
            value = await self._attempt(info, args, kwargs)
        except NotAwaitedError:
            raise
        except options.declared as error:
            raise encode_failure(info.name, error) from error
        except (TerminalError, RetryableError):
            raise
        except Exception as error:
            if options.should_retry(error):
                raise
            raise TerminalError(f"{type(error).__name__}: {error}") from error
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SdkInternalBaseException):
            raise
        except BaseException as error:
            # The SDK handles only subclasses of Exception, and would wait for this step forever.
            raise RuntimeError(
                f"the body of step {info.name!r} raised {error!r}, which is not a subclass of Exception, so Restate "
                "cannot handle it. Raise an Exception instead."
            ) from error
        return self._encode(info, value)

    async def _attempt(self, info: StepInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        timeout = self._options.seconds
        try:
            if timeout is None:
                # Skip `asyncio.timeout(None)`: it doubles the cost of a call.
                return await self._call(args, kwargs)
            return await self._call_within(timeout, info, args, kwargs)
        except Exception as error:
            if (forgotten := forgotten_await(error)) is not None:
                raise forgotten from error
            raise
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # The SDK would take this for the end of the attempt, and wait for the step forever.
            raise RuntimeError(
                f"something that the body of step {info.name!r} awaited was cancelled, though the step was not. Catch "
                "asyncio.CancelledError in the body, or find out what cancels it."
            ) from error

    async def _call_within(self, timeout: float, info: StepInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        timer = asyncio.timeout(timeout)
        try:
            async with timer:
                return await self._call(args, kwargs)
        except TimeoutError:
            if timer.expired():
                raise StepTimeoutError(info.name, timeout) from None
            raise

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        function: Callable[..., Any] = self._function
        if self._is_async:
            return await function(*args, **kwargs)
        result = await asyncio.to_thread(function, *args, **kwargs)
        # A lambda or a wrapper may return a coroutine.
        return await result if inspect.isawaitable(result) else result

    def _encode(self, info: StepInfo, value: Any) -> bytes:
        codec, result_type = self._options.codec, self._result_type()
        try:
            data = codec.dump(result_type, value)
            if self._verifies(result_type):
                verify_value(codec, result_type, value, data)
        except EncodeError as error:
            raise StepResultError(info.name, str(error)) from error
        except NotAwaitedError:
            raise
        except Exception as error:
            if (forgotten := forgotten_await(error)) is not None:
                raise forgotten from error
            raise StepResultError(info.name, f"its codec failed: {error!r}.") from error
        if not isinstance(data, bytes) or not data:
            raise StepResultError(info.name, f"its codec returned {data!r} instead of at least one byte.")
        if len(data) > MAX_RESULT_BYTES:
            raise ResultTooLargeError(info.name, len(data), MAX_RESULT_BYTES)
        return data

    def _verifies(self, result_type: Any) -> bool:
        chosen = self._options.verify
        return not is_plain(result_type) if chosen is None else chosen

    def _decode(self, data: bytes) -> T:
        try:
            return cast(T, self._options.codec.load(self._result_type(), data))
        except DecodeError as error:
            raise self._undecodable(error.type_name, error.reason) from error
        except Exception as error:
            raise self._undecodable(type_name_of(self._result_type()), f"its codec failed: {error!r}") from error

    def _undecodable(self, type_name: str, reason: str) -> DecodeError:
        error = DecodeError(type_name, reason, where=f"the journaled result of step {self._default_name!r}")
        # Fail the attempt even if the handler catches this, so that a redeploy can recover.
        if (invocation := current_invocation()) is not None:
            invocation.fail(error)
        return error

    def _declared_failure(self, failure: TerminalError) -> Exception:
        return decode_failure(self._default_name, failure, self._options.declared)


class _ResultSerde(Serde[Any]):
    """A serde that passes a step's encoded result to the SDK, and decodes it when it returns, on the first run too."""

    def __init__(self, step: DurableStep[Any, Any]) -> None:
        self._step = step

    def serialize(self, obj: Any) -> bytes:
        return cast(bytes, obj)

    def deserialize(self, buf: bytes) -> Any:
        return self._step._decode(buf)  # pyright: ignore[reportPrivateUsage]


# --- making steps -----------------------------------------------------------------------------------------------


class _Decorator(typing.Protocol):
    @overload
    def __call__(self, function: Callable[P, Awaitable[T]], /) -> DurableStep[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> DurableStep[P, T]: ...


@overload
def durable_step(
    function: Callable[P, Awaitable[T]],
    /,
    *,
    name: str | Callable[..., str] | None = None,
    retry: RetryPolicy = RetryPolicy(),
    timeout: timedelta | float | None = None,
    returns: Any = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    codec: Codec = DEFAULT_CODEC,
    verify: bool | None = None,
    retry_on: ErrorFilter | None = None,
    no_retry_on: ErrorFilter | None = None,
) -> DurableStep[P, T]: ...
@overload
def durable_step(
    function: Callable[P, T],
    /,
    *,
    name: str | Callable[..., str] | None = None,
    retry: RetryPolicy = RetryPolicy(),
    timeout: timedelta | float | None = None,
    returns: Any = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    codec: Codec = DEFAULT_CODEC,
    verify: bool | None = None,
    retry_on: ErrorFilter | None = None,
    no_retry_on: ErrorFilter | None = None,
) -> DurableStep[P, T]: ...
@overload
def durable_step(
    *,
    name: str | Callable[..., str] | None = None,
    retry: RetryPolicy = RetryPolicy(),
    timeout: timedelta | float | None = None,
    returns: Any = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    codec: Codec = DEFAULT_CODEC,
    verify: bool | None = None,
    retry_on: ErrorFilter | None = None,
    no_retry_on: ErrorFilter | None = None,
) -> _Decorator: ...
def durable_step(
    function: Any = None,
    /,
    *,
    name: str | Callable[..., str] | None = None,
    retry: RetryPolicy = RetryPolicy(),
    timeout: timedelta | float | None = None,
    returns: Any = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    codec: Codec = DEFAULT_CODEC,
    verify: bool | None = None,
    retry_on: ErrorFilter | None = None,
    no_retry_on: ErrorFilter | None = None,
) -> Any:
    """Make a callable a durable step: inside a handler its result is recorded, and a replay does not call it again.

    Use it as a decorator, with or without options, or as a function of the callable and the options, as in
    ``durable_step(fetch, name="fetch")``. It takes any callable: async functions, plain functions (they run in a
    thread, with the caller's context variables), methods, partials, objects with a ``__call__``. Put it above
    ``@classmethod`` and ``@staticmethod``. The signature, docstring and annotations stay, so a step is accepted
    wherever its function was, for example as an agent's tool.

    Args:
        function: The callable.
        name: The name in the journal, which Restate shows and a replay compares: a string, a template of the arguments
            such as ``"charge {order.id}"``, or a function of them (including ``self``). By default, the function's own.
        retry: The limits and delays of retries. By default, the invocation's retry policy applies.
        timeout: The time limit of one attempt, in seconds or as a timedelta.
        returns: The result type, instead of the annotation.
        raises: The exception class, or a tuple of them, to record with its data and raise again with its own class.
        codec: Encodes and decodes results.
        verify: Check that the result comes back from the journal unchanged. By default, it is checked if a result type
            is declared.
        retry_on: The other exceptions to retry, as classes or a predicate; all others are terminal. By default, all
            are retried.
        no_retry_on: The exceptions that are terminal, as classes or a predicate.

    Returns:
        The step. ``await step(...)`` calls it, ``step.start(...)`` starts it, ``step.with_options(...)`` copies it.

    Raises:
        StepDefinitionError: An option or the callable cannot work.

    Example:
        ```python
        @durable_step(name="charge {order.id}", retry=RetryPolicy(max_attempts=5), raises=CardDeclined)
        async def charge(order: Order) -> Receipt:
            return await payments.charge(order, idempotency_key=step_info().idempotency_key)
        ```
    """
    options = StepOptions(
        name=name,
        retry=retry,
        timeout=timeout,
        returns=returns,
        raises=raises,
        codec=codec,
        verify=verify,
        retry_on=retry_on,
        no_retry_on=no_retry_on,
    )
    if function is not None:
        return DurableStep[..., Any](function, options, _caller())

    def decorate(function: Any) -> Any:
        return DurableStep[..., Any](function, options, _caller())

    return decorate


async def run_step(
    function: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: *Ts,
    name: str | Callable[..., str] | None = None,
    retry: RetryPolicy = RetryPolicy(),
    timeout: timedelta | float | None = None,
    returns: Any = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    codec: Codec = DEFAULT_CODEC,
    verify: bool | None = None,
    retry_on: ErrorFilter | None = None,
    no_retry_on: ErrorFilter | None = None,
) -> T:
    """Call a function as a durable step without decorating it.

    The options are those of :func:`durable_step`, which describes them in full.

    Args:
        function: The async function; for a plain function, use :func:`durable_step`, which has types for it.
        *args: The function's arguments.
        name: The name in the journal, a template of it, or a function of the arguments.
        retry: The limits and delays of retries.
        timeout: The time limit of one attempt.
        returns: The result type, instead of the annotation.
        raises: The exceptions to record with their data.
        codec: Encodes and decodes the result.
        verify: Check that the result comes back from the journal unchanged.
        retry_on: The other exceptions to retry.
        no_retry_on: The exceptions that are terminal.

    Returns:
        The recorded result.

    Raises:
        StepDefinitionError: An option or the callable cannot work.

    Example:
        ```python
        user = await run_step(client.fetch_user, user_id, name="fetch user {user_id}")
        ```
    """
    options = StepOptions(
        name=name,
        retry=retry,
        timeout=timeout,
        returns=returns,
        raises=raises,
        codec=codec,
        verify=verify,
        retry_on=retry_on,
        no_retry_on=no_retry_on,
    )
    step: DurableStep[Any, T] = DurableStep(function, options, None)
    return await step(*args)


def as_unit(step: DurableStep[P, T], name: str, time_limit: float | None) -> DurableStep[P, T]:
    """Return a copy of a step with another name in messages, and the same name in the journal.

    Args:
        step: The step.
        name: The name in messages.
        time_limit: The time limit that the body has by itself, in seconds.
    """
    copied = copy.copy(step)
    copied._default_name = name  # pyright: ignore[reportPrivateUsage]
    if time_limit is not None and copied._time_limit is None:  # pyright: ignore[reportPrivateUsage]
        copied._time_limit = time_limit  # pyright: ignore[reportPrivateUsage]
    return copied


def _caller() -> types.FrameType:
    """Return the frame in which a decorator is used."""
    return sys._getframe(2)  # pyright: ignore[reportPrivateUsage]


async def _observed(future: RestateDurableFuture[T], observer: Callable[[bool], None]) -> T:
    executed = has_body(future)
    try:
        result = await result_of(future)
    except Exception:
        observer(executed)
        raise
    observer(executed)
    return result


def _cancelled_locally(step: str) -> ConcurrencyError:
    return ConcurrencyError(
        f"step {step!r} was cancelled by a local timer or task (asyncio.timeout, asyncio.wait_for, Task.cancel) while "
        "the handler waited for it. Under restate.app, the moment of the cancellation depends on timing, so what "
        "follows could not be replayed. Serve the handler with restate_steps.app instead of restate.app, use "
        "restate_steps.wait_for for a timeout, or use the step's own timeout= option."
    )


publish("restate_steps", globals(), ["DurableStep"])
