"""An event loop in virtual time that reports when nothing can run.

It is asyncio's own loop with another selector. asyncio asks the selector to wait exactly when nothing is ready, so
that is when ``on_idle`` decides what happens next. Sockets, pipes and threads work: while a task waits for one of them,
the loop waits in real time.

L1. A callback runs only if it was ready, or its virtual time has come; time passes only by
    :meth:`SimulatedLoop.advance`.
L2. ``on_idle`` is called when nothing is ready and no thread is working, unless a thread takes very long.
L3. A *watchdog* is a timer that only checks the program (``callback.watchdog`` is true). One that is due within
    :data:`_AT_ONCE` runs before ``on_idle`` is called, and takes no time; the others do not count as timers. A timer
    that only logs (``callback.only_logs`` is true) never runs.
L4. A loop in which something is always ready is stopped after :data:`_MAX_TURNS` turns. Otherwise, no event would ever
    be chosen.
L5. The loop can run inside another loop's task, which does not notice it.
L6. At the end, no time passes and waiting tasks are cancelled. Tasks that ignore it are abandoned, and so are threads
    that take very long.
    Programs that still run are killed.
L7. An idle connection costs nothing: the loop waits in real time only for a working thread, or if a task of
    :attr:`SimulatedLoop.waiting` waits for the outside world. It waits once for each such wait: if nothing arrives, it
    assumes that nothing ever will. While something is open, a very short sleep takes as long in real time, because it
    may be a poll.
"""

from __future__ import annotations

import asyncio
import atexit
import selectors
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from restate_steps.testing._simulation.external_waits import external_waits

__all__ = ["SimulatedLoop"]

_CLEAN_UP: Final = 0.02
_ANSWER: Final = 5.0
_THREADS: Final = 60.0
_POLL: Final = 0.05
_OWN_SOCKETS: Final = 1
_ANYIO: Final = "anyio._backends._asyncio"
_AT_ONCE: Final = 0.1
_MAX_LOOKS: Final = 12
_MAX_TURNS = 100_000
_HOPS: Final = 200
_FIRST_PRUNING: Final = 1000
_THREAD_LEFT: Final = (
    f"a thread of the handler still runs after {_THREADS:g} s. Threads cannot be stopped, so the simulator leaves it, "
    "but Python waits for it before it exits. Let its function return."
)


