"""Run a handler under every order of events and every crash, and report whether it survives.

E1. Every run starts from scratch and follows a :class:`Schedule`, so it can be repeated and shortened.
E2. A crash is placed at every *distinct* prefix of the journals. Another crash at the same stored prefix would find
    nothing new. Prefixes that differ only in random ids and times are the same: see ``_simulation.opaque``. This finds
    bugs that random crashes miss.
E3. A cancellation is placed at every distinct moment at which the handler is idle, before and after a crash.
E4. A seeded generator draws what to try next, so a budget that runs out leaves a fair and repeatable sample.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Final, Literal, TypeAlias

from restate import JournalValueCodec

from restate_steps.testing._errors import NotReplaySafeError, SimulationError
from restate_steps.testing._exploration.run import Problem, Run, RunSettings, Scenario, perform
from restate_steps.testing._exploration.schedule import Schedule
from restate_steps.testing._simulation.driver import ASGIApp, Crash, Mode, quiet, read_manifest
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.simulator import NOTHING, A, HandlerOf, HandlerRef, Simulator
from restate_steps.testing._simulation.timeline import shortened

__all__ = ["Exploration", "Finding", "Perform", "Report", "explore", "explore_all", "explore_one"]

Perform: TypeAlias = Callable[[Schedule, Random | None], tuple[Run, Simulator]]
"""Runs something under a schedule. With a ``Random``, it draws the choices that the schedule does not give."""

_PROGRESS_AFTER: Final = 2.0
_PROGRESS_EVERY: Final = 0.2
_MAX_SHRINKS: Final = 300
_SHRINK_FOR = 20.0
_SHOWN_FINDINGS: Final = 3
_FIRST_RUN_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and the shortest schedule found that reproduces it.

    Attributes:
        problem: The kind of problem: ``"mismatch"`` (a replay does not match the journal), ``"stuck"``, ``"paused"``,
            ``"step-rerun"`` (a recorded step ran again), ``"answer-changed"`` (a crash changed the answer),
            ``"not-reproducible"`` (the same schedule led to a different run), ``"assertion"`` or ``"error"`` (from the
            scenario or the check).
        why: The problem as a sentence, with details.
        schedule: The schedule; ``explore(..., schedule=str(finding.schedule))`` runs exactly this one.
        timeline: The events of the run, line by line.
        error: The exception, if there was one.
    """

    problem: Problem
    why: str
    schedule: Schedule
    timeline: str
    error: BaseException | None

    def __str__(self) -> str:
        return f"{self.problem}: {self.why}\nschedule {str(self.schedule)!r}\n{shortened(self.timeline)}"


