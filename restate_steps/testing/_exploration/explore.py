"""Run a handler under every order of events and every crash, and say whether it survives.

E1. Every run starts from nothing and follows a :class:`Schedule`; so each can be had again, and shortened.
E2. A crash is placed at every *distinct* prefix of the journals: where the same was stored before, nothing new can
    come of it. Random ids and times make no prefix distinct: see ``_simulation.opaque``. The method is that of
    ``../simulator``: it finds what random crashes do not.
E3. A cancellation is placed at every distinct moment at which nothing can run by itself, before and after a crash.
E4. What is tried next is drawn from a seed, so that a budget that runs out leaves a fair sample, and the same one.
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
"""Runs something under a schedule; the choices after its own are drawn, if there is something to draw them with."""

_PROGRESS_AFTER: Final = 2.0
_PROGRESS_EVERY: Final = 0.2
_MAX_SHRINKS: Final = 300
_SHRINK_FOR = 20.0
_SHOWN_FINDINGS: Final = 3
_FIRST_RUN_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that went wrong, and the shortest schedule that was found for it.

    Attributes:
        problem: What kind of thing: ``"mismatch"`` (a replay took another way), ``"stuck"``, ``"paused"``,
            ``"twice"`` (a recorded step ran again), ``"answer"`` (a crash changed the answer), ``"unrepeatable"``,
            ``"assertion"`` or ``"error"`` (of the scenario or the check).
        why: The same as a sentence, with details.
        schedule: The schedule; ``explore(..., schedule=str(finding.schedule))`` runs exactly it.
        timeline: What happened, line by line.
        error: The exception, where there was one.
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
    """What an exploration has found.

    Attributes:
        schedules: How many runs there were without a crash.
        prefixes: How many distinct prefixes of journals were resumed after a crash.
        cancellations: In how many of all these runs the handler was cancelled.
        seconds: How long it took.
        complete: Whether every order and every crash within the limits was tried, and not only a sample.
        left_out: What was not tried, a line each; empty if the exploration is complete.
        outcomes: What clients ended up with, each with a schedule that leads there.
        findings: What went wrong, each with the shortest schedule for it; empty if nothing did.
        most_runs: How often the body of each step ran at most, by name: more than once is an at-least-once window.
        windows: A schedule for each step whose body ran more than once.
        seed: What the order of trying was drawn from.
        unread_failures: Steps and calls that failed in some run without the handler having read their result.
        random_steps: The steps whose results differed from run to run, so that some orders could not be tried.
    """

    schedules: int = 0
    prefixes: int = 0
    cancellations: int = 0
    seconds: float = 0.0
    complete: bool = False
    left_out: list[str] = field(default_factory=list[str])
    outcomes: list[tuple[Outcome, Schedule]] = field(default_factory=list[tuple[Outcome, Schedule]])
    findings: list[Finding] = field(default_factory=list[Finding])
    most_runs: dict[str, int] = field(default_factory=dict[str, int])
    windows: dict[str, Schedule] = field(default_factory=dict[str, Schedule])
    seed: int = 0
    random_steps: set[str] = field(default_factory=set[str])
    unread_failures: set[str] = field(default_factory=set[str])

    @property
    def runs(self) -> int:
        """How many runs there were."""
        return self.schedules + self.prefixes

    @property
    def rate(self) -> float:
        """How many runs there were a second."""
        return self.runs / self.seconds if self.seconds else 0.0

    def assert_replay_safe(self) -> None:
        """Fail unless everything went well in every run.

        No replay asked for something else than was recorded, nothing hung, no recorded step ran again, no crash
        changed an answer, and the scenario and the check had nothing to complain of.

        Raises:
            NotReplaySafeError: Something went wrong; the message has the shortest schedule and its timeline.
        """
        __tracebackhide__ = True
        if self.findings:
            shown = "\n\n".join(str(finding) for finding in self.findings[:_SHOWN_FINDINGS])
            first = self.findings[0]
            # What the simulator itself has to say is in the message.
            cause = None if first.problem in ("mismatch", "stuck") else first.error
            raise NotReplaySafeError(f"{self.summary()}\n\n{shown}") from cause

    def assert_one_answer(self) -> None:
        """Fail unless every run gave the same answer, whatever the order of events.

        A handler that races may rightly have several.

        Raises:
            NotReplaySafeError: There are several answers; the message has a schedule for each.
        """
        __tracebackhide__ = True
        if len(self.outcomes) > 1:
            lines = "\n".join(f"  {outcome} with schedule {str(schedule)!r}" for outcome, schedule in self.outcomes)
            raise NotReplaySafeError(f"there are {len(self.outcomes)} answers:\n{lines}")

    def summary(self) -> str:
        """Return the report in a few lines."""
        covered = "all there are" if self.complete else "a sample"
        lines = [
            f"explored {self.schedules:,} schedules and {self.prefixes:,} resumed prefixes, {covered}, "
            f"in {self.seconds:.1f} s ({self.rate:,.0f} a second, seed {self.seed})"
        ]
        if self.cancellations:
            lines.append(f"cancelled in {self.cancellations:,} of these runs")
        if len(self.outcomes) > 1:
            lines.append(f"answers: {len(self.outcomes)}")
        again = sorted(name for name, runs in self.most_runs.items() if runs > 1)
        if again:
            shown = ", ".join(f"{name} (up to {self.most_runs[name]} times)" for name in again)
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
    """A schedule to try, and what is known of it before."""

    schedule: Schedule
    random: bool = False
    crash: bool = False
    before: Run | None = field(default=None, compare=False, repr=False)
    """The run of which this is to be another order."""


class Exploration:
    """Says which schedule to try next, and takes what came of it.

    Args:
        crashes: How many crashes a run may have.
        orders: ``"all"`` for every order of events, or how many orders to draw.
        max_runs: After how many runs to stop.
        max_seconds: After how many seconds to stop.
        seed: What the order of trying is drawn from.
        stop_at: After how many findings to stop.
        every_order: Whether every order of results can come about without a crash. Not so over HTTP/1.1: there all
            bodies that run end before anything goes on, and a crash can rightly give an answer of its own.
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
                raise SimulationError(f"{name} is {also}a whole number from {least}, not {value!r}.")
        self.report = Report(seed=seed)
        self._crashes, self._orders, self._every_order = crashes, orders, every_order
        self._max_runs, self._max_seconds, self._stop_at = max_runs, max_seconds, stop_at
        self._random = Random(seed)
        self._began = time.perf_counter()
        self._seen: set[int] = set()
        # Four heaps of work: other orders, crashes, cancellations, and other orders after one of these. The last is
        # endless for any handler of some size, and finds least: it is taken from when the others are empty.
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
        """Return what to try next; None when there is nothing left, or the budget is used up."""
        report = self.report
        report.seconds = time.perf_counter() - self._began
        if len(report.findings) >= self._stop_at:
            self._leave_out("once there was a finding")
            return None
        heaps = [self._new_orders, self._new_crashes, self._new_cancellations]
        if not (self._first or self._later or any(heaps)):
            self._end()
            return None
        # However small the budget is, nothing counts as explored that was not run at all.
        if report.runs and report.runs >= self._max_runs:
            self._leave_out(f"after {self._max_runs:,} runs (max_runs)")
            return None
        if report.runs and report.seconds > self._max_seconds:
            self.run_out_of_time()
            return None
        if self._first:
            return self._first.pop(0)
        self._turn += 1
        # Each in its turn.
        filled = [heap for heap in heaps if heap] or [self._later]
        heap = filled[self._turn % len(filled)]
        index = self._random.randrange(len(heap))
        heap[index], heap[-1] = heap[-1], heap[index]
        return heap.pop()

    def random_for(self, job: _Job) -> Random | None:
        """Return what draws the choices of a job, if they are to be drawn."""
        return Random(self._random.random()) if job.random else None

    def take(self, job: _Job, run: Run) -> Run:
        """Take what came of a job; the run is returned, with a problem if there is one."""
        report = self.report
        if job.crash:
            report.prefixes += 1
        else:
            report.schedules += 1
        report.cancellations += run.schedule.cancel is not None
        self._judge(job, run)
        for name, count in run.effects.most.items():
            report.most_runs[name] = max(count, report.most_runs.get(name, 0))
            if count > 1 and job.crash:
                report.windows.setdefault(name, run.schedule)
        if run.problem is None:
            self._plan(job, run)
        return run

    def does_not_fit(self, job: _Job, run: Run) -> bool:
        """Return whether a schedule did not fit because a step has returned something else than in the run before.

        It is recorded, so the handler may rightly go another way. What a body returns that runs again after a crash
        does not count.
        """
        if job.before is None:
            return False
        crashes = run.schedule.crashes
        step = job.before.history.random_result_in(run.history, crashes[0].stored if crashes else None)
        if step is None:
            return False
        self._has_random_results = True
        if run.problem != "unrepeatable":
            return False
        self.report.random_steps.add(step)
        return True

    def run_out_of_time(self) -> None:
        """Record that the time is used up, perhaps within a run."""
        self.report.seconds = time.perf_counter() - self._began
        self._leave_out(f"after {self._max_seconds:g} s (max_seconds)")

    def _leave_out(self, when: str) -> None:
        """Record that it stopped although something was left to try."""
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
        """Record that nothing is left to try."""
        report = self.report
        if self._orders != "all":
            report.left_out.append(f"every order but the {self._orders:,} that were drawn (orders)")
        report.left_out += self._random_orders()
        report.complete = not report.left_out

    def _random_orders(self) -> list[str]:
        names = ", ".join(sorted(self.report.random_steps))
        return [f"some orders, because the results of steps differ from run to run: {names}"] if names else []

    def finish(self) -> list[tuple[Outcome, Run]]:
        """Return the answers that only a crash gives, where every order without one was tried.

        Where steps return what is new each time, an answer that is new says nothing.
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
        """Note what else could have happened in this run."""
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
            # Before the last crash all is as it was without that crash.
            if moment.crashes == len(schedule.crashes) and key not in self._seen:
                self._seen.add(key)
                cancelled = replace(schedule, choices=made[: moment.choices], cancel=moment.number)
                self._new_cancellations.append(_Job(cancelled, crash=job.crash, before=run))
        if len(schedule.crashes) >= self._crashes:
            return
        for point in run.points:
            # Before the last crash all is as it was without that crash.
            if point.crashes < len(schedule.crashes) or not point.cancelled:
                continue
            # A result that gets lost twice is another thing than one that gets lost once.
            key = hash((point.fingerprint, len(schedule.crashes)))
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
    setup: Callable[[], object] | None = None,
    forget: Callable[[], object] | None = None,
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

    Each run starts from nothing. What is chosen: the order in which steps end, calls return and time passes; whether
    the handler is suspended at every wait; between which two messages the service's process is killed; and, if asked
    for, when an operator cancels the invocation.

    Args:
        app: The application, as ``restate_steps.app(...)`` returns it.
        handler: The handler's function, or ``"Service/handler"``.
        arg: Its argument; leave it out for a handler that takes none.
        key: The key, for a handler of a Virtual Object or a workflow.
        scenario: Instead of a handler: a coroutine function that is given a :class:`Simulator` and does what a client
            does, for example send, resolve an awakeable, and return the result.
        setup: Called before each run, to reset what steps have changed.
        forget: Called after each crash, to take away what only the process knew: a cache, or what else a module keeps.
            It is one Python process that plays them all, so nothing else takes it away.
        check: Called after each run with its simulator; it raises or returns False if something is wrong, for example
            if an effect was doubled.
        crashes: How many crashes a run may have.
        cancel: Whether to cancel the invocation as well, once, at every distinct moment at which nothing can run by
            itself; of several invocations, the oldest one that has not ended.
        orders: ``"all"``, or how many orders to draw.
        max_runs: After how many runs to stop.
        max_seconds: After how many seconds to stop, within a run if need be.
        seed: What the order of trying is drawn from: the same one tries the same.
        schedule: Run only this schedule, as it was printed by an earlier report.
        version: The version of the service protocol, 6 or 7.
        mode: See :func:`simulate`.
        journal_value_codec: See :func:`simulate`.
        progress: Whether to show on stderr how far it is; left out, on a terminal.

    Returns:
        What was found; see :meth:`Report.assert_replay_safe`.

    Raises:
        SimulationError: There is no such handler, the argument does not fit, or the scenario waits for something else.
        TypeError: ``app`` is no Restate application.

    Example:
        >>> import restate, restate_steps
        >>> shop = restate.Service("Shop")
        >>> @shop.handler()
        ... async def checkout(ctx: restate.Context, item: str) -> str:
        ...     price = await ctx.run_typed("quote", lambda: 3)
        ...     return await ctx.run_typed("charge", lambda: f"{item} for {price}")
        >>> report = explore(restate_steps.app([shop]), checkout, "tea")
        >>> report.assert_replay_safe()
        >>> report.complete, report.most_runs
        (True, {'quote': 2, 'charge': 2})
    """
    __tracebackhide__ = True
    if handler is not None and scenario is not None:
        raise SimulationError("give a handler or a scenario, not both: the scenario calls the handler itself.")
    settings = RunSettings(
        app=app,
        manifest=read_manifest(app),
        setup=setup,
        forget=forget,
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
    # Each run keeps logs back; doing so once for all of them is cheaper.
    limited = replace(settings, deadline=time.perf_counter() + max(max_seconds, _FIRST_RUN_SECONDS))
    with quiet():
        return explore_all(partial(perform, limited, plays), exploration, _Progress(progress, max_runs), performer)


def explore_all(
    perform: Perform, exploration: Exploration, progress: _Progress | None = None, again: Perform | None = None
) -> Report:
    """Try what the exploration says, until it has nothing left; what goes wrong is shortened.

    Args:
        perform: Runs a schedule, unless the time is used up.
        exploration: Says what to try.
        progress: Shows how far it is.
        again: Runs a schedule however long it takes, to shorten what goes wrong; the same as ``perform`` if left out.
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
            raise SimulationError("no handler was called, so there is nothing to explore: is an `await` missing?")
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
        run.problem, run.details = "answer", f"Without a crash {outcome} is never the answer."
        report.findings.append(_finding(again, run.schedule, run))
    bar.clear()
    return report


def explore_one(perform: Perform, schedule: Schedule, exploration: Exploration) -> Report:
    """Try one schedule, once."""
    run, simulator = perform(schedule, None)
    exploration.take(_Job(schedule, crash=bool(schedule.crashes)), run)
    if run.problem is None and (unused := _unused(schedule, run, simulator)):
        run.problem, run.details = "unrepeatable", f"{unused} Has the handler changed? Then explore it anew."
    report = exploration.report
    report.left_out = ["every schedule but the given one"]
    if run.problem is not None:
        report.findings.append(Finding(run.problem, run.why, schedule, simulator.timeline(), run.error))
    return report


def _unused(schedule: Schedule, run: Run, simulator: Simulator) -> str:
    """Say what of a schedule has found no place in its run."""
    if len(run.widths) < len(schedule.choices):
        return f"It has {len(schedule.choices)} choices, and there were only {len(run.widths)} to make."
    if simulator.driver.crash_at is not None:
        return f"Its crash at {simulator.driver.crash_at.stored} messages never came."
    return "Its cancellation never came." if simulator.driver.cancel_at is not None else ""


def _answers_again(perform: Perform, report: Report) -> bool:
    """Whether the same schedule gives the same answer when it is run again."""
    outcome, schedule = report.outcomes[0]
    run, _ = perform(schedule, None)
    return run.outcome == outcome


def _call(handler: HandlerRef | None, arg: Any, key: str | None) -> Scenario:
    if handler is None:
        raise SimulationError("there is nothing to explore: give a handler, or a scenario.")

    async def scenario(simulator: Simulator) -> Any:
        __tracebackhide__ = True
        return (await simulator.call_and_leave(handler, arg, key)).value

    return scenario


def _finding(perform: Perform, schedule: Schedule, run: Run) -> Finding:
    assert run.problem is not None
    _, simulator = perform(schedule, None)
    return Finding(run.problem, run.why, schedule, simulator.timeline(), run.error)


def _shortest(perform: Perform, job: _Job, run: Run) -> Finding:
    """Take away from a schedule whatever it can do without."""
    if run.problem == "answer":
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
    """Return what is simpler than a schedule, the greatest step first."""
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
    """One line on stderr that is written again and again."""

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
