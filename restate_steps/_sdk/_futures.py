"""Await the SDK's durable futures, and share them between tasks."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import restate.server_context as _server
from restate import RestateDurableFuture, TerminalError
from restate.server_context import ServerDurableFuture, ServerInvocationContext
from restate.vm import SingleUnresolvedFuture, UnresolvedFuture

from restate_steps._loop import Cancelled, HandlerTask, begin_undoing, running_operation
from restate_steps._sdk._vm import hand_over, native, progress_of

if TYPE_CHECKING:
    from restate_steps._loop import Execution
    from restate_steps._loop._local import LocalOperation

__all__ = ["map_failure", "result_of", "set_execution", "share_future", "share_waits"]

T = TypeVar("T")


async def result_of(future: RestateDurableFuture[T]) -> T:
    """Await a durable future that nothing else awaits, without the cost of sharing it."""
    durable = cast(Any, future)
    shared = getattr(durable, "future", None)
    if not isinstance(shared, _SharedResult):
        return await future
    if not durable.is_completed():
        context = durable.context
        if (execution := context.execution) is not None:
            # A body that has to run has no result yet, so the VM need not be polled for it.
            if durable.handle in context.run_coros_to_execute or not execution.has(durable.handle):
                await execution.wait(SingleUnresolvedFuture(durable.handle))
        else:
            await _wait_alone(context, durable.handle)
    return await cast("_SharedResult[T]", shared).async_def()


async def _wait_alone(context: Any, handle: int) -> None:
    """Wait for one future as the SDK does, but without converting what the VM takes and returns."""
    vm, check = context.vm.vm, getattr(context.vm, "_check", None)
    awaited = native.PyUnresolvedFuture.single(handle)
    while True:
        await context.take_and_send_output()
        if check is not None:
            check("do_progress")
        progress = progress_of(vm, awaited)
        if isinstance(progress, native.PyDoProgressAnyCompleted):
            return
        if isinstance(progress, native.PyDoProgressCancelSignalReceived):
            raise TerminalError("cancelled", 409)
        if isinstance(progress, native.PyDoProgressExecuteRun):
            body = context.run_coros_to_execute.pop(progress.handle)
            context.tasks.add(asyncio.create_task(_run_and_notify(context, body)))
        else:
            hand_over(vm, await context.receive())


async def _run_and_notify(context: Any, body: Callable[[], Awaitable[None]]) -> None:
    try:
        await body()
    finally:
        await context.receive.enqueue_restate_event({"type": "restate.run_completed", "data": None})


def map_failure(future: Any, convert: Callable[[TerminalError], BaseException]) -> None:
    """Make ``await future`` raise ``convert(error)`` instead of a ``TerminalError``."""
    if not isinstance(future, ServerDurableFuture):
        return
    lazy = cast(Any, future).future
    fetch = lazy.async_def

    async def fetch_and_convert() -> Any:
        try:
            return await fetch()
        except TerminalError as error:
            converted = convert(error)
            if converted is error:
                raise
            # Leave its cause, which tells the SDK that an uncaught exception is terminal.
            raise converted  # noqa: B904

    lazy.async_def = fetch_and_convert


class _SharedResult(Generic[T]):
    """A ``LazyFuture`` that several tasks may await, each of which may be cancelled without the others.

    The SDK creates a task for the first awaiter and shares it. When that awaiter is cancelled, the future can never be
    awaited again.
    """

    __slots__ = ("_outcome", "_waiting", "async_def", "task")

    def __init__(self, async_def: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.async_def = async_def
        self.task: asyncio.Task[T] | None = None
        self._outcome: tuple[T | None, BaseException | None] | None = None
        self._waiting: list[tuple[asyncio.Future[None], LocalOperation | None, Any]] | None = None

    def done(self) -> bool:
        """Return whether the result is available."""
        return self._outcome is not None

    async def get(self) -> T:
        """Return the result."""
        while self._outcome is None:
            if self._waiting is None:
                await self._fetch()
            else:
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                operation = running_operation()
                task = asyncio.current_task() if operation is None else operation.owner
                self._waiting.append((waiting, operation, task))
                if operation is not None:
                    operation.begin_wait()
                await waiting
        result, error = self._outcome
        if error is not None:
            raise error
        return cast(T, result)

    async def _fetch(self) -> None:
        waiting: list[tuple[asyncio.Future[None], LocalOperation | None, Any]] = []
        self._waiting = waiting
        try:
            self._outcome = (await self.async_def(), None)
        except Cancelled:
            # Raise it in every task that waits now; the future itself may still be awaited.
            for each, operation, task in waiting:
                if not each.done():
                    if operation is not None:
                        operation.end_wait()
                    if isinstance(task, HandlerTask):
                        begin_undoing(task)
                    each.set_exception(Cancelled())
            raise
        except Exception as error:
            self._outcome = (None, error)
        finally:
            self._waiting = None
            for each, operation, _ in waiting:
                if operation is not None and not each.done():
                    operation.end_wait()
                if not each.done():
                    each.set_result(None)

    def __await__(self) -> Generator[Any, Any, T]:
        return self.get().__await__()


class _LoopContext(ServerInvocationContext):
    """The SDK's context, whose waits go through an execution while there is one; see :func:`share_waits`."""

    execution: Execution | None

    async def create_poll_or_cancel_coroutine(self, unresolved_future: UnresolvedFuture) -> None:
        if self.execution is not None:
            await self.execution.wait(unresolved_future)
        else:
            await super().create_poll_or_cancel_coroutine(unresolved_future)

    async def take_and_send_output(self) -> None:
        # The driver sends: on the handler loop nothing can be sent.
        if self.execution is None or self.execution.loop.driving is None:
            await super().take_and_send_output()  # type: ignore[no-untyped-call]

    def create_future(self, handle: int, serde: Any = None) -> Any:
        return _shared(super().create_future(handle, serde))

    def create_sleep_future(self, handle: int) -> Any:
        return _shared(super().create_sleep_future(handle))

    def create_call_future(self, handle: int, invocation_id_handle: int, serde: Any = None) -> Any:
        future: Any = _shared(super().create_call_future(handle, invocation_id_handle, serde))
        future.invocation_id_future = _SharedResult(future.invocation_id_future.async_def)
        return future

    def do_raw_call(self, *args: Any, **options: Any) -> Any:
        handle: Any = super().do_raw_call(*args, **options)
        return _shared(handle) if isinstance(handle, _server.ServerSendHandle) else handle

    def promise(self, *args: Any, **options: Any) -> Any:
        promise: Any = super().promise(*args, **options)
        if type(promise) is _server.ServerDurablePromise:
            promise.__class__ = _SharedPromise
        return promise


