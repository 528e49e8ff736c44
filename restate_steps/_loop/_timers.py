"""The timers of a handler, which are durable sleeps.

* **T1** A timer costs nothing until nothing else is ready. Then it becomes a sleep in the journal.
* **T2** The time is that of the latest timer that has ended, counted from the handler's beginning. It is the same in
  every attempt, and moves only when a timer ends.
* **T3** While a local operation holds the turn, nothing of the journal is delivered. Timers that were made around the
  operation, by its task or one above, go by the server's clock meanwhile, so that a timeout of a client library works.
* **T4** Code that polls without sleeping, while something durable is waited for or the time is read, gets another
  chance after a durable sleep, each twice as long as the one before. It is made before the VM is asked, so whether it
  is made does not depend on what the VM has.
"""

from __future__ import annotations

import math
from asyncio import TimerHandle
from collections.abc import Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, cast

from restate_steps._loop._asyncio import is_sleep
from restate_steps._loop._task import HandlerTask

if TYPE_CHECKING:
    from restate_steps._loop._execution import Execution

__all__ = ["DurableTimer", "Timers"]

_LONGEST_SECONDS: Final = 100 * 366 * 86400.0
_FIRST_POLL_SECONDS: Final = 0.01
_LONGEST_POLL_SECONDS: Final = 10.0


class DurableTimer:
    """A timer that has become a sleep; one of the port's waits."""

    __slots__ = ("context", "source", "timer", "timers")

    def __init__(self, timers: Timers, timer: TimerHandle, source: Any) -> None:
        self.timers = timers
        self.timer = timer
        self.source = source
        self.context: Context = cast(Any, timer)._context

    def complete(self) -> None:
        """Run the timer's callback: its time has come."""
        self.timers.end(self.timer)


class Timers:
    """The live timers of one execution.

    Attributes:
        now: The time, in seconds.
        was_read: Whether code has read the time since it was last let poll.
    """

    def __init__(self, execution: Execution) -> None:
        self.now = 0.0
        self.was_read = False
        self._execution = execution
        self._live: dict[TimerHandle, tuple[HandlerTask | None, float]] = {}
        self._durable: dict[TimerHandle, DurableTimer] = {}
        self._poll_seconds = _FIRST_POLL_SECONDS
        self._poll: TimerHandle | None = None

    def __bool__(self) -> bool:
        return bool(self._live)

    def add(self, timer: TimerHandle) -> None:
        """Add a timer; one that is due runs with what is ready."""
        if math.isnan(timer.when()):
            raise ValueError("the time of a timer must be a number, got nan")
        if timer.when() <= self.now:
            self._execution.ready.schedule(timer)
        elif timer.when() != math.inf:
            execution = self._execution
            self._live[timer] = (execution.current_task(), execution.server_loop.time())

    def read(self) -> float:
        """Return the time."""
        self.was_read = True
        return self.now

    def discard(self, timer: TimerHandle) -> None:
        """Forget a timer that was cancelled."""
        self._live.pop(timer, None)
        if (durable := self._durable.pop(timer, None)) is not None:
            self._execution.forget(durable)

    def clear(self) -> None:
        """Forget all."""
        for timer in list(self._live):
            self.discard(timer)

    def end(self, timer: TimerHandle) -> None:
        """Let a timer's callback run, at its time."""
        self.discard(timer)
        self.now = max(self.now, timer.when())
        self._execution.ready.schedule(timer)

    def make_durable(self) -> None:
        """Make a sleep of each timer that is not one yet, in the order in which they were made (T1)."""
        if len(self._durable) == len(self._live):
            return
        # Not in the order in which they end: then a delay with random jitter would change the order of the commands.
        for timer in [timer for timer in self._live if timer not in self._durable]:
            seconds = min(timer.when() - self.now, _LONGEST_SECONDS)
            durable = DurableTimer(self, timer, self._execution.begin_sleep(seconds))
            self._durable[timer] = durable
            self._execution.watch(durable)

    def poll(self) -> None:
        """Begin a sleep after which code that polls gets another chance, unless one has begun (T4)."""
        if self._poll is None:
            execution = self._execution
            self._poll = execution.loop.call_later(self._poll_seconds, self._end_poll, context=execution.own_context())
            self.was_read = False
            self._poll_seconds = min(2 * self._poll_seconds, _LONGEST_POLL_SECONDS)

    def _end_poll(self) -> None:
        # That it runs is enough: something has happened.
        self._poll = None

    def only_limit(self) -> bool:
        """Return whether all that is waited for is timers that end no sleep, as those of timeouts (E2)."""
        waits = self._execution.port.waits()
        return all(isinstance(each, DurableTimer) and not is_sleep(cast(Any, each.timer)._callback) for each in waits)

    def sleepers(self) -> Iterator[tuple[TimerHandle, Any]]:
        """Yield the timers that end an ``asyncio.sleep``, each with the future that the sleeper waits for."""
        for timer in list(self._durable):
            wake: Any = timer
            if is_sleep(wake._callback):
                yield timer, wake._args[0]

    # --- by the server's clock ----------------------------------------------------------------------------------

    def next_around(self, task: HandlerTask | None) -> tuple[float, TimerHandle] | None:
        """Return the timer around a task's local operation that ends first by the server's clock, and when (T3)."""
        around: set[HandlerTask] = set()
        while task is not None:
            around.add(task)
            task = task.parent
        ends = [
            (begun + timer.when() - self.now, timer)
            for timer, (maker, begun) in self._live.items()
            if (maker is None or maker in around) and timer is not self._poll
        ]
        return min(ends, key=lambda end: end[0]) if ends else None
