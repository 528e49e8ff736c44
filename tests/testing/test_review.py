"""Mistakes in the use of `explore` that must not pass for a success, and handlers that are sound but unusual."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import restate

from restate_steps.testing import (
    NotReplaySafeError,
    SimulationError,
    Simulator,
    StuckError,
    explore,
    simulate,
)
from restate_steps.testing._exploration import shrink
from restate_steps.testing._simulation import loop as looping

service = restate.Service("Reviewed")


@service.handler()
async def one(ctx: restate.Context) -> int:
    return await ctx.run_typed("one", lambda: 1)


@service.handler()
async def sends_two(ctx: restate.Context) -> int:
    ctx.service_send(one, arg=None)
    ctx.service_send(one, arg=None)
    return 1


@service.handler()
async def hourly(ctx: restate.Context) -> int:
    """As a cron job: each run sends the next."""
    ctx.service_send(hourly, arg=None, send_delay=timedelta(hours=1))
    return await ctx.run_typed("tick", lambda: 1)


@service.handler()
async def remind(ctx: restate.Context, times: int) -> int:
    if times:
        ctx.service_send(remind, arg=times - 1, send_delay=timedelta(hours=1))
    return await ctx.run_typed(f"remind {times}", lambda: times)


@service.handler()
async def many(ctx: restate.Context) -> None:
    for number in range(80):
        await ctx.run_typed(f"step {number}", lambda: 1)


@service.handler()
async def spins(ctx: restate.Context) -> None:
    while True:  # noqa: ASYNC110 - that is the mistake
        await asyncio.sleep(0)


@service.handler()
async def asks_for_ever(ctx: restate.Context) -> None:
    while True:
        try:
            await ctx.attach_invocation("unknown", type_hint=int)
        except restate.TerminalError:
            continue


app = restate.app([service])


async def calls(sim: Simulator) -> Any:
    return (await sim.call(one)).value


async def refuses(sim: Simulator) -> None:
    with pytest.raises(restate.TerminalError):
        await sim.call(one)


async def wrong(sim: Simulator) -> None:
    assert (await sim.call(one)).value == 2


def says_no(sim: Simulator) -> bool:
    return sim.invocations == []


def fails(sim: Simulator) -> None:
    pytest.fail(f"{sim.effects}")


@pytest.mark.parametrize("check", [says_no, fails, wrong, refuses])
def test_a_check_can_complain_in_every_way(check: Callable[[Simulator], object]) -> None:
    """By what it returns, by pytest, and as a coroutine function."""
    [finding] = explore(app, one, check=check).findings

    assert finding.problem == "assertion"
    assert str(finding.schedule) == ""


def test_a_check_may_be_content_in_every_way() -> None:
    """Whatever else it returns says nothing."""

    async def check(sim: Simulator) -> None:
        assert (await sim.call(one)).value == 1

    content: list[Callable[[Simulator], object]] = [check, lambda _: None, lambda _: True, lambda _: 0]
    for each in content:
        explore(app, one, check=each).assert_replay_safe()


def test_what_pytest_complains_of_in_a_scenario_is_a_finding() -> None:
    """``pytest.raises`` fails with what is no ``Exception``."""
    report = explore(app, scenario=refuses)

    assert [finding.problem for finding in report.findings] == ["assertion"]
    with pytest.raises(NotReplaySafeError, match="DID NOT RAISE"):
        report.assert_replay_safe()


def test_a_scenario_may_return_the_result_itself() -> None:
    """Its value is the answer; the journal and the number of attempts may differ."""

    async def scenario(sim: Simulator) -> Any:
        return await sim.call(one)

    report = explore(app, scenario=scenario)

    report.assert_one_answer()
    assert [outcome.value for outcome, _ in report.outcomes] == [1]


def test_what_would_pass_without_having_tested_anything() -> None:
    """It is refused."""

    async def setup() -> None: ...

    def plain(sim: Simulator) -> Any:
        return 1

    with pytest.raises(SimulationError, match="before_each is a coroutine function"):
        explore(app, one, before_each=setup)
    with pytest.raises(SimulationError, match="not a coroutine function"):
        explore(app, scenario=plain)
    with pytest.raises(SimulationError, match="not both"):
        explore(app, one, scenario=calls)


@pytest.mark.parametrize("schedule", ["0.0.1", "!500", "x70", "!2~!500"])
def test_a_schedule_that_no_longer_fits_is_told_of(schedule: str) -> None:
    """It would pass without having tested what it was written down for."""
    [finding] = explore(app, one, schedule=schedule).findings

    assert finding.problem == "not-reproducible"
    assert "explore it again" in finding.why


def test_a_schedule_that_no_longer_fits_after_the_answer_is_told_of() -> None:
    """Its only choice is one of what the handler has sent, and comes when the client has its answer."""
    assert explore(app, sends_two, schedule="1").findings == []

    [finding] = explore(app, sends_two, schedule="9").findings

    assert finding.problem == "not-reproducible"
    assert "only 2" in finding.why


@pytest.mark.parametrize("schedule", ["", "!3", "!2~", "replay:!3", "x1"])
def test_a_schedule_that_fits_is_not(schedule: str) -> None:
    """All of it has its place."""
    assert explore(app, one, schedule=schedule).findings == []


def test_an_interrupt_leaves_nothing_open() -> None:
    """It goes through to whoever pressed the keys."""
    seen: list[Simulator] = []

    async def scenario(sim: Simulator) -> None:
        seen.append(sim)
        await sim.send(one)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(app, scenario=scenario)
    assert [each.status for each in seen[0].invocations] == ["completed"]
    assert seen[0].driver._process is None  # pyright: ignore[reportPrivateUsage]


def test_several_threads_explore() -> None:
    """Each has its own loops."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(5):
                explore(app, one).assert_replay_safe()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []


