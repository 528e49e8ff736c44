"""``app`` and ``local``: run handlers on the handler loop, where plain asyncio is replay-safe."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast, overload

import restate
from restate import TerminalError

from restate_steps._drain import DrainingApp
from restate_steps._limits import DEFAULT_LONGEST_STEP, abort_timeout_for, limit_of, longest_step_of
from restate_steps._loop import Execution, HandlerLoop, LocalContext, running_operation, terminal_cause
from restate_steps._not_awaited import forgotten_await
from restate_steps._sdk import add_sigterm_hook, keep_limit, note_explicit_recovery
from restate_steps.context import current_invocation, invocation_of

__all__ = ["app", "local"]

T = TypeVar("T")

Service = restate.Service | restate.VirtualObject | restate.Workflow


def app(
    services: Iterable[Service],
    protocol: Literal["bidi", "request_response"] | None = None,
    identity_keys: list[str] | None = None,
    journal_value_codec: Any = None,
    *,
    longest_step: timedelta | float = DEFAULT_LONGEST_STEP,
) -> Any:
    """Create an ASGI application in whose handlers plain asyncio is replay-safe.

    Use it instead of :func:`restate.app`; it takes the same arguments, and ``longest_step``. Handlers run on an event
    loop whose order comes from the journal. ``asyncio.gather``, ``TaskGroup``, ``timeout``, ``Queue``, anyio, and
    libraries built on them work with steps and with everything else that Restate lets a handler await. In handlers,
    ``asyncio.sleep`` and timeouts are durable timers, and threads are local work, as with :func:`local`. Code that
    cannot be replayed, such as opening a socket, raises :class:`ConcurrencyError`. The services themselves are not
    changed: ``restate.app`` can serve them as well.

    Args:
        services: The services, virtual objects and workflows.
        protocol: The protocol between Restate and the application; if None, the server detects it at registration.
        identity_keys: Keys that verify that requests come from your Restate.
        journal_value_codec: Transforms the values in the journal, for example by encrypting them.
        longest_step: The longest time that the body of a step may take, as a duration or in seconds. The server ends
            an attempt that takes longer, and runs the body again. It becomes the abort timeout of services that set
            none, so register the application again after a change.

    Returns:
        The ASGI application.

    Raises:
        StepDefinitionError: ``longest_step`` is not a positive duration.

    Example:
        ```python
        import asyncio

        import restate
        import restate_steps

        shop = restate.Service("Shop")


        @shop.handler()
        async def checkout(ctx: restate.Context, order: str) -> list[str]:
            return await asyncio.gather(charge(order), reserve(order))


        app = restate_steps.app([shop])
        ```
    """
    longest = longest_step_of(longest_step)
    wrapped = [_on_handler_loop(service, longest, streams=protocol != "request_response") for service in services]
    application = restate.app(wrapped, protocol, identity_keys, journal_value_codec)
    # On AWS Lambda, it is a plain function, and no server handles signals.
    verifies = bool(identity_keys)
    return drainable(application, verifies=verifies) if inspect.iscoroutinefunction(application) else application


def drainable(application: Any, *, verifies: bool = False) -> DrainingApp:
    """Wrap an ASGI application of the SDK so that SIGTERM drains it, and leave the server's own handler in place."""
    if isinstance(application, DrainingApp):
        return application
    return DrainingApp(application, first_request=lambda app: add_sigterm_hook(app.drain), verifies=verifies)


def _on_handler_loop(service: Service, longest_step: timedelta, *, streams: bool) -> Service:
    if not isinstance(cast(Any, service), restate.Service | restate.VirtualObject | restate.Workflow):
        return service  # The SDK reports what is wrong with it.
    changed = copy.copy(service)
    cast(Any, changed).handlers = _Handlers(service, longest_step, streams=streams)
    if changed.abort_timeout is None:
        changed.abort_timeout = abort_timeout_for(longest_step)
    return changed


class _Handlers(Mapping[str, Any]):
    """A service's handlers, including those added later, wrapped to run on the handler loop."""

    def __init__(self, service: Any, longest_step: timedelta, *, streams: bool) -> None:
        self._service = service
        self._longest_step = longest_step
        self._streams = streams
        self._handlers: Mapping[str, Any] = service.handlers
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    def __getitem__(self, name: str) -> Any:
        handler = self._handlers[name]
        original, wrapped = self._wrapped.get(name, (None, None))
        if original is not handler:
            wrapped = dataclasses.replace(handler, fn=_wrap(handler.fn))
            note_explicit_recovery(wrapped, self._service)
            keep_limit(wrapped, limit_of(handler, self._service, self._longest_step, streams=self._streams))
            self._wrapped[name] = handler, wrapped
        return wrapped

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


