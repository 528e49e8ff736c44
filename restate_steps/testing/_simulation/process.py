"""The service's process: an event loop, the attempts that are open in it, and the bodies that they run."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol, cast

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame, decode, make
from restate_steps.testing._observe import AttemptObserver, observing
from restate_steps.testing._simulation.application import Connection
from restate_steps.testing._simulation.invocation import Invocation
from restate_steps.testing._simulation.loop import SimulatedLoop
from restate_steps.testing._simulation.server_model import START_MS, ServerModel
from restate_steps.testing._simulation.trace import BodyRun, Trace
from restate_steps.testing._simulation.turn import Option

__all__ = ["Attempt", "Process", "quiet"]

_INVOKE_TIME: Final = "invoke_time"


class Owner(Protocol):
    """The part of the driver that attempts and processes use."""

    model: ServerModel
    trace: Trace

    def receive(self, attempt: Attempt, frame: Frame) -> None:
        """Handle a message of an attempt."""

    def flush(self) -> bool:
        """Send what the server has to send; return whether there was anything."""
        ...

    def count_body(self, run: BodyRun, process: Process) -> None:
        """Count the run of a body."""

    def idle(self, next_timer: float | None) -> bool:
        """Let one event happen; return False if the loop must stop."""
        ...

    def is_new_failure(self, invocation: Invocation, failure: str) -> bool:
        """Return whether an invocation fails this way for the first time."""
        ...


class Attempt(Connection, AttemptObserver):
    """One open attempt: its connection, and the observer of its context.

    See :class:`restate_steps.testing._observe.AttemptObserver` for what the context reports.
    """

    def __init__(self, owner: Owner, process: Process, invocation: Invocation) -> None:
        super().__init__()
        self.invocation = invocation
        self.number = invocation.attempts
        self.gates: dict[int, asyncio.Future[None]] = {}
        """The bodies that wait until they are chosen to run, by their handle."""
        self.running: dict[int, BodyRun] = {}
        self.open = True
        self.is_closing = False
        self._owner, self._process = owner, process
        self._names: dict[int, str] = {}
        self._calls: dict[int, str] = {}
        self._read: set[int] = set()
        self._delays: list[int] = []
        self._timed = sum(_is_timed(frame) for frame in invocation.journal)

    def is_new_failure(self, failure: str) -> bool:
        """Return whether the invocation fails this way for the first time."""
        return self._owner.is_new_failure(self.invocation, failure)

    # --- the connection -----------------------------------------------------------------------------------------

    async def send(self, event: dict[str, Any]) -> None:
        """Handle an ASGI event of the application."""
        if self._process.dead or not event.get("body"):
            return
        for frame in self.frames_in(event):
            if not self._process.dead:
                self._owner.receive(self, self._in_virtual_time(frame))
        self._owner.flush()

    def feed(self, frames: Sequence[Frame], *, more: bool) -> None:
        """Send messages, unless the server's side is closed."""
        if self.open:
            super().feed(frames, more=more)
            self.open = more

    def close(self) -> None:
        """Close the server's side: the invocation or its attempt has ended."""
        self.is_closing = False
        self.feed([], more=False)

    def close_after_bodies(self) -> None:
        """Let the bodies that the handler left run until the connection closes (D7)."""
        if self.gates and self.open:
            self.is_closing = True
        else:
            self.close()

    def hang_up(self) -> None:
        """Disconnect."""
        self.open = self.is_closing = False
        super().hang_up()

    def _in_virtual_time(self, frame: Frame) -> Frame:
        """Convert the end of a delay to virtual time; the VM computed it with the real clock."""
        if not _is_timed(frame):
            return frame
        fields = decode(frame)
        name = "wake_up_time" if frame.type == MessageType.SLEEP else _INVOKE_TIME
        if self._timed < len(self._delays):
            delay = self._delays[self._timed]
        else:
            delay = max(0, fields[name] - int(time.time() * 1000))
        self._timed += 1
        return make(MessageType(frame.type), flags=frame.flags, **{**fields, name: self._owner.model.now + delay})

    # --- what the context reports -------------------------------------------------------------------------------

    def run_requested(self, handle: int, name: str) -> None:
        self._names[handle] = name

    def call_requested(self, handle: int, name: str) -> None:
        self._calls[handle] = name

    def result_read(self, handle: int) -> None:
        self._read.add(handle)

    def delay_requested(self, milliseconds: int) -> None:
        self._delays.append(milliseconds)

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        if not in_thread:
            gate = self.gates[handle] = asyncio.get_running_loop().create_future()
            try:
                await gate
            finally:
                self.gates.pop(handle, None)
        run = self.running[handle] = BodyRun(
            self.invocation.id, self._names.get(handle, "?"), self.number, self._completion_of(handle)
        )
        if not in_thread:
            self._process.bodies[self, handle] = cast("asyncio.Task[Any]", asyncio.current_task())
            self.body_works(run)
        _body.set(_Body(self, handle, run, in_thread))

    def body_works(self, run: BodyRun) -> None:
        """Count the run of a body that starts its work."""
        run.works = True
        self._owner.count_body(run, self._process)

    def body_ended(self, handle: int) -> None:
        self._process.bodies.pop((self, handle), None)
        run = self.running.pop(handle, None)
        if run is not None and run.works:
            run.ended = True

    def awakeable_made(self, awakeable_id: str) -> None:
        if self._process.dead:
            return
        self._owner.trace.awakeables.setdefault(self.invocation.id, {})[awakeable_id] = None

    # --- its steps and calls ------------------------------------------------------------------------------------

    def unread_failures(self) -> list[str]:
        """Return the steps and calls that failed, and whose results the handler never read."""
        failed: set[int] = set()
        calls: list[int] = []
        for frame in self.invocation.journal:
            if frame.type in (MessageType.RUN_COMPLETION, MessageType.CALL_COMPLETION):
                fields = decode(frame)
                if "failure" in fields:
                    failed.add(fields["completion_id"])
            elif frame.type == MessageType.CALL:
                calls.append(decode(frame)["completion_id"])
        if not failed:
            return []
        made = [*zip(self._names.items(), self.invocation.step_names, strict=False)]
        made += zip(self._calls.items(), calls, strict=False)
        return [name for (handle, name), number in made if number in failed and handle not in self._read]

    def name_of(self, handle: int) -> str:
        """Return the name of a step, with its completion if another waiting step has the same name."""
        name = self._names.get(handle, "?")
        waiting = [*self.gates]
        if self._process.threads:
            waiting += {each.body.handle for each in self._process.threads if each.body.attempt is self}
        same = sum(self._names.get(other) == name for other in waiting)
        return f"{name} (completion {self._completion_of(handle)})" if same > 1 else name

    def _completion_of(self, handle: int) -> int:
        # Steps are requested in the order of their commands in the journal.
        place = list(self._names).index(handle) if handle in self._names else -1
        runs = list(self.invocation.step_names)
        return runs[place] if 0 <= place < len(runs) else 0


