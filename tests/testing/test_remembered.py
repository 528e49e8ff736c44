"""A clock or a random source is the cause, and not "memory", when a value of it stays in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import restate_steps
from restate_steps.testing import Nondeterminism, check_deterministic, simulate
from restate_steps.testing._determinism.memory import changed, remember
from tests.testing import remembering

FILE = remembering.__file__


def blamed(finding: Nondeterminism) -> tuple[str, str, str | None]:
    return finding.kind, finding.cause, finding.location


@pytest.mark.parametrize(
    ("handler", "kind", "call"),
    [
        (remembering.sets_a_variable, "clock", "time.time()"),
        (remembering.fills_a_dict, "randomness", "uuid.uuid4()"),
        (remembering.caches_the_time, "clock", "datetime.now()"),
        (remembering.caches_a_secret, "randomness", "secrets.token_hex()"),
        (remembering.sets_an_attribute, "randomness", "os.urandom()"),
        (remembering.tells_when_it_was_imported, "clock", "time.time()"),
        (remembering.tells_which_process_it_is, "randomness", "uuid.uuid4()"),
        (remembering.has_a_setting, "randomness", "random.random()"),
        (remembering.has_a_default, "clock", "time.time()"),
        (remembering.has_an_object, "randomness", "uuid.uuid4()"),
        (remembering.has_a_cached_property, "randomness", "random.random()"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_a_value_that_stays_in_memory(handler: Callable[..., Any], kind: str, call: str) -> None:
    """The line that reads it is to blame: each process has another value."""
    report = check_deterministic(handler, interpreters=2)
    place = f"{FILE}:{remembering.line_of(handler.__name__)}"
    expected = [(kind, f"{call}, whose value stays in memory", place)]

    assert expected == [blamed(finding) for finding in report.findings], str(report)
    assert [] == report.not_checked
    [finding] = report.findings
    assert "step 'quote'" == finding.after
    assert finding.recorded != finding.replayed


def test_a_value_that_another_test_has_left() -> None:
    """The recorded run reads nothing, as it finds the value in memory; a new process reads another one."""
    remembering.ids["id"] = "left"
    report = check_deterministic(remembering.fills_a_dict, interpreters=2)
    place = f"{FILE}:{remembering.line_of('fills_a_dict')}"

    assert [("randomness", "uuid.uuid4(), whose value stays in memory", place)] == [
        blamed(finding) for finding in report.findings
    ], str(report)


@pytest.mark.parametrize(
    ("handler", "call", "variable"),
    [
        (remembering.caches_for_a_minute, "time.time()", "prices"),
        (remembering.counts_and_tells_the_time, "time.time()", "numbers"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_a_clock_comes_before_memory(handler: Callable[..., Any], call: str, variable: str) -> None:
    """Where both make a difference, both are found, and the clock comes first."""
    remembering.prices.clear()
    clock, memory = check_deterministic(handler, interpreters=2).findings

    assert ("clock", call, f"{FILE}:{remembering.line_of(handler.__name__)}") == blamed(clock)
    assert "memory" == memory.kind
    assert f"remembering.{variable}" in memory.cause


def test_a_generator_in_memory() -> None:
    """Its numbers are random, and also if it has a seed: the next attempt continues where this one was."""
    handler = remembering.draws_from_a_generator
    [finding] = check_deterministic(handler, interpreters=0).findings

    assert "randomness" == finding.kind
    assert "remembering.generator" in finding.cause
    assert f"{FILE}:{remembering.line_of(handler.__name__)}" == finding.location


@pytest.mark.parametrize(
    ("handler", "variable"),
    [(remembering.knows_whether_it_is_open, "is_open"), (remembering.knows_the_number, "counter")],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_what_an_earlier_run_has_left_behind(handler: Callable[..., Any], variable: str) -> None:
    """Neither a clock nor chance: a new process does as this one did when it is given the one variable."""
    app = restate_steps.app([remembering.remembering])
    with simulate(app) as sim:
        sim.run(sim.call(remembering.leaves_something_behind))
    [finding] = check_deterministic(handler, interpreters=2).findings

    module = remembering.__name__
    cause = f"something that this process has in memory, but a new one lacks: {module}.{variable}"
    assert ("memory", cause) == (finding.kind, finding.cause)


def test_a_clock_that_does_not_matter() -> None:
    """A log in memory has a time in each entry; that it becomes longer is what makes the difference."""
    [finding] = check_deterministic(remembering.counts_its_log, interpreters=2).findings

    assert "memory" == finding.kind
    assert "remembering.log" in finding.cause


def test_no_false_alarm_for_a_time_that_is_only_logged() -> None:
    """It is read once and remembered, but no command depends on it."""
    report = check_deterministic(remembering.measures, interpreters=2)
    assert ([], []) == (report.findings, report.not_checked), str(report)


def test_without_other_interpreters() -> None:
    """Nothing here tells whether a value in memory matters, and the report says so."""
    remembering.now.cache_clear()
    report = check_deterministic(remembering.caches_the_time, interpreters=0)

    assert [] == report.findings
    place = f"{FILE}:{remembering.line_of('caches_the_time')}"
    expected = f"clock: datetime.now at {place}, whose value stays in memory, because interpreters=0"
    assert expected in report.not_checked


NOT_A_NUMBER = float("nan")


def test_a_number_that_differs_from_itself_has_not_changed() -> None:
    assert not [name for name in changed(remember(), remember()) if "NOT_A_NUMBER" in name]
