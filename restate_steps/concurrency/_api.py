"""``gather`` and similar functions, thin conveniences over asyncio's tasks.

They differ from asyncio in two ways. A failing task cancels its siblings and waits for them, so that none continues in
the background. And the caller gets the task's own exception, never an ``ExceptionGroup``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast, overload

from restate import TerminalError

from restate_steps._durations import to_limit
from restate_steps._loop import running_operation
from restate_steps._sdk import ambient_context, share_future
from restate_steps.concurrency._scope import Scope, Task
from restate_steps.context import current_invocation
from restate_steps.errors import ConcurrencyError, StepDefinitionError

__all__ = ["AsCompleted", "TaskGroup", "as_completed", "gather", "map", "race", "wait_for"]

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")
Item = TypeVar("Item")


async def _await(awaitable: Awaitable[T]) -> T:
    share_future(awaitable)
    return await awaitable


async def _on_handler_loop(function: Callable[[], Coroutine[Any, Any, T]], awaitables: Iterable[Awaitable[Any]]) -> T:
    """Run a function on the handler loop inside a handler, and on the caller's event loop elsewhere."""
    invocation = current_invocation()
    if invocation is None:
        return await function()
    try:
        return await invocation.on_handler_loop(function)
    finally:
        # If the call was refused, Python would warn about coroutines that were never awaited.
        _close(awaitables)


def _close(awaitables: Iterable[Awaitable[Any]]) -> None:
    """Close the coroutines that have not started."""
    for awaitable in awaitables:
        if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
            awaitable.close()


def _refuse_under_restate_app(what: str) -> None:
    """Refuse tasks that outlive the call that starts them, in a handler that is not on the handler loop."""
    invocation = current_invocation()
    if invocation is None or (invocation.execution is not None and running_operation() is None):
        return
    error = ConcurrencyError(
        f"{what} was used in a handler outside the handler loop, where it is not replay-safe. Serve the handler with "
        "restate_steps.app instead of restate.app, which takes the same arguments, and use it outside "
        "restate_steps.local."
    )
    invocation.fail(error, pause=True)
    raise error


