"""The scheduler: concurrent branches whose order is a function of the journal alone.

A *strand* is a line of execution inside one handler: the handler's own coroutine (the main strand) or a branch.
The *baton* says whose turn it is. Invariants; tests cite them by number:

* **B1** At most one strand holds the baton, and only the holder runs user code or issues commands. That includes the
  code before a branch's first step and the handler's own coroutine.
* **B2** A strand gives the baton up only at a *wait*: for something durable, for another strand, or for an
  ``asyncio`` primitive that only another strand can set. At any other ``await`` (a timer, a socket, a thread) it
  keeps the baton, however long that takes.
* **B3** The next holder comes from the ready queue. Strands enter it in an order that only earlier holders and the
  journal decide: when they are spawned, when another strand wakes or cancels them, and when a completion they wait
  for comes up in the journal.
* **B4** The VM is asked only while nobody holds the baton and nobody is ready, and always for everything that is
  waited for. That makes ready whom the next completion lets go on; if there is none yet, the pump sends what there is
  to send and waits for the server, and the VM is asked again.
* **B5** A strand is cancelled by being made ready with an exception; it receives it, once, when it gets the baton.
  Cleaning up, with steps if need be, is therefore ordered like everything else.
* **B6** When the attempt ends (suspension, failure, disconnection, refusal), the scheduler closes: every strand
  receives the same exception at once, and no strand can issue a command any more.
* **B7** What would depend on the clock or on the outside (a timer that interrupts a durable wait, a primitive set from
  outside) closes the scheduler with a :class:`~restate_steps.ConcurrencyError`. So does a state in which nobody can
  go on. Nothing waits for ever.

The scheduler knows Restate only through :class:`Port`; ``restate_steps._sdk`` implements it for the SDK.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from restate import TerminalError

from .._sdk import forget_task, waiting_on, watchdog
from ..errors import ConcurrencyError
from ._strand import Branch, MainStrand, State, Strand, Wait, current_strand
from ._waits import describe, waits_for_another_strand

__all__ = ["CANCELLED", "Port", "Scheduler"]

logger = logging.getLogger("restate_steps")

CANCELLED: Final = 409
"""Status code of the error that tells of the invocation's cancellation, as in the SDK."""

STALL_WARNING_SECONDS: Final = 10.0
STALL_LIMIT_SECONDS: Final = 60.0


class Port(Protocol):
    """What the scheduler needs of the durable world."""

    def install(self, funnel: Callable[[Any], Coroutine[Any, Any, None]]) -> None: ...
    def uninstall(self) -> None: ...
    def add(self, leaf: Any) -> None: ...
    def discard(self, leaf: Any) -> None: ...
    def ask(self) -> Any: ...
    async def wait(self) -> None: ...
    async def hold_back(self) -> None: ...
    def fail(self, error: BaseException) -> None: ...