class _DecodingContext(_LoopContext):
    """A context with a journal codec: decoding may be interrupted, and the VM returns each result only once."""

    taken: dict[int, Any]
    """The results that the VM has returned, by handle, before decoding."""

    async def create_poll_or_cancel_coroutine(self, unresolved_future: UnresolvedFuture) -> None:
        if not isinstance(unresolved_future, SingleUnresolvedFuture) or unresolved_future.handle not in self.taken:
            await super().create_poll_or_cancel_coroutine(unresolved_future)

    async def must_take_notification(self, handle: int) -> Any:
        if handle not in self.taken:
            self.taken[handle] = await super().must_take_notification(handle)  # type: ignore[no-untyped-call]
        return self.taken[handle]


class _SharedPromise(_server.ServerDurablePromise):
    def resolve(self, value: Any) -> Awaitable[None]:
        return cast("Awaitable[None]", _shared(super().resolve(value)))

    def reject(self, message: str, code: int = 500) -> Awaitable[None]:
        return cast("Awaitable[None]", _shared(super().reject(message, code)))


def _shared(future: Any) -> Any:
    future.future = _SharedResult(future.future.async_def)
    return future


def share_future(future: Any) -> None:
    """Let several tasks await a durable future of the SDK, unless it is being awaited already."""
    lazy = getattr(future, "future", None)
    if isinstance(lazy, _server.LazyFuture) and cast(Any, lazy).task is None:
        _shared(future)


@functools.cache
def _with_shared_waits(
    base: type[_LoopContext], context_type: type[ServerInvocationContext]
) -> type[ServerInvocationContext]:
    return type(context_type.__name__, (base, context_type), {})


def share_waits(context: ServerInvocationContext) -> None:
    """Let every wait on this context go through the execution that :func:`set_execution` sets."""
    if isinstance(context, _LoopContext):
        return
    has_codec = context.journal_codec is not None
    context.__class__ = _with_shared_waits(_DecodingContext if has_codec else _LoopContext, type(context))
    cast(Any, context).execution = None
    if has_codec:
        cast(Any, context).taken = {}
        cast(Any, context).journal_codec = _LocalCodec(context)


def set_execution(context: ServerInvocationContext, execution: Execution | None) -> None:
    """Set the execution that orders everything awaited on this context, or None."""
    cast(Any, context).execution = execution


class _LocalCodec:
    """A journal codec that decodes on the server's event loop, where it may use the network."""

    def __init__(self, context: ServerInvocationContext) -> None:
        self._codec: Any = context.journal_codec
        self._context: Any = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    async def decode(self, buffer: bytes) -> bytes:
        execution: Execution | None = self._context.execution
        if execution is None or execution.loop.driving is not execution:
            return cast(bytes, await self._codec.decode(buffer))
        return cast(bytes, await execution.local.run(self._codec.decode(buffer)))
