"""Run today's code against a recorded journal, and observe what it does.

There is one attempt. It receives the whole journal and the end of the input, as over HTTP/1.1 from a server. So the
SDK's own state machine compares every command of the handler with the recorded one.

R1. No body of a step runs: a body whose result is not in the journal blocks before it starts.
R2. The attempt does not receive the recorded answer; it is compared with the answer of today's code.
R3. No command of the attempt is carried out. Local timers pass in virtual time.
"""

from __future__ import annotations

import asyncio
import contextvars
import linecache
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, NamedTuple

from restate_steps._loop import frames_above, frames_of, handler_tasks
from restate_steps._protocol.types import MessageType, is_command
from restate_steps._protocol.wire import Frame, make
from restate_steps._user_code import is_machinery, module_of
from restate_steps.testing._observe import CommandObserver, allow_observers, observing
from restate_steps.testing._recording.recorded import RecordedJournal
from restate_steps.testing._simulation.application import ASGIApp, Connection, request_scope
from restate_steps.testing._simulation.loop import SimulatedLoop
from restate_steps.testing._simulation.process import quiet

__all__ = ["Asked", "Attempt", "CodeLine", "run_against"]

_MAX_TIMERS: Final = 10_000
_MAX_WATCHED: Final = 10
_WAITS: Final = ("do_progress", "take_notification")
_NO_COMMAND: Final = frozenset({*_WAITS, "sys_awakeable", "sys_end", "sys_input", "sys_signal"})


class CodeLine(NamedTuple):
    """A line of code that is being executed."""

    file: str
    line: int
    function: str

    @property
    def code(self) -> str:
        """The text of the line."""
        return linecache.getline(self.file, self.line).strip()


@dataclass(frozen=True, slots=True)
class Asked:
    """A handler's call to the VM, and where in the code it was made, innermost line first."""

    operation: str
    arguments: tuple[Any, ...]
    places: tuple[CodeLine, ...]

    @property
    def waits(self) -> bool:
        """True for a wait, which is not a journal entry."""
        return self.operation in _WAITS


@dataclass(slots=True)
class Attempt:
    """The result of a replay.

    Attributes:
        commands: The commands that the handler issued, in order.
        refused: The call that the VM refused because it does not match the journal.
        sent: The messages that the application sent.
        bodies: The names of the steps whose bodies would run now.
        crashed: The exception that the application raised, if any.
        waits_at: The places where the handler and its branches were waiting at the end.
    """

    commands: list[Asked] = field(default_factory=list[Asked])
    refused: Asked | None = None
    sent: list[Frame] = field(default_factory=list[Frame])
    bodies: list[str] = field(default_factory=list[str])
    crashed: BaseException | None = None
    waits_at: list[tuple[CodeLine, ...]] = field(default_factory=list[tuple[CodeLine, ...]])
    last_wait: tuple[CodeLine, ...] = ()
    """The place of the handler's last wait; it may have been suspended there."""

    def sent_of(self, kind: MessageType) -> Frame | None:
        """Return the first message of a type that the application sent, or None."""
        return next((frame for frame in self.sent if frame.type == kind), None)

    @property
    def new(self) -> list[Frame]:
        """The commands that the journal does not have, without the answer."""
        return [frame for frame in self.sent if is_command(frame.type) and frame.type != MessageType.OUTPUT]


