"""The trace of a run: its log, the runs of bodies, and the points at which it could have gone differently."""

from __future__ import annotations

from dataclasses import dataclass, field

from restate_steps.testing._simulation.schedule import Crash

__all__ = ["BodyRun", "CancelPoint", "CrashPoint", "Trace"]


@dataclass(slots=True)
class BodyRun:
    """One run of the body of a step.

    Attributes:
        invocation: The id of the invocation.
        name: The name of the step.
        attempt: The number of the attempt, counted from 1.
        completion_id: The number of the step's completion; it distinguishes steps with the same name.
        ended: True if the body ended before its attempt did.
        recorded: True if the server has stored the result.
        works: True if the body has started its work.
    """

    invocation: str
    name: str
    attempt: int
    completion_id: int
    ended: bool = False
    recorded: bool = False
    works: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A point in a run at which a crash can happen.

    Attributes:
        crash: The crash.
        fingerprint: A number that is equal for points with the same stored messages, the same lost result, and the
            same runs of bodies whose results are not stored.
        choices: The number of choices made so far.
        crashes: The number of crashes so far.
        cancelled: True if the cancellation has happened, or the schedule has none.
    """

    crash: Crash
    fingerprint: int
    choices: int
    crashes: int
    cancelled: bool


@dataclass(frozen=True, slots=True)
class CancelPoint:
    """A point in a run at which a cancellation can happen: every handler waits for the next event.

    Attributes:
        number: The number of the point, counted from 1.
        fingerprint: A number that is equal for points with the same state.
        choices: The number of choices made so far.
        crashes: The number of crashes so far.
    """

    number: int
    fingerprint: int
    choices: int
    crashes: int


@dataclass(slots=True)
class Trace:
    """The trace of a run so far.

    Attributes:
        log: The events: the number of messages stored by then, and a description.
        bodies: The runs of bodies, in order.
        awakeables: The ids of the awakeables that each invocation has created, in order; the values are None.
        anomalies: What must never happen, such as a recorded step that runs again.
        unread_failures: The steps and calls that failed, and whose results the handler never read.
        silences: The number of real-time waits for the outside world in which nothing arrived.
        events: The number of events.
        choices: The choices made: the index of the event that happened.
        widths: The number of options at each choice.
        misfit: Why the schedule's choices do not fit this run; empty if they do.
        crash_points: The points at which a crash can happen.
        cancel_points: The points at which a cancellation can happen; recorded only if the schedule has none.
        crashes: The number of crashes of the schedule that have happened.
        cancelled: True if the schedule's cancellation has happened.
        is_endless: True if the limit of events stopped the run.
        is_out_of_time: True if the time limit stopped the run.
    """

    log: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    bodies: list[BodyRun] = field(default_factory=list[BodyRun])
    awakeables: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])
    anomalies: list[str] = field(default_factory=list[str])
    unread_failures: list[str] = field(default_factory=list[str])
    silences: int = 0
    events: int = 0
    choices: list[int] = field(default_factory=list[int])
    widths: list[int] = field(default_factory=list[int])
    misfit: str = ""
    crash_points: list[CrashPoint] = field(default_factory=list[CrashPoint])
    cancel_points: list[CancelPoint] = field(default_factory=list[CancelPoint])
    crashes: int = 0
    cancelled: bool = False
    is_endless: bool = False
    is_out_of_time: bool = False
