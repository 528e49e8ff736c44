"""What can go wrong in a simulation, besides a handler that fails."""

from __future__ import annotations

from restate_steps.errors import StepsError

__all__ = [
    "InvocationEndedError",
    "InvocationPausedError",
    "JournalMismatchError",
    "NotDeterministicError",
    "NotReplaySafeError",
    "ReplayDifferenceError",
    "SimulationError",
    "StuckError",
]


class SimulationError(StepsError):
    """A simulation was used in a way that cannot work, or has come to a point from which it cannot go on."""


class StuckError(SimulationError):
    """Nothing more can happen, and what was waited for has not: the handler waits for something nobody will do.

    On a real server the invocation would hang.
    """


class OutOfTimeError(SimulationError):
    """The time that was given for an exploration or a check was used up within a run."""


class InvocationEndedError(SimulationError):
    """An invocation returned while something was waited for that it should have done.

    Attributes:
        value: What it returned.
    """

    def __init__(self, reason: str, value: object) -> None:
        super().__init__(f"{reason}; it returned {value!r}")
        self.value = value


class InvocationPausedError(SimulationError):
    """The invocation has failed too often and is paused, as a server does it; an operator would have to look.

    Attributes:
        code: The status code of its last error.
        reason: The message of its last error.
    """

    def __init__(self, target: str, attempts: int, code: int, reason: str) -> None:
        super().__init__(f"{target} is paused after {attempts} attempts; the last one failed with {code}: {reason}")
        self.code = code
        self.reason = reason


class JournalMismatchError(InvocationPausedError):
    """A replay asked for something else than what is in the journal: the handler is not deterministic.

    On a real server the invocation would be wedged: it is retried, and no retry can mend it.
    """


class NotReplaySafeError(StepsError, AssertionError):
    """A handler was explored, and does not survive everything; the message tells where, and how to see it again."""


class NotDeterministicError(StepsError, AssertionError):
    """A handler depends on something that is not in its journal; the message says on what, and how to mend it."""


class ReplayDifferenceError(NotReplaySafeError):
    """Today's code does not go the way of a recorded journal; the message shows where, and what can be done.

    Attributes:
        journal: The file, or the id of the invocation.
        entry: The index of the first entry of the journal that today's code does not repeat; None where there is none.
        recorded: What the journal has there, in words.
        today: What today's code does instead, in words.
    """

    def __init__(self, message: str, *, journal: str, entry: int | None, recorded: str, today: str) -> None:
        super().__init__(message)
        self.journal = journal
        self.entry = entry
        self.recorded = recorded
        self.today = today
