"""A handler's ready queue: which callback runs next.

A *turn* is one run of a callback or, for a task, its code up to its next wait. Invariants:

* **R1** Turns run one at a time. Callbacks that a turn schedules run right after it, in their order, before everything
  that was ready earlier. So the length of a chain of callbacks does not matter: a helper task or a callback that a
  library adds does not change the order of others.
* **R2** A task that yields without waiting for anything (``asyncio.sleep(0)``) continues its turn, up to ``KEEP``
  times in a row. Then everything else that is ready runs first.
* **R3** Wake-ups that one turn causes by cancelling tasks are sorted by the tasks' numbers, because anyio cancels in
  the order of a set. The same holds for the tasks that ``asyncio.as_completed`` creates in the order of a set.
* **R4** A callback that reschedules itself ``SPIN`` times, without anything else happening, is *parked*: it runs again
  after something has happened. anyio's repeated delivery of a cancellation is parked immediately. Other code that polls
  this way sleeps durably meanwhile (T4).
* **R5** Nothing waits in the queue forever: after ``STREAK`` turns that descend from one another, new ones go to the
  end.
* **R6** After ``BUDGET`` turns and yields without anything happening outside, the queue stops, even if more is ready.
  Otherwise code that polls, such as two tasks that wake each other, would keep the driver from asking the VM. Such code
  sleeps durably, too (T4).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from restate_steps._loop._task import HandlerTask

__all__ = ["BUDGET", "KEEP", "SLICE", "SPIN", "STREAK", "Handle", "ReadyQueue", "owner_of"]

KEEP: Final = 64
"""The number of yields without waiting after which other tasks run."""

SPIN: Final = 10_000
"""The number of yields without waiting after which a task counts as polling."""

BUDGET: Final = 100_000
"""The number of turns and yields after which a durable or local event has to happen."""

SLICE: Final = 1_000
"""The number of turns after which the driver yields to the server's loop."""

STREAK: Final = 10_000
"""The maximum number of turns in a row that descend from one another while others are ready."""


class Handle(asyncio.Handle):
    """A scheduled callback.

    Attributes:
        order: The sort key among the unordered handles of its turn; None if its position is final.
        spins: The number of times its task has yielded since something else happened.
    """

    __slots__ = ("order", "spins")

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        # Without the base class's __init__, which queries the loop's debug mode each time.
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self.order: int | None = None
        self.spins = 0