class Scheduler:
    """Orders the strands of one invocation.

    Args:
        port: The way to the durable world.
    """

    def __init__(self, port: Port) -> None:
        self.main = MainStrand(self)
        self.holder: Strand | None = self.main
        self.closed: BaseException | None = None
        self._port = port
        self._ready: deque[Strand] = deque()
        self._waits: dict[Wait, None] = {}
        self._tasks: dict[asyncio.Future[Any], Wait] = {}
        self._on_primitive: dict[Strand, None] = {}
        self._branches: dict[Branch, None] = {}
        self._work: asyncio.Future[None] | None = None
        self._pump_task: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    # --- strands come and go ------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether branches are open; if not, every await goes straight to the SDK."""
        return bool(self._branches)

    def current(self) -> Strand:
        """Return the strand that the calling code belongs to."""
        strand = current_strand.get()
        return strand if strand is not None and strand.scheduler is self else self.main

    def spawn(
        self,
        coro: Coroutine[Any, Any, Any],
        name: str | None,
        on_done: Callable[[Branch], None],
        task: asyncio.Task[Any] | None = None,
    ) -> Branch:
        """Open a branch; it starts when its turn comes (B3).

        Args:
            coro: What the branch does.
            name: A name for messages.
            on_done: Called when the branch has ended.
            task: The handler's own task, if it is not the one that calls.
        """
        parent = self.current()
        if parent is self.main and not self.active:
            self.main.task = task or asyncio.current_task()
        try:
            self.check("opening a branch")
        except BaseException:
            coro.close()
            raise
        branch = Branch(self, parent, coro, name, on_done, contextvars.copy_context())
        if not self._branches:
            self._port.install(self.wait_for_source)
            self._watch_stalls()
        self._branches[branch] = None
        self._make_ready(branch)
        if self.holder is self.main and self._watch is None:
            self._watch_main()
        return branch

    def command(self, operation: str) -> None:
        """Check a command that is about to enter the journal.

        Raises:
            ConcurrencyError: See :meth:`check`.
        """
        self.check(operation)
        strand = self.holder
        if strand is not None and strand.cleaning_up and sys.exc_info()[1] is None:
            # It has left the except and finally blocks in which it handled the cancellation of the invocation.
            strand.cleaning_up = False
            if strand.deferred is not None:
                strand.interruption, strand.deferred = strand.deferred, None

    def check(self, operation: str) -> None:
        """Refuse what is not the holder's doing (B1, B6).

        Raises:
            ConcurrencyError: The caller runs in a plain asyncio task beside the strand that holds the baton.
        """
        if self.closed is not None:
            raise self.closed
        if (stale := current_strand.get()) is not None and stale.scheduler.closed is not None:
            # A branch that the handler left running; see succeed().
            raise stale.scheduler.closed
        if self.active and self.holder is not (strand := self.current()):
            self.refuse(
                f"{operation} was called by a task that runs beside {strand} while that waits for something else, so "
                "its place in the journal would depend on timing. Start concurrent work with restate_steps.gather, "
                "TaskGroup or map instead of asyncio.create_task, asyncio.gather or asyncio.wait_for."
            )
            assert self.closed is not None
            raise self.closed

    def finished(self, branch: Branch) -> None:
        """Take the baton back from a branch that ended."""
        del self._branches[branch]
        branch.on_done(branch)
        if self.holder is branch:
            self._release()
        if not self._branches and self.closed is None:
            self._idle()

    def _idle(self) -> None:
        self._port.uninstall()
        for timer in (self._watch, self._stall):
            if timer is not None:
                timer.cancel()
        self._watch = self._stall = None

    async def hold_back(self) -> None:
        """Wait, in a body that is about to fail the attempt, for the bodies of other branches."""
        if self.active and self.closed is None:
            await self._port.hold_back()

    # --- waiting ------------------------------------------------------------------------------------------------

    async def wait_for_source(self, source: Any) -> None:
        """Wait for something durable; takes the place of the SDK's await funnel while branches are open."""
        strand = self.current()
        task = asyncio.current_task()
        wait = Wait(source, None if task is strand.task else task)
        if wait.task is not None:
            self._tasks[wait.task] = wait
        try:
            if isinstance(strand, Branch) and wait.task is not None and strand.future is not task:
                # With asyncio.eager_task_factory the SDK's task runs before the branch has come to wait for it.
                await asyncio.sleep(0)
            preempted = isinstance(strand, Branch) and strand.state is State.READY and strand.future is task
            if strand.wait is not wait and not preempted:
                self.check("awaiting a durable future")
                self._register(wait)
                self._park(strand, wait)
            # Otherwise it is parked already, or will be at its next turn: main took the baton just before the SDK's
            # task came here.
            await wait.future
        except asyncio.CancelledError:
            if strand.wait is wait and self.closed is None:
                self.refuse_cancellation(strand)
            raise
        finally:
            self._unregister(wait)
            if wait.task is not None:
                del self._tasks[wait.task]

    async def wait_for_strands(self, register: Callable[[Callable[[], None]], None]) -> None:
        """Wait until another strand calls what is handed to ``register``."""
        strand = self.current()
        self.check("waiting for a branch")
        wait = Wait(None, None)

        def wake() -> None:
            if strand.wait is wait and strand.state is State.PARKED:
                self._make_ready(strand)

        register(wake)
        self._park(strand, wait)
        try:
            await wait.future
        except asyncio.CancelledError:
            if strand.wait is wait and self.closed is None:
                self.refuse_cancellation(strand)
            raise

    def blocked(self, branch: Branch, future: asyncio.Future[Any] | None) -> None:
        """Decide what it means for the others that the holder has come to an ``await`` (B2)."""
        self._wake_from_primitives()
        if future is not None and self.holder is branch and not future.done():
            self._classify(branch, future)

    def _classify(self, strand: Strand, future: asyncio.Future[Any]) -> None:
        if (wait := self._tasks.get(future)) is not None:
            # A durable future that another strand awaits already, or did until it was cancelled.
            if wait.complete:
                # Its first waiter has not had its turn yet; this one need not wait for that.
                wait.settle()
            else:
                self._register(wait)
                self._park(strand, wait)
        elif waits_for_another_strand(strand.chain()):
            self.park_at(strand, future)

    def park_at(self, strand: Strand, future: asyncio.Future[Any]) -> Wait:
        """Park the holder at something that only another strand sets; it is made ready when that has happened."""
        strand.primitive = future
        self._on_primitive[strand] = None
        wait = Wait(None, None)
        self._park(strand, wait)
        return wait

    def wake(self, strand: Strand) -> None:
        """Make a strand ready before what it is parked at has happened; called by the holder."""
        if strand.state is State.PARKED and self.closed is None:
            self._make_ready(strand)

    def _park(self, strand: Strand, wait: Wait) -> None:
        strand.state = State.PARKED
        strand.wait = wait
        wait.strands.append(strand)
        if strand.interruption is not None and not (strand is self.main and wait.shared):
            error = strand.take_interruption()
            assert error is not None
            self.interrupt(strand, error)
        self._release()

    def interrupt(self, strand: Strand, error: BaseException) -> None:
        """Have a strand receive ``error`` when its turn comes (B5)."""
        if self.closed is not None or strand.state is State.DONE or strand.interruption is not None:
            return
        strand.interruption = error
        if strand.state is State.PARKED:
            wait = strand.wait
            if strand is self.main and wait is not None and wait.shared:
                # The SDK's task that main waits for serves others too, and asyncio would cancel it for all of them.
                # Main is interrupted at its next wait instead.
                return
            if wait is not None and wait.source is not None:
                wait.strands.remove(strand)
                if not wait.strands:
                    self._unregister(wait)
            self._make_ready(strand)

    def accept_cancellation(self, strand: Strand) -> None:
        """Forget a cancellation that has been received."""
        strand.interruption = None
        if strand is self.main and self.main.task_cancelled and self.main.task is not None:
            self.main.task_cancelled = False
            self.main.task.uncancel()

    def _register(self, wait: Wait) -> None:
        if wait not in self._waits:
            self._waits[wait] = None
            self._port.add(wait)

    def _unregister(self, wait: Wait) -> None:
        if wait in self._waits:
            del self._waits[wait]
            self._port.discard(wait)

    # --- the baton ----------------------------------------------------------------------------------------------

    def _make_ready(self, strand: Strand) -> None:
        strand.state = State.READY
        self._on_primitive.pop(strand, None)
        self._ready.append(strand)

    def _release(self) -> None:
        self.holder = None
        self._wake_from_primitives()
        self._advance()

    def _advance(self) -> None:
        if self.closed is not None or self.holder is not None:
            return
        while not self._ready:
            if not self._waits:
                self._deadlock()
                return
            if not self._ask():
                return
        self._grant(self._ready.popleft())

    def _grant(self, strand: Strand) -> None:
        self.holder = strand
        strand.state = State.RUNNING
        wait, strand.wait = strand.wait, None
        if isinstance(strand, Branch):
            # An interruption is not what was waited for. Where a plain task of the branch waits, it would ask again at
            # once, and again, before the branch could cancel it.
            if wait is not None and (wait.complete or (wait.source is None and strand.interruption is None)):
                wait.settle()
            strand.grant(wait)
        else:
            assert wait is not None
            self._resume_main(wait)
            self._watch_main()

    def _resume_main(self, wait: Wait) -> None:
        """Wake the handler's own coroutine, which asyncio drives: through the future it waits for."""
        main = self.main
        error = None if wait.shared else main.take_interruption()
        if main.primitive is not None:
            # It wakes by itself when the primitive is set; only a cancellation has to be passed on.
            main.primitive = None
            if error is None:
                wait.settle()
            elif main.task is not None:
                main.task_cancelled = main.task.cancel()
            return
        if error is not None and wait.task is not None and main.task is not None:
            forget_task(main.task.get_coro(), wait.task)
        wait.settle(error)

    # --- main ---------------------------------------------------------------------------------------------------

    def _watch_main(self, delay: float = 0.0005) -> None:
        """While main holds the baton beside open branches, look whether it waits for one of them (B2).

        The handler's coroutine is driven by asyncio, so nothing tells when it blocks. When the look happens does not
        matter for the order: until a branch runs, main cannot go on.
        """
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._branches and self.main.task is not None and self.closed is None:
            self._watch = asyncio.get_running_loop().call_later(delay, self._look_at_main, delay)

    @watchdog
    def _look_at_main(self, delay: float) -> None:
        self._watch = None
        main = self.main
        if self.holder is not main or main.task is None or main.task.done():
            return
        future = waiting_on(main.task)
        if future is not None and not future.done():
            self._classify(main, future)
        if self.holder is main:
            self._watch_main(min(delay * 2, 0.05))

    # --- primitives ---------------------------------------------------------------------------------------------

    def _wake_from_primitives(self) -> None:
        """Make ready whom the holder has just woken through a lock, event or queue, in the order they blocked."""
        for strand in list(self._on_primitive):
            if strand.primitive is None or not strand.primitive.done():
                continue
            del self._on_primitive[strand]
            if strand is self.main:
                # asyncio is about to resume main by itself, so it takes the baton now. A holder that has just come
                # to an await queues again.
                if self.holder is not None:
                    self._make_ready(self.holder)
                self._grant(strand)
            else:
                strand.primitive = None
                self._make_ready(strand)

    def woken_from_outside(self, strand: Branch) -> None:
        """A branch's local await ended although it was not its turn to go on (B7)."""
        if self.closed is not None or strand.crew is not None:
            # The task of a strand whose crew is at work may be woken early; it goes on when its turn comes (C2).
            return
        if self.holder is self.main and strand.primitive is not None:
            # Main is not driven, so what it sets is noticed here.
            strand.primitive = None
            self._make_ready(strand)
            return
        self.refuse(
            f"{strand} was woken by something outside the branches while it waited{describe(strand.coro)}: a timer, "
            "a callback, a thread or a plain asyncio task. When that happens depends on timing, so it cannot be "
            "replayed. Let another branch wake it, put the waiting into a step, or, for a timeout, use "
            "restate_steps.wait_for."
        )

    # --- the pump -----------------------------------------------------------------------------------------------

    def _ask(self) -> bool:
        """Make ready whom the next completion lets go on; if there is none yet, set the pump going (B4)."""
        try:
            done: list[Wait] | None = self._port.ask()
        except BaseException as error:  # the SDK's control flow is not an Exception
            self.close(error)
            return False
        if done is None:
            # Restate tells it once per invocation. Every durable wait hears of it, in the order of waiting.
            for wait in list(self._waits):
                self._complete(wait, TerminalError("cancelled", CANCELLED))
        elif done:
            # All of them before anyone goes on: who goes first takes the value, and it is not seen any more.
            for wait in done:
                self._complete(wait, None)
        elif self._pump_task is None:
            self._pump_task = asyncio.Task(self._pump(), context=contextvars.Context())
        elif self._work is not None and not self._work.done():
            self._work.set_result(None)
        return done is None or bool(done)

    async def _pump(self) -> None:
        try:
            while self.closed is None:
                await self._port.wait()
                # Set before the baton goes on, as whoever gets it may have to wait for the server at once.
                self._work = asyncio.get_running_loop().create_future()
                self._advance()
                if self.closed is None:
                    await self._work
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # the SDK's control flow is not an Exception
            self.close(error)

    def _complete(self, wait: Wait, error: BaseException | None) -> None:
        wait.complete, wait.error = True, error
        self._unregister(wait)
        # Main first: once the SDK's task for this future ends, asyncio wakes main by itself.
        for strand in sorted(wait.strands, key=lambda strand: strand is not self.main):
            if error is not None:
                self._tell_cancelled(strand)
            self._make_ready(strand)

    def _tell_cancelled(self, strand: Strand) -> None:
        # Those above it as well: they hear of it through this branch, and must not be cancelled before they do.
        while not strand.told_cancelled or not strand.cleaning_up:
            strand.told_cancelled = strand.cleaning_up = True
            if not isinstance(strand, Branch):
                break
            strand = strand.parent

    # --- endings ------------------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> None:
        """Close because going on could not be replayed (B7).

        The attempt fails at once, so that code that catches the error cannot make an answer of it.
        """
        if self.closed is None:
            error = ConcurrencyError(reason)
            self._port.fail(error)
            self.close(error)

    def refuse_cancellation(self, strand: Strand) -> None:
        """Close because something local cancelled a strand at a wait (B7)."""
        self.refuse(
            f"{strand} was cancelled by something local (asyncio.timeout, asyncio.wait_for, Task.cancel) while it "
            "waited for something durable. When that happens depends on timing, so it cannot be replayed. Use "
            "restate_steps.wait_for for a timeout, and race, TaskGroup or Task.cancel of restate_steps to cancel."
        )

    def _deadlock(self) -> None:
        parked = [strand for strand in (self.main, *self._branches) if strand.state is State.PARKED]
        if not parked:
            return
        waiting = "; ".join(f"{strand} waits{describe(strand.chain())}" for strand in parked[:10])
        self.refuse(
            f"no branch can go on, because nobody is left who could end the waiting: {waiting}. Release the lock, set "
            "the event or fill the queue before waiting for it."
        )

    @watchdog
    def _watch_stalls(self, since: float = 0.0, holder: Strand | None = None, at: object = None) -> None:
        """Tell of a holder that has been blocked locally for long while others wait for their turn (B7)."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        task = self.holder.task if self.holder is not None else None
        future = waiting_on(task) if task is not None else None
        if holder is None or holder is not self.holder or future is None or future is not at:
            since = now
        elif now - since >= STALL_LIMIT_SECONDS:
            self.refuse(
                f"{holder} has held up the other branches for {now - since:.0f} s, waiting"
                f"{describe(holder.chain())}. Between steps only one branch runs at a time. If it waits for something "
                "slow, put that into a step; if another branch is to end the wait, use an asyncio.Lock, Event or Queue."
            )
            return
        elif now - since >= STALL_WARNING_SECONDS:
            logger.warning("%s holds up the other branches, waiting%s", holder, describe(holder.chain()))
        self._stall = loop.call_later(STALL_WARNING_SECONDS, self._watch_stalls, since, self.holder, future)

    def cancel_when_cleaned_up(self, branch: Branch) -> None:
        """Cancel a branch, but let it finish what it does about the cancellation of the invocation."""
        error = asyncio.CancelledError()
        if branch.cleaning_up and branch.state is not State.DONE:
            branch.deferred = error
        else:
            self.interrupt(branch, error)

    def succeed(self) -> Scheduler:
        """End what the handler left running, and return what orders the branches opened from now on."""
        if not self._branches:
            if self._pump_task is not None:
                self._pump_task.cancel()
                self._pump_task = None
            return self
        self.close(asyncio.CancelledError("the handler has ended"))
        successor = Scheduler(self._port)
        successor.main.opened = self.main.opened
        return successor

    def close(self, error: BaseException) -> None:
        """End every strand with ``error`` (B6)."""
        if self.closed is not None:
            return
        self.closed = error
        self._idle()
        if self._pump_task is not None and self._pump_task is not asyncio.current_task():
            self._pump_task.cancel()
        main, parked_at = self.main, self.main.wait
        self._ready.clear()
        for branch in list(self._branches):
            branch.end(error)
        for wait in list(self._tasks.values()):
            if wait is not parked_at:
                wait.future.cancel()
        if main.primitive is not None and main.crew is None and main.task is not None:
            # Event.wait and the like can only be left by cancellation.
            main.task.cancel()
        elif parked_at is not None:
            parked_at.settle(error)