class _ObservedConnection(Connection, CommandObserver):
    """The connection of the one attempt, and the observer of its context."""

    def __init__(self, loop: SimulatedLoop, attempt: Attempt, *, places: bool) -> None:
        super().__init__()
        self._loop, self._attempt, self._with_places = loop, attempt, places
        self._names: dict[int, str] = {}
        self._over = False
        self.handler: asyncio.Task[Any] | None = None

    async def send(self, event: dict[str, Any]) -> None:
        if not self._over:
            self._attempt.sent += self.frames_in(event)

    def hang_up(self) -> None:
        """Disconnect, and ignore everything from now on."""
        self._over = True
        super().hang_up()

    def asked(self, operation: str, arguments: tuple[Any, ...]) -> None:
        if self._over or self._attempt.refused is not None:
            # Branches that still run after a refusal cannot issue anything.
            return
        if operation == "do_progress":
            if self._with_places:
                self._attempt.last_wait = self._place()
        elif operation not in _NO_COMMAND:
            places = _own_places() if self._with_places else ()
            self._attempt.commands.append(Asked(operation, arguments, places))

    def refused(self, operation: str, arguments: tuple[Any, ...], error: Exception) -> None:
        if self._attempt.refused is None and not self._over:
            self._attempt.refused = Asked(operation, arguments, self._place())
            if operation not in _NO_COMMAND:
                # A refused call did not become a command.
                self._attempt.commands.pop()

    def run_requested(self, handle: int, name: str) -> None:
        self._names[handle] = name

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        if not self._over:
            self._attempt.bodies.append(self._names.get(handle, "?"))
        await self._loop.create_future()

    def end(self) -> None:
        """Note where everything waits."""
        self._attempt.waits_at = self._waiting()

    def _place(self) -> tuple[CodeLine, ...]:
        """Return the place of the running branch; for a branch that is only a step, where the handler awaits it."""
        found = _own_places() or tuple(_places(reversed(frames_above()))) or _waiting_in(self.handler)
        if found:
            return found
        # The event loop makes timers when nothing runs. If the handler waits in a single place, it is for that.
        waiting = self._waiting()
        return waiting[0] if len(waiting) == 1 else ()

    def _waiting(self) -> list[tuple[CodeLine, ...]]:
        tasks = {*asyncio.all_tasks(self._loop), *handler_tasks(self._loop)}
        return sorted({found for task in tasks if (found := _waiting_in(task))})


def run_against(recorded: RecordedJournal, app: ASGIApp, *, places: bool = True) -> Attempt:
    """Run today's code against a journal; the application must have the handler.

    Args:
        recorded: The journal.
        app: The application.
        places: Note where in the code each call is made; this doubles the time.
    """
    allow_observers()
    attempt = Attempt()
    patience = [_MAX_TIMERS, _MAX_WATCHED]

    def idle(next_timer: float | None) -> bool:
        which = 0 if next_timer is not None else 1
        due = next_timer if next_timer is not None else loop.next_watchdog()
        patience[which] -= 1
        if due is None or patience[which] < 0:
            return False
        loop.advance(due)
        return True

    loop = SimulatedLoop.acquire(idle)
    connection = _ObservedConnection(loop, attempt, places=places)
    connection.feed(_messages_for(recorded), more=False)
    origin = recorded.origin
    scope = request_scope(origin.target, version=origin.protocol, mode="request_response")
    context = contextvars.copy_context()
    context.run(observing.set, (connection,))
    with quiet():
        try:
            call = app(scope, connection.receive, connection.send)
            task = connection.handler = loop.create_task(call, context=context)
            task.add_done_callback(lambda _: loop.stop())
            loop.waiting = lambda: [task]
            loop.run()
            connection.end()
            if task.done() and not task.cancelled():
                attempt.crashed = task.exception()
            connection.hang_up()
        finally:
            loop.end()
    return attempt


def _messages_for(recorded: RecordedJournal) -> list[Frame]:
    """Return the messages for the attempt: the start, and the journal without the answer (R2)."""
    origin = recorded.origin
    journal = [frame for frame in recorded.frames if frame.type != MessageType.OUTPUT]
    start = make(
        MessageType.START,
        id=origin.raw_id,
        debug_id=origin.invocation_id,
        known_entries=len(journal),
        # The journal has the state that the handler read; later reads do not matter.
        partial_state=True,
        key=origin.target.key,
        random_seed=origin.random_seed or 0,
        idempotency_key=origin.idempotency_key if origin.protocol >= 7 else None,
    )
    return [start, *journal]


def _own_places() -> tuple[CodeLine, ...]:
    """Return the places of the caller within its task, innermost first."""
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code.co_name != "_run_once":
        frames.append(frame)
        frame = frame.f_back
    return tuple(_places(frames))


def _waiting_in(task: asyncio.Task[Any] | None) -> tuple[CodeLine, ...]:
    """Return the places where a task waits, innermost first."""
    return tuple(_places(reversed(frames_of(task.get_coro())))) if task is not None else ()


def _places(frames: Iterable[FrameType]) -> Iterable[CodeLine]:
    for frame in frames:
        if module_of(frame) not in sys.stdlib_module_names and not is_machinery(frame):
            yield CodeLine(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
