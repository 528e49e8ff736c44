"""The one module that knows private names of restate-sdk, and why it needs them.

What is used, and what happens if a later SDK no longer has it:

* ``ServerInvocationContext.create_poll_or_cancel_coroutine`` is the method through which every await of the SDK goes.
  :class:`_LoopContext` overrides it, so that raw SDK awaits are ordered like steps. Missing: running a handler on the
  handler loop is refused (:func:`check_supported`); single steps under ``restate.app`` work.
* ``ServerInvocationContext.take_and_send_output``, ``must_take_notification``, ``create_future``,
  ``create_sleep_future``, ``create_call_future`` and ``ServerSendHandle``, ``ServerDurablePromise`` are overridden or
  wrapped there as well: nothing can be sent from the handler loop, and a durable future may be awaited by several
  tasks, each of which may be cancelled. Missing: a future whose first awaiter was cancelled cannot be awaited again.
* ``PyVM.do_progress`` with a ``PyUnresolvedFuture`` that is built once per wait. The public wrapper converts the
  whole set on every call, which makes a fan-out quadratic, and takes its time for a single step too.
* ``VMWrapper`` is the single place where commands enter the journal; :func:`guard_commands` puts a check there.
  The same goes for ``ServerInvocationContext.random_instance``, whose state is part of what a replay must repeat.
  Missing: misuse is no longer refused, correct code is unaffected.
* ``VMWrapper.take_output`` and ``notify_error``: the error message that the VM writes has no way to ask for a pause, so
  :func:`fail_attempt` adds it. Missing: an error that only a change of code can fix is retried before Restate pauses.
* ``restate.server`` keeps the service it calls in a local variable ``service``, the one place where its mark for
  explicit recovery can be read. Missing: a service with that mark is no longer refused.
* ``restate.server.ServerInvocationContext`` is the class of every handler's context. :func:`allow_observers` lets the
  testing kit put a subclass in its place, for attempts that it makes itself. Missing: the simulator says so.
* ``VMWrapper.vm`` is the compiled VM; for an observer that asks for it, it is wrapped, so that a replay can say what
  the handler asked for, and where. Missing: recorded journals cannot be replayed.
* ``LazyFuture.async_def`` makes the coroutine that fetches the value, which :func:`result_of` awaits without a task.
  Missing: the future itself is awaited, which takes longer.
* ``ReceiveChannel._queue`` tells whether more has arrived, so that the VM is asked once for all of it, and takes what
  wakes the driver up. Missing: the VM is asked after every message, and a refusal waits for the next one.

``tests/test_sdk_seam.py`` fails when one of these names changes.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import inspect
import logging
import math
import random
import struct
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

import restate.server_context as _server
from restate import RestateDurableFuture, RunOptions, TerminalError
from restate.exceptions import SdkInternalException, SuspendedException
from restate.extensions import current_context
from restate.server_context import ServerDurableFuture, ServerInvocationContext
from restate.vm import (
    FirstCompletedUnresolvedFuture,
    SingleUnresolvedFuture,
    UnresolvedFuture,
    VMWrapper,
)

from restate_steps._loop import Cancelled, HandlerTask, running_operation, undo, watchdog
from restate_steps.errors import ConcurrencyError

if TYPE_CHECKING:
    from restate_steps._loop import Execution
    from restate_steps._loop._local import LocalOperation

__all__ = [
    "AttemptObserver",
    "CommandObserver",
    "SdkPort",
    "ServerInvocationContext",
    "allow_observers",
    "ambient_context",
    "check_supported",
    "fail_attempt",
    "guard_commands",
    "invocation_id",
    "keep_state",
    "loop_of",
    "map_failure",
    "observing",
    "result_of",
    "run_unwatched",
    "running_body",
    "set_execution",
    "share_future",
    "share_waits",
    "state_of",
    "uses_explicit_recovery",
    "watch_bodies",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("restate_steps")

# The compiled half of the SDK comes without type information.
_native: Any = importlib.import_module("restate._internal")

_FUNNEL: Final = "create_poll_or_cancel_coroutine"
_STATE: Final = "restate_steps"
IN_THREAD: Final = "_restate_steps_in_thread"
"""Marks the body of a step whose function runs in a thread."""
_EXPLICIT_RECOVERY: Final = "_restate_steps_explicit_recovery"


def ambient_context() -> ServerInvocationContext | None:
    """Return the context of the handler that is running, or None outside a handler."""
    try:
        context = current_context()
    except LookupError:
        return None
    return context if isinstance(context, ServerInvocationContext) else None


def invocation_id(context: ServerInvocationContext) -> str:
    """Return the id of the invocation, without building the SDK's ``Request`` object."""
    return context.invocation.invocation_id


