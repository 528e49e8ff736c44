"""Watch an attempt: what it asks the VM for, what it reads that is in no journal, and where.

A1. Nothing is watched while the body of a step runs: what happens there is recorded by Restate.
A2. What an attempt has read can be played back to a later one, reading by reading. Whatever such a replay does
    otherwise does not come from these readings; and if one of them is changed, whatever it does otherwise does.
A3. What is played back belongs to the line that has read it, so that a replay that reads in another order, or less, is
    given the right values all the same.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from restate_steps._loop import frames_above, frames_of
from restate_steps._sdk import ambient_context, invocation_id
from restate_steps.testing._determinism.user_code import (
    Place,
    caller,
    definition_of,
    is_user_code,
    place_of,
    user_places,
)
from restate_steps.testing._observe import AttemptObserver, observing
from restate_steps.testing._simulation.driver import ASGIApp
from restate_steps.testing._simulation.loop import SimulatedLoop

__all__ = [
    "Change",
    "Changed",
    "Kind",
    "Operation",
    "Outside",
    "Playback",
    "Reader",
    "Reading",
    "Tape",
    "Watch",
    "watched",
    "watching",
]

T = TypeVar("T")

Kind: TypeAlias = Literal[
    "clock", "randomness", "hash order", "memory address", "environment", "memory", "outside I/O", "unknown"
]

# A loop that reads the clock until something has happened would fill the memory.
_MOST_VALUES: Final = 1_000

_NOT_ASKED_FOR: Final = frozenset({"sys_input", "sys_end"})
_WITHOUT_ENTRY: Final = frozenset({"sys_awakeable", "sys_signal"})
_DELAY_AT: Final = {"sys_sleep": 0, "sys_send": 4}


@dataclass(frozen=True, slots=True)
class Operation:
    """What a handler has asked the VM for.

    Attributes:
        name: The name of the VM's method.
        arguments: What it was given, as plain values.
        places: The lines of the user's code, outermost first.
    """

    name: str
    arguments: tuple[Any, ...]
    places: tuple[Place, ...] = field(default=(), compare=False)

    @property
    def is_entry(self) -> bool:
        """Whether it becomes an entry of the journal."""
        return self.name not in _WITHOUT_ENTRY

    def agrees_with(self, other: Operation | None) -> bool:
        """Return whether both ask for the same, but for how long to wait: the recorded delay counts."""
        return other is not None and self._without_delay() == other._without_delay()

    def _without_delay(self) -> tuple[Any, ...]:
        at = _DELAY_AT.get(self.name)
        return (self.name, *self.arguments[:at], *(() if at is None else self.arguments[at + 1 :]))


class Reading(NamedTuple):
    """A line of code that reads something that is in no journal."""

    kind: Kind
    what: str
    place: Place

    def __str__(self) -> str:
        return f"{self.what} at {self.place}"


class Outside(NamedTuple):
    """Something that a handler did with the world outside, and not in a step."""

    what: str
    place: Place | None
    after: int
    """How many operations there had been by then."""


Tape: TypeAlias = dict[Reading, list[Any]]
"""What each line has read, in order."""

Changed: TypeAlias = Reading | frozenset[Reading] | Kind | None
"""What is to be read otherwise."""

Change: TypeAlias = Callable[[Any, int], Any]
"""Makes another value of one that was read; the number says which one of several."""


@dataclass(frozen=True, slots=True)
class Playback:
    """What a replay is to read.

    Attributes:
        tape: What was read when the journal was recorded.
        changed: What is to be read otherwise: one line, several of them, or a kind.
        variant: Which of several other ones.
    """

    tape: Tape
    changed: Changed = None
    variant: int = 0

    def changes(self, reading: Reading) -> bool:
        """Return whether a line is to read something else."""
        changed = self.changed
        return reading in changed if isinstance(changed, frozenset) else changed in (reading, reading.kind)


class Reader:
    """Notes what code reads, and plays back what it has read before.

    Args:
        playback: What to read; left out, what is read is what there is, and it is kept.
    """

    def __init__(self, playback: Playback | None = None) -> None:
        self.tape: Tape = {}
        self.open = True
        self.seeded = False
        """Whether the code has given Python's random numbers a seed of its own."""
        self._playback = playback
        self._busy = False

    def elapsed(self) -> float:
        """Return by how many seconds clocks are ahead."""
        return 0.0

    def talks_outside(self, what: str, place: Place | None) -> None:
        """Take no notice."""

    @property
    def idle(self) -> bool:
        """Whether a reading now is one of its own, and not a part of another one."""
        return self.open and not self._busy

    def read(self, reading: Reading, now: Callable[[], T], change: Callable[[T, int], T]) -> T:
        """Return what a line is to read: what there is, what there was, or something else."""
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


