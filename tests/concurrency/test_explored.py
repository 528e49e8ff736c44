"""What exploring the scenarios shows of the invariants (B1 to B6), beyond that each of them survives.

That each survives is in ``tests/test_exploration.py``; that each can fail is in ``test_defects.py``.
"""

from __future__ import annotations

import random

import pytest
import restate

import restate_steps
from restate_steps import durable_step, gather
from restate_steps.testing import Simulator, explore
from tests.concurrency import scenarios
from tests.support.exploration import VARIANTS, subjects


def test_no_journaled_step_runs_again() -> None:
    """A body whose result is in the journal is not started by any later attempt."""
    again: list[str] = []

    def check(sim: Simulator) -> None:
        recorded: set[int] = set()
        for run in sim.effects.runs:
            if run.completion_id in recorded:
                again.append(run.name)
            if run.recorded:
                recorded.add(run.completion_id)

    subject = scenarios.SCENARIOS["failure_1_local_waits_before_the_first_step"]
    report = explore(subject.app, subject.handler, crashes=2, max_runs=150, check=check)
    report.assert_replay_safe()
    assert again == []
    assert max(report.max_body_runs.values()) > 1


@pytest.mark.parametrize("name", ["failure_4_locks_events_and_queues", "failure_3_local_waits_after_an_inner_gather"])
@pytest.mark.parametrize("crash", ["", "!9", "!13"])
def test_the_order_of_commands_does_not_depend_on_timing(name: str, crash: str) -> None:
    """The same events in the same order give the same journal, however long local work takes (B3)."""
    journals: list[str] = []

    def look(sim: Simulator) -> None:
        journals.append(str(sim.invocations[0].journal))

    subject = scenarios.SCENARIOS[name]
    for seed in range(8):
        scenarios.begin(seed)
        report = explore(subject.app, subject.handler, schedule=f"1.0.1{crash}", check=look)
        report.assert_replay_safe()
    assert len(journals) == 8
    assert len(set(journals)) == 1


def test_a_group_in_a_plain_task_hears_that_its_branch_is_cancelled() -> None:
    """The task is cancelled and cleans up; once it asked again and again, and nothing else ran in the process (B5)."""
    subject = {each.name: each for each in subjects()}["small/a_group_in_a_plain_task_of_a_branch"]
    report = subject.explore(VARIANTS[0], schedule="2")
    report.assert_replay_safe()
    assert [str(outcome) for outcome, _ in report.outcomes] == ["'quick, ended'"]


def test_a_handler_that_differs_on_replay_is_seen() -> None:
    """A handler whose path depends on chance is caught: the exploration can fail."""
    service = restate.Service("Chance")

    @durable_step(name="step {name}")
    async def step(name: str) -> str:
        return name

    @service.handler()
    async def handler(ctx: restate.Context) -> list[str]:
        names = random.sample("abcdef", 3)
        return await gather(*(step(name) for name in names))

    [finding] = explore(restate_steps.app([service]), handler).findings
    assert finding.problem == "mismatch"
