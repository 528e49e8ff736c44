"""Strands: the lines of execution inside one handler, and how a branch is driven.

A branch's coroutine is driven by hand, inside an asyncio task of its own: :meth:`Branch._drive` sees every future the
coroutine blocks on, tells the scheduler, and resumes the coroutine only when both the future is done and the branch
holds the baton. The invariants are in ``_scheduler``.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import types
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from .._sdk import forget_task

if TYPE_CHECKING:
    from ._crew import Crew
    from ._scheduler import Scheduler

__all__ = ["Branch", "MainStrand", "State", "Strand", "Wait", "current_strand"]

current_strand: contextvars.ContextVar[Strand | None] = contextvars.ContextVar("restate_steps_strand", default=None)


class State(enum.Enum):
    """Where a strand is in its life."""

    READY = enum.auto()
    """In the ready queue, waiting for the baton."""
    RUNNING = enum.auto()
    """Holds the baton, though it may be at a local await."""
    PARKED = enum.auto()
    """Gave the baton up at a wait."""
    DONE = enum.auto()
    """Ended."""


class Wait:
    """One point at which strands wait: for something durable, or (without a ``source``) for other strands.

    Attributes:
        source: What the port polls for.
        task: The SDK's task that waits on behalf of the strands, if any.
        future: What the waiting code awaits.
        strands: Who waits, in order.
        context: Context variables of whoever waited first; a body started for this wait runs in them.
        complete: Whether the source has come up in the journal.
        error: What the waiting code shall receive instead of a completion.
    """

    __slots__ = ("complete", "context", "error", "future", "source", "strands", "task")

    def __init__(self, source: Any, task: asyncio.Task[Any] | None) -> None:
        self.source = source
        self.task = task
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.strands: list[Strand] = []
        self.context = contextvars.copy_context()
        self.complete = False
        self.error: BaseException | None = None

    @property
    def shared(self) -> bool:
        """Whether several strands wait here for one durable future."""
        return self.source is not None and len(self.strands) > 1

    def settle(self, error: BaseException | None = None) -> None:
        """Let the waiting code go on."""
        if self.future.done():
            return
        if error is None:
            error = self.error
        if error is None:
            self.future.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            self.future.cancel()
        else:
            self.future.set_exception(error)


class Strand:
    """One line of execution.

    Attributes:
        path: Place in the tree of branches, for example ``(0, 2)`` for the third branch opened by the first branch
            of the handler; a function of the journal, so names and keys may be built from it.
        task: The asyncio task it runs in.
        wait: What it is parked at.
        primitive: The future of an asyncio primitive it is parked at.
        interruption: The exception it receives when its turn comes.
        told_cancelled: Whether it, or a branch below it, has been told that the invocation is cancelled.
        cleaning_up: Whether it still handles that; cancelling it for another reason has to wait.
        deferred: The cancellation that waits for that.
        crew: The tasks that work for it as branches of their own; see ``_crew``.
    """

    def __init__(self, scheduler: Scheduler, path: tuple[int, ...]) -> None:
        self.scheduler = scheduler
        self.path = path
        self.state = State.READY
        self.task: asyncio.Task[Any] | None = None
        self.wait: Wait | None = None
        self.primitive: asyncio.Future[Any] | None = None
        self.interruption: BaseException | None = None
        self.told_cancelled = False
        self.cleaning_up = False
        self.deferred: BaseException | None = None
        self.crew: Crew | None = None
        self.opened = 0

    def take_interruption(self) -> BaseException | None:
        """Return the pending exception, once."""
        error, self.interruption = self.interruption, None
        return error

    def chain(self) -> Any:
        """Return the outermost coroutine of this strand."""
        return self.task.get_coro() if self.task is not None else None


class MainStrand(Strand):
    """The handler's own coroutine, which asyncio drives.

    Attributes:
        task_cancelled: Whether the scheduler cancelled its asyncio task, and that has not been received yet.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, ())
        self.state = State.RUNNING
        self.task_cancelled = False

    def __repr__(self) -> str:
        return "the handler"


