"""Errors of the testing kit, apart from those that handlers raise."""

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
    """A simulation was used in a way that cannot work, or cannot continue."""


class StuckError(SimulationError):
    """Something is awaited that will never happen, because no event is left.

    On a real server, the invocation would hang.
    """


class OutOfTimeError(SimulationError):
    """The time limit of an exploration or a check was reached in the middle of a run."""


class InvocationEndedError(SimulationError):
    """An invocation returned before it did what the client waits for.

    Attributes:
        value: The value that it returned.
    """

    def __init__(self, reason: str, value: object) -> None:
        super().__init__(f"{reason}; it returned {value!r}")
        self.value = value


class InvocationPausedError(SimulationError):
    """The invocation failed too often and is paused, as on a server; an operator would have to act.

    Attributes:
        code: The status code of the last error.
        reason: The message of the last error.
    """

    def __init__(self, target: str, attempts: int, code: int, reason: str) -> None:
        super().__init__(f"{target} is paused after {attempts} attempts; the last one failed with {code}: {reason}")
        self.code = code
        self.reason = reason


class JournalMismatchError(InvocationPausedError):
    """A replay does not match the journal: the handler is not deterministic.

    On a real server, the invocation would be stuck: it is retried, but no retry can succeed.
    """


class NotReplaySafeError(StepsError, AssertionError):
    """An explored handler fails in some run; the message has the schedule that reproduces it."""


class NotDeterministicError(StepsError, AssertionError):
    """The handler is not deterministic; the message names the cause and the fix."""


class ReplayDifferenceError(NotReplaySafeError):
    """Today's code diverges from a recorded journal; the message shows where, and how to fix it.

    Attributes:
        journal: The file, or the id of the invocation.
        entry: The index of the first entry that today's code does not repeat; None if there is no such entry.
        recorded: A description of what the journal has there.
        today: A description of what today's code does instead.
        line: The line of the user's code that does it, as ``FILE:LINE``; empty if it is not known.
    """

    def __init__(
        self, message: str, *, journal: str, entry: int | None, recorded: str, today: str, line: str = ""
    ) -> None:
        super().__init__(message)
        self.journal = journal
        self.entry = entry
        self.recorded = recorded
        self.today = today
        self.line = line