def loop_of(context: ServerInvocationContext) -> asyncio.AbstractEventLoop:
    """Return the event loop that the handler runs in."""
    receiving: asyncio.Task[Any] | None = getattr(context.receive, "_task", None)
    return receiving.get_loop() if receiving is not None else asyncio.get_running_loop()


def uses_explicit_recovery(context: ServerInvocationContext) -> bool:
    """Return whether the handler runs in the SDK's preview mode that repeats ``ctx.run`` on every attempt."""
    if getattr(context.handler, "explicit_recovery", False):
        return True
    if (mark := getattr(context.handler, _EXPLICIT_RECOVERY, None)) is not None:
        return bool(mark)
    # The mark of a whole service is handed to the VM, which does not tell.
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_globals.get("__name__") == "restate.server" and (service := frame.f_locals.get("service")):
            return bool(getattr(service, "explicit_recovery", False))
        frame = frame.f_back
    return False


def note_explicit_recovery(handler: Any, service: Any) -> None:
    """Spare :func:`uses_explicit_recovery` the search for the service of a handler."""
    setattr(handler, _EXPLICIT_RECOVERY, bool(getattr(service, "explicit_recovery", False)))


def check_supported() -> None:
    """Refuse the handler loop on an SDK whose waits go another way.

    Raises:
        ConcurrencyError: The installed restate-sdk has no such method.
    """
    if not hasattr(ServerInvocationContext, _FUNNEL):
        raise ConcurrencyError(
            f"the installed restate-sdk has no ServerInvocationContext.{_FUNNEL}, so what handlers await cannot be "
            "ordered. Install a restate-sdk version that this release of restate-steps was tested with."
        )


# --- commands ---------------------------------------------------------------------------------------------------


class _GuardedVM(VMWrapper):
    """The SDK's VM wrapper with a check before each command; instances become one by class assignment."""

    _check: Callable[[str], None]

    # What every step needs, several times, is written out: passing on arguments of any kind takes as long as the check.
    def sys_run(self, name: str) -> Any:
        self._check("sys_run")
        return super().sys_run(name)

    def do_progress(self, unresolved_future: UnresolvedFuture) -> Any:
        self._check("do_progress")
        return super().do_progress(unresolved_future)


def _guarded(name: str) -> Callable[..., Any]:
    original = getattr(VMWrapper, name)

    @functools.wraps(original)
    def command(self: _GuardedVM, *args: Any, **kwargs: Any) -> Any:
        self._check(name)  # pyright: ignore[reportPrivateUsage]
        return original(self, *args, **kwargs)

    return command


# What reads the input or ends the attempt is the SDK's own doing, never the user's.
_UNGUARDED: Final = frozenset({"sys_input", "sys_end", "sys_write_output_success", "sys_write_output_failure"})

for _name in sorted(dir(VMWrapper)):
    if (_name.startswith("sys_") and _name not in _UNGUARDED | vars(_GuardedVM).keys()) or _name == "attach_invocation":
        setattr(_GuardedVM, _name, _guarded(_name))


class _GuardedRandom(random.Random):
    """The context's random numbers with a check before each: a body that is not run again would draw none."""

    _check: Callable[[str], None]

    def random(self) -> float:
        self._check("random")
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._check("random")
        return super().getrandbits(k)


def guard_commands(context: ServerInvocationContext, check: Callable[[str], None]) -> None:
    """Call ``check(operation)`` before every command that the invocation issues; it refuses by raising."""
    guarded: list[tuple[object, type, type]] = [
        (context.vm, VMWrapper, _GuardedVM),
        (getattr(context, "random_instance", None), random.Random, _GuardedRandom),
    ]
    for thing, plain, guard in guarded:
        if type(thing) is plain:
            thing.__class__ = guard
            cast(Any, thing)._check = check


_FRAME: Final = struct.Struct(">HHI")
_ERROR: Final = 0x0002
_PAUSE: Final = b"\x48\x01"
"""Field 9 of the service protocol's error message, ``behavior``, with the value 1: pause instead of retrying."""


