"""Run a handler under every order of events and every crash, and report whether it survives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal

from restate import JournalValueCodec

from restate_steps.testing._errors import SimulationError
from restate_steps.testing._exploration.exploration import Exploration, Job
from restate_steps.testing._exploration.options import ExplorationOptions
from restate_steps.testing._exploration.progress import Progress
from restate_steps.testing._exploration.report import Finding, Report
from restate_steps.testing._exploration.run import RunSettings, Scenario, perform
from restate_steps.testing._exploration.shrink import Perform, finding_of, shortest
from restate_steps.testing._simulation.application import ASGIApp, Mode, read_manifest
from restate_steps.testing._simulation.calls import NOTHING, A, HandlerOf, HandlerRef
from restate_steps.testing._simulation.process import quiet
from restate_steps.testing._simulation.schedule import Schedule
from restate_steps.testing._simulation.simulator import Simulator
from restate_steps.testing._simulation.trace import Trace

__all__ = ["explore", "explore_all", "explore_one"]

_FIRST_RUN_SECONDS: Final = 1.0


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
    options = ExplorationOptions(
        crashes=crashes,
        cancel=cancel,
        orders=orders,
        max_runs=max_runs,
        max_seconds=max_seconds,
        seed=seed,
        before_each=before_each,
        on_crash=on_crash,
        version=version,
        mode=mode,
    )
    settings = RunSettings(app, read_manifest(app), options, check, journal_value_codec)
    plays = scenario or _call(handler, arg, key)
    performer = partial(perform, settings, plays)
    exploration = Exploration(options)
    if schedule is not None:
        return explore_one(performer, Schedule.parse(schedule), exploration)
    # Each run silences logs; silencing them once for all runs is cheaper.
    limited = replace(settings, deadline=time.perf_counter() + max(max_seconds, _FIRST_RUN_SECONDS))
    with quiet():
        return explore_all(partial(perform, limited, plays), exploration, Progress(progress, max_runs), performer)


def explore_all(
    perform: Perform, exploration: Exploration, progress: Progress | None = None, again: Perform | None = None
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
    bar = progress or Progress(False, 1)
    while (job := exploration.next()) is not None:
        run, simulator = perform(job.schedule, exploration.random_for(job))
        if run.is_cut_short:
            exploration.run_out_of_time()
            break
        if exploration.does_not_fit(job, run):
            continue
        if run.problem is None and not simulator.driver.model.invocations:
            raise SimulationError("no handler was called, so there is nothing to explore. Is an `await` missing?")
        exploration.record(job, run)
        report.unread_failures.update(run.trace.unread_failures)
        if run.problem is not None:
            bar.clear()
            report.findings.append(shortest(again, run))
        bar.show(report)
    suspects = exploration.finish()
    if suspects and not _answers_again(again, report):
        suspects = []
    for outcome, run in suspects:
        run.problem, run.details = "answer-changed", f"Without a crash, {outcome} is never the answer."
        report.findings.append(finding_of(again, run.schedule, run))
    bar.clear()
    return report


def explore_one(perform: Perform, schedule: Schedule, exploration: Exploration) -> Report:
    """Try one schedule, once."""
    run, simulator = perform(schedule, None)
    exploration.record(Job(schedule, crash=bool(schedule.crashes)), run)
    if run.problem is None and (unused := _unused(schedule, run.trace)):
        run.problem, run.details = "not-reproducible", f"{unused} If the handler has changed, explore it again."
    report = exploration.report
    report.left_out = ["every schedule but the given one"]
    if run.problem is not None:
        report.findings.append(Finding(run.problem, run.why, schedule, simulator.timeline(), run.error))
    return report


def _unused(schedule: Schedule, trace: Trace) -> str:
    """Return which part of a schedule its run did not use; empty if none."""
    if len(trace.widths) < len(schedule.choices):
        return f"The schedule has {len(schedule.choices)} choices, but the run had only {len(trace.widths)} to make."
    if trace.crashes < len(schedule.crashes):
        return f"The run never reached the schedule's crash at {schedule.crashes[trace.crashes].stored} messages."
    is_cancelled = schedule.cancel is None or trace.cancelled
    return "" if is_cancelled else "The run never reached the schedule's cancellation."


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