def test_a_job_that_sends_itself_again_is_followed_for_some_rounds() -> None:
    """It never ends, and that is right."""
    report = explore(app, hourly, max_runs=40, check=lambda sim: len(sim.invocations) == 12)

    report.assert_replay_safe()
    assert report.max_body_runs == {"tick": 2}


def test_a_job_that_sends_itself_a_number_of_times_comes_to_its_end() -> None:
    """What is asked of it in the end can be checked."""
    report = explore(app, remind, 5, max_runs=40, check=lambda sim: sim.effects["remind 0"] > 0)

    report.assert_replay_safe()


def test_a_handler_that_never_comes_to_rest_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event comes between, of which it could be told that there are too many."""
    monkeypatch.setattr(looping, "_MAX_TURNS", 2_000)
    for endless in (spins, asks_for_ever):
        [finding] = explore(app, endless).findings

        assert finding.problem == "stuck"
        assert "Does it loop forever?" in finding.why


def test_a_handler_that_is_suspended_and_resumed_for_ever_is_told_of() -> None:
    """Nothing has to happen for it to go on."""
    with simulate(app, always_replay=True) as sim:
        sim.driver.max_events = 50
        with pytest.raises(StuckError, match=r"Does it loop forever\?"):
            sim.run(sim.call(asks_for_ever))


def test_a_long_timeline_is_shortened() -> None:
    """Nobody reads what has happened in ten thousand events."""
    [finding] = explore(app, many, check=says_no).findings

    assert len(finding.timeline.splitlines()) > 200
    assert len(str(finding).splitlines()) < 100


@service.handler()
async def two_timers(ctx: restate.Context) -> str:
    """Both are due in the same millisecond, and a step may come between."""
    first, second = ctx.sleep(timedelta(hours=1)), ctx.sleep(timedelta(hours=1))
    await first
    match await restate.select(step=ctx.run_typed("one", lambda: 1), timer=second):
        case [name, _]:
            return str(name)
        case _:
            return "neither"


def test_timers_that_are_due_together_can_come_one_by_one() -> None:
    """A server fires one after the other, and may be slow."""
    crashes: set[int] = set()

    def check(sim: Simulator) -> None:
        crashes.update(stored for stored, what in sim.driver.trace.log if what == "crash")

    report = explore(app, two_timers, check=check)

    report.assert_replay_safe()
    assert report.complete
    assert {outcome.value for outcome, _ in report.outcomes} == {"step", "timer"}
    # A crash after the first timer and before the second: input, two sleeps, one of their ends.
    assert 4 in crashes


known: dict[str, int] = {}


@service.handler()
async def relies_on_memory(ctx: restate.Context) -> int:
    """After a crash the step is not run again, and the process knows nothing."""
    await ctx.run_typed("load", lambda: known.update(rate=3))
    return known["rate"]


def test_what_a_process_knows_is_forgotten_when_it_is_killed() -> None:
    """If the test says what that is: the simulation cannot know."""
    assert explore(app, relies_on_memory, before_each=known.clear).findings == []

    [finding] = explore(app, relies_on_memory, before_each=known.clear, on_crash=known.clear).findings

    assert finding.problem == "paused"
    assert "KeyError" in finding.why
    assert str(finding.schedule) == "!3"
    [again] = explore(app, relies_on_memory, before_each=known.clear, on_crash=known.clear, schedule="!3").findings
    assert again.timeline == finding.timeline


def test_shortening_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try of a handler that goes on for ever takes seconds, and there can be hundreds of them."""

    def check(sim: Simulator) -> None:
        assert sum(sim.driver.trace.choices) < 2

    long = explore(app, two_timers, check=check)
    monkeypatch.setattr(shrink, "_SHRINK_FOR", -1.0)
    longer = explore(app, two_timers, check=check)

    [short], [given] = long.findings, longer.findings
    assert short.problem == given.problem == "assertion"
    assert len(str(short.schedule)) <= len(str(given.schedule))