def fail_attempt(context: ServerInvocationContext, error: BaseException, *, pause: bool = False) -> None:
    """Fail the attempt with a retryable error, even if the handler catches the error.

    The VM takes no output after that. So a handler that catches the error cannot end with an answer that rests on it.

    Args:
        context: The SDK's context.
        error: The error.
        pause: Whether Restate is to pause the invocation at once, until it is resumed, because a retry of the same code
            would fail as well. Understood by restate-server 1.7; others retry.
    """
    vm = context.vm
    if not pause:
        vm.notify_error(f"{type(error).__name__}: {error}", "")
        return
    before = bytes(vm.take_output() or b"")
    vm.notify_error(f"{type(error).__name__}: {error}", "")
    _give_back(vm, before + _asking_to_pause(bytes(vm.take_output() or b"")))


def _asking_to_pause(output: bytes) -> bytes:
    """Add the wish to pause to the VM's error message, if that is what it wrote."""
    if len(output) < _FRAME.size:
        return output
    kind, flags, size = _FRAME.unpack_from(output)
    if kind != _ERROR or _FRAME.size + size != len(output):
        return output
    return _FRAME.pack(kind, flags, size + len(_PAUSE)) + output[_FRAME.size :] + _PAUSE


def _give_back(vm: VMWrapper, output: bytes) -> None:
    """Let the SDK take output that was taken from the VM, as the next it takes."""

    def take_output() -> bytes:
        vars(vm).pop("take_output", None)
        return output

    if output:
        cast(Any, vm).take_output = take_output


def state_of(context: ServerInvocationContext) -> Any:
    """Return what :func:`keep_state` has kept, or None."""
    return vars(context).get(_STATE)


def keep_state(context: ServerInvocationContext, state: Any) -> None:
    """Keep this package's state of the invocation; its ``__close__`` is called when the handler has ended.

    It hangs on the context itself: the SDK's extension data is gone when the handler's context managers exit, and a
    state made anew would give their steps the idempotency keys of the handler's first ones.
    """
    vars(context)[_STATE] = state
    context.extension_data[_STATE] = state


class _Bodies(dict[int, Callable[[], Awaitable[None]]]):
    """The SDK's bodies that are to run, each told where it runs before it does.

    Attributes:
        watched: Whether that goes for those that are added now.
    """

    watched = True

    def __init__(self, bodies: dict[int, Callable[[], Awaitable[None]]], enter: Callable[[int], None]) -> None:
        super().__init__()
        self._enter = enter
        for handle, body in bodies.items():
            self[handle] = body

    def __setitem__(self, handle: int, body: Callable[[], Awaitable[None]]) -> None:
        def run() -> Awaitable[None]:
            self._enter(handle)
            return body()

        super().__setitem__(handle, run if self.watched else body)


def watch_bodies(context: ServerInvocationContext, enter: Callable[[int], None]) -> None:
    """Call ``enter(handle)`` in each body of ``ctx.run``, before the body itself, in the body's own context."""
    context.run_coros_to_execute = _Bodies(context.run_coros_to_execute, enter)


def run_unwatched(
    context: ServerInvocationContext, name: str, body: Callable[[], Awaitable[T]], options: RunOptions[T]
) -> RestateDurableFuture[T]:
    """Call ``ctx.run_typed`` for a body that marks itself, which :func:`watch_bodies` would do only to be overruled."""
    bodies = cast(_Bodies, context.run_coros_to_execute)
    bodies.watched = False
    try:
        return context.run_typed(name, cast(Any, body), options)
    finally:
        bodies.watched = True


def running_body() -> int | None:
    """Return the handle of the ``ctx.run`` in whose body the caller runs, if the SDK started that body itself."""
    task = asyncio.current_task()
    coro: Any = task.get_coro() if task is not None else None
    if getattr(coro, "__qualname__", None) != f"ServerInvocationContext.{_FUNNEL}.<locals>.wrapper":
        return None
    start: Any = coro.cr_frame.f_locals.get("f")
    names: tuple[str, ...] = start.__code__.co_freevars
    return cast(int, start.__closure__[names.index("handle")].cell_contents)


# --- futures ----------------------------------------------------------------------------------------------------