def _coroutine(awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
    if inspect.iscoroutine(awaitable):
        return cast("Coroutine[Any, Any, T]", awaitable)
    if not inspect.isawaitable(awaitable):
        raise TypeError(
            f"expected a coroutine or another awaitable, got {awaitable!r}. Call the function: quote(order), not quote."
        )
    return _await(awaitable)


def _start(awaitables: Iterable[Awaitable[Any]], *, fail_fast: bool) -> Scope:
    """Open a scope with a task for each awaitable; if that fails, close the coroutines, or Python would warn."""
    # As in asyncio, an awaitable that is given twice runs once.
    given = list({id(awaitable): awaitable for awaitable in awaitables}.values())
    started = 0
    try:
        coros = [_coroutine(awaitable) for awaitable in given]
        scope = Scope(fail_fast=fail_fast)
        for coro in coros:
            started += 1
            scope.spawn(coro)
    except BaseException:
        for awaitable in given[started:]:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
        raise
    return scope


def _raise_failure(scope: Scope) -> NoReturn:
    error = scope.failure
    assert error is not None
    for other in scope.others:
        error.add_note(f"another task failed as well: {other!r}")
    raise error


@overload
async def gather(a1: Awaitable[T1], /, *, return_exceptions: Literal[False] = False) -> tuple[T1]: ...  # type: ignore[overload-overlap]
@overload
async def gather(  # type: ignore[overload-overlap]
    a1: Awaitable[T1], a2: Awaitable[T2], /, *, return_exceptions: Literal[False] = False
) -> tuple[T1, T2]: ...
@overload
async def gather(  # type: ignore[overload-overlap]
    a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], /, *, return_exceptions: Literal[False] = False
) -> tuple[T1, T2, T3]: ...
@overload
async def gather(  # type: ignore[overload-overlap]
    a1: Awaitable[T1],
    a2: Awaitable[T2],
    a3: Awaitable[T3],
    a4: Awaitable[T4],
    /,
    *,
    return_exceptions: Literal[False] = False,
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(  # type: ignore[overload-overlap]
    a1: Awaitable[T1],
    a2: Awaitable[T2],
    a3: Awaitable[T3],
    a4: Awaitable[T4],
    a5: Awaitable[T5],
    /,
    *,
    return_exceptions: Literal[False] = False,
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(  # type: ignore[overload-overlap]
    a1: Awaitable[T1],
    a2: Awaitable[T2],
    a3: Awaitable[T3],
    a4: Awaitable[T4],
    a5: Awaitable[T5],
    a6: Awaitable[T6],
    /,
    *,
    return_exceptions: Literal[False] = False,
) -> tuple[T1, T2, T3, T4, T5, T6]: ...
@overload
async def gather(*awaitables: Awaitable[T], return_exceptions: Literal[False] = False) -> list[T]: ...
@overload
async def gather(*awaitables: Awaitable[T], return_exceptions: bool) -> list[T | BaseException]: ...
async def gather(*awaitables: Awaitable[Any], return_exceptions: bool = False) -> Any:
    """Run awaitables concurrently and return their results in the order given.

    Like :func:`asyncio.gather`, but structured: the first failure cancels the others and waits for them. Under
    ``restate.app``, it runs them on a handler loop of its own.

    Args:
        *awaitables: Coroutines, durable futures or other awaitables.
        return_exceptions: Cancel nothing, and return exceptions in place of results. The SDK's control flow, such as
            suspension, is never returned.

    Returns:
        The results, as a list. Typed as a tuple for up to six awaitables, so that each keeps its own type.

    Raises:
        BaseException: The exception of the first awaitable to fail; further exceptions are attached as notes. The other
            awaitables have been cancelled, and have ended.

    Example:
        ```python
        price, stock = await gather(quote(order), reserve(order))
        ```
    """
    return await _on_handler_loop(lambda: _gather(awaitables, return_exceptions), awaitables)


async def _gather(awaitables: tuple[Awaitable[Any], ...], return_exceptions: bool) -> Any:
    scope = _start(awaitables, fail_fast=not return_exceptions)
    tasks = dict(zip(dict.fromkeys(id(awaitable) for awaitable in awaitables), scope.tasks, strict=True))
    try:
        await scope.until(lambda: scope.live == 0 or (scope.fail_fast and scope.failure is not None))
    except BaseException:
        await scope.abort()
        raise
    if return_exceptions:
        scope.raise_if_cancelled()
        return [_outcome(tasks[id(awaitable)]) for awaitable in awaitables]
    if scope.failure is not None:
        await scope.abort()
        _raise_failure(scope)
    return [tasks[id(awaitable)].result() for awaitable in awaitables]


def _outcome(task: Task[Any]) -> Any:
    if task.cancelled():
        return asyncio.CancelledError()
    error = task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, Exception):
        raise error
    return error


async def race(*awaitables: Awaitable[T]) -> T:
    """Run awaitables concurrently, return the result of the first to finish, and cancel the others.

    The losers receive :class:`asyncio.CancelledError`, may clean up with steps, and have ended when ``race`` returns.
    The body of a step that a loser awaits is not interrupted. If the body ends before the handler does, its result is
    recorded, but not used.

    Args:
        *awaitables: Coroutines, durable futures or other awaitables; at least one.

    Returns:
        The result of the first to finish.

    Raises:
        ValueError: No awaitable was given.
        BaseException: The exception of the first to finish, if it failed.

    Example:
        ```python
        answer = await race(ask(primary), ask(secondary))
        ```
    """
    if not awaitables:
        raise ValueError("race() needs at least one awaitable.")
    return await _on_handler_loop(lambda: _race(awaitables), awaitables)


async def _race(awaitables: tuple[Awaitable[T], ...]) -> T:
    scope = _start(awaitables, fail_fast=False)
    try:
        await scope.until(lambda: bool(scope.finished))
    finally:
        await scope.abort()
    scope.raise_if_cancelled()
    return cast(T, scope.finished[0].result())


async def wait_for(awaitable: Awaitable[T], timeout: timedelta | float | None) -> T:
    """Wait for an awaitable, with a durable timeout.

    The timer is in the journal: it continues while the handler is suspended, and a crash does not restart it. It limits
    all attempts of a step together, unlike the ``timeout=`` of a step, which limits one attempt of the body.

    Args:
        awaitable: A coroutine, durable future or other awaitable.
        timeout: Seconds, or a timedelta; None to wait without a limit.

    Returns:
        The result of the awaitable, even if it arrives while the awaitable is being cancelled.

    Raises:
        TimeoutError: The time is up. The awaitable has been cancelled, and has ended.
        StepDefinitionError: The timeout is not a duration.
        BaseException: The exception of the awaitable.

    Example:
        ```python
        try:
            answer = await wait_for(approval, timedelta(days=3))
        except TimeoutError:
            await remind()
        ```
    """
    try:
        seconds = to_limit("timeout", timeout)
    except StepDefinitionError:
        _close([awaitable])
        raise
    if seconds is None:
        return await awaitable
    return await _on_handler_loop(lambda: _wait_for(awaitable, seconds), [awaitable])


async def _wait_for(awaitable: Awaitable[T], seconds: float) -> T:
    timer = _Timer(seconds)
    # Start the timer first, so that it is in the journal even if the awaitable never waits for anything.
    scope = _start((timer.run(), awaitable), fail_fast=False)
    work = scope.tasks[1]
    try:
        await scope.until(lambda: work.done() or timer.ended)
        if timer.error is not None and work.undoing:
            await scope.until(work.done)
        late = timer.ended
    finally:
        await scope.abort()
    if not work.cancelled():
        # It ended in time, or while it was being cancelled. Either way it has an outcome, which the caller needs.
        return cast(T, work.result())
    if timer.error is not None:
        raise timer.error
    if late:
        raise TimeoutError(f"not finished within {timer.seconds:g} s")
    return cast(T, work.result())


class _Timer:
    """A durable timer in a handler, a plain one elsewhere.

    Attributes:
        seconds: The duration.
        ended: True once the time is up, or the invocation was cancelled.
        error: The error that reported the cancellation, or None.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ended = False
        self.error: TerminalError | None = None

    async def run(self) -> None:
        delay = timedelta(seconds=self.seconds)
        context = ambient_context() if current_invocation() is not None else None
        try:
            await (asyncio.sleep(delay.total_seconds()) if context is None else context.sleep(delay))
        except TerminalError as error:
            # The awaitable may receive the cancellation too, and clean up; the caller decides.
            self.error = error
            raise
        finally:
            self.ended = True


class TaskGroup:
    """Tasks that end together: an ``asyncio.TaskGroup`` that raises the user's own exception.

    The block ends when every task has ended. If a task or the block fails, the other tasks are cancelled, and the
    user's own exception is raised (not an ``ExceptionGroup``; ``except*`` catches it as well). Under ``restate.app``,
    it raises :class:`ConcurrencyError`.

    Example:
        ```python
        async with TaskGroup() as group:
            flight = group.create_task(book_flight(trip))
            hotel = group.create_task(book_hotel(trip))
        booked = flight.result(), hotel.result()
        ```
    """

    def __init__(self) -> None:
        self._scope: Scope | None = None
        self._closed = False

    async def __aenter__(self) -> TaskGroup:
        if self._scope is not None:
            raise RuntimeError("this TaskGroup has already been entered. Create a new one.")
        _refuse_under_restate_app("restate_steps.TaskGroup")
        self._scope = Scope(fail_fast=True, interrupts=True)
        return self

    def create_task(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> Task[T]:
        """Start a coroutine in the group.

        Args:
            coro: The coroutine.
            name: A name for messages.

        Returns:
            A handle to the task: await it, cancel it, or read its result.

        Raises:
            RuntimeError: The group has not been entered, or is ending.
        """
        if self._scope is None or self._closed or self._scope.closing:
            coro.close()
            state = "has not been entered" if self._scope is None else "is ending"
            raise RuntimeError(f"this TaskGroup {state}, so it cannot start a task.")
        return self._scope.spawn(_coroutine(coro), name)

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scope = self._scope
        assert scope is not None
        if error is not None:
            scope.cancel()
        try:
            await scope.join()
        except asyncio.CancelledError:
            if error is None and scope.failure is None:
                raise
        finally:
            self._closed = True
        if scope.interrupted:
            scope.accept_interruption()
        if scope.failure is None:
            return
        if error is None or (scope.interrupted and isinstance(error, asyncio.CancelledError)):
            _raise_failure(scope)
        if isinstance(error, Exception):
            error.add_note(f"a task of the group failed as well: {scope.failure!r}")


class AsCompleted(Generic[T]):
    """The result of :func:`as_completed`; iterate over it with ``for`` or ``async for``."""

    def __init__(self, awaitables: Iterable[Awaitable[T]], timeout: timedelta | float | None) -> None:
        given = list(awaitables)
        try:
            seconds = to_limit("timeout", timeout)
            _refuse_under_restate_app("restate_steps.as_completed")
        except BaseException:
            _close(given)
            raise
        self._yielded = 0
        self._timer = None if seconds is None else _Timer(seconds)
        self._count = len(given)
        self._scope = _start([*given, self._timer.run()] if self._timer is not None else given, fail_fast=False)

    def _ended(self) -> list[Task[Any]]:
        finished = self._scope.finished
        if self._timer is None:
            return finished
        timer = self._scope.tasks[-1]
        return [task for task in finished if task is not timer]

    async def _next_task(self) -> Task[T]:
        index = self._yielded
        self._yielded += 1
        timer = self._timer
        await self._scope.until(lambda: len(self._ended()) > index or (timer is not None and timer.ended))
        ended = self._ended()
        if index >= len(ended):
            await self._scope.abort()
            raise (timer and timer.error) or TimeoutError("as_completed: the time is up")
        if timer is not None and len(ended) == self._count:
            self._scope.tasks[-1].cancel()
        return ended[index]

    async def _next_result(self) -> T:
        return (await self._next_task()).result()

    def __iter__(self) -> Iterator[Awaitable[T]]:
        for _ in range(self._count):
            yield self._next_result()

    async def __aiter__(self) -> AsyncIterator[Task[T]]:
        for _ in range(self._count):
            yield await self._next_task()


def as_completed(awaitables: Iterable[Awaitable[T]], *, timeout: timedelta | float | None = None) -> AsCompleted[T]:
    """Run awaitables concurrently and yield them as they finish.

    As with :func:`asyncio.as_completed`, ``for`` yields awaitables of the next result, and ``async for`` (as in Python
    3.13, here on every version) yields the finished tasks. The order comes from the journal, so a replay repeats it.
    Tasks that are left when the handler ends are cancelled. Under ``restate.app``, it raises :class:`ConcurrencyError`.

    Args:
        awaitables: Coroutines, durable futures or other awaitables, in any iterable with a stable order.
        timeout: Seconds or a timedelta for all of them together, on a durable timer.

    Returns:
        An object to iterate over once.

    Raises:
        TimeoutError: From the iteration, when the time is up; tasks that have not finished are cancelled.

    Example:
        ```python
        async for task in as_completed([ask(model) for model in models]):
            answers.append(await task)
        ```
    """
    return AsCompleted(awaitables, timeout)


async def map(
    function: Callable[[Item], Awaitable[T]], items: Iterable[Item] | AsyncIterable[Item], *, limit: int | None = None
) -> list[T]:
    """Apply an async function to every item, at most ``limit`` at a time.

    Args:
        function: A function that is called with one item at a time, for example a step.
        items: The items. An async iterable is read before the first call, because the journal does not record when
            each item arrives.
        limit: The maximum number of calls that run at once; None for no limit.

    Returns:
        The results, in the order of the items.

    Raises:
        ValueError: ``limit`` is less than 1.
        BaseException: The exception of the first call to fail; further exceptions are attached as notes. The other
            calls have been cancelled, and have ended.

    Example:
        ```python
        pages = await map(fetch, urls, limit=10)
        ```
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for no limit; got {limit!r}.")
    waiting = deque([item async for item in items] if isinstance(items, AsyncIterable) else items)
    return await _on_handler_loop(lambda: _map(function, waiting, limit), ())


async def _map(function: Callable[[Item], Awaitable[T]], waiting: deque[Item], limit: int | None) -> list[T]:
    scope = Scope(fail_fast=True)
    room = len(waiting) if limit is None else limit

    async def call(item: Item) -> T:
        return await function(item)

    try:
        while waiting and scope.failure is None:
            while waiting and scope.live < room:
                scope.spawn(call(waiting.popleft()), getattr(function, "__name__", None))
            await scope.until(lambda: scope.live < room or scope.failure is not None)
        await scope.until(lambda: scope.live == 0 or scope.failure is not None)
    except BaseException:
        await scope.abort()
        raise
    if scope.failure is not None:
        await scope.abort()
        _raise_failure(scope)
    return [task.result() for task in scope.tasks]
