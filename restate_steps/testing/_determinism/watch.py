"""Watch an attempt: the operations it asks of the VM, the values it reads outside the journal, and where.

A1. Nothing is watched while the body of a step runs, because Restate records its result.
A2. What an attempt has read can be played back to a later attempt, reading by reading. If that attempt diverges, the
    cause is not one of these readings. If one reading is changed, and it diverges only then, that reading is the cause.
A3. Values are played back by the line that read them, so a replay that reads in another order, or less, gets the right
    values.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from restate_steps._loop import frames_above, frames_of
from restate_steps._sdk import ambient_context, invocation_id
from restate_steps._user_code import is_user_code
from restate_steps.testing._determinism.user_code import Place, caller, definition_of, place_of, user_places
from restate_steps.testing._observe import CommandObserver, observing
from restate_steps.testing._simulation.application import ASGIApp
from restate_steps.testing._simulation.loop import SimulatedLoop

__all__ = [
    "CauseKind",
    "Change",
    "Changed",
    "ExternalAccess",
    "Operation",
    "Playback",
    "Reader",
    "Reading",
    "Tape",
    "Watch",
    "watched",
    "watching",
]

T = TypeVar("T")

CauseKind: TypeAlias = Literal[
    "clock", "randomness", "hash order", "memory address", "environment", "memory", "outside I/O", "unknown"
]

# A loop that polls the clock would fill the memory.
_MOST_VALUES: Final = 1_000

_NOT_ASKED_FOR: Final = frozenset({"sys_input", "sys_end"})
_WITHOUT_ENTRY: Final = frozenset({"sys_awakeable", "sys_signal"})
_DELAY_AT: Final = {"sys_sleep": 0, "sys_send": 4}


@dataclass(frozen=True, slots=True)
class Operation:
    """A handler's call to the VM.

    Attributes:
        name: The name of the VM's method.
        arguments: The arguments, as plain values.
        places: The lines of user code on the stack, outermost first.
    """

    name: str
    arguments: tuple[Any, ...]
    places: tuple[Place, ...] = field(default=(), compare=False)

    @property
    def is_entry(self) -> bool:
        """True if the operation becomes an entry of the journal."""
        return self.name not in _WITHOUT_ENTRY

    def agrees_with(self, other: Operation | None) -> bool:
        """Return whether two operations are equal apart from their delay, because the recorded delay counts."""
        return other is not None and self._without_delay() == other._without_delay()

    def _without_delay(self) -> tuple[Any, ...]:
        at = _DELAY_AT.get(self.name)
        return (self.name, *self.arguments[:at], *(() if at is None else self.arguments[at + 1 :]))


class Reading(NamedTuple):
    """A line of code that reads something that is not in the journal."""

    kind: CauseKind
    what: str
    place: Place

    def __str__(self) -> str:
        return f"{self.what} at {self.place}"


class ExternalAccess(NamedTuple):
    """An access to the outside world that a handler made outside of a step."""

    what: str
    place: Place | None
    after: int
    """The number of operations before it."""


Tape: TypeAlias = dict[Reading, list[Any]]
"""The values that each line has read, in order."""

Changed: TypeAlias = Reading | frozenset[Reading] | CauseKind | None
"""The readings to change: one line, several lines, or all of a kind."""

Change: TypeAlias = Callable[[Any, int], Any]
"""Makes a different value from a value that was read; the number selects one of several variants."""


@dataclass(frozen=True, slots=True)
class Playback:
    """The values for a replay to read.

    Attributes:
        tape: The values that were read when the journal was recorded.
        changed: The readings to change: one line, several lines, or all of a kind.
        variant: The variant of the changed values.
    """

    tape: Tape
    changed: Changed = None
    variant: int = 0

    def changes(self, reading: Reading) -> bool:
        """Return whether a reading is to be changed."""
        changed = self.changed
        return reading in changed if isinstance(changed, frozenset) else changed in (reading, reading.kind)


class Reader:
    """Records what code reads, and plays back earlier readings.

    Args:
        playback: The values to play back; by default, the code reads the real values.
    """

    def __init__(self, playback: Playback | None = None) -> None:
        self.tape: Tape = {}
        self.open = True
        self.seeded = False
        """True if the code has seeded Python's random numbers itself."""
        self._playback = playback
        self._busy = False

    def elapsed(self) -> float:
        """Return the number of seconds by which clocks are ahead."""
        return 0.0

    def accesses_outside(self, what: str, place: Place | None) -> None:
        """Ignore it."""

    @property
    def idle(self) -> bool:
        """True if a reading now is not part of another reading."""
        return self.open and not self._busy

    def read(self, reading: Reading, now: Callable[[], T], change: Callable[[T, int], T]) -> T:
        """Return the value for a line to read: the real value, the recorded one, or a changed one."""
        known = self.tape.setdefault(reading, [])
        playback = self._playback
        value = None if playback is None else _item(playback.tape.get(reading), len(known))
        if value is None:
            self._busy = True
            try:
                value = (now(),)
            finally:
                self._busy = False
        if len(known) < _MOST_VALUES:
            known.append(value[0])
        if playback is not None and playback.changes(reading):
            return change(value[0], playback.variant)
        return value[0]