class _IdleSelector(selectors.BaseSelector):
    """A selector that reports idleness instead of waiting, unless there is something to wait for."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.loop: SimulatedLoop | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = cast("SimulatedLoop", self.loop)
        if timeout is not None and timeout <= 0:
            # Callbacks that are ready come first. Poll real events in between, so that they are not starved.
            is_real = self.has_descriptors() or loop.has_threads()
            if not is_real or loop.is_ending:
                loop.turn()
            return self._real.select(0) if is_real else []
        if loop.end_thread():
            return []
        if loop.has_threads():
            events = self._real.select(_THREADS)
        elif not (self.has_descriptors() or loop.has_foreign_threads()):
            # A thread that has just ended may have scheduled a callback.
            events = self._real.select(0) if loop.is_ready() else []
        elif awaited := loop.external_waits():
            events = self._real.select(_ANSWER)
            if not events:
                loop.note_silence(awaited)
        else:
            events = self._real.select(loop.pause(timeout))
        if not events:
            loop.idle(timeout)
        return events

    def has_descriptors(self) -> bool:
        """Return whether sockets or pipes are open, or a program runs that the loop watches."""
        return len(self._real.get_map()) > _OWN_SOCKETS


_spare: list[SimulatedLoop] = []
_MAX_SPARE: Final = 8


@atexit.register
def _close_spare_loops() -> None:
    while _spare:
        _spare.pop().close()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time.

    Args:
        on_idle: Called when nothing is ready, with the virtual time of the next timer, or None. It makes something
            happen and returns True, or returns False to stop the loop.
        now: The virtual time at the start, in seconds.
    """

    def __init__(self, on_idle: Callable[[float | None], bool], now: float = 0.0) -> None:
        selector = _IdleSelector()
        self._now = now
        self._patient = 0
        self._threads: deque[tuple[asyncio.Future[Any], asyncio.Future[Any]]] = deque()
        self._handed: weakref.WeakSet[asyncio.Future[Any]] = weakref.WeakSet()
        self._executors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._threads_before = frozenset(threading.enumerate())
        self._programs: weakref.WeakSet[asyncio.SubprocessTransport] = weakref.WeakSet()
        self._unanswered: weakref.WeakSet[asyncio.Future[Any]] = weakref.WeakSet()
        self._polled = -1.0
        self.waiting: Callable[[], Iterable[asyncio.Task[Any]]] = _no_tasks
        """Return the tasks whose waits for the outside world count; see L7."""
        self.on_silence: Callable[[], None] = _nothing
        """Called when the loop has waited for the outside world, and nothing arrived."""
        self.on_external_access: Callable[[str], None] = _ignore
        """Called when code accesses the outside world, with a description."""
        self.holds_back: Callable[[Callable[[], None]], bool] = _at_once
        """Take a function that starts a thread, to call it later; return False to start the thread immediately."""
        self._on_idle = on_idle
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_kept = _FIRST_PRUNING
        self._watchdogs: list[asyncio.TimerHandle] = []
        self._looks = 0
        self._turns = 0
        self.endless = False
        """True if the loop was stopped because something is always ready; see L4."""
        self.is_ending = False
        """True once :meth:`end` was called."""
        self._gave_up = False
        super().__init__(selector)
        selector.loop = self
        self._idle_selector = selector

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._now

    def advance(self, to: float) -> None:
        """Advance the virtual time."""
        self._now = max(self._now, to)
        self._look(self._now)

    def turn(self) -> None:
        """Count a turn in which something was ready; called by the selector."""
        self._turns += 1
        if self._turns > _MAX_TURNS:
            self.endless = True
            self.stop()

    def is_ready(self) -> bool:
        """Return whether there is a callback to run."""
        return bool(cast(Any, self)._ready)

    def idle(self, timeout: float | None) -> None:
        """Run the watchdogs that are due, or let ``on_idle`` decide; called by the selector."""
        self._turns = 0
        if self._looks < _MAX_LOOKS and self._look(self._now + _AT_ONCE):
            self._looks += 1
            return
        self._looks = 0
        if not self._on_idle(None if timeout is None else self._now + timeout):
            self.stop()

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """Schedule a callback at a virtual time; watchdogs have a list of their own, and loggers never run (L3)."""
        if getattr(callback, "only_logs", False):
            # It cannot change what the program does, so it is never due.
            return asyncio.TimerHandle(when, callback, args, self, context)
        if not getattr(callback, "watchdog", False):
            return super().call_at(when, callback, *args, context=context)
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._watchdogs.append(handle)
        return handle

    def next_watchdog(self) -> float | None:
        """Return when the next watchdog is due, or None."""
        return min((handle.when() for handle in self._watchdogs if not handle.cancelled()), default=None)

    def _look(self, until: float) -> bool:
        """Schedule the watchdogs that are due by a time; return whether there were any."""
        if not self._watchdogs:
            return False
        due = [handle for handle in self._watchdogs if handle.when() <= until and not handle.cancelled()]
        self._watchdogs = [handle for handle in self._watchdogs if handle.when() > until and not handle.cancelled()]
        for handle in due:
            self.call_soon(handle._run)
        return bool(due)

    def run(self) -> None:
        """Run until ``on_idle`` returns False; this also works inside a running loop.

        asyncio allows one running loop and one current task per thread, so the outer ones are hidden meanwhile.
        """
        self._turns, self.endless = 0, False
        outer = asyncio.events._get_running_loop()
        task = asyncio.current_task(outer) if outer is not None else None
        restore = _forget_library()
        if outer is not None and task is not None:
            asyncio.tasks._leave_task(outer, task)
        asyncio.events._set_running_loop(None)
        try:
            self.run_forever()
        finally:
            asyncio.events._set_running_loop(outer)
            if outer is not None and task is not None:
                asyncio.tasks._enter_task(outer, task)
            restore()

    def create_task(self, *args: Any, **options: Any) -> asyncio.Task[Any]:
        """Create a task, and store it: searching asyncio's list of the tasks of all loops is slow."""
        task: asyncio.Task[Any] = super().create_task(*args, **options)
        self._tasks.append(task)
        if len(self._tasks) >= self._tasks_kept:
            self._tasks = self.open_tasks()
            self._tasks_kept = 2 * len(self._tasks) + _FIRST_PRUNING
        return task

    def open_tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that have not ended, oldest first."""
        return [task for task in self._tasks if not task.done()]

    # --- the outside world --------------------------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Run a function in a thread, and deliver its result when nothing else can run.

        When a thread ends is random. So the loop waits for it in real time, and delivers results in the order of the
        calls.
        """
        self.on_external_access("a thread")
        handed: asyncio.Future[Any] = self.create_future()
        self._handed.add(handed)
        if executor is not None:
            self._executors.add(executor)

        def start() -> None:
            result = asyncio.SelectorEventLoop.run_in_executor(self, executor, func, *args)
            self._patient += 1
            self._threads.append((result, handed))

        if not self.holds_back(start):
            start()
        return handed

    def has_threads(self) -> bool:
        """Return whether threads are working that the loop must wait for in real time."""
        if self._gave_up:
            return False
        if self._patient > 0:
            return True
        return _ANYIO in sys.modules and any(_works_for(self, each) for each in threading.enumerate())

    def external_waits(self) -> list[asyncio.Future[Any]]:
        """Return the futures that the outside world may complete, without those that have timed out before."""
        timers: list[asyncio.TimerHandle] = cast(Any, self)._scheduled
        awaited = external_waits(self.waiting(), timers, self._handed)
        return [future for future in awaited if future not in self._unanswered]

    def note_silence(self, awaited: Iterable[asyncio.Future[Any]]) -> None:
        """Record that nothing arrived for these futures; called by the selector."""
        for future in awaited:
            self._unanswered.add(future)
        self.on_silence()

    def pause(self, timeout: float | None) -> float:
        """Return how long to poll in real time, in seconds, although no task waits for the outside world.

        Args:
            timeout: The virtual time until the next timer, in seconds.
        """
        if self.is_ending:
            return _CLEAN_UP
        if timeout is None or timeout > _POLL or self._polled == self._now + timeout:
            return 0.0
        # Code that sleeps so briefly may poll for something external, such as the end of a program.
        self._polled = self._now + timeout
        return timeout

    def has_foreign_threads(self) -> bool:
        """Return whether there are threads that code has started by itself, as some database drivers do."""
        new = [thread for thread in threading.enumerate() if thread not in self._threads_before]
        if not new:
            return False
        executors = [getattr(self, "_default_executor", None), *self._executors]
        own = {thread for executor in executors for thread in getattr(executor, "_threads", ())}
        return any(thread not in own and type(thread).__module__ != _ANYIO for thread in new)

    def end_thread(self) -> bool:
        """Deliver the result of the first thread if it has ended; return whether it has."""
        if not self._threads or not self._threads[0][0].done():
            return False
        result, handed = self._threads.popleft()
        self._patient -= 1
        if handed.done():
            # Nothing waits for it. Retrieve the exception, so that asyncio does not report it.
            _ = result.cancelled() or result.exception()
        elif result.cancelled():
            handed.cancel()
        elif (error := result.exception()) is not None:
            handed.set_exception(error)
        else:
            handed.set_result(result.result())
        return True

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        """Connect, as asyncio does, and report the access."""
        self.on_external_access("a connection")
        return await super().create_connection(*args, **options)

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        """Start a program, as asyncio does, and report the access."""
        self.on_external_access("a program")
        transport, protocol = await super().subprocess_exec(*args, **options)
        self._programs.add(transport)
        return transport, protocol

    async def sock_connect(self, *args: Any, **options: Any) -> Any:
        """Connect a socket, as asyncio does, and report the access."""
        self.on_external_access("a connection")
        return await super().sock_connect(*args, **options)

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Refuse, because the signals of the process belong to the test runner."""
        raise NotImplementedError

    # --- the end ------------------------------------------------------------------------------------------------

    def end(self) -> list[asyncio.Task[Any]]:
        """Cancel the remaining tasks, let them clean up, and close.

        Returns:
            The tasks that did not end although they were cancelled repeatedly.
        """
        self._on_idle, self.is_ending = self._stop_at_end, True
        self.waiting = _no_tasks
        left = self._end_tasks()
        if getattr(self, "_asyncgens", None):
            self.create_task(self.shutdown_asyncgens())
            left = self._end_tasks()
        if programs := [program for program in self._programs if not program.is_closing()]:
            for program in programs:
                program.close()
            self.run()
        if self.has_threads():
            self.run()
        if self.has_threads():
            self._gave_up = True
        if self._gave_up:
            for result, _ in self._threads:
                # A cancelled future does not call a closed loop when its thread ends.
                result.cancel()
        elif getattr(self, "_default_executor", None) is not None:
            self._end_executor()
        self._tasks = []
        if left or self._gave_up or self._is_used() or len(_spare) >= _MAX_SPARE:
            self.set_exception_handler(_say_nothing)
            self.close()
        else:
            _spare.append(self)
        if self._gave_up:
            warnings.warn(_THREAD_LEFT, RuntimeWarning, stacklevel=2)
        return left

    def _end_tasks(self) -> list[asyncio.Task[Any]]:
        """Let tasks end, cancel those that wait, and return those that ignore it (L6)."""
        left = self.open_tasks()
        if not left:
            return left
        # Tasks that notice the lost connection end by themselves, which is cheaper than a cancellation.
        self.run()
        for _ in range(_HOPS):
            left = self.open_tasks()
            if not left:
                break
            for task in left:
                task.cancel()
            self.run()
            if self.endless:
                # A task that ignores it and never waits takes _MAX_TURNS turns each time.
                break
        return self.open_tasks()

    def _stop_at_end(self, next_timer: float | None) -> bool:
        del next_timer
        # The selector has already waited for the threads.
        self._gave_up = self._gave_up or self.has_threads()
        return False

    def _end_executor(self) -> None:
        # asyncio waits for the executor's idle threads in another thread, which the loop must wait for in turn.
        self._patient += 1
        task = self.create_task(self.shutdown_default_executor())
        task.add_done_callback(lambda _: self.stop())
        while not task.done():
            self.run()

    @classmethod
    def acquire(cls, on_idle: Callable[[float | None], bool], now: float = 0.0) -> SimulatedLoop:
        """Return a spare loop that is as good as new, or a new one: creating a loop is slow."""
        try:
            loop = _spare.pop()
        except IndexError:  # Checking first would race with another thread.
            return cls(on_idle, now)
        loop._on_idle, loop._now = on_idle, now
        loop._patient = loop._looks = 0
        loop._threads.clear()
        loop._handed.clear()
        loop._executors.clear()
        loop._threads_before = frozenset(threading.enumerate())
        loop._programs.clear()
        loop._unanswered.clear()
        loop._polled = -1.0
        loop.is_ending = False
        loop.waiting = _no_tasks
        loop.on_silence = _nothing
        loop.on_external_access = _ignore
        loop.holds_back = _at_once
        loop._watchdogs.clear()
        return loop

    def _is_used(self) -> bool:
        """Return whether the loop has something left that its next user could meet: a timer, a thread, a socket."""
        return bool(
            # asyncio accepts no new async generator once it has closed the remaining ones.
            getattr(self, "_asyncgens_shutdown_called", True)
            or getattr(self, "_scheduled", True)
            or getattr(self, "_ready", True)
            or getattr(self, "_default_executor", None)
            or len(self._idle_selector.get_map()) > _OWN_SOCKETS
        )


def _works_for(loop: SimulatedLoop, thread: Any) -> bool:
    """Return whether an anyio thread works for a loop; anyio starts its threads without the loop."""
    if getattr(thread, "loop", None) is not loop or getattr(thread, "stopping", False):
        return False
    return thread not in getattr(thread, "idle_workers", (thread,))


def _forget_library() -> Callable[[], None]:
    """Hide the outer loop's async library from sniffio; return a function that restores it."""
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is None:
        return lambda: None
    # trio sets the former, and anyio's pytest plugin the latter.
    name, sniffio.thread_local.name = sniffio.thread_local.name, None
    token = sniffio.current_async_library_cvar.set(None)

    def restore() -> None:
        sniffio.thread_local.name = name
        sniffio.current_async_library_cvar.reset(token)

    return restore


def _at_once(start: Callable[[], None]) -> bool:
    del start
    return False


def _ignore(what: str) -> None:
    del what


def _no_tasks() -> Iterable[asyncio.Task[Any]]:
    return ()


def _nothing() -> None:
    pass


def _say_nothing(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    del loop, context
