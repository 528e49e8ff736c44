"""Everything in the list of ``exploration`` survives: a sample of its orders, crashes and cancellations."""

from __future__ import annotations

import time

import pytest
from exploration import VARIANTS, Subject, Variant, subjects

AT_LEAST = 10_000
"""How many schedules and resumed prefixes a run of the tests explores together."""

SUBJECTS = subjects()

explored_here = {"cases": 0, "runs": 0, "seconds": 0.0}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_survives(subject: Subject, variant: Variant) -> None:
    """Whatever the order of events, wherever a crash comes and a cancellation, it goes on to a right answer."""
    begun = time.perf_counter()
    report = subject.explore(variant)
    explored_here["seconds"] += time.perf_counter() - begun
    explored_here["cases"] += 1
    explored_here["runs"] += report.runs
    report.assert_replay_safe()
    assert report.prefixes
    assert bool(report.cancellations) == subject.cancellable


def test_enough_was_explored(capsys: pytest.CaptureFixture[str]) -> None:
    """Together the tests above tried at least 10,000 schedules and prefixes; how long that took is only said."""
    if explored_here["cases"] < len(SUBJECTS) * len(VARIANTS):
        pytest.skip("only some of it was explored")
    with capsys.disabled():
        print(f" {explored_here['runs']:,} schedules and prefixes in {explored_here['seconds']:.0f} s ", end="")
    assert explored_here["runs"] >= AT_LEAST