class Watch(Reader, CommandObserver):
    """Observes one attempt: records what it reads and what it asks of the VM.

    Args:
        playback: The values to play back; by default, the attempt reads the real values.
    """

    def __init__(self, playback: Playback | None = None) -> None:
        super().__init__(playback)
        self.invocation = ""
        self.operations: list[Operation] = []
        self.outside: list[ExternalAccess] = []
        self.handler: Place | None = None
        """The line where the handler is defined."""
        self.handler_module: str | None = None
        self.on_operation: Callable[[Operation], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    def elapsed(self) -> float:
        """Return how much virtual time has passed, in seconds; clocks are ahead by this."""
        return self._loop.time()

    def accesses_outside(self, what: str, place: Place | None) -> None:
        """Note that the handler accesses the outside world."""
        if self.open:
            self.outside.append(ExternalAccess(what, place, len(self.operations)))

    # --- commands of the handler; see restate_steps.testing._observe.CommandObserver ----------------------------

    def asked(self, operation: str, arguments: tuple[Any, ...]) -> None:
        """Note a call to the VM, unless it is a wait."""
        if not self.open or operation in _NOT_ASKED_FOR or not operation.startswith(("sys_", "attach_")):
            return
        context = ambient_context()
        encoded = False
        if context is not None:
            self.invocation = invocation_id(context)
            encoded = context.journal_codec is not None
            self.handler = definition_of(context.handler.fn)
            self.handler_module = getattr(context.handler.fn, "__module__", None)
        places = user_places(caller()) or self._waiting_at()
        made = Operation(operation, tuple(_plain(argument, encoded) for argument in arguments), places)
        if self.on_operation is not None:
            self.on_operation(made)
        self.operations.append(made)

    def _waiting_at(self) -> tuple[Place, ...]:
        """Return where the handler awaits a branch without user code; if it does not, where the handler is defined.

        Such a branch is, for example, a step that was passed to ``gather``.
        """
        waiting = frames_of(self._task.get_coro()) if self._task is not None else []
        waiting += frames_above()
        places = tuple(place_of(frame) for frame in waiting if is_user_code(frame.f_code.co_filename))
        return places or (() if self.handler is None else (self.handler,))

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        """Stop watching the body (A1)."""
        watching.set(None)


watching: Final[contextvars.ContextVar[Reader | None]] = contextvars.ContextVar("watching", default=None)
"""The reader that watches the running code; None in the body of a step."""


def watched(app: ASGIApp, begin: Callable[[], Watch]) -> ASGIApp:
    """Return the application, with each of its attempts watched."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if observers := observing.get():
            watch = begin()
            # The last one, so that the driver has let a body start before it is no longer watched.
            observing.set((*observers, watch))
            watching.set(watch)
            loop = asyncio.get_running_loop()
            if isinstance(loop, SimulatedLoop):
                loop.on_external_access = _report_access
        await app(scope, receive, send)

    return call


def _report_access(what: str) -> None:
    watch = watching.get()
    if watch is not None:
        watch.accesses_outside(what, next(reversed(user_places(caller())), None))


def _item(values: list[Any] | None, index: int) -> tuple[Any] | None:
    return (values[index],) if values is not None and index < len(values) else None


def _plain(value: Any, encoded: bool) -> Any:
    """Return an argument of the VM as a value that can be compared, shown and sent to another process."""
    if isinstance(value, bytes | bytearray):
        # A codec may encode a value differently each time, and the VM does not compare encoded values either.
        return None if encoded else bytes(value)
    if isinstance(value, list | tuple):
        return tuple(_plain(item, encoded) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if type(value).__name__ == "PyHeader":
        return value.key, value.value
    if type(value).__name__ == "PyFailure":
        return value.code, value.message
    return value
