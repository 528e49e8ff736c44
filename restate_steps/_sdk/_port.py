"""Poll the SDK's VM for everything that an execution waits for."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, Final, Protocol, cast

from restate.server_context import ServerInvocationContext
from restate.vm import FirstCompletedUnresolvedFuture, SingleUnresolvedFuture, UnresolvedFuture

from restate_steps._limits import BodyLimit
from restate_steps._loop import watchdog
from restate_steps._sdk._guard import fail_attempt
from restate_steps._sdk._running import RunningBodies
from restate_steps._sdk._vm import hand_over, native, progress_of

__all__ = ["SdkPort"]


class Wait(Protocol):
    """A wait, as the port sees it."""

    @property
    def source(self) -> UnresolvedFuture: ...

    @property
    def context(self) -> contextvars.Context: ...


_GROUP_SIZE: Final = 32

HOLD_BACK_SECONDS: Final = 60.0
"""The maximum time that a failing body waits for the others, which may wait for something that only its retry does."""


class _Group:
    """A group of waits, which the VM gets as one future.

    The VM gets all waits on each poll. With groups, only the groups that have changed are converted again.

    Attributes:
        waits: The waits, each with its VM future.
        built: The VM future of the whole group; None after a change.
    """

    __slots__ = ("built", "waits")

    def __init__(self) -> None:
        self.waits: dict[Wait, Any] = {}
        self.built: Any = None

    def any(self) -> Any:
        """Return the VM future that completes with the first of the waits."""
        if self.built is None:
            self.built = native.PyUnresolvedFuture.first_completed(list(self.waits.values()))
        return self.built


class SdkPort:
    """Polls the SDK's VM for a set of waits.

    One instance serves one invocation. It starts the bodies of awaited runs, sends the VM's output to the server, and
    passes the server's messages to the VM, as ``create_poll_or_cancel_coroutine`` does for a single future.
    """

    def __init__(
        self, context: ServerInvocationContext, loop: asyncio.AbstractEventLoop, limit: BodyLimit | None
    ) -> None:
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
        # The pending part of each wait that combines several futures. A completed future must be removed while this
        # shows: once another task has taken its value, the VM no longer reports it as completed.
        self._composites: dict[Wait, UnresolvedFuture] = {}
        self._sending = asyncio.Lock()
        # The running bodies, and those of them that hold their failure back.
        self._working = RunningBodies(loop, limit)
        self._held: list[asyncio.Future[None]] = []

    @property
    def context(self) -> ServerInvocationContext:
        """The SDK's context."""
        return self._context

    def __bool__(self) -> bool:
        return bool(self._waits)

    def waits(self) -> list[Any]:
        """Return the waits, in the order in which they were added."""
        return list(self._waits)

    def add(self, wait: Wait) -> None:
        """Start polling for ``wait``."""
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
        """Stop polling for ``wait``."""
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
        """Let the VM advance to the next awaited completion, and start the bodies that have to run.

        The VM processes the server's messages in journal order, and stops at that completion.

        Returns:
            The waits that this completion ends (more than one if they share a future), in the order in which they
            were added; empty if the server has to send something first; None if the invocation was cancelled.

        Raises:
            SuspendedException: The server suspends the attempt, and will resume the invocation.
            SdkInternalException: The attempt failed, for example because a step's body raised.
        """
        lone = self._lone
        while True:
            progress = progress_of(self._vm, self._awaited())
            if isinstance(progress, native.PyDoProgressExecuteRun):
                self._start_body(progress.handle)
                self._start_siblings()
            elif isinstance(progress, native.PyDoProgressAnyCompleted):
                if lone is not None:
                    return [lone]
                if done := self._done():
                    return done
                # A wait that combines several futures still needs the others.
            else:
                return None if isinstance(progress, native.PyDoProgressCancelSignalReceived) else []

    def ask_for(self, handle: int) -> bool | None:
        """Poll once for a single future, as :meth:`ask` does, but without the cost of adding a wait.

        It must be the only awaited future, and not that of a body that has to run.

        Returns:
            Whether it is completed; None if the invocation was cancelled.

        Raises:
            BaseException: As :meth:`ask`.
        """
        progress = progress_of(self._vm, native.PyUnresolvedFuture.single(handle))
        if isinstance(progress, native.PyDoProgressAnyCompleted):
            return True
        return None if isinstance(progress, native.PyDoProgressCancelSignalReceived) else False

    def _awaited(self) -> Any:
        if self._lone is not None:
            return self._awaited_alone
        return native.PyUnresolvedFuture.first_completed([group.any() for group in self._groups])

    def sleep(self, seconds: float) -> UnresolvedFuture:
        """Start a durable sleep, and return the future to poll for."""
        # The SDK rounds down, and a timer must not end early.
        delay = timedelta(milliseconds=math.ceil(round(seconds * 1000, 3)))
        return SingleUnresolvedFuture(cast(Any, self._context.sleep(delay)).handle)

    def interrupt(self) -> None:
        """Make :meth:`wait` return."""
        arrived: asyncio.Queue[Any] | None = getattr(self._context.receive, "_queue", None)
        if arrived is not None:
            arrived.put_nowait({"type": "restate.run_completed", "data": None})

    async def wait(self) -> None:
        """Send the VM's output, and wait until the server has sent something or a body has ended.

        Raises:
            DisconnectedException: The connection to the server was closed.
        """
        receive = self._context.receive
        await self.flush()
        hand_over(self._vm, await receive())
        # Take everything that has arrived: polling the VM takes time in proportion to the number of waits.
        arrived: asyncio.Queue[Any] | None = getattr(receive, "_queue", None)
        while arrived is not None and not arrived.empty():
            hand_over(self._vm, await receive())

    def _done(self) -> list[Wait]:
        is_completed = self._vm.is_completed
        if not self._composites:
            # Avoid a loop in Python: completions may come in any order, so this may check every handle.
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
        """Return the pending part of ``source``; None if it is done."""
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

    def close(self) -> None:
        """Release what the port holds, because the handler has ended."""
        self._working.close()

    def fail(self, error: BaseException, *, pause: bool = False) -> None:
        """See :func:`fail_attempt`."""
        fail_attempt(self._context, error, pause=pause)

    def _start_siblings(self) -> None:
        # The VM returns one body per call, and a call takes time in proportion to the handles it is given. The VM has
        # just reported that it has no completion left, and it receives nothing before the next await. Until then,
        # polling for single handles cannot change the order of completions.
        if not self._by_handle:
            return
        for handle in list(self._context.run_coros_to_execute):
            if handle in self._by_handle:
                progress = self._vm.do_progress(native.PyUnresolvedFuture.single(handle))
                if isinstance(progress, native.PyDoProgressExecuteRun):
                    self._start_body(progress.handle)

    def _start_body(self, handle: int) -> None:
        run = self._context.run_coros_to_execute.pop(handle)
        # A body has the context variables of the task that first awaited it, not those of the driver.
        wait = self._lone if self._lone is not None else self._by_handle[handle][0]
        context = wait.context.copy()
        self._working.add(handle, context)
        # Not create_task: the running loop is the handler's, or a task factory may start the body at once.
        self._tasks.add(asyncio.Task(self._run_body(handle, run), loop=self._loop, context=context))

    async def _run_body(self, handle: int, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
            # Send the result at once: if it waited for the next poll, a crash in between would repeat the body. Results
            # of the same turn of the event loop leave together, because sending is most of a short step's cost.
            if len(self._working) > 1:
                await asyncio.sleep(0)
            await self.flush()
        finally:
            self._working.discard(handle)
            self._release_held()
            await self._context.receive.enqueue_restate_event({"type": "restate.run_completed", "data": None})

    async def hold_back(self) -> None:
        """Wait, in a body that is about to fail, until the other bodies have ended and their results are sent.

        The failure ends the attempt, and a body whose result was not sent runs again in the next one.
        """
        if len(self._working) - len(self._held) <= 1:
            return
        loop = asyncio.get_running_loop()
        held: asyncio.Future[None] = loop.create_future()
        self._held.append(held)
        limit = loop.call_later(HOLD_BACK_SECONDS, watchdog(functools.partial(_resume, held)))
        try:
            await held
        finally:
            limit.cancel()
            self._held.remove(held)

    def _release_held(self) -> None:
        if self._held and len(self._working) == len(self._held):
            for held in self._held:
                _resume(held)


def _resume(future: asyncio.Future[None]) -> None:
    """Resume the awaiter of a future, unless it is done already."""
    if not future.done():
        future.set_result(None)


def _handles(source: UnresolvedFuture) -> Iterable[int]:
    if isinstance(source, SingleUnresolvedFuture):
        return (source.handle,)
    return [handle for child in source.children for handle in _handles(child)]


def _convert(source: UnresolvedFuture) -> Any:
    if isinstance(source, SingleUnresolvedFuture):
        return native.PyUnresolvedFuture.single(source.handle)
    children = [_convert(child) for child in source.children]
    if isinstance(source, FirstCompletedUnresolvedFuture):
        return native.PyUnresolvedFuture.first_completed(children)
    return native.PyUnresolvedFuture.all_completed(children)
