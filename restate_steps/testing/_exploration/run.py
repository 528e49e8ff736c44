"""Run a scenario once under a schedule, and report how it ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, Literal, TypeAlias, cast

from restate import JournalValueCodec, TerminalError

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame, decode
from restate_steps.testing._errors import (
    InvocationEndedError,
    InvocationPausedError,
    JournalMismatchError,
    OutOfTimeError,
    SimulationError,
    StuckError,
)
from restate_steps.testing._exploration.options import ExplorationOptions
from restate_steps.testing._simulation.application import ASGIApp
from restate_steps.testing._simulation.driver import Driver
from restate_steps.testing._simulation.invocation import Invocation, InvocationStatus
from restate_steps.testing._simulation.manifest import Manifest
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.process import quiet
from restate_steps.testing._simulation.schedule import Schedule
from restate_steps.testing._simulation.simulator import Result, Simulator, failures
from restate_steps.testing._simulation.trace import Trace

__all__ = ["Problem", "Run", "RunSettings", "Scenario", "begin_run", "end_run", "perform"]

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
            return mine.step_names.get(number, "?") if decode(again)["completion_id"] == number else None
        return None


@dataclass(slots=True)
class Run:
    """One run, and how it ended.

    Attributes:
        schedule: The schedule that repeats it.
        trace: What happened.
        outcome: The outcome for the client, if there is one.
        problem: The problem, if there is one.
        error: The exception, if there was one.
        details: More about the problem.
        attempts: The number of attempts of all invocations.
        history: The messages that the server stored.
        is_cut_short: True if the time limit stopped the run, so that it has no outcome.
    """

    schedule: Schedule
    trace: Trace = field(default_factory=Trace)
    outcome: Outcome | None = None
    problem: Problem | None = None
    error: BaseException | None = None
    details: str = ""
    attempts: int = 0
    history: History = field(default_factory=History)
    is_cut_short: bool = False

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
    """The settings shared by all runs of an exploration.

    Attributes:
        app: The application.
        manifest: Its manifest.
        options: The options of the exploration.
        check: Called after each run with its simulator.
        journal_value_codec: The codec of the application's values, if it has one.
        max_events: The number of events after which a run counts as endless.
        deadline: When to stop, by ``time.perf_counter()``.
    """

    app: ASGIApp
    manifest: Manifest
    options: ExplorationOptions
    check: Callable[[Simulator], object] | None = None
    journal_value_codec: JournalValueCodec | None = None
    max_events: int = 10_000
    deadline: float | None = None


def begin_run(settings: RunSettings, schedule: Schedule, random: Random | None = None) -> Driver:
    """Call ``before_each``, and return a driver that follows a schedule."""
    options = settings.options
    if options.before_each is not None and inspect.iscoroutine(begun := options.before_each()):
        begun.close()
        raise SimulationError("before_each is a coroutine function, and is never awaited. Make it a plain function.")
    return Driver(
        settings.app,
        settings.manifest,
        schedule=schedule,
        random=random,
        version=options.version,
        mode=options.mode,
        max_events=settings.max_events,
        deadline=settings.deadline,
        on_crash=options.on_crash,
        with_cancel_points=options.cancel,
    )


def end_run(
    settings: RunSettings,
    simulator: Simulator,
    schedule: Schedule,
    *,
    value: Any = None,
    error: BaseException | None = None,
    problem: Problem | None = None,
) -> Run:
    """Close the simulator of a run, and return how the run ended.

    Args:
        settings: The settings of the exploration.
        simulator: The simulator.
        schedule: The schedule that it followed.
        value: The value that the client returned.
        error: The exception that the client raised, if it did.
        problem: The problem that the exception is; by default, it follows from its type.
    """
    trace, model = simulator.driver.trace, simulator.driver.model
    run = Run(schedule, trace, problem=problem)
    try:
        _note_misfit(run)
        if trace.is_out_of_time:
            run.problem, run.is_cut_short = None, True
        elif error is None:
            # Compare values only: the journals and attempts of a result may differ.
            run.outcome = Outcome("value", cast(Any, value).value if isinstance(value, Result) else value)
        elif isinstance(error, TerminalError) and problem is None:
            run.outcome = Outcome.of_failure(error)
        else:
            run.problem, run.error = run.problem or _problem(error), error
        if run.problem is None and not run.is_cut_short:
            _run_out_and_judge(settings, simulator, run)
            if trace.is_out_of_time:
                run.problem, run.is_cut_short = None, True
    finally:
        run.schedule = replace(schedule, choices=tuple(trace.choices))
        run.history = History(model.history)
        run.attempts = sum(each.attempts for each in model.invocations.values())
        simulator.close()
    return run


def _note_misfit(run: Run) -> None:
    """Record a problem if the schedule's choices do not fit the run so far."""
    if run.trace.misfit:
        run.problem, run.details = "not-reproducible", run.trace.misfit


def _run_out_and_judge(settings: RunSettings, simulator: Simulator, run: Run) -> None:
    """Run everything that outlives the answer to its end, and find the problems that the client did not see."""
    model, trace = simulator.driver.model, simulator.driver.trace
    simulator.driver.run_out()
    _note_misfit(run)
    if run.problem is not None:
        return
    for invocation in model.invocations.values():
        if invocation.status is InvocationStatus.PAUSED and invocation.last_error is not None:
            run.problem = "mismatch" if invocation.has_mismatch else "paused"
            run.details = f"{invocation.target}: {invocation.last_error.code}: {invocation.last_error.message}"
            return
    for invocation in model.invocations.values():
        if not invocation.ended and not model.is_left_scheduled(invocation):
            run.problem = "stuck"
            run.details = f"{invocation.target} is {invocation.status.value}."
            return
    for client in simulator.clients:
        if (error := client.unnoticed) is not None:
            run.problem, run.error = _problem(error), error
            return
    if anomalies := [*trace.anomalies, *model.anomalies]:
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
        simulator = Simulator(begin_run(settings, schedule, random), settings.journal_value_codec)
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
        return end_run(settings, simulator, schedule, value=value, error=error), simulator