class Branch(Strand):
    """A coroutine that runs beside others.

    Args:
        scheduler: Who hands out the baton.
        parent: The strand that opened it.
        coro: The coroutine to run.
        name: For messages and for :meth:`asyncio.Task.get_name`; the coroutine's name if None.
        on_done: Called when it ends, while it still holds the baton.
        context: Context variables to run in.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        parent: Strand,
        coro: Coroutine[Any, Any, Any],
        name: str | None,
        on_done: Callable[[Branch], None],
        context: contextvars.Context,
    ) -> None:
        super().__init__(scheduler, (*parent.path, parent.opened))
        parent.opened += 1
        self.parent = parent
        self.coro = coro
        self.name = name or f"{_name_of(coro)}[{'.'.join(map(str, self.path))}]"
        self.on_done = on_done
        self.context = context
        self.result: Any = None
        self.error: BaseException | None = None
        self.interrupted = False
        """Whether it has been cancelled by another strand."""
        self.future: asyncio.Future[Any] | None = None
        self._gate: asyncio.Future[None] | None = None
        self._left: Wait | None = None

    def __repr__(self) -> str:
        return f"branch {self.name!r}"

    def chain(self) -> Any:
        return self.coro

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state is State.DONE

    def grant(self, wait: Wait | None) -> None:
        """Go on: the baton is here. ``wait`` is where the branch was parked."""
        self._left = wait
        if self.task is None:
            # Not by create_task: a task factory may start it at once, inside whoever hands over the baton.
            self.task = asyncio.Task(self._run(), name=self.name, context=self.context)
        else:
            self.poke()

    def end(self, error: BaseException) -> None:
        """Receive ``error`` at once, without waiting for the baton: the attempt is over."""
        self.interruption = error
        if self.task is None:
            self._not_started(error)
        else:
            self.poke()

    def poke(self) -> None:
        """Look again whether the branch may go on."""
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)

    def _not_started(self, error: BaseException) -> None:
        self.coro.close()
        self.error = error
        self.state = State.DONE
        self.scheduler.finished(self)

    async def _run(self) -> None:
        current_strand.set(self)
        try:
            self.result = await self._drive()
        except (KeyboardInterrupt, SystemExit) as error:
            self.error = error
            raise
        except BaseException as error:
            self.error = error
        finally:
            self.state = State.DONE
            self.scheduler.finished(self)

    @types.coroutine
    def _drive(self) -> Generator[Any, Any, Any]:
        coro = self.coro
        error = self.take_interruption()
        while True:
            try:
                future = coro.send(None) if error is None else coro.throw(error)
            except StopIteration as stop:
                return stop.value
            self.future = future
            error = yield from self._blocked_on(future)
            self.future = None

    def _blocked_on(self, future: asyncio.Future[Any] | None) -> Generator[Any, Any, BaseException | None]:
        """Wait until the coroutine may be resumed; return what to throw into it, if anything."""
        if future is None:
            # A bare yield, as in asyncio.sleep(0): one turn of the event loop. Whom the branch has just woken must
            # be known before that turn.
            self.scheduler.blocked(self, None)
            try:
                yield
            except asyncio.CancelledError as cancelled:
                return cancelled
        else:
            # The task of this branch waits for a gate of its own, not for the future: cancelling the task must not
            # reach a durable future, which others may share.
            future._asyncio_future_blocking = False
            if self.wait is None or future is not self.wait.future:
                # That of a wait needs no callback: whoever settles it hands over the baton as well.
                future.add_done_callback(self._future_done)
        while True:
            self._gate = asyncio.get_running_loop().create_future()
            if self.state is State.RUNNING and self.interruption is None:
                self.scheduler.blocked(self, future)
            done = future is None or future.done()
            if self.scheduler.closed is not None:
                if self.interruption is not None:
                    return self.take_interruption()
                if done:
                    return None
            elif self.state is State.RUNNING:
                if self.interruption is not None:
                    self.interrupted = True
                    if done or self._parts_from(future):
                        return self.take_interruption()
                    self.take_interruption()
                    assert future is not None
                    future.cancel()
                elif done:
                    return None
            try:
                yield from self._gate
            except asyncio.CancelledError as cancelled:
                if self.scheduler.closed is not None:
                    return cancelled
                if self.state is not State.RUNNING:
                    if not self._cleans_up_elsewhere(future):
                        self.scheduler.refuse_cancellation(self)
                elif future is None or not future.cancel():
                    return cancelled
            finally:
                self._gate = None

    def _cleans_up_elsewhere(self, future: asyncio.Future[Any] | None) -> bool:
        """Whether it was cancelled before, and what it waits for is a plain task of its own that cleans up.

        anyio repeats a cancellation in every turn of the event loop, until what is cancelled has ended. To repeat it
        changes nothing, as the task has heard of it.
        """
        wait = self.wait
        return self.interrupted and wait is not None and future is not wait.future and future is not wait.task

    def _parts_from(self, future: asyncio.Future[Any] | None) -> bool:
        """Leave a future that is durable or belongs to a primitive; False if it is an ordinary local one."""
        if future is self.primitive:
            self.primitive = None
            return True
        left = self._left
        if left is None:
            return False
        if left.task is not None and future is left.task:
            # Nobody else waits for it: let whoever awaits the durable future next start afresh.
            if not left.strands and not left.complete and forget_task(self.coro, left.task):
                left.task.cancel()
            return True
        return future is left.future

    def _future_done(self, future: asyncio.Future[Any]) -> None:
        if future is not self.future:
            # The branch was interrupted and has left this future behind.
            return
        if self.state is State.PARKED and self.interruption is None:
            self.scheduler.woken_from_outside(self)
        self.poke()


def _name_of(coro: Any) -> str:
    """Return a name for a coroutine: that of its function, or of the object (such as a step) that was called."""
    name: str = getattr(coro, "__name__", "branch")
    frame = getattr(coro, "cr_frame", None)
    if name == "__call__" and frame is not None:
        return str(getattr(frame.f_locals.get("self"), "__name__", name))
    return name