@dataclass(slots=True)
class Report:
    """The result of an exploration.

    Attributes:
        schedules: The number of runs without a crash.
        prefixes: The number of distinct journal prefixes that were resumed after a crash.
        cancellations: The number of these runs in which the handler was cancelled.
        seconds: The duration of the exploration.
        complete: True if every order and every crash within the limits was tried, and not only a sample.
        left_out: What was not tried, one line each; empty if the exploration is complete.
        outcomes: The distinct outcomes for the client, each with a schedule that leads to it.
        findings: The problems found, each with its shortest schedule; empty if there are none.
        max_body_runs: The largest number of times that the body of each step ran in one run, by name. More than once
            means at-least-once.
        repeated_steps: A schedule for each step whose body ran more than once after a crash.
        seed: The seed of the exploration.
        unread_failures: Steps and calls that failed in some run, and whose results the handler never read.
        random_steps: The steps whose results differ from run to run, so that some orders could not be tried.
    """

    schedules: int = 0
    prefixes: int = 0
    cancellations: int = 0
    seconds: float = 0.0
    complete: bool = False
    left_out: list[str] = field(default_factory=list[str])
    outcomes: list[tuple[Outcome, Schedule]] = field(default_factory=list[tuple[Outcome, Schedule]])
    findings: list[Finding] = field(default_factory=list[Finding])
    max_body_runs: dict[str, int] = field(default_factory=dict[str, int])
    repeated_steps: dict[str, Schedule] = field(default_factory=dict[str, Schedule])
    seed: int = 0
    random_steps: set[str] = field(default_factory=set[str])
    unread_failures: set[str] = field(default_factory=set[str])

    @property
    def runs(self) -> int:
        """The number of runs."""
        return self.schedules + self.prefixes

    @property
    def rate(self) -> float:
        """The number of runs per second."""
        return self.runs / self.seconds if self.seconds else 0.0

    def assert_replay_safe(self) -> None:
        """Fail unless every run succeeded.

        That is: every replay matched the journal, nothing hung, no recorded step ran again, no crash changed an
        answer, and neither the scenario nor the check failed.

        Raises:
            NotReplaySafeError: There are findings; the message has the shortest schedules and their timelines.
        """
        __tracebackhide__ = True
        if self.findings:
            shown = "\n\n".join(str(finding) for finding in self.findings[:_SHOWN_FINDINGS])
            first = self.findings[0]
            # The message already has the simulator's own errors.
            cause = None if first.problem in ("mismatch", "stuck") else first.error
            raise NotReplaySafeError(f"{self.summary()}\n\n{shown}") from cause

    def assert_one_answer(self) -> None:
        """Fail unless every run gave the same answer, regardless of the order of events.

        For a handler that races, several answers may be correct.

        Raises:
            NotReplaySafeError: There are several answers; the message has a schedule for each.
        """
        __tracebackhide__ = True
        if len(self.outcomes) > 1:
            lines = "\n".join(f"  {outcome} with schedule {str(schedule)!r}" for outcome, schedule in self.outcomes)
            raise NotReplaySafeError(f"there are {len(self.outcomes)} answers:\n{lines}")

    def summary(self) -> str:
        """Return a summary of a few lines."""
        covered = "all there are" if self.complete else "a sample"
        lines = [
            f"explored {self.schedules:,} schedules and {self.prefixes:,} resumed prefixes, {covered}, "
            f"in {self.seconds:.1f} s ({self.rate:,.0f} a second, seed {self.seed})"
        ]
        if self.cancellations:
            lines.append(f"cancelled in {self.cancellations:,} of these runs")
        if len(self.outcomes) > 1:
            lines.append(f"answers: {len(self.outcomes)}")
        again = sorted(name for name, runs in self.max_body_runs.items() if runs > 1)
        if again:
            shown = ", ".join(f"{name} (up to {self.max_body_runs[name]} times)" for name in again)
            lines.append(f"bodies that may run again after a crash: {shown}")
        lines += [f"left out: {what}" for what in self.left_out]
        if self.unread_failures:
            lines.append(f"failures that the handler never read: {', '.join(sorted(self.unread_failures))}")
        found = len(self.findings)
        lines.append(f"found {found or 'no'} problem{'s' if found > 1 else ''}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n\n".join([self.summary(), *map(str, self.findings)])


@dataclass(frozen=True, slots=True)
class _Job:
    """A schedule to try, and what is known about it."""

    schedule: Schedule
    random: bool = False
    crash: bool = False
    before: Run | None = field(default=None, compare=False, repr=False)
    """The run that this job varies."""


class Exploration:
    """Choose the next schedule to try, and collect the results.

    Args:
        crashes: The maximum number of crashes in a run.
        orders: ``"all"`` for every order of events, or the number of orders to draw.
        max_runs: The number of runs after which to stop.
        max_seconds: The number of seconds after which to stop.
        seed: The seed of the exploration.
        stop_at: The number of findings after which to stop.
        every_order: True if every order of results can occur without a crash. Over HTTP/1.1 it cannot: all running
            bodies end before the handler continues, so an answer that only a crash gives may be correct.
    """

    def __init__(
        self,
        *,
        crashes: int = 1,
        orders: Literal["all"] | int = "all",
        max_runs: int = 2_000,
        max_seconds: float = 60.0,
        seed: int = 0,
        stop_at: int = 1,
        every_order: bool = True,
    ) -> None:
        for name, value, least in (("crashes", crashes, 0), ("max_runs", max_runs, 1), ("orders", orders, 1)):
            if (name, value) != ("orders", "all") and not (isinstance(value, int) and value >= least):
                also = "'all' or " if name == "orders" else ""
                raise SimulationError(f"{name} must be {also}an integer of at least {least}, not {value!r}.")
        self.report = Report(seed=seed)
        self._crashes, self._orders, self._every_order = crashes, orders, every_order
        self._max_runs, self._max_seconds, self._stop_at = max_runs, max_seconds, stop_at
        self._random = Random(seed)
        self._began = time.perf_counter()
        self._seen: set[int] = set()
        # Other orders after a crash or a cancellation come last: there is no end of them for all but small handlers,
        # and they find the least.
        self._new_orders: list[_Job] = []
        self._new_crashes: list[_Job] = []
        self._new_cancellations: list[_Job] = []
        self._later: list[_Job] = []
        self._first = [_Job(Schedule()), _Job(Schedule(always_replay=True))]
        if orders != "all":
            self._new_orders = [_Job(Schedule(), random=True) for _ in range(max(0, orders - 1))]
        self._turn = 0
        self._has_random_results = False
        self._crash_only: list[tuple[Outcome, Run]] = []
        self._calm: list[Outcome] = []

    def next(self) -> _Job | None:
        """Return the next job; None if nothing is left, or the budget is used up."""
        report = self.report
        report.seconds = time.perf_counter() - self._began
        if len(report.findings) >= self._stop_at:
            self._leave_out("once there was a finding")
            return None
        heaps = [self._new_orders, self._new_crashes, self._new_cancellations]
        if not (self._first or self._later or any(heaps)):
            self._end()
            return None
        # Even the smallest budget gets one run: without any, nothing would have been explored.
        if report.runs and report.runs >= self._max_runs:
            self._leave_out(f"after {self._max_runs:,} runs (max_runs)")
            return None
        if report.runs and report.seconds > self._max_seconds:
            self.run_out_of_time()
            return None
        if self._first:
            return self._first.pop(0)
        self._turn += 1
        # Take turns among the heaps.
        filled = [heap for heap in heaps if heap] or [self._later]
        heap = filled[self._turn % len(filled)]
        index = self._random.randrange(len(heap))
        heap[index], heap[-1] = heap[-1], heap[index]
        return heap.pop()

    def random_for(self, job: _Job) -> Random | None:
        """Return a generator for a job's choices; None if they are not random."""
        return Random(self._random.random()) if job.random else None

    def take(self, job: _Job, run: Run) -> Run:
        """Record the run of a job, and return it, with a problem if there is one."""
        report = self.report
        if job.crash:
            report.prefixes += 1
        else:
            report.schedules += 1
        report.cancellations += run.schedule.cancel is not None
        self._judge(job, run)
        for name, count in run.effects.max_body_runs.items():
            report.max_body_runs[name] = max(count, report.max_body_runs.get(name, 0))
            if count > 1 and job.crash:
                report.repeated_steps.setdefault(name, run.schedule)
        if run.problem is None:
            self._plan(job, run)
        return run

    def does_not_fit(self, job: _Job, run: Run) -> bool:
        """Return whether a schedule did not fit because a step returned a different result than in the run before.

        The result is recorded, so the handler may correctly take another path. Results that a crash of this run alone
        has lost do not count, because their bodies run again.
        """
        if job.before is None:
            return False
        # Up to a crash of its own, the run has to be the same as the run it varies.
        new_crashes = run.schedule.crashes[len(job.before.schedule.crashes) :]
        step = job.before.history.random_result_in(run.history, new_crashes[0].stored if new_crashes else None)
        if step is None:
            return False
        self._has_random_results = True
        if run.problem != "not-reproducible":
            return False
        self.report.random_steps.add(step)
        return True

    def run_out_of_time(self) -> None:
        """Record that the time is used up, perhaps in the middle of a run."""
        self.report.seconds = time.perf_counter() - self._began
        self._leave_out(f"after {self._max_seconds:g} s (max_seconds)")

    def _leave_out(self, when: str) -> None:
        """Record that the exploration stopped with work left."""
        heaps = {
            "other orders": self._new_orders,
            "crashes": self._new_crashes,
            "cancellations": self._new_cancellations,
            "other orders after a crash or a cancellation": self._later,
        }
        planned = [f"{len(jobs):,} {what}" for what, jobs in heaps.items() if jobs]
        self.report.left_out = [
            f"{', '.join([*planned, 'and what follows from what ran'])}: it stopped {when}",
            *self._random_orders(),
        ]

    def _end(self) -> None:
        """Record that no work is left."""
        report = self.report
        if self._orders != "all":
            report.left_out.append(f"every order but the {self._orders:,} that were drawn (orders)")
        report.left_out += self._random_orders()
        report.complete = not report.left_out

    def _random_orders(self) -> list[str]:
        names = ", ".join(sorted(self.report.random_steps))
        return [f"some orders, because the results of steps differ from run to run: {names}"] if names else []

    def finish(self) -> list[tuple[Outcome, Run]]:
        """Return the answers that only a crash gives, if every order without a crash was tried.

        If results of steps are random, a new answer proves nothing, so there are none.
        """
        if self._has_random_results or not (self.report.complete and self._every_order):
            return []
        return [(outcome, run) for outcome, run in self._crash_only if outcome not in self._calm]

    def _judge(self, job: _Job, run: Run) -> None:
        outcome = run.outcome
        if run.problem is not None or outcome is None:
            return
        if all(outcome != known for known, _ in self.report.outcomes):
            self.report.outcomes.append((outcome, run.schedule))
        if not job.crash:
            if outcome not in self._calm:
                self._calm.append(outcome)
        elif all(outcome != known for known, _ in self._crash_only):
            self._crash_only.append((outcome, run))

    def _plan(self, job: _Job, run: Run) -> None:
        """Plan the alternatives to a run: other orders, cancellations and crashes."""
        schedule, made = run.schedule, run.schedule.choices
        given = len(job.schedule.choices)
        if self._orders == "all":
            calm = not job.crash and not schedule.always_replay and schedule.cancel is None
            heap = self._new_orders if calm else self._later
            for at in range(given, len(made)):
                for other in range(1, run.widths[at]):
                    heap.append(_Job(replace(schedule, choices=(*made[:at], other)), crash=job.crash, before=run))
        for moment in run.moments:
            key = hash((moment.fingerprint, moment.crashes, schedule.always_replay))
            # Up to the last crash, the run is the same as without that crash.
            if moment.crashes == len(schedule.crashes) and key not in self._seen:
                self._seen.add(key)
                cancelled = replace(schedule, choices=made[: moment.choices], cancel=moment.number)
                self._new_cancellations.append(_Job(cancelled, crash=job.crash, before=run))
        if len(schedule.crashes) >= self._crashes:
            return
        for point in run.points:
            # Up to the last crash, the run is the same as without that crash.
            if point.crashes < len(schedule.crashes) or not point.cancelled:
                continue
            # Losing a result twice differs from losing it once. After the crash, a handler that is suspended at every
            # wait continues differently from one that is not.
            key = hash((point.fingerprint, len(schedule.crashes), schedule.always_replay))
            if key in self._seen:
                continue
            self._seen.add(key)
            crashed = replace(schedule, choices=made[: point.choices], crashes=(*schedule.crashes, point.crash))
            self._new_crashes.append(_Job(crashed, crash=True, before=run))


def explore(
    app: ASGIApp,
    handler: HandlerOf[A] | None = None,
    arg: A = NOTHING,
    *,
    key: str | None = None,
    scenario: Scenario | None = None,
    before_each: Callable[[], object] | None = None,
    on_crash: Callable[[], object] | None = None,
    check: Callable[[Simulator], object] | None = None,
    crashes: int = 1,
    cancel: bool = False,
    orders: Literal["all"] | int = "all",
    max_runs: int = 2_000,
    max_seconds: float = 60.0,
    seed: int = 0,
    schedule: str | Schedule | None = None,
    version: int = 6,
    mode: Mode = "bidirectional",
    journal_value_codec: JournalValueCodec | None = None,
    progress: bool | None = None,
) -> Report:
    """Run a handler under every order of events and every crash that the budget allows.

    Each run starts from scratch. The runs vary the order in which steps end, calls return and time passes; whether the
    handler is suspended at every wait; between which two messages the service's process is killed; and, with
    ``cancel``, when an operator cancels the invocation.

    Args:
        app: The application, as ``restate_steps.app(...)`` returns it.
        handler: The handler's function, or ``"Service/handler"``.
        arg: The handler's argument; omit it for a handler without one.
        key: The key, for a handler of a Virtual Object or a workflow.
        scenario: Used instead of a handler: a coroutine function that takes a :class:`Simulator` and acts as the
            client. For example, it sends a request, resolves an awakeable, and returns the result.
        before_each: Called before each run, to reset what steps have changed.
        on_crash: Called after each crash, to clear a process's memory, such as a cache or module state. All runs share
            one Python process, so a crash does not clear it.
        check: Called after each run with its simulator. It raises, or returns False, if something is wrong: for
            example, if an effect happened twice.
        crashes: The maximum number of crashes in a run.
        cancel: Also cancel the invocation, once, at every distinct moment at which the handler is idle. If there are
            several invocations, the oldest one that has not ended is cancelled.
        orders: ``"all"``, or the number of orders to draw.
        max_runs: The number of runs after which to stop.
        max_seconds: The number of seconds after which to stop, in the middle of a run if necessary.
        seed: The seed that determines what is tried next; the same seed tries the same schedules.
        schedule: Run only this schedule, as printed in an earlier report.
        version: The version of the service protocol, 6 or 7.
        mode: See :func:`simulate`.
        journal_value_codec: See :func:`simulate`.
        progress: Show the progress on stderr; by default, only if stderr is a terminal.

    Returns:
        The report; see :meth:`Report.assert_replay_safe`.

    Raises:
        SimulationError: There is no such handler, the argument does not fit, or the scenario awaits something that is
            not the simulator.
        TypeError: ``app`` is not a Restate application.

    Example:
        >>> import restate, restate_steps
        >>> shop = restate.Service("Shop")
        >>> @shop.handler()
        ... async def checkout(ctx: restate.Context, item: str) -> str:
        ...     price = await ctx.run_typed("quote", lambda: 3)
        ...     return await ctx.run_typed("charge", lambda: f"{item} for {price}")
        >>> report = explore(restate_steps.app([shop]), checkout, "tea")
        >>> report.assert_replay_safe()
        >>> report.complete, report.max_body_runs
        (True, {'quote': 2, 'charge': 2})
    """
    __tracebackhide__ = True
    if handler is not None and scenario is not None:
        raise SimulationError("pass a handler or a scenario, not both: a scenario calls the handler itself.")
    settings = RunSettings(
        app=app,
        manifest=read_manifest(app),
        before_each=before_each,
        on_crash=on_crash,
        check=check,
        cancel=cancel,
        version=version,
        mode=mode,
        journal_value_codec=journal_value_codec,
    )
    plays = scenario or _call(handler, arg, key)
    performer = partial(perform, settings, plays)
    exploration = Exploration(
        crashes=crashes,
        orders=orders,
        max_runs=max_runs,
        max_seconds=max_seconds,
        seed=seed,
        every_order=mode == "bidirectional",
    )
    if schedule is not None:
        return explore_one(performer, Schedule.parse(schedule), exploration)
    # Each run silences logs; silencing them once for all runs is cheaper.
    limited = replace(settings, deadline=time.perf_counter() + max(max_seconds, _FIRST_RUN_SECONDS))
    with quiet():
        return explore_all(partial(perform, limited, plays), exploration, _Progress(progress, max_runs), performer)


def explore_all(
    perform: Perform, exploration: Exploration, progress: _Progress | None = None, again: Perform | None = None
) -> Report:
    """Run the exploration's schedules until none is left, and shorten those that fail.

    Args:
        perform: Runs a schedule, within the time limit.
        exploration: Chooses what to try.
        progress: Shows the progress.
        again: Runs a schedule without a time limit, to shorten failures; ``perform`` by default.
    """
    __tracebackhide__ = True
    report, again = exploration.report, again or perform
    bar = progress or _Progress(False, 1)
    while (job := exploration.next()) is not None:
        run, simulator = perform(job.schedule, exploration.random_for(job))
        if run.is_cut_short:
            exploration.run_out_of_time()
            break
        if exploration.does_not_fit(job, run):
            continue
        if run.problem is None and not simulator.driver.world.invocations:
            raise SimulationError("no handler was called, so there is nothing to explore. Is an `await` missing?")
        exploration.take(job, run)
        report.unread_failures.update(simulator.driver.unread_failures)
        if run.problem is not None:
            bar.clear()
            report.findings.append(_shortest(again, job, run))
        bar.show(report)
    suspects = exploration.finish()
    if suspects and not _answers_again(again, report):
        suspects = []
    for outcome, run in suspects:
        run.problem, run.details = "answer-changed", f"Without a crash, {outcome} is never the answer."
        report.findings.append(_finding(again, run.schedule, run))
    bar.clear()
    return report


def explore_one(perform: Perform, schedule: Schedule, exploration: Exploration) -> Report:
    """Try one schedule, once."""
    run, simulator = perform(schedule, None)
    exploration.take(_Job(schedule, crash=bool(schedule.crashes)), run)
    if run.problem is None and (unused := _unused(schedule, run, simulator)):
        run.problem, run.details = "not-reproducible", f"{unused} If the handler has changed, explore it again."
    report = exploration.report
    report.left_out = ["every schedule but the given one"]
    if run.problem is not None:
        report.findings.append(Finding(run.problem, run.why, schedule, simulator.timeline(), run.error))
    return report


def _unused(schedule: Schedule, run: Run, simulator: Simulator) -> str:
    """Return which part of a schedule its run did not use; empty if none."""
    if len(run.widths) < len(schedule.choices):
        return f"The schedule has {len(schedule.choices)} choices, but the run had only {len(run.widths)} to make."
    if simulator.driver.crash_at is not None:
        return f"The run never reached the schedule's crash at {simulator.driver.crash_at.stored} messages."
    return "The run never reached the schedule's cancellation." if simulator.driver.cancel_at is not None else ""


def _answers_again(perform: Perform, report: Report) -> bool:
    """Return whether a schedule gives the same answer when it runs again."""
    outcome, schedule = report.outcomes[0]
    run, _ = perform(schedule, None)
    return run.outcome == outcome


def _call(handler: HandlerRef | None, arg: Any, key: str | None) -> Scenario:
    if handler is None:
        raise SimulationError("there is nothing to explore: pass a handler or a scenario.")

    async def scenario(simulator: Simulator) -> Any:
        __tracebackhide__ = True
        return (await simulator.call_and_leave(handler, arg, key)).value

    return scenario


def _finding(perform: Perform, schedule: Schedule, run: Run) -> Finding:
    assert run.problem is not None
    _, simulator = perform(schedule, None)
    return Finding(run.problem, run.why, schedule, simulator.timeline(), run.error)


def _shortest(perform: Perform, job: _Job, run: Run) -> Finding:
    """Shorten a schedule as long as it shows the same problem."""
    if run.problem == "answer-changed":
        return _finding(perform, run.schedule.trimmed(), run)
    best, best_run = run.schedule.trimmed(), run
    tried = 0
    until = time.perf_counter() + _SHRINK_FOR

    def fails(schedule: Schedule) -> bool:
        nonlocal best, best_run, tried
        if tried >= _MAX_SHRINKS or time.perf_counter() > until or schedule == best:
            return False
        tried += 1
        again, _ = perform(schedule, None)
        if again.problem != run.problem:
            return False
        best, best_run = schedule, again
        return True

    improved = True
    while improved:
        improved = any(fails(candidate) for candidate in _smaller(best))
    return _finding(perform, best, best_run)


def _smaller(schedule: Schedule) -> list[Schedule]:
    """Return simpler variants of a schedule, the simplest first."""
    choices, crashes = schedule.choices, schedule.crashes
    found = [replace(schedule, crashes=crashes[:at] + crashes[at + 1 :]) for at in range(len(crashes))]
    if schedule.always_replay:
        found.append(replace(schedule, always_replay=False))
    if schedule.cancel is not None:
        found.append(replace(schedule, cancel=None))
        found += [replace(schedule, cancel=earlier) for earlier in range(1, schedule.cancel)]
    found += [replace(schedule, choices=choices[:size]).trimmed() for size in range(len(choices))]
    found += [
        replace(schedule, choices=(*choices[:at], 0, *choices[at + 1 :])).trimmed()
        for at, choice in enumerate(choices)
        if choice
    ]
    for at, crash in enumerate(crashes):
        least = crashes[at - 1].stored + 1 if at else 1
        found += [
            replace(schedule, crashes=(*crashes[:at], Crash(smaller), *crashes[at + 1 :]))
            for smaller in range(least, crash.stored + crash.lost)
        ]
    return found


class _Progress:
    """A progress line on stderr that is overwritten."""

    def __init__(self, wanted: bool | None, of: int) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._of = of
        self._next = time.perf_counter() + (0.0 if wanted else _PROGRESS_AFTER)
        self._shown = False

    def show(self, report: Report) -> None:
        if not self._wanted or time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + _PROGRESS_EVERY
        self._shown = True
        done = min(1.0, report.runs / self._of)
        bar = "█" * int(20 * done) + "░" * (20 - int(20 * done))
        sys.stderr.write(
            f"\r{bar} {report.schedules:,} schedules, {report.prefixes:,} prefixes, {report.rate:,.0f} a second "
        )
        sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._shown = False
