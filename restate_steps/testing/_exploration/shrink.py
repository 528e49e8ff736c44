"""Shorten the schedule of a failed run as long as it shows the same problem."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final, TypeAlias

from restate_steps.testing._exploration.report import Finding
from restate_steps.testing._exploration.run import Run
from restate_steps.testing._simulation.schedule import Crash, Schedule
from restate_steps.testing._simulation.simulator import Simulator

__all__ = ["Perform", "finding_of", "shortest"]

Perform: TypeAlias = Callable[[Schedule, Random | None], tuple[Run, Simulator]]
"""Runs something under a schedule. With a ``Random``, it draws the choices that the schedule does not give."""

_MAX_SHRINKS: Final = 300
_SHRINK_FOR = 20.0


def finding_of(perform: Perform, schedule: Schedule, run: Run) -> Finding:
    """Run a schedule again for its timeline, and return the finding."""
    assert run.problem is not None
    _, simulator = perform(schedule, None)
    return Finding(run.problem, run.why, schedule, simulator.timeline(), run.error)


def shortest(perform: Perform, run: Run) -> Finding:
    """Shorten a schedule as long as it shows the same problem."""
    if run.problem == "answer-changed":
        return finding_of(perform, run.schedule.trimmed(), run)
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
    return finding_of(perform, best, best_run)


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
