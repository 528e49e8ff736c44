"""Everything in the list of ``exploration`` survives: a sample of its orders, crashes and cancellations."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import explored_total
from tests.support.exploration import SAMPLED, Subject, Variant, subjects

AT_LEAST = 28_000
"""How many schedules and resumed prefixes a run of the tests explores together; see ``explored_total``."""

SUBJECTS = subjects()


@pytest.mark.parametrize("variant", SAMPLED, ids=str)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_survives(subject: Subject, variant: Variant, record_property: Callable[[str, object], None]) -> None:
    """Whatever the order of events, wherever a crash comes and a cancellation, it goes on to a right answer."""
    report = subject.explore(variant)

    report.assert_replay_safe()
    assert report.complete or report.runs >= subject.runs
    assert report.prefixes
    assert bool(report.cancellations) == subject.cancellable
    record_property(explored_total.PROPERTY, (report.runs, len(SUBJECTS) * len(SAMPLED), AT_LEAST))