class ReadyQueue:
    """Callbacks that are ready to run.

    Args:
        on_error: Called with a callback's exception and handle.

    Attributes:
        turn: The handles that the current turn has scheduled.
        held: True if no other turn may begin.
        is_polling: True if a parked callback may belong to code that polls, which anyio's do not.
        is_exhausted: True if more is ready, but something has to happen outside first (R6).
        budget: The number of turns and yields left until something has to happen outside (R6).
        order: The sort key of new handles, while tasks are cancelled or created in an arbitrary order.
    """

    def __init__(self, on_error: Callable[[BaseException, asyncio.Handle], None]) -> None:
        self.turn: list[asyncio.Handle] = []
        self.held = False
        self.is_polling = self.is_exhausted = False
        self.budget = BUDGET
        self.order: int | None = None
        self._on_error = on_error
        self._queue: deque[asyncio.Handle] = deque()
        self._parked: list[asyncio.Handle] = []
        self._descendants = 0
        self._streak = 0
        # The number of turns that did more than polling, and its value when the parked handles last ran.
        self._turns = 0
        self._turns_seen = 0
        self._sorting = False
        # The running task, and the number of its yields, in this turn and in those before it.
        self._running: HandlerTask | None = None
        self._yields = 0
        self._spins = 0

    def __bool__(self) -> bool:
        return bool(self._queue or self.turn)

    @property
    def last(self) -> HandlerTask | None:
        """The running task, if nothing is ready to run after it."""
        return None if self.turn or self._queue or self._parked or self.held else self._running

    def begin_turn(self) -> None:
        """Start a new turn of the running task."""
        self._turns += 1
        self._streak = self._yields = self._spins = 0

    def schedule(self, handle: asyncio.Handle) -> None:
        """Add a callback to those that the current turn has scheduled."""
        if self.order is not None and isinstance(handle, Handle):
            handle.order = self.order
            self._sorting = True
        self.turn.append(handle)

    def append(self, handle: asyncio.Handle) -> None:
        """Add a callback behind everything that is ready."""
        self._queue.append(handle)

    def prepend(self, handle: asyncio.Handle) -> None:
        """Add a callback before everything that is ready."""
        self._queue.appendleft(handle)

    def clear(self) -> None:
        """Remove everything."""
        self._queue.clear()
        self._parked.clear()
        self.is_polling = False
        self.turn = []
        self._running = None

    def _unpark(self) -> None:
        self._queue.extend(self._parked)
        self._parked.clear()
        self.is_polling = False
        self._turns_seen = self._turns

    def unpark(self) -> None:
        """Let polling code continue although nothing has happened."""
        if self.is_polling:
            self._unpark()

    def refill(self) -> None:
        """Reset the budget, because something has happened outside of the queue."""
        self.budget = BUDGET
        self.is_exhausted = False

    def run(self) -> bool:
        """Run turns until nothing is ready, :attr:`held` is set, or ``SLICE`` turns have run.

        Returns:
            True if more may run after the driver has yielded to the server's loop.
        """
        queue = self._queue
        if self.turn:
            self._end_turn()
        elif not queue and not self._parked:
            return False
        end = max(self.budget - SLICE, 0)
        while not self.held:
            if self.budget <= end:
                self.is_exhausted = self.budget == 0 and bool(queue)
                return self.budget > 0
            if not queue:
                self._streak = 0
                if not self._parked or self._turns == self._turns_seen:
                    return False
                self._unpark()
            handle = queue.popleft()
            if self._descendants:
                self._descendants -= 1
                self._streak += 1
            else:
                self._streak = 0
            if not handle._cancelled:
                self._run_turn(handle)
                self.budget = max(self.budget - 1 - self._yields, 0)
        return False

    def run_descendants(self) -> None:
        """Run the handles that were just scheduled, and their descendants, although :attr:`held` is set."""
        outer, self._descendants = self._descendants, 0
        self._end_turn()
        while self._descendants:
            self._descendants -= 1
            handle = self._queue.popleft()
            if not handle._cancelled:
                self._run_turn(handle)
        self._descendants = outer

    def run_within_turn(self) -> None:
        """Run the last scheduled handle within the current turn, to which the handles that it schedules are added."""
        handle: Any = self.turn.pop()
        outer, self.turn = self.turn, []
        task = handle._callback.__self__
        for _ in range(KEEP):
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._on_error(error, handle)
            if not self.turn or getattr(cast(Any, self.turn[-1])._callback, "__self__", None) is not task:
                break
            handle = self.turn.pop()
        else:
            self.turn.append(handle)
        self.turn = [*outer, *self.turn]

    def _run_turn(self, handle: Any) -> None:
        task = getattr(handle._callback, "__self__", None)
        is_task = isinstance(task, asyncio.Task)
        self._running = cast(Any, task) if is_task else None
        self._yields = 0
        self._spins = getattr(handle, "spins", 0)
        while True:
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._on_error(error, handle)
            turn = self.turn
            if not turn:
                break
            last: Any = turn[-1]
            if is_task and getattr(last._callback, "__self__", None) is task and not last._cancelled:
                # R2: the task has yielded without waiting.
                turn.pop()
                self._yields += 1
                if self._yields < KEEP:
                    handle = last
                    continue
                self._put_off(last, self._spins + self._yields, alone=not turn)
                self._end_turn()
                return
            if len(turn) == 1 and not is_task and last._callback == handle._callback and last._args == handle._args:
                turn.pop()
                self._put_off(last, self._spins + 1, alone=True)
                return
            break
        self._turns += 1
        self._end_turn()

    def _put_off(self, handle: Any, spins: int, *, alone: bool) -> None:
        if not alone:
            self._turns += 1
        is_anyio = _is_anyio(handle._callback)
        if is_anyio or spins >= SPIN:
            spins = 0
            self._parked.append(handle)
            self.is_polling = self.is_polling or not is_anyio
        else:
            self._queue.append(handle)
        if isinstance(handle, Handle):
            handle.spins = spins

    def _end_turn(self) -> None:
        turn = self.turn
        if not turn:
            return
        self.turn = []
        if self._sorting:
            self._sorting = False
            turn = _sorted(turn)
        if self._streak > STREAK:
            self._queue.extend(turn)
            return
        if len(turn) == 1:
            self._queue.appendleft(turn[0])
        else:
            turn.reverse()
            self._queue.extendleft(turn)
        self._descendants += len(turn)


def _is_anyio(callback: Any) -> bool:
    return str(getattr(callback, "__module__", None)).startswith("anyio.")


def owner_of(handle: Any) -> Any:
    """Return the object whose method a handle calls, such as the task that it resumes."""
    return getattr(handle._callback, "__self__", None)


def _sorted(turn: list[asyncio.Handle]) -> list[asyncio.Handle]:
    """Sort the unordered handles among the positions that they have (R3)."""
    positions = [index for index, handle in enumerate(turn) if getattr(handle, "order", None) is not None]
    handles = sorted((turn[index] for index in positions), key=lambda handle: getattr(handle, "order", 0))
    for index, handle in zip(positions, handles, strict=True):
        turn[index] = handle
    return turn
