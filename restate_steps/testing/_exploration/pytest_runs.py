"""Run one test under many schedules. The pytest hooks and fixtures are in ``restate_steps._pytest``.

P1. Each run is a normal call of the test: the same plugin runs it as without the marker, on the same event loop.
P2. The fixture ``simulator`` is one object for all runs, so that objects that other fixtures derived from it keep
    working. It is reset before each run.
P3. A test that fails without a crash, with events in the default order, fails as it does without the marker.
P4. Whatever ends a test without failing it (a skip, an expected failure, an interruption) ends the exploration.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from random import Random
from typing import Any, Final

import pytest
from restate import TerminalError

from restate_steps.testing._errors import InvocationPausedError, NotReplaySafeError, SimulationError, StuckError
from restate_steps.testing._exploration.exploration import Exploration
from restate_steps.testing._exploration.explore import explore_all
from restate_steps.testing._exploration.options import ExplorationOptions
from restate_steps.testing._exploration.report import Finding, Report
from restate_steps.testing._exploration.run import Problem, Run, RunSettings, begin_run, end_run
from restate_steps.testing._simulation.application import read_manifest
from restate_steps.testing._simulation.process import quiet
from restate_steps.testing._simulation.schedule import Schedule
from restate_steps.testing._simulation.simulator import Simulator
from restate_steps.testing._simulation.timeline import shortened

__all__ = ["run_explored", "run_scheduled"]

_PLAIN: Final = Schedule()


class _Test:
    """A marked test that can be run under a schedule."""

    def __init__(
        self, item: pytest.Item, options: ExplorationOptions, held: Simulator, runtest: Callable[[], None]
    ) -> None:
        self._held, self._runtest = held, runtest
        self._settings = RunSettings(held.app, read_manifest(held.app), options)
        # A test with caplog expects to see the logs.
        self.logs = "caplog" in getattr(item, "fixturenames", ())

    def __call__(self, schedule: Schedule, random: Random | None = None) -> tuple[Run, Simulator]:
        """Run the test once."""
        __tracebackhide__ = True
        simulator = self._held
        simulator.reset(begin_run(self._settings, schedule, random))
        raised: BaseException | None = None
        try:
            with nullcontext() if self.logs or schedule == _PLAIN else quiet():
                self._runtest()
        except (Exception, pytest.fail.Exception) as caught:
            raised = caught
        except BaseException:
            simulator.close()
            raise
        error = _alone(raised)
        if raised is not None and _ends_all(error):
            simulator.close()
            raise raised
        # In a scenario, a terminal error would be the outcome; here it has failed the test.
        problem: Problem | None = None
        if isinstance(error, TerminalError):
            problem = "error"
        elif isinstance(error, pytest.fail.Exception):
            problem = "assertion"
        run = end_run(self._settings, simulator, schedule, error=error, problem=problem)
        if raised is not None and schedule == _PLAIN and random is None:
            raise raised
        return run, simulator


def _alone(error: BaseException | None) -> BaseException | None:
    """Return the only error in a group, or the error itself if it is not such a group."""
    grouped = issubclass(type(error), BaseExceptionGroup)
    inside: Sequence[BaseException] = getattr(error, "exceptions", ()) if grouped else ()
    return _alone(inside[0]) if len(inside) == 1 else error


def _ends_all(error: BaseException | None) -> bool:
    """Return whether an error would be the same in every run, and so is not a finding."""
    if isinstance(error, SimulationError):
        return not isinstance(error, (StuckError, InvocationPausedError))
    return isinstance(error, pytest.xfail.Exception)


def run_explored(
    item: pytest.Item, options: ExplorationOptions, held: Simulator, runtest: Callable[[], None], max_runs: int | None
) -> tuple[dict[str, Any], NotReplaySafeError | None]:
    """Run a test under many schedules, as its marker says.

    Args:
        item: The test.
        options: The arguments of its marker.
        held: The object that its fixture ``simulator`` is.
        runtest: Runs the test once.
        max_runs: The number of runs that replaces the limits of the marker; None keeps them.

    Returns:
        The numbers for the summary, and the error if the test fails under one of the schedules.
    """
    __tracebackhide__ = True
    test = _begin(item, options, held, runtest)
    if max_runs is not None:
        options = replace(options, max_runs=max_runs, max_seconds=float("inf"))
    report = explore_all(test, Exploration(options))
    failure = None
    if report.findings:
        finding = report.findings[0]
        # Run it once more, so that pytest shows the output and logs of this run only.
        _forget_output(item.config)
        test.logs = True
        again, _ = test(finding.schedule)
        failure = NotReplaySafeError(_text(item, finding, report))
        failure.__cause__ = again.error if again.problem == finding.problem else finding.error
    return _numbers(report), failure


def run_scheduled(
    item: pytest.Item, options: ExplorationOptions, held: Simulator, runtest: Callable[[], None], schedule: Schedule
) -> None:
    """Run a test once, under a schedule, and raise the error itself, so that a debugger stops in the test.

    Raises:
        NotReplaySafeError: The test raises no error, but is not safe to replay.
    """
    __tracebackhide__ = True
    test = _begin(item, options, held, runtest)
    test.logs = True
    run, simulator = test(schedule)
    if run.error is not None:
        raise run.error
    if run.problem is not None:
        raise NotReplaySafeError(f"{_under(schedule)}: {run.why}\n\n{shortened(simulator.timeline())}")


def _begin(item: pytest.Item, options: ExplorationOptions, held: Simulator, runtest: Callable[[], None]) -> _Test:
    __tracebackhide__ = True
    if held.invocations:
        pytest.fail(
            f"A fixture has already called a handler: {held.invocations}. But {item.name} runs many times, each time "
            "from scratch. Call the handler in the test, so that each run calls it.",
            pytrace=False,
        )
    return _Test(item, options, held, runtest)


def _text(item: pytest.Item, finding: Finding, report: Report) -> str:
    # The traceback shows the whole error before this text, as the cause.
    what = finding.why
    if finding.problem in ("assertion", "error"):
        what = f"the test fails: {type(finding.error).__name__}: {str(finding.error).partition(chr(10))[0]}"
    literal = shlex.quote(str(finding.schedule))
    return (
        f"{_under(finding.schedule)}: {what}\n\n{shortened(finding.timeline)}\n\n"
        f"Found after {report.schedules:,} schedules and {report.prefixes:,} prefixes with a crash. "
        f"To run only this schedule:\n"
        f"pytest {shlex.quote(item.nodeid)} --restate-schedule={literal}"
    )


def _under(schedule: Schedule) -> str:
    return "without any crash" if schedule == _PLAIN else f"under the schedule {str(schedule)!r}"


def _numbers(report: Report) -> dict[str, Any]:
    """Return the numbers for the summary, as plain data: pytest-xdist sends them between processes."""
    covered = "all there are" if report.complete else "a sample"
    if report.findings:
        covered = "up to the first problem"
    return {
        "schedules": report.schedules,
        "prefixes": report.prefixes,
        "seconds": round(report.seconds, 3),
        "covered": covered,
    }


def _forget_output(config: pytest.Config) -> None:
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture is not None and capture.is_globally_capturing():
        capture.read_global_capture()