class _Body(NamedTuple):
    """The body that the current code belongs to.

    Attributes:
        in_thread: True if all of it runs in a thread.
    """

    attempt: Attempt
    handle: int
    run: BodyRun
    in_thread: bool


class _Thread(NamedTuple):
    """A thread of a body that was started, and does its work when it is chosen: it cannot be cancelled."""

    body: _Body
    start: Callable[[], None]


_body: contextvars.ContextVar[_Body | None] = contextvars.ContextVar("body", default=None)


class Process:
    """The service's process: an event loop, and the attempts that are open in it."""

    def __init__(self, owner: Owner) -> None:
        self.loop = SimulatedLoop.acquire(owner.idle, (owner.model.now - START_MS) / 1000)
        self.loop.holds_back = self._holds_back
        self.loop.waiting = self._waiting
        self.loop.on_silence = self._count_silence
        self.threads: list[_Thread] = []
        self.attempts: dict[str, Attempt] = {}
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.bodies: dict[tuple[Attempt, int], asyncio.Task[Any]] = {}
        """The tasks of the bodies that run on the event loop, by their attempt and handle."""
        self.dead = False
        self._trace = owner.trace

    def body_options(self) -> Iterator[Option]:
        """Return the bodies that can start, and the attempts whose connection can close."""
        for attempt in self.attempts.values():
            if attempt.is_closing:
                yield Option(f"the connection of {attempt.invocation.target} closes", attempt.close)
            if not self.threads:
                for handle in sorted(attempt.gates):
                    yield _start_body(attempt, handle)
                continue
            bodies = [(handle, _start_body(attempt, handle)) for handle in attempt.gates]
            bodies += [(each.body.handle, self._start_thread(each)) for each in self._threads_of(attempt)]
            for _, option in sorted(bodies, key=itemgetter(0)):
                yield option
        if self.threads:
            # An attempt may end before its threads.
            open_attempts = list(self.attempts.values())
            for thread in self.threads:
                if thread.body.attempt not in open_attempts:
                    yield self._start_thread(thread)

    def end(self) -> None:
        """Disconnect every attempt, and tear the event loop down."""
        self.dead = True
        for attempt in self.attempts.values():
            attempt.hang_up()
        with quiet():
            self.loop.end()

    def _threads_of(self, attempt: Attempt) -> list[_Thread]:
        return [thread for thread in self.threads if thread.body.attempt is attempt]

    def _start_thread(self, thread: _Thread) -> Option:
        attempt, handle, run, in_thread = thread.body

        def start() -> None:
            self.threads.remove(thread)
            if in_thread:
                attempt.body_works(run)
            thread.start()

        name = attempt.name_of(handle)
        return Option(f"run {name}" if in_thread else f"run a thread of {name}", start)

    def _waiting(self) -> list[asyncio.Task[Any]]:
        return [*self.tasks.values(), *self.bodies.values()]

    def _holds_back(self, start: Callable[[], None]) -> bool:
        body = _body.get()
        if body is None or self.dead:
            return False
        self.threads.append(_Thread(body, start))
        return True

    def _count_silence(self) -> None:
        self._trace.silences += 1


def _start_body(attempt: Attempt, handle: int) -> Option:
    def start() -> None:
        gate = attempt.gates.pop(handle)
        if not gate.done():
            gate.set_result(None)

    return Option(f"run {attempt.name_of(handle)}", start)


def _is_timed(frame: Frame) -> bool:
    return frame.type == MessageType.SLEEP or (frame.type == MessageType.ONE_WAY_CALL and _INVOKE_TIME in decode(frame))


# --- logs -----------------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Suppress logs: code that is torn down complains, and an exploration fails many times in the same way."""
    before = logging.root.manager.disable
    if before >= logging.CRITICAL:
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _first_time(record: logging.LogRecord) -> bool:
    """Log each failure of an invocation once, although it is retried many times."""
    if record.exc_info is None:
        return True
    failure = repr(record.exc_info[1])
    return all(each.is_new_failure(failure) for each in observing.get() if isinstance(each, Attempt))


logging.getLogger("restate.server").addFilter(_first_time)