async def result_of(future: RestateDurableFuture[T]) -> T:
    """Await a durable future that nothing else awaits, without what sharing it costs."""
    durable = cast(Any, future)
    shared = getattr(durable, "future", None)
    if not isinstance(shared, _SharedResult):
        return await future
    if not durable.is_completed():
        context = durable.context
        if (execution := context.execution) is not None:
            # A body that has to run is not there yet.
            if durable.handle in context.run_coros_to_execute or not execution.has(durable.handle):
                await execution.wait(SingleUnresolvedFuture(durable.handle))
        else:
            await _wait_alone(context, durable.handle)
    return await cast("_SharedResult[T]", shared).async_def()


async def _wait_alone(context: Any, handle: int) -> None:
    """Wait for one future as the SDK does, but without translating all that the VM is asked and answers."""
    vm, check = context.vm.vm, getattr(context.vm, "_check", None)
    awaited = _native.PyUnresolvedFuture.single(handle)
    while True:
        await context.take_and_send_output()
        if check is not None:
            check("do_progress")
        progress = _progress(vm, awaited)
        if isinstance(progress, _native.PyDoProgressAnyCompleted):
            return
        if isinstance(progress, _native.PyDoProgressCancelSignalReceived):
            raise TerminalError("cancelled", 409)
        if isinstance(progress, _native.PyDoProgressExecuteRun):
            body = context.run_coros_to_execute.pop(progress.handle)
            context.tasks.add(asyncio.create_task(_run_and_tell(context, body)))
        else:
            _take(vm, await context.receive())


async def _run_and_tell(context: Any, body: Callable[[], Awaitable[None]]) -> None:
    try:
        await body()
    finally:
        await context.receive.enqueue_restate_event({"type": "restate.run_completed", "data": None})


def _progress(vm: Any, awaited: Any) -> Any:
    """Have the VM go on to the next completion of what is awaited, and return what it answers."""
    try:
        progress = vm.do_progress(awaited)
    except _native.VMException as error:
        logger.warning("the attempt failed, Restate will retry it: %s", error)
        raise SdkInternalException from error
    if isinstance(progress, _native.PySuspended):
        raise SuspendedException
    return progress


def _take(vm: Any, event: Any) -> None:
    """Hand the VM what the server sent."""
    if event.get("type") == "restate.run_completed":
        return
    if event.get("type") == "http.disconnect":
        raise _server.DisconnectedException
    if body := event.get("body"):
        vm.notify_input(body)
    if not event.get("more_body", False):
        vm.notify_input_closed()


def map_failure(future: Any, convert: Callable[[TerminalError], BaseException]) -> None:
    """Make ``await future`` raise ``convert(error)`` where it would raise a ``TerminalError``."""
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
            # Its cause stays: by it the SDK knows that an exception nobody catches is terminal.
            raise converted  # noqa: B904

    lazy.async_def = fetch_and_convert


