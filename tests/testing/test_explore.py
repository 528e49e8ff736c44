"""`explore`: that it looks everywhere, that it finds what is wrong, and that what it finds can be had again."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import durable_step, gather, race
from restate_steps.testing import NotReplaySafeError, Schedule, SimulationError, Simulator, explore
from tests.support import shop

service = restate.Service("Explored")

done: Counter[str] = Counter()
"""What was done to the world outside, by name; ``setup`` clears it."""


@durable_step(name="step {name}")
async def step(name: str) -> str:
    done[name] += 1
    return name


async def branch(name: str) -> str:
    return await step(f"{name}1") + await step(f"{name}2")


@service.handler()
async def two_branches(ctx: restate.Context) -> list[str]:
    return await gather(branch("a"), branch("b"))


@service.handler()
async def fastest(ctx: restate.Context) -> str:
    return await race(step("a"), step("b"))


@service.handler()
async def three_steps(ctx: restate.Context) -> str:
    return "".join([await step(name) for name in "abc"])


@service.handler()
async def plain_asyncio(ctx: restate.Context) -> int:
    """The mistake that everybody makes: which of the two goes on first is decided by asyncio, and not recorded."""

    async def part(name: str) -> int:
        await asyncio.sleep(0)
        return await ctx.run_typed(f"{name}1", lambda: 1) + await ctx.run_typed(f"{name}2", lambda: 2)

    return sum(await asyncio.gather(part("a"), part("b")))


@service.handler()
async def answers_by_chance(ctx: restate.Context) -> float:
    await ctx.run_typed("a", lambda: 1)
    return random.random()


kept: list[int] = []


@service.handler()
async def remembers(ctx: restate.Context) -> str:
    """What a process remembers is gone after a crash."""
    await ctx.run_typed("first", lambda: kept.append(1))
    await ctx.run_typed("second", lambda: None)
    return await ctx.run_typed("third", lambda: "warm" if kept else "cold")


@service.handler()
async def never_resolved(ctx: restate.Context) -> None:
    _, answer = ctx.awakeable()
    await answer


app = restate.app([service])


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()
    kept.clear()
    shop.failing.clear()


def test_a_safe_handler_passes() -> None:
    """Every order and every crash, with nothing left to try."""
    report = explore(app, two_branches)

    report.assert_replay_safe()
    report.assert_one_answer()
    assert report.complete
    assert [["a1a2", "b1b2"]] == [outcome.value for outcome, _ in report.outcomes]


def test_every_order_is_tried() -> None:
    """Three independent steps can end in six orders, and all are seen."""
    orders: set[tuple[str, ...]] = set()
    fan = restate.Service("Fan")

    @fan.handler()
    async def three(ctx: restate.Context) -> int:
        return len(await gather(step("a"), step("b"), step("c")))

    def check(sim: Simulator) -> None:
        entries = sim.invocations[0].journal
        orders.add(tuple(entry.name or "" for entry in entries if entry.type == "Notification: Run"))

    report = explore(restate.app([fan]), three, check=check, crashes=0)

    assert report.complete
    assert set(itertools.permutations(["step a", "step b", "step c"])) == orders


def test_every_prefix_is_resumed() -> None:
    """A handler of three steps is resumed from each of its seven journals, and once after each lost result."""
    crashes: set[tuple[Any, ...]] = set()
    report = explore(app, three_steps, check=lambda sim: crashes.update([tuple(map(str, sim.driver.trace.log))]))

    stored = ["input", *(f"{what} {name}" for name in "abc" for what in ("run", "result")), "output"]
    # Each twice: with a handler that stays, and with one that is suspended at every wait.
    assert report.complete
    assert 2 == report.schedules
    assert 2 * (len(stored) + len("abc")) == report.prefixes


def test_effects_and_windows_are_shown() -> None:
    """Each body can run twice, where its result gets lost; never more often with one crash, nor without a window."""
    report = explore(app, three_steps)

    assert {"step a": 2, "step b": 2, "step c": 2} == report.max_body_runs
    assert {"step a", "step b", "step c"} == set(report.repeated_steps)
    assert "may run again after a crash: step a (up to 2 times)" in report.summary()
    again = explore(app, three_steps, schedule=report.repeated_steps["step b"])
    assert {"step a": 1, "step b": 2, "step c": 1} == again.max_body_runs
    assert {"step a": 1, "step b": 1, "step c": 1} == explore(app, three_steps, crashes=0).max_body_runs


def test_two_crashes() -> None:
    """A body can run three times then."""
    report = explore(app, three_steps, crashes=2)

    report.assert_replay_safe()
    assert report.complete
    assert 3 == report.max_body_runs["step b"]
    assert report.prefixes > explore(app, three_steps, crashes=1).prefixes


def test_a_race_may_have_several_answers() -> None:
    """That is no defect, unless the test says so; each answer comes with a schedule for it."""
    report = explore(app, fastest)

    report.assert_replay_safe()
    assert {"a", "b"} == {outcome.value for outcome, _ in report.outcomes}
    with pytest.raises(NotReplaySafeError, match="there are 2 answers") as caught:
        report.assert_one_answer()
    for outcome, schedule in report.outcomes:
        assert f"{outcome.value!r} with schedule {str(schedule)!r}" in str(caught.value)
        [(again, _)] = explore(app, fastest, schedule=str(schedule)).outcomes
        assert outcome == again


def test_a_mismatch_is_found_and_made_short() -> None:
    """The message has the summary, the schedule, and the way there, line by line."""
    report = explore(app, plain_asyncio)

    [finding] = report.findings
    assert "mismatch" == finding.problem, str(finding)
    with pytest.raises(NotReplaySafeError) as caught:
        report.assert_replay_safe()
    for part in ("found 1 problem", f"schedule {str(finding.schedule)!r}", "✂ crash", "→ run a1", "fails with 570"):
        assert part in str(caught.value)
    assert 1 == len(finding.schedule.crashes)
    assert len(finding.schedule.choices) <= 1


def test_a_finding_can_be_had_again() -> None:
    """From the literal alone, with the same timeline."""
    [finding] = explore(app, plain_asyncio).findings

    [again] = explore(app, plain_asyncio, schedule=str(finding.schedule)).findings

    assert (finding.problem, finding.schedule, finding.timeline) == (again.problem, again.schedule, again.timeline)


def test_an_answer_by_chance_is_found() -> None:
    """The journal does not decide it: replayed, it is another one."""
    [finding] = explore(app, answers_by_chance).findings

    assert finding.problem in ("mismatch", "answer")


def test_an_answer_that_only_a_crash_gives_is_found() -> None:
    """What a process remembers outside of its steps shows in what it answers after a crash."""
    report = explore(app, remembers, before_each=kept.clear)
    assert [] == report.findings

    service = restate.Service("Cache")
    cache: dict[str, int] = {}

    @service.handler()
    async def cached(ctx: restate.Context) -> str:
        await ctx.run_typed("first", lambda: cache.setdefault("runs", 0))
        cache["runs"] = cache.get("runs", 0) + 1
        seen = cache["runs"]
        return await ctx.run_typed("second", lambda: f"attempt {seen}")

    report = explore(restate.app([service]), cached, before_each=cache.clear)

    assert {"answer-changed"} == {finding.problem for finding in report.findings}
    assert any("attempt 2" in finding.why and "Without a crash" in finding.why for finding in report.findings)


def test_steps_may_return_what_is_new_each_time() -> None:
    """Where every run has another answer, one that only came after a crash is no defect."""
    service = restate.Service("New")
    numbers = itertools.count()

    @service.handler()
    async def new(ctx: restate.Context) -> str:
        await ctx.run_typed("first", lambda: None)
        return await ctx.run_typed("second", lambda: f"number {next(numbers)}")

    explore(restate.app([service]), new).assert_replay_safe()


def test_a_hang_is_found() -> None:
    """Nobody resolves the awakeable."""
    [finding] = explore(app, never_resolved).findings

    assert "stuck" == finding.problem
    assert "Explored/never_resolved" in finding.why


def test_a_scenario_does_what_a_client_does() -> None:
    """It sends, answers and waits; its own result is the answer."""

    async def scenario(sim: Simulator) -> Any:
        invocation = await sim.send(shop.ask, "tea?")
        await sim.resolve_awakeable(await sim.awakeable(invocation), "yes")
        return (await invocation.result()).value

    report = explore(shop.app, scenario=scenario)

    report.assert_replay_safe()
    report.assert_one_answer()
    assert "tea? yes" == report.outcomes[0][0].value


def test_an_assertion_of_the_scenario_is_a_finding() -> None:
    """With the schedule at which it fails, and the assertion as its cause."""

    async def scenario(sim: Simulator) -> None:
        result = await sim.call(three_steps)
        assert 1 == result.attempts, "it took two attempts"

    report = explore(app, scenario=scenario)

    with pytest.raises(NotReplaySafeError, match="it took two attempts") as caught:
        report.assert_replay_safe()
    assert isinstance(caught.value.__cause__, AssertionError)


def test_a_check_sees_each_run() -> None:
    """An effect without an idempotency key is doubled by a crash at the wrong moment; the check finds it."""

    def check(sim: Simulator) -> None:
        assert done["b"] == 1, f"b was done {done['b']} times"

    report = explore(app, three_steps, before_each=done.clear, check=check)

    [finding] = report.findings
    assert "assertion" == finding.problem
    assert "b was done 2 times" in finding.why
    assert finding.schedule.crashes[0].lost


def test_calls_sends_and_keys_are_explored_together() -> None:
    """Three invocations on one key: whatever the order and the crash, the count is right."""

    def check(sim: Simulator) -> None:
        assert {"count": 10} == sim.state("Cart", "ann")

    report = explore(shop.app, shop.order, "ann", check=check, max_runs=400)

    report.assert_replay_safe()
    report.assert_one_answer()


def test_workflows_are_explored() -> None:
    """A promise that is resolved while the workflow waits, with a crash anywhere."""

    async def scenario(sim: Simulator) -> Any:
        workflow = await sim.send(shop.run, "tea", key="w")
        await sim.call(shop.answer, "yes", key="w")
        return (await workflow.result()).value

    report = explore(shop.app, scenario=scenario, max_runs=400)

    report.assert_replay_safe()
    report.assert_one_answer()


@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("mode", ["bidirectional", "request_response"])
def test_both_versions_and_both_modes(version: int, mode: Any) -> None:
    """The same handler, however the server talks to it."""
    report = explore(app, two_branches, version=version, mode=mode, max_runs=150)

    report.assert_replay_safe()
    report.assert_one_answer()


def test_budget_of_runs() -> None:
    """When it is used up, the report says that it is a sample."""
    report = explore(app, two_branches, max_runs=7)

    assert 7 == report.runs
    assert not report.complete
    assert "a sample" in report.summary()
    [left] = report.left_out
    assert re.match(r"\d+ other orders, \d+ crashes, .*: it stopped after 7 runs", left), left
    assert left in report.summary()


def test_budget_of_seconds() -> None:
    """No run begins after the time is up."""
    report = explore(app, two_branches, max_seconds=0.0)

    assert not report.complete
    assert report.runs <= 1
    assert "it stopped after 0 s" in report.left_out[0]


def test_a_complete_exploration_leaves_nothing_out() -> None:
    report = explore(app, two_branches, max_runs=100_000)

    assert (report.complete, report.left_out) == (True, [])
    assert "all there are" in report.summary()


def test_one_schedule_is_not_an_exploration() -> None:
    report = explore(app, two_branches, schedule="0")

    assert not report.complete
    assert report.left_out == ["every schedule but the given one"]


def test_a_number_of_orders() -> None:
    """So many are drawn, from the seed."""
    report = explore(app, two_branches, orders=5, crashes=0)

    # And one that is suspended at every wait.
    assert 6 == report.schedules
    assert not report.complete
    assert report.left_out == ["every order but the 5 that were drawn (orders)"]


def test_the_same_seed_tries_the_same() -> None:
    """Another one does not."""

    def tried(seed: int) -> list[str]:
        seen: list[str] = []
        explore(app, two_branches, check=lambda sim: seen.append(str(sim.driver.trace.choices)), seed=seed, max_runs=20)
        return seen

    assert tried(1) == tried(1)
    assert tried(1) != tried(2)


def test_rates_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """How many a second; on request a bar that goes on."""
    report = explore(app, two_branches, max_runs=30, progress=True)

    assert report.rate == pytest.approx(report.runs / report.seconds)
    assert "a second" in report.summary()
    assert "schedules" in capsys.readouterr().err
    explore(app, two_branches, max_runs=30)
    assert "" == capsys.readouterr().err


def test_timeouts_are_explored() -> None:
    """Whether the step or the timer comes first, the journal decides."""
    report = explore(shop.app, shop.first, "tea")

    report.assert_replay_safe()
    assert {"step", "patience"} == {outcome.value for outcome, _ in report.outcomes}


def test_bad_input() -> None:
    """Each mistake has an error that says what is wrong."""

    async def waits(sim: Simulator) -> None:
        await asyncio.sleep(1)

    with pytest.raises(SimulationError, match="pass a handler or a scenario"):
        explore(app)
    with pytest.raises(SimulationError, match="waits for something that is not the simulator"):
        explore(app, scenario=waits)
    with pytest.raises(SimulationError, match="no handler Explored/missing"):
        explore(app, "Explored/missing")
    with pytest.raises(SimulationError, match="is not a schedule"):
        explore(app, three_steps, schedule="one.two")


@pytest.mark.parametrize("text", ["", "0.1.2", "1!4", "!4~!9", "replay:", "replay:0.2!7~"])
def test_schedules_can_be_written_and_read(text: str) -> None:
    """The literal is the schedule."""
    assert text == str(Schedule.parse(text))


@pytest.mark.parametrize("text", ["one.two", "-1", "0.-9", "!-3", "x-1", "1_0", "!", "x"])
def test_what_is_not_a_schedule_is_refused(text: str) -> None:
    """It is no choice at all, or one that does not exist."""
    with pytest.raises(SimulationError, match="is not a schedule"):
        Schedule.parse(text)


def test_retries_are_explored() -> None:
    """A step that fails twice and a crash anywhere: in the end it has worked."""

    def setup() -> None:
        shop.failing.clear()
        shop.failing["charge"] = 2

    report = explore(shop.app, shop.retried_step, before_each=setup, max_runs=300)

    report.assert_replay_safe()
    assert timedelta(0) < timedelta(seconds=report.seconds)


def test_a_step_that_returns_something_random() -> None:
    """Its result is recorded, so the handler may decide by it; no schedule of another run need fit."""
    service = restate.Service("Random")
    draws = random.Random(0)

    @durable_step
    async def draw() -> int:
        return draws.randrange(4)

    @durable_step(name="{what}")
    async def work(what: str) -> str:
        return what

    @service.handler()
    async def handler(ctx: restate.Context) -> int:
        count = await draw()
        await restate_steps.gather(*(work(f"w{number}") for number in range(count)))
        return count

    noticed = 0
    for seed in range(8):
        draws = random.Random(seed)
        report = explore(restate_steps.app([service]), handler, max_runs=60, seed=seed, progress=False)
        report.assert_replay_safe()
        if report.random_steps:
            noticed += 1
            assert report.random_steps == {"draw"}
            assert not report.complete
            assert report.left_out[-1:] == ["some orders, because the results of steps differ from run to run: draw"]
    assert noticed > 4
