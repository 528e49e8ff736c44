"""Every scenario, under many orders of completions, resumed from every prefix of every journal (B1 to B6)."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import restate

from concurrency import scenarios
from concurrency.explorer import (
    Player,
    Report,
    app_of,
    explore,
    fields,
    first_journal,
    run_suspending,
)
from restate_steps import durable_step, gather

APP = app_of(scenarios.service)
NAMES = sorted(scenarios.SCENARIOS)


def answers(report: Report) -> list[Any]:
    return [json.loads(fields(output)[1]) for output in sorted(report.outputs)]


@pytest.mark.parametrize("name", NAMES)
async def test_resumes_from_every_prefix_of_every_schedule(name: str) -> None:
    """Wherever a crash comes, and whatever the order of completions, the handler goes on to a right answer."""
    report = await explore(APP, f"Scenarios/{name}", seeds=12)
    assert report.prefixes > 3
    for answer in answers(report):
        assert answer in scenarios.SCENARIOS[name].answers


@pytest.mark.parametrize("name", NAMES)
async def test_suspends_at_every_wait_and_goes_on(name: str) -> None:
    """Suspended whenever it waits, as in always-replay mode, a handler comes to a right answer."""
    for seed in range(10):
        attempt = await run_suspending(APP, f"Scenarios/{name}", seed)
        assert attempt.verdict == "done", str(attempt)
        assert json.loads(fields(attempt.output)[1]) in scenarios.SCENARIOS[name].answers


@pytest.mark.parametrize("name", [name for name in NAMES if scenarios.SCENARIOS[name].cancellable])
async def test_can_be_cancelled_at_every_point(name: str) -> None:
    """A cancellation reaches every branch in order; the handler ends as cancelled or with a right answer."""
    cancelled = 0
    report = await explore(APP, f"Scenarios/{name}", seeds=12, cancel=True)
    for output in report.outputs:
        data = fields(output)
        if data[1] == 409:
            cancelled += 1
        else:
            assert json.loads(data[1]) in scenarios.SCENARIOS[name].answers
    assert cancelled or "compensated" in str(report.outputs)


async def test_no_journaled_step_runs_again() -> None:
    """A body whose completion is in the journal is not started by any later attempt."""
    path = "Scenarios/failure_1_local_waits_before_the_first_step"
    whole = await Player(APP, path, first_journal(), 1).play()
    for length in range(1, len(whole.journal) - 1):
        prefix = whole.journal[:length]
        done = {fields(body)[1] for kind, body in prefix if kind & 0x8000}
        journaled = {fields(body)[12].decode() for kind, body in prefix if kind == 0x0411 and fields(body)[11] in done}
        scenarios.bodies.clear()
        resumed = await Player(APP, path, prefix, length).play()
        assert resumed.verdict == "done"
        assert journaled.isdisjoint(f"work {tag}" for tag in scenarios.bodies)


async def test_the_order_of_commands_does_not_depend_on_timing() -> None:
    """The same completions in the same order give the same journal, however long local work takes (B3)."""
    path = "Scenarios/failure_4_locks_events_and_queues"
    whole = await Player(APP, path, first_journal(), 3).play()
    for _ in range(5):
        again = await Player(APP, path, whole.journal[:-1], random.randrange(10**6)).play()
        assert again.verdict == "done"
        assert [frame for frame in again.journal if frame[0] != 0x0401] == whole.journal[:-1]


async def test_the_explorer_sees_a_handler_that_differs_on_replay() -> None:
    """A handler whose path depends on chance is caught: the exploration can fail."""
    service = restate.Service("Chance")

    @durable_step(name="step {name}")
    async def step(name: str) -> str:
        return name

    @service.handler()
    async def handler(ctx: restate.Context) -> list[str]:
        names = random.sample("abcdef", 3)
        return await gather(*(step(name) for name in names))

    with pytest.raises(AssertionError, match="error"):
        await explore(app_of(service), "Chance/handler", seeds=5)


async def test_the_explorer_sees_a_scheduler_that_starts_branches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the baton for start segments (B1), local waits before a first step mix up the journal."""
    from restate_steps.concurrency import _scheduler

    def check_nothing(self: Any, operation: str) -> None:
        return

    def start_at_once(self: Any, strand: Any) -> None:
        if strand.task is None and strand is not self.main:
            strand.state = _scheduler.State.RUNNING
            strand.grant(None)
        else:
            original(self, strand)

    original = _scheduler.Scheduler._make_ready
    monkeypatch.setattr(_scheduler.Scheduler, "_make_ready", start_at_once)
    monkeypatch.setattr(_scheduler.Scheduler, "check", check_nothing)
    with pytest.raises(AssertionError):
        await explore(APP, "Scenarios/failure_1_local_waits_before_the_first_step", seeds=5)