def _wrap(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any) -> Any:
        return await function(*args)

    code: Any = function if inspect.iscoroutinefunction(function) else call

    @functools.wraps(function)
    async def handler(context: Any, *args: Any) -> Any:
        invocation = invocation_of(context)
        assert invocation is not None
        try:
            return await invocation.on_handler_loop(functools.partial(code, context, *args))
        except SystemExit as error:
            # It would end the process of the server, and the next one that gets the invocation.
            raise RuntimeError(
                f"the handler raised {error!r}, which would end the process for all invocations. Raise an Exception "
                "instead."
            ) from error
        except BaseException as error:
            if (terminal := _terminal_of_group(error)) is not None:
                raise terminal from error
            if (forgotten := forgotten_await(error)) is not None:
                raise forgotten from error
            raise

    return handler


def _terminal_of_group(error: BaseException) -> TerminalError | None:
    """Return the first terminal error in an exception group, so that it ends the invocation.

    The SDK looks for a terminal error only along ``__cause__``, and would retry a group.
    """
    cause = terminal_cause(error)
    return None if isinstance(cause, TerminalError) else _first_terminal(cause)


def _first_terminal(error: BaseException | None) -> TerminalError | None:
    seen = error
    while seen is not None:
        if isinstance(seen, TerminalError):
            return TerminalError(seen.message, seen.status_code, metadata=seen.metadata)
        if isinstance(seen, BaseExceptionGroup):
            for each in cast("BaseExceptionGroup[BaseException]", seen).exceptions:
                if (found := _first_terminal(each)) is not None:
                    return found
        seen = seen.__cause__
    return None


@overload
def local(what: Awaitable[T], /) -> Coroutine[Any, Any, T]: ...
@overload
def local(what: AbstractAsyncContextManager[T, bool | None], /) -> AbstractAsyncContextManager[T, bool | None]: ...
def local(what: Any, /) -> Any:
    """Run something on the server's event loop, and let no other code of the handler run meanwhile.

    Use it for I/O in handler code that need not be recorded, such as reading a configuration. Threads, for example
    those of ``asyncio.to_thread``, work in the same way.

    * Every replay repeats it, so it must not have a side effect that matters, and it should have the same result each
      time. Otherwise, use a step.
    * No other code of the handler runs until it ends, so the local work of two tasks does not overlap. Four tasks that
      each wait 0.2 s take 0.8 s here, and 0.2 s in steps. If it blocks something else for 60 s, the attempt fails with
      a :class:`ConcurrencyError`.
    * While it runs, the timers around it use the server's clock, so such a timeout may differ on replay.
    * It may call steps, one after another, or with :func:`restate_steps.gather`, ``race`` or ``map``. They are recorded
      as usual, and the rest of the handler continues while it waits for them.

    Outside handlers, in the bodies of steps, and under ``restate.app``, it only awaits or enters its argument.

    Args:
        what: An awaitable, such as a coroutine; or an async context manager, such as a client's session, to enter and
            exit on the server's event loop.

    Returns:
        A coroutine that returns the result, or an async context manager.

    Raises:
        TypeError: The argument is neither, or it already runs on the handler's event loop.

    Example:
        ```python
        @shop.handler()
        async def quote(ctx: restate.Context, order: str) -> str:
            prices = await restate_steps.local(fetch_prices())
            return await charge(order, prices)
        ```
    """
    if hasattr(what, "__aenter__"):
        execution = _execution_of_caller()
        return what if execution is None else LocalContext(execution, what)
    if not inspect.isawaitable(what):
        raise TypeError(
            f"local() expected an awaitable or an async context manager, got {what!r}. Call the function: "
            "local(fetch()), not local(fetch)."
        )
    return _local(what)


async def _local(awaitable: Awaitable[T]) -> T:
    execution = _execution_of_caller()
    if execution is None:
        return await awaitable
    if isinstance(awaitable, asyncio.Future) and isinstance(awaitable.get_loop(), HandlerLoop):
        raise TypeError(
            f"local() expected an awaitable that has not started, got {awaitable!r}, which runs on the handler's event "
            "loop. Pass the coroutine: local(fetch()), not local(asyncio.create_task(fetch()))."
        )
    return await execution.local.run(awaitable)


def _execution_of_caller() -> Execution | None:
    """Return the execution of a caller on the handler loop; None for any other caller."""
    invocation = current_invocation()
    return None if invocation is None or running_operation() is not None else invocation.execution
