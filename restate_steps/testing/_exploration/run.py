"""Run a scenario once under a schedule, and report how it ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, Literal, TypeAlias, cast

from restate import JournalValueCodec, TerminalError

from restate_steps.testing._errors import (
    InvocationEndedError,
    InvocationPausedError,
    JournalMismatchError,
    OutOfTimeError,
    SimulationError,
    StuckError,
)
from restate_steps.testing._exploration.schedule import Schedule
from restate_steps.testing._simulation.driver import ASGIApp, Crash, Mode, Option, quiet
from restate_steps.testing._simulation.effects import Effects
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.server_model import Invocation, InvocationStatus, Manifest
from restate_steps.testing._simulation.simulator import Result, Simulator, failures
from restate_steps.testing._simulation.wire import Frame, MessageType, decode

__all__ = ["CancelPoint", "CrashPoint", "Problem", "Run", "RunSettings", "Scenario", "begin_run", "end_run", "perform"]

Scenario: TypeAlias = Callable[[Simulator], Coroutine[Any, Any, Any]]
"""A client: a coroutine function that takes the simulator, and returns the client's outcome."""

Problem: TypeAlias = Literal[
    "mismatch", "stuck", "paused", "step-rerun", "assertion", "error", "not-reproducible", "answer-changed"
]

_ADVICE: Final = {
    "mismatch": "a replay does not match the journal",
    "stuck": "nothing more can happen, and the invocation has not ended",
    "paused": "every attempt of the invocation fails",
    "step-rerun": "a step ran although its result was in the journal",
    "assertion": "an assertion of the scenario or the check failed",
    "error": "the scenario raised an exception",
    "not-reproducible": (
        "the same schedule led to a different run: the handler depends on something outside the journal"
    ),
    "answer-changed": "a crash changed the answer",
}

_FIX_VALUE: Final = (
    "The command is the same, and only its value differs. So the order of tasks is not the cause: the value depends on "
    "something that is not recorded, such as a clock, random numbers or memory. check_deterministic finds the line."
)

_FIX_MISMATCH: Final = (
    "Under restate.app, asyncio's tasks do not follow the order of the journal: serve the handler with "
    "restate_steps.app. If it uses a clock, random numbers or the like outside of steps, check_deterministic finds the "
    "line."
)


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A point in a run at which a crash can happen.

    Attributes:
        crash: The crash.
        fingerprint: A number that is equal for points with the same stored messages and the same lost result.
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
    """A moment in a run at which a cancellation can happen.

    Attributes:
        number: The number of the moment, counted from 1.
        fingerprint: A number that is equal for moments with the same state.
        choices: The number of choices made so far.
        crashes: The number of crashes so far.
    """

    number: int
    fingerprint: int
    choices: int
    crashes: int


@dataclass(frozen=True, slots=True)
class History:
    """The messages that the server stored in a run, in order, each with its invocation."""

    stored: Sequence[tuple[Invocation, Frame]] = ()

    def random_result_in(self, other: History, first: int | None) -> str | None:
        """Return the step whose result is the first difference from another run; None if there is no such step.

        Args:
            other: The history of the other run.
            first: The number of messages to compare; None for all.
        """
        for (mine, frame), (theirs, again) in zip(self.stored[:first], other.stored[:first], strict=False):
            if frame == again and mine.id == theirs.id:
                continue
            if mine.id != theirs.id or frame.type != again.type or frame.type != MessageType.RUN_COMPLETION:
                return None
            number = decode(frame)["completion_id"]
            return mine.runs.get(number, "?") if decode(again)["completion_id"] == number else None
        return None