class _SharedResult(Generic[T]):
    """Stands in for the SDK's ``LazyFuture``: several may await it, and each may be cancelled without the others.

    The SDK makes a task for the first awaiter and shares it; when that awaiter is cancelled, the future can never be
    awaited again.
    """

    __slots__ = ("_outcome", "_waiting", "async_def", "task")

    def __init__(self, async_def: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.async_def = async_def
        self.task: asyncio.Task[T] | None = None
        self._outcome: tuple[T | None, BaseException | None] | None = None
        self._waiting: list[tuple[asyncio.Future[None], LocalOperation | None, Any]] | None = None

    def done(self) -> bool:
        """Return whether the result is there."""
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
            # Those who wait now are told; the future itself may still be awaited.
            for each, operation, task in waiting:
                if not each.done():
                    if operation is not None:
                        operation.end_wait()
                    if isinstance(task, HandlerTask):
                        undo(task)
                    each.set_exception(Cancelled())
            raise
        except Exception as error:
            self._outcome = (None, error)
        finally:
            self._waiting = None
            for each, operation, _ in waiting:
                if operation is not None and not each.done():
                    operation.end_wait()
                _settle(each)

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
        # On the handler loop nothing can be sent; the driver does it.
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
    """With a journal codec: decoding may be interrupted, and the VM hands out a result once."""

    taken: dict[int, Any]
    """The results that the VM has handed out, by handle, not decoded yet."""

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
    """Let a durable future of the SDK's be awaited by several, unless it is awaited already."""
    lazy = getattr(future, "future", None)
    if isinstance(lazy, _server.LazyFuture) and cast(Any, lazy).task is None:
        _shared(future)


@functools.cache
def _with_shared_waits(
    base: type[_LoopContext], context_type: type[ServerInvocationContext]
) -> type[ServerInvocationContext]:
    return type(context_type.__name__, (base, context_type), {})


def share_waits(context: ServerInvocationContext) -> None:
    """Let every wait on this context go through :attr:`execution`, once :func:`set_execution` has set one."""
    if isinstance(context, _LoopContext):
        return
    has_codec = context.journal_codec is not None
    context.__class__ = _with_shared_waits(_DecodingContext if has_codec else _LoopContext, type(context))
    cast(Any, context).execution = None
    if has_codec:
        cast(Any, context).taken = {}
        cast(Any, context).journal_codec = _LocalCodec(context)


def set_execution(context: ServerInvocationContext, execution: Execution | None) -> None:
    """Let an execution order everything that is awaited on this context."""
    cast(Any, context).execution = execution


class _LocalCodec:
    """A journal codec that decodes on the server's loop, where it may talk to the network."""

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


# --- the port ---------------------------------------------------------------------------------------------------


class Wait(Protocol):
    """What the port needs to know of a wait."""

    @property
    def source(self) -> UnresolvedFuture: ...

    @property
    def context(self) -> contextvars.Context: ...


_GROUP_SIZE: Final = 32

HOLD_BACK_SECONDS: Final = 60.0
"""How long a failing body waits for others, at most: theirs may wait for something that only its retry brings."""


class _Group:
    """Some waits, each with what the VM takes for it.

    All waits are handed to the VM each time, a group as one future, so that only groups that have changed are built.

    Attributes:
        waits: The waits.
        built: What the VM takes for all of them; None after a change.
    """

    __slots__ = ("built", "waits")

    def __init__(self) -> None:
        self.waits: dict[Wait, Any] = {}
        self.built: Any = None

    def any(self) -> Any:
        """Return the future that is completed as soon as one of the waits is."""
        if self.built is None:
            self.built = _native.PyUnresolvedFuture.first_completed(list(self.waits.values()))
        return self.built


class SdkPort:
    """Polls the SDK's VM for a set of waits; the only code of this package that does.

    One instance serves one invocation. It starts the bodies of the runs that are waited for, sends what the VM has
    to say, and feeds it what the server answers, as ``create_poll_or_cancel_coroutine`` does for a single future.
    """

    def __init__(self, context: ServerInvocationContext, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._tasks: Any = context.tasks
        self._vm: Any = cast(Any, context.vm).vm
        self._waits: dict[Wait, _Group | None] = {}
        # Most handlers wait for one future at a time, which needs no groups and no index.
        self._lone: Wait | None = None
        self._awaited_alone: Any = None
        self._groups: list[_Group] = []
        self._by_handle: dict[int, list[Wait]] = {}
        # What is left to wait for of each wait that combines several futures. A future that has completed must be
        # taken out while it can be seen: to the VM, one whose value was taken by another branch is not completed.
        self._composites: dict[Wait, UnresolvedFuture] = {}
        self._sending = asyncio.Lock()
        # Bodies that have been started and have not ended, and those of them that hold their failure back.
        self._working = 0
        self._held: list[asyncio.Future[None]] = []

    @property
    def context(self) -> ServerInvocationContext:
        """The SDK's context."""
        return self._context

    def __bool__(self) -> bool:
        return bool(self._waits)

    def waits(self) -> list[Any]:
        """Return what is polled for, in the order in which it was added."""
        return list(self._waits)

    def add(self, wait: Wait) -> None:
        """Poll for ``wait`` from now on."""
        if not self._waits and isinstance(wait.source, SingleUnresolvedFuture):
            self._lone = wait
            self._awaited_alone = _convert(wait.source)
            self._waits[wait] = None
            return
        if (lone := self._lone) is not None:
            self._lone = None
            self._index(lone)
        self._index(wait)

    def _index(self, wait: Wait) -> None:
        groups, source = self._groups, wait.source
        if not groups or len(groups[-1].waits) == _GROUP_SIZE:
            groups.append(_Group())
        group = self._waits[wait] = groups[-1]
        group.waits[wait] = _convert(source)
        group.built = None
        if not isinstance(source, SingleUnresolvedFuture):
            self._composites[wait] = source
        for handle in _handles(source):
            self._by_handle.setdefault(handle, []).append(wait)

    def discard(self, wait: Wait) -> None:
        """Poll no longer for ``wait``."""
        group = self._waits.pop(wait, None)
        if wait is self._lone:
            self._lone = None
        if group is None:
            return
        del group.waits[wait]
        group.built = None
        if not group.waits:
            self._groups.remove(group)
        for handle in _handles(wait.source):
            sharing = self._by_handle[handle]
            sharing.remove(wait)
            if not sharing:
                del self._by_handle[handle]
        self._composites.pop(wait, None)

    def ask(self) -> list[Wait] | None:
        """Have the VM go on to the next completion that is waited for.

        It goes through what the server sent in journal order, and stops there. Bodies that are to run are started.

        Returns:
            The waits that this completion ends (more than one if they share a future), in the order in which they
            were added; empty if the server has to send something first; None when the invocation was cancelled.

        Raises:
            SuspendedException: The server asked the attempt to end; it will be resumed.
            SdkInternalException: The attempt failed, for example because a step's body raised.
        """
        lone = self._lone
        while True:
            progress = _progress(self._vm, self._awaited())
            if isinstance(progress, _native.PyDoProgressExecuteRun):
                self._start_body(progress.handle)
                self._start_siblings()
            elif isinstance(progress, _native.PyDoProgressAnyCompleted):
                if lone is not None:
                    return [lone]
                if done := self._done():
                    return done
                # One of several futures that a wait waits for together: it needs the rest.
            else:
                return None if isinstance(progress, _native.PyDoProgressCancelSignalReceived) else []

    def ask_for(self, handle: int) -> bool | None:
        """Ask once for the only future that is waited for: as :meth:`ask`, without the cost of a wait if it is there.

        Returns:
            Whether it is there; None when the invocation was cancelled. It must not be a body that has to run.

        Raises:
            BaseException: As :meth:`ask`.
        """
        progress = _progress(self._vm, _native.PyUnresolvedFuture.single(handle))
        if isinstance(progress, _native.PyDoProgressAnyCompleted):
            return True
        return None if isinstance(progress, _native.PyDoProgressCancelSignalReceived) else False

    def _awaited(self) -> Any:
        if self._lone is not None:
            return self._awaited_alone
        return _native.PyUnresolvedFuture.first_completed([group.any() for group in self._groups])

    def sleep(self, seconds: float) -> UnresolvedFuture:
        """Begin a durable sleep, and return what to poll for."""
        # The SDK rounds down, and a timer must not end early.
        delay = timedelta(milliseconds=math.ceil(round(seconds * 1000, 3)))
        return SingleUnresolvedFuture(cast(Any, self._context.sleep(delay)).handle)

    def interrupt(self) -> None:
        """Make :meth:`wait` return."""
        arrived: asyncio.Queue[Any] | None = getattr(self._context.receive, "_queue", None)
        if arrived is not None:
            arrived.put_nowait({"type": "restate.run_completed", "data": None})

    async def wait(self) -> None:
        """Send what the VM has to say, and wait until the server has sent something or a body has ended.

        Raises:
            DisconnectedException: The connection to the server is gone.
        """
        receive = self._context.receive
        await self.flush()
        _take(self._vm, await receive())
        # All that is there: asking the VM takes time in proportion to what is waited for.
        arrived: asyncio.Queue[Any] | None = getattr(receive, "_queue", None)
        while arrived is not None and not arrived.empty():
            _take(self._vm, await receive())

    def _done(self) -> list[Wait]:
        is_completed = self._vm.is_completed
        if not self._composites:
            # No loop in Python: completions may come in any order, so this may look at all of them.
            return list(self._by_handle[next(filter(is_completed, self._by_handle))])
        done: list[Wait] = []
        for wait in list(self._waits):
            source = self._composites.get(wait, wait.source)
            rest = self._rest(source)
            if rest is None:
                done.append(wait)
            elif rest != source:
                self._composites[wait] = rest
                group = cast(_Group, self._waits[wait])
                group.waits[wait], group.built = _convert(rest), None
        return done

    def _rest(self, source: UnresolvedFuture) -> UnresolvedFuture | None:
        """Return what is left to wait for of ``source``; None if it is done."""
        if isinstance(source, SingleUnresolvedFuture):
            return None if self._vm.is_completed(source.handle) else source
        rests = [self._rest(child) for child in source.children]
        left = [rest for rest in rests if rest is not None]
        if not left or (isinstance(source, FirstCompletedUnresolvedFuture) and len(left) < len(rests)):
            return None
        return type(source)(left)

    async def flush(self) -> None:
        """Send the VM's output to the server, in the order in which the VM produced it."""
        await self._sending.acquire()
        try:
            await ServerInvocationContext.take_and_send_output(self._context)  # type: ignore[no-untyped-call]
        finally:
            self._sending.release()

    def fail(self, error: BaseException, *, pause: bool = False) -> None:
        """See :func:`fail_attempt`."""
        fail_attempt(self._context, error, pause=pause)

    def _start_siblings(self) -> None:
        # The VM asks for one body per call, and a call costs time in proportion to what it is given. It has just
        # said that nothing it received is left to hand out, and it receives nothing before the next await: until
        # then asking for single handles cannot change the order of completions.
        if not self._by_handle:
            return
        for handle in list(self._context.run_coros_to_execute):
            if handle in self._by_handle:
                progress = self._vm.do_progress(_native.PyUnresolvedFuture.single(handle))
                if isinstance(progress, _native.PyDoProgressExecuteRun):
                    self._start_body(progress.handle)

    def _start_body(self, handle: int) -> None:
        run = self._context.run_coros_to_execute.pop(handle)
        # A body sees the context variables of the branch that asked for it first, not those of whoever polls.
        wait = self._lone if self._lone is not None else self._by_handle[handle][0]
        context = wait.context.copy()
        self._working += 1
        # Not by create_task: the running loop is the handler's, or a task factory may start the body at once.
        self._tasks.add(asyncio.Task(self._run_body(run), loop=self._loop, context=context))

    async def _run_body(self, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
            # The result leaves at once: if it waited for the next poll, a crash in between would repeat the body. What
            # ends in the same turn of the event loop leaves with it, as sending is most of what a short step costs.
            if self._working > 1:
                await asyncio.sleep(0)
            await self.flush()
        finally:
            self._working -= 1
            self._let_go()
            await self._context.receive.enqueue_restate_event({"type": "restate.run_completed", "data": None})

    async def hold_back(self) -> None:
        """Wait, in a body that is about to fail, until the bodies beside it have ended and their results have left.

        The failure ends the attempt, and what has no result by then runs again in the next one.
        """
        if self._working - len(self._held) <= 1:
            return
        loop = asyncio.get_running_loop()
        held: asyncio.Future[None] = loop.create_future()
        self._held.append(held)
        limit = loop.call_later(HOLD_BACK_SECONDS, watchdog(functools.partial(_settle, held)))
        try:
            await held
        finally:
            limit.cancel()
            self._held.remove(held)

    def _let_go(self) -> None:
        if self._held and self._working == len(self._held):
            for held in self._held:
                _settle(held)


def _settle(future: asyncio.Future[None]) -> None:
    """Let a future's awaiter go on, unless it may already."""
    if not future.done():
        future.set_result(None)


def _handles(source: UnresolvedFuture) -> Iterable[int]:
    if isinstance(source, SingleUnresolvedFuture):
        return (source.handle,)
    return [handle for child in source.children for handle in _handles(child)]


def _convert(source: UnresolvedFuture) -> Any:
    if isinstance(source, SingleUnresolvedFuture):
        return _native.PyUnresolvedFuture.single(source.handle)
    children = [_convert(child) for child in source.children]
    if isinstance(source, FirstCompletedUnresolvedFuture):
        return _native.PyUnresolvedFuture.first_completed(children)
    return _native.PyUnresolvedFuture.all_completed(children)


# --- observation ------------------------------------------------------------------------------------------------


class AttemptObserver(Protocol):
    """What :mod:`restate_steps.testing` wants to know of an attempt, and what it decides."""

    def run_requested(self, handle: int, name: str) -> None:
        """A step was asked for, now or in an earlier attempt."""
        ...

    def delay_requested(self, milliseconds: int) -> None:
        """A sleep, or a call that is to be made later, was asked for."""
        ...

    def awakeable_made(self, awakeable_id: str) -> None:
        """An awakeable was asked for, now or in an earlier attempt."""
        ...

    def call_requested(self, handle: int, name: str) -> None:
        """Another handler is called, and its result has this handle."""
        ...

    def result_read(self, handle: int) -> None:
        """The handler takes the result of this handle."""
        ...

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        """Wait until a body may run; ``in_thread`` says that all of it runs in a thread, which cannot be cancelled."""
        ...

    def body_ended(self, handle: int) -> None:
        """A body has ended, well or badly, and its result was handed to the VM."""
        ...


class CommandObserver(AttemptObserver, Protocol):
    """One that wants to know what the handler asks of the VM as well: its commands, and its waits."""

    def asked(self, operation: str, arguments: tuple[Any, ...]) -> None:
        """The VM is about to be asked for something, by the name of its method; seen from the task that asks."""
        ...

    def refused(self, operation: str, arguments: tuple[Any, ...], error: Exception) -> None:
        """The VM has refused what it was asked for."""
        ...


observing: Final[contextvars.ContextVar[AttemptObserver | None]] = contextvars.ContextVar("observing", default=None)
"""Who observes the attempt that is being made; seen in every task of the attempt."""


class _WatchedVM:
    """The native VM, which also tells an observer what it is asked for."""

    def __init__(self, vm: Any, observer: CommandObserver) -> None:
        self._vm, self._observer = vm, observer

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._vm, name)
        if not name.startswith("sys_") and name not in ("attach_invocation", "do_progress", "take_notification"):
            return original

        def ask(*arguments: Any) -> Any:
            self._observer.asked(name, arguments)
            try:
                return original(*arguments)
            except Exception as error:
                self._observer.refused(name, arguments, error)
                raise

        return ask


class _ObservedContext(ServerInvocationContext):
    """The SDK's context, which also tells an observer what the wire does not say, or says in real time.

    Which body a handle belongs to, when a body starts, and how long a sleep was to last: the VM sends the moment at
    which it ends, by the real clock.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._observer = cast(AttemptObserver, observing.get())
        # Asked by name: whether it fits the whole protocol takes longer than all else here.
        if hasattr(self._observer, "asked"):
            cast(Any, self.vm).vm = _WatchedVM(cast(Any, self.vm).vm, cast(CommandObserver, self._observer))

    def run(self, name: str, *args: Any, **options: Any) -> Any:
        future = super().run(name, *args, **options)
        self._observer.run_requested(cast(Any, future).handle, name)
        return future

    def run_typed(self, name: str, /, *args: Any, **options: Any) -> Any:
        future = super().run_typed(name, *args, **options)
        self._observer.run_requested(cast(Any, future).handle, name)
        return future

    def sleep(self, delta: timedelta, name: str | None = None) -> Any:
        self._observer.delay_requested(int(delta.total_seconds() * 1000))
        return super().sleep(delta, name)

    def awakeable(self, *args: Any, **options: Any) -> Any:
        awakeable = super().awakeable(*args, **options)
        self._observer.awakeable_made(awakeable[0])
        return awakeable

    def do_raw_call(
        self,
        service: str,
        handler: str,
        input_param: Any,
        input_serde: Any,
        output_serde: Any,
        key: str | None = None,
        send_delay: timedelta | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        if send_delay:
            self._observer.delay_requested(int(send_delay.total_seconds() * 1000))
        call = super().do_raw_call(
            service, handler, input_param, input_serde, output_serde, key, send_delay, *rest, **options
        )
        if (handle := getattr(call, "handle", None)) is not None:
            self._observer.call_requested(handle, f"{service}/{handler}")
        return call

    async def must_take_notification(self, handle: int) -> Any:
        self._observer.result_read(handle)
        return await super().must_take_notification(handle)  # type: ignore[no-untyped-call]

    async def create_run_coroutine(self, handle: int, action: Any, *args: Any, **options: Any) -> None:
        marked = hasattr(getattr(action, "func", action), IN_THREAD)
        await self._observer.body_starts(handle, marked or not inspect.iscoroutinefunction(action))
        try:
            await super().create_run_coroutine(handle, action, *args, **options)
        finally:
            self._observer.body_ended(handle)


def _make_context(*args: Any, **options: Any) -> ServerInvocationContext:
    make = ServerInvocationContext if observing.get() is None else _ObservedContext
    return make(*args, **options)


def allow_observers() -> None:
    """Let attempts be observed from now on; those that nobody observes are made as before."""
    server = importlib.import_module("restate.server")
    if not hasattr(server, "ServerInvocationContext"):
        raise RuntimeError(
            "the installed restate-sdk makes the contexts of handlers elsewhere, so they cannot be observed. Install "
            "a restate-sdk version that this release of restate-steps was tested with."
        )
    cast(Any, server).ServerInvocationContext = _make_context