class Watch(Reader):
    """Watches one attempt; it is the observer of the attempt's context, and passes on what another one wants to know.

    Args:
        inner: The other observer.
        playback: What to read; left out, what is read is what there is, and it is kept.
    """

    def __init__(self, inner: AttemptObserver, playback: Playback | None = None) -> None:
        super().__init__(playback)
        self.invocation = ""
        self.operations: list[Operation] = []
        self.outside: list[Outside] = []
        self.handler: Place | None = None
        """Where the handler is defined."""
        self.handler_module: str | None = None
        self.on_operation: Callable[[Operation], None] | None = None
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    def elapsed(self) -> float:
        """Return how much virtual time has passed, in seconds: clocks are ahead by it."""
        return self._loop.time()

    def talks_outside(self, what: str, place: Place | None) -> None:
        """Note that the handler talks to the world outside."""
        if self.open:
            self.outside.append(Outside(what, place, len(self.operations)))

    # --- commands of the handler; see restate_steps.testing._observe.CommandObserver ----------------------------

    def asked(self, operation: str, arguments: tuple[Any, ...]) -> None:
        """Note what the VM is asked for, unless it is a wait."""
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
        """Return where the handler waits for a branch that has no line of the user's; if it does not, where it begins.

        Such a branch is a step that was handed to ``gather``, for example.
        """
        waiting = frames_of(self._task.get_coro()) if self._task is not None else []
        waiting += frames_above()
        places = tuple(place_of(frame) for frame in waiting if is_user_code(frame.f_code.co_filename))
        return places or (() if self.handler is None else (self.handler,))

    def refused(self, operation: str, arguments: tuple[Any, ...], error: Exception) -> None:
        """Take no notice: that it was asked for is known."""

    def run_requested(self, handle: int, name: str) -> None:
        """Pass it on."""
        self._inner.run_requested(handle, name)

    def delay_requested(self, milliseconds: int) -> None:
        """Pass it on."""
        self._inner.delay_requested(milliseconds)

    def awakeable_made(self, awakeable_id: str) -> None:
        """Pass it on."""
        self._inner.awakeable_made(awakeable_id)

    def call_requested(self, handle: int, name: str) -> None:
        """Pass it on."""
        self._inner.call_requested(handle, name)

    def result_read(self, handle: int) -> None:
        """Pass it on."""
        self._inner.result_read(handle)

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        """Pass it on, and look away (A1)."""
        await self._inner.body_starts(handle, in_thread)
        watching.set(None)

    def body_ended(self, handle: int) -> None:
        """Pass it on."""
        self._inner.body_ended(handle)


watching: Final[contextvars.ContextVar[Reader | None]] = contextvars.ContextVar("watching", default=None)
"""Who watches the code that is running; nobody while it is the body of a step."""


def watched(app: ASGIApp, begin: Callable[[AttemptObserver], Watch]) -> ASGIApp:
    """Return the application with each of its attempts being watched."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        inner = observing.get()
        if inner is not None:
            watch = begin(inner)
            observing.set(watch)
            watching.set(watch)
            loop = asyncio.get_running_loop()
            if isinstance(loop, SimulatedLoop):
                loop.outside_of_steps = _talks_outside
        await app(scope, receive, send)

    return call


def _talks_outside(what: str) -> None:
    watch = watching.get()
    if watch is not None:
        watch.talks_outside(what, next(reversed(user_places(caller())), None))


def _item(values: list[Any] | None, index: int) -> tuple[Any] | None:
    return (values[index],) if values is not None and index < len(values) else None


def _plain(value: Any, encoded: bool) -> Any:
    """Return an argument of the VM as something that can be compared, shown and sent to another process."""
    if isinstance(value, bytes | bytearray):
        # A codec may well encode the same value in another way each time, and the VM does not compare it either.
        return None if encoded else bytes(value)
    if isinstance(value, list | tuple):
        return tuple(_plain(item, encoded) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if type(value).__name__ == "PyHeader":
        return value.key, value.value
    if type(value).__name__ == "PyFailure":
        return value.code, value.message
    return value
