"""Crews: tasks that a library starts at once on behalf of one strand, and waits for until all have ended.

The library knows nothing of branches: its tasks run beside the strand that started them, driven by asyncio. Here each
of them does its work as a branch, and they come together before any of them goes on. Invariants:

* **C1** A crew takes whoever joins until the event loop has turned a few times without anybody joining. What the tasks
  do up to there is local and short, so who is in it does not depend on the outside. Who comes later, while the crew is
  at work, is in the next one.
* **C2** While the crew is at work its strand is parked (B2), although asyncio may go on with its task. What that task
  does then is refused (B1), unless it waits for :meth:`Crew.turn`.
* **C3** Nobody returns from :func:`join` before the last branch of the crew has ended. Then the strand holds the baton,
  and the tasks go on one after another, as parts of it.
* **C4** Who is alone is a part of its strand anyway, and works where it is.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from ._scheduler import Scheduler
from ._strand import Branch, State, Strand, Wait

__all__ = ["Crew", "join"]

T = TypeVar("T")

_IDLE_TURNS: Final = 3
"""Turns of the event loop without anybody joining after which a crew goes to work.

A library that starts its tasks in steps, a group of tasks from within a task, needs one turn a step.
"""


async def join(
    scheduler: Scheduler,
    function: Callable[[], Coroutine[Any, Any, T]],
    *,
    name: str,
    task: asyncio.Task[Any] | None,
    alone: bool = True,
) -> T:
    """Do something concurrently with the other tasks that a library started, in an order that a replay repeats.

    Args:
        scheduler: That of the invocation.
        function: Called without arguments; what it returns is awaited, in a branch of its own or, if nobody else joins,
            here.
        name: A name for messages.
        task: The strand's own task, which waits for the caller; None if the strand is a branch.
        alone: Whether somebody who is alone may work without a branch. Not if the strand's own task does something
            durable meanwhile.

    Returns:
        What ``function`` returned.
    """
    strand = scheduler.current()
    while (crew := strand.crew) is not None and crew.working:
        await crew.wait()
    if crew is None:
        crew = strand.crew = Crew(scheduler, strand, task)
    member = crew.take(function, name, alone)
    try:
        if not await member.turn:
            return await function()
    except asyncio.CancelledError:
        if member.branch is None:
            crew.leave(member)
            raise
        crew.cancel(member)
        await crew.wait()
        raise
    assert member.branch is not None
    if member.branch.error is not None:
        raise member.branch.error
    return cast(T, member.branch.result)


class _Member:
    """One task of a crew.

    Attributes:
        turn: Done when the task may go on: with True when its branch has ended, with False if it shall work alone.
        branch: Its branch, once the crew is at work.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, Any]], name: str, alone: bool) -> None:
        self.function = function
        self.name = name
        self.alone = alone
        self.context = contextvars.copy_context()
        self.turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.branch: Branch | None = None