@dataclass(slots=True)
class Run:
    """One run, and how it ended."""

    schedule: Schedule
    widths: list[int] = field(default_factory=list[int])
    """The number of options at each choice."""
    points: list[CrashPoint] = field(default_factory=list[CrashPoint])
    moments: list[CancelPoint] = field(default_factory=list[CancelPoint])
    outcome: Outcome | None = None
    problem: Problem | None = None
    error: BaseException | None = None
    details: str = ""
    effects: Effects = field(default_factory=lambda: Effects(()))
    attempts: int = 0
    history: History = field(default_factory=History)
    """The messages that the server stored."""
    is_cut_short: bool = False
    """True if the time limit stopped it, so that it has no outcome."""

    @property
    def why(self) -> str:
        """The problem as a sentence."""
        if self.problem is None:
            return "no problem"
        told = f"{_ADVICE[self.problem]}. {self.details or self.error or ''}".rstrip()
        if self.problem != "mismatch":
            return told
        return f"{told}\n{_FIX_VALUE if _differs_in_value(told) else _FIX_MISMATCH}"


def _differs_in_value(message: str) -> bool:
    """Return whether the VM reports the same command with a different value, and no other difference."""
    _, found, differences = message.partition("- Difference:\n")
    names = [line.strip().partition(":")[0] for line in differences.splitlines() if line.startswith("   ")]
    return bool(found) and bool(names) and set(names) <= {"value", "parameter"}


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings shared by all runs of an exploration."""

    app: ASGIApp
    manifest: Manifest
    before_each: Callable[[], object] | None = None
    on_crash: Callable[[], object] | None = None
    check: Callable[[Simulator], object] | None = None
    cancel: bool = False
    version: int = 6
    mode: Mode = "bidirectional"
    max_events: int = 10_000
    journal_value_codec: JournalValueCodec | None = None
    deadline: float | None = None


class _Chooser:
    """Makes the choices of a schedule, and then chooses the first option, or a random one."""

    def __init__(self, run: Run, random: Random | None) -> None:
        self._run, self._random = run, random
        self._given = run.schedule.choices
        self.made: list[int] = []

    def __call__(self, options: Sequence[Option]) -> int:
        at = len(self.made)
        if at < len(self._given):
            chosen = self._given[at]
        else:
            chosen = self._random.randrange(len(options)) if self._random is not None else 0
        if chosen >= len(options):
            self._run.problem = "not-reproducible"
            self._run.details = f"Choice {at + 1} takes option {chosen + 1}, but there are only {len(options)}."
            chosen = 0
        self.made.append(chosen)
        self._run.widths.append(len(options))
        return chosen


def begin_run(settings: RunSettings, schedule: Schedule, random: Random | None = None) -> tuple[Simulator, Run]:
    """Call ``before_each``; return a simulator that follows a schedule, and the run that it records into."""
    if settings.before_each is not None and inspect.iscoroutine(begun := settings.before_each()):
        begun.close()
        raise SimulationError("before_each is a coroutine function, and is never awaited. Make it a plain function.")
    run = Run(schedule)
    chooser = _Chooser(run, random)
    simulator = Simulator(
        settings.app,
        version=settings.version,
        mode=settings.mode,
        always_replay=schedule.always_replay,
        choose=chooser,
        manifest=settings.manifest,
        journal_value_codec=settings.journal_value_codec,
    )
    driver = simulator.driver
    driver.max_events = settings.max_events
    driver.deadline = settings.deadline
    crashes = list(schedule.crashes)
    driver.crash_at = crashes.pop(0) if crashes else None
    driver.cancel_at = schedule.cancel

    def crashed() -> int:
        return len(schedule.crashes) - len(crashes) - (driver.crash_at is not None)

    def at_point(crash: Crash, fingerprint: int) -> None:
        cancelled = schedule.cancel is None or driver.cancelled
        run.points.append(CrashPoint(crash, fingerprint, len(chooser.made), crashed(), cancelled))
        if driver.crash_at is None and crashes:
            driver.crash_at = crashes.pop(0)

    def at_moment(number: int, fingerprint: int) -> None:
        run.moments.append(CancelPoint(number, fingerprint, len(chooser.made), crashed()))

    driver.on_point = at_point
    driver.on_restart = settings.on_crash or driver.on_restart
    if settings.cancel and schedule.cancel is None:
        driver.on_moment = at_moment
    simulator.choices = chooser.made
    return simulator, run


def end_run(settings: RunSettings, simulator: Simulator, run: Run, error: BaseException | None, value: Any) -> Run:
    """Record how a run ended, and close its simulator."""
    try:
        if simulator.driver.is_out_of_time:
            run.is_cut_short = True
        elif error is None:
            # Compare values only: the journals and attempts of a result may differ.
            run.outcome = Outcome("value", cast(Any, value).value if isinstance(value, Result) else value)
        elif isinstance(error, TerminalError):
            run.outcome = Outcome.of_failure(error)
        else:
            run.problem, run.error = run.problem or _problem(error), error
        if run.problem is None and not run.is_cut_short:
            _look(settings, simulator, run)
            if simulator.driver.is_out_of_time:
                run.problem, run.is_cut_short = None, True
    finally:
        run.schedule = replace(run.schedule, choices=tuple(simulator.choices))
        run.effects = simulator.effects
        run.history = History(simulator.driver.world.history)
        run.attempts = sum(each.attempts for each in simulator.driver.world.invocations.values())
        simulator.close()
    return run


def _look(settings: RunSettings, simulator: Simulator, run: Run) -> None:
    """Run everything that outlives the answer to its end, and find the problems that the client did not see."""
    world = simulator.driver.world
    simulator.driver.run_out()
    for invocation in world.invocations.values():
        if invocation.status is InvocationStatus.PAUSED and invocation.last_error is not None:
            run.problem = "mismatch" if invocation.wedged else "paused"
            run.details = f"{invocation.target}: {invocation.last_error.code}: {invocation.last_error.message}"
            return
    for invocation in world.invocations.values():
        if not invocation.ended and not world.is_left(invocation):
            run.problem = "stuck"
            run.details = f"{invocation.target} is {invocation.status.value}."
            return
    for client in simulator.driver.clients:
        if (error := client.unnoticed) is not None:
            run.problem, run.error = _problem(error), error
            return
    if anomalies := [*simulator.driver.anomalies, *world.anomalies]:
        run.problem, run.details = "step-rerun", "; ".join(anomalies)
    elif settings.check is not None:
        try:
            verdict = settings.check(simulator)
            if inspect.iscoroutine(verdict):
                verdict = simulator.run(verdict)
        except failures() as error:
            run.problem, run.error = "assertion", error
        else:
            if verdict is False:
                run.problem, run.details = "assertion", "The check returned False."


def _problem(error: BaseException) -> Problem:
    if isinstance(error, JournalMismatchError):
        return "mismatch"
    if isinstance(error, InvocationPausedError):
        return "paused"
    if isinstance(error, StuckError):
        return "stuck"
    return "error" if isinstance(error, Exception) and not isinstance(error, AssertionError) else "assertion"


def perform(
    settings: RunSettings, scenario: Scenario, schedule: Schedule, random: Random | None = None
) -> tuple[Run, Simulator]:
    """Run a scenario once; return the run, and the closed simulator for inspection.

    Raises:
        SimulationError: The scenario is not a coroutine function, or awaits something that is not the simulator.
    """
    __tracebackhide__ = True
    with quiet():
        simulator, run = begin_run(settings, schedule, random)
        error: BaseException | None = None
        value: Any = None
        try:
            coroutine: Any = scenario(simulator)
            if not inspect.iscoroutine(coroutine):
                raise SimulationError(
                    f"{scenario!r} is not a coroutine function, which a scenario must be. Define it with async def."
                )
            value = simulator.run(coroutine)
        except InvocationEndedError as ended:
            value = ended.value
        except (StuckError, InvocationPausedError, OutOfTimeError) as caught:
            error = caught
        except SimulationError:
            simulator.close()
            raise
        except failures() as caught:
            error = caught
        except BaseException:
            simulator.close()
            raise
        return end_run(settings, simulator, run, error, value), simulator
