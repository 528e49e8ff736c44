"""A handler's timers, which are durable sleeps.

* **T1** A timer becomes a sleep in the journal once nothing else is ready. Until then it costs nothing.
* **T2** ``loop.time()`` is the time of the latest timer that has fired, in seconds since the handler's start. It is the
  same in every attempt, and advances only when a timer fires.
* **T3** While a local operation is in flight, nothing from the journal is delivered. Timers that its task, or a parent
  of its task, started around it use the server's clock meanwhile, so that a client library's timeout works.
* **T4** Code may poll without sleeping, while there is a durable wait or the code reads the time. It continues after a
  durable sleep, each twice as long as the one before. The sleep is created before the driver asks the VM, so the VM's
  answer cannot change whether it is created.
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
    """A timer that has become a durable sleep, as one of the port's waits."""

    __slots__ = ("context", "source", "timer", "timers")

    def __init__(self, timers: Timers, timer: TimerHandle, source: Any) -> None:
        self.timers = timers
        self.timer = timer
        self.source = source
        self.context: Context = cast(Any, timer)._context

    def complete(self) -> None:
        """Fire the timer."""
        self.timers.end(self.timer)


class Timers:
    """The live timers of one execution.

    Attributes:
        now: The time of the latest timer that has fired, in seconds (T2).
        was_read: True if code has read the time since the last sleep of T4.
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
        """Add a timer; one that is due already is scheduled immediately."""
        if math.isnan(timer.when()):
            raise ValueError("the time of a timer must be a number, got nan")
        if timer.when() <= self.now:
            self._execution.ready.schedule(timer)
        elif timer.when() != math.inf:
            execution = self._execution
            self._live[timer] = (execution.current_task(), execution.server_loop.time())

    def read(self) -> float:
        """Return :attr:`now` to handler code, and note that it was read."""
        self.was_read = True
        return self.now

    def discard(self, timer: TimerHandle) -> None:
        """Remove a cancelled timer."""
        self._live.pop(timer, None)
        if (durable := self._durable.pop(timer, None)) is not None:
            self._execution.discard_wait(durable)

    def clear(self) -> None:
        """Remove all timers."""
        for timer in list(self._live):
            self.discard(timer)

    def end(self, timer: TimerHandle) -> None:
        """Fire a timer: advance the time, and schedule its callback."""
        self.discard(timer)
        self.now = max(self.now, timer.when())
        self._execution.ready.schedule(timer)

    def make_durable(self) -> None:
        """Create a durable sleep for each timer that has none, in the order in which they were started (T1)."""
        if len(self._durable) == len(self._live):
            return
        # Not in the order in which they fire: a delay with random jitter would then change the order of the commands.
        for timer in [timer for timer in self._live if timer not in self._durable]:
            seconds = min(timer.when() - self.now, _LONGEST_SECONDS)
            durable = DurableTimer(self, timer, self._execution.begin_sleep(seconds))
            self._durable[timer] = durable
            self._execution.add_wait(durable)

    def poll(self) -> None:
        """Start a sleep after which code that polls continues, unless one is in progress (T4)."""
        if self._poll is None:
            execution = self._execution
            self._poll = execution.loop.call_later(self._poll_seconds, self._end_poll, context=execution.own_context())
            self.was_read = False
            self._poll_seconds = min(2 * self._poll_seconds, _LONGEST_POLL_SECONDS)

    def _end_poll(self) -> None:
        # Running it is enough: it counts as something that has happened, so parked callbacks run again.
        self._poll = None

    def only_limit(self) -> bool:
        """Return whether every durable wait is a timer that does not end an ``asyncio.sleep``, as in a timeout (E2)."""
        waits = self._execution.port.waits()
        return all(isinstance(each, DurableTimer) and not is_sleep(cast(Any, each.timer)._callback) for each in waits)

    def sleepers(self) -> Iterator[tuple[TimerHandle, Any]]:
        """Yield each timer that ends an ``asyncio.sleep``, with the future that the sleeper awaits."""
        for timer in list(self._durable):
            wake: Any = timer
            if is_sleep(wake._callback):
                yield timer, wake._args[0]

    # --- server's clock -----------------------------------------------------------------------------------------

    def next_around(self, task: HandlerTask | None) -> tuple[float, TimerHandle] | None:
        """Return the timer around a task's local operation that fires first on the server's clock, and when (T3)."""
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