class Crew:
    """The tasks that joined for one strand at one time.

    Args:
        scheduler: That of the invocation.
        strand: The strand.
        task: The strand's own task, if it is the handler's.

    Attributes:
        working: Whether it has branches, some of which have not ended.
    """

    def __init__(self, scheduler: Scheduler, strand: Strand, task: asyncio.Task[Any] | None) -> None:
        loop = asyncio.get_running_loop()
        self.working = False
        self._scheduler = scheduler
        self._strand = strand
        self._task = task
        self._members: list[_Member] = []
        self._live = 0
        self._idle = 0
        # What the strand is parked at: set when the last branch has ended.
        self._over: asyncio.Future[None] = loop.create_future()
        # Set a moment later, when the strand has got the baton back.
        self._finished: asyncio.Future[None] = loop.create_future()
        self._wait: Wait | None = None
        self._parking = False
        self._calls = 0
        loop.call_soon(self._gather)

    def take(self, function: Callable[[], Coroutine[Any, Any, Any]], name: str, alone: bool) -> _Member:
        """Add a task."""
        member = _Member(function, name, alone)
        self._members.append(member)
        self._idle = 0
        return member

    def leave(self, member: _Member) -> None:
        """Do without a task that was cancelled before the crew went to work."""
        if member in self._members:
            self._members.remove(member)

    def _gather(self) -> None:
        """Wait for more to join, then go to work (C1)."""
        self._idle += 1
        if self._idle <= _IDLE_TURNS:
            asyncio.get_running_loop().call_soon(self._gather)
            return
        if len(self._members) > 1 or not all(member.alone for member in self._members):
            self._work()
            return
        self._strand.crew = None
        for member in self._members:
            if not member.turn.done():
                member.turn.set_result(False)

    def _work(self) -> None:
        self.working = True
        try:
            for member in self._members:
                member.branch = member.context.run(self._spawn, member)
                self._live += 1
        except BaseException as error:
            # Refused: the scheduler is closed now, and so are the branches that were opened.
            self._release(error)
            return
        self._park()

    def _spawn(self, member: _Member) -> Branch:
        return self._scheduler.spawn(member.function(), member.name, self._ended, self._task)

    def _ended(self, branch: Branch) -> None:
        self._live -= 1
        if self._live:
            return
        if not self._over.done():
            self._over.set_result(None)
        if self._scheduler.closed is not None:
            # Nobody gets the baton any more.
            self._release(None)

    # --- the strand ---------------------------------------------------------------------------------------------

    def _park(self) -> None:
        self._parking = False
        if self._scheduler.closed is not None or self._finished.done():
            return
        wait = self._wait = self._scheduler.park_at(self._strand, self._over)
        wait.future.add_done_callback(self._resumed)

    def _resumed(self, granted: asyncio.Future[None]) -> None:
        """The strand holds the baton again: all have ended (C3), or its task has something to do (C2)."""
        if not granted.cancelled() and granted.exception() is None and not self._live:
            self._release(None)

    def _release(self, error: BaseException | None) -> None:
        self.working = False
        self._strand.crew = None
        if not self._finished.done():
            self._finished.set_result(None)
        for member in self._members:
            if member.turn.done():
                continue
            if error is not None:
                member.turn.set_exception(error)
            else:
                member.turn.set_result(True)

    async def wait(self) -> None:
        """Wait until it has finished its work, whatever happens meanwhile."""
        while not self._finished.done():
            try:
                await asyncio.shield(self._finished)
            except asyncio.CancelledError:
                continue

    def cancel(self, member: _Member) -> None:
        """Cancel the branch of a task that was cancelled, and let the crew go on so that it can clean up."""
        if self._finished.done():
            return
        if self._scheduler.closed is not None:
            if not self._live:
                # Its branches had ended before the attempt did, while the strand had its turn.
                self._release(None)
            return
        if self._scheduler.holder is not self._strand:
            # Not the strand's doing, whose turn it is not.
            self._scheduler.refuse_cancellation(self._strand)
            return
        assert member.branch is not None
        self._scheduler.cancel_when_cleaned_up(member.branch)
        if not self._parking:
            self._parking = True
            asyncio.get_running_loop().call_soon(self._park)

    def call(self) -> None:
        """Have the strand's task get a turn, because a branch gave it something to do; called by that branch."""
        self._calls += 1
        if self._strand.wait is self._wait:
            # Otherwise it has its turn, and waits for something that it does in it.
            self._scheduler.wake(self._strand)

    async def turn(self) -> None:
        """Wait for the turn that a branch called for, in the strand's own task."""
        while self._strand.state is not State.RUNNING and self._wait is not None and not self._finished.done():
            await asyncio.shield(self._wait.future)

    def rest(self) -> None:
        """Give the turn back, if it was the last that was called for."""
        if self._calls:
            self._calls -= 1
        if self._calls or self._finished.done() or self._strand.state is not State.RUNNING:
            return
        if self._live:
            self._park()
        else:
            self._release(None)
