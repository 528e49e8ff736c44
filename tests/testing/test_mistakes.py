"""What those meet who write a test with a mistake in it: one message, short, and in the words of the test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import restate

from restate_steps.testing import (
    InvocationPausedError,
    NotReplaySafeError,
    SimulationError,
    Simulator,
    StuckError,
    explore,
    simulate,
)
from tests.support import ROOT

service = restate.Service("Mistaken")


@service.handler()
async def buggy(ctx: restate.Context, number: int) -> float:
    return number / 0


@service.handler()
async def fine(ctx: restate.Context) -> str:
    return await ctx.run_typed("step", lambda: "done")


app = restate.app([service])


def test_a_bug_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The handler fails seventy times in the same way; another invocation is told of anew."""
    with simulate(app) as sim:
        for logged in (1, 2):
            with pytest.raises(InvocationPausedError, match="after 70 attempts"):
                sim.run(sim.call(buggy, 1))
            assert logged == caplog.text.count("ZeroDivisionError: division by zero")


def test_a_scenario_that_forgets_to_await_is_told_of() -> None:
    """Nothing was explored, so nothing was found."""

    async def scenario(sim: Simulator) -> None:
        sim.call(fine).close()

    with pytest.raises(SimulationError, match=r"no handler was called.*await"):
        explore(app, scenario=scenario)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"crashes": -1}, "crashes must be an integer of at least 0, not -1"),
        ({"max_runs": 0}, "max_runs must be an integer of at least 1, not 0"),
        ({"orders": 0}, "orders must be 'all' or an integer of at least 1, not 0"),
        ({"orders": "some"}, "orders must be 'all' or an integer of at least 1, not 'some'"),
    ],
)
def test_limits_that_cannot_be(limit: dict[str, Any], message: str) -> None:
    """The marker of pytest says the same."""
    with pytest.raises(SimulationError, match=message):
        explore(app, fine, **limit)


def test_a_failure_is_shown_once() -> None:
    """The error of the simulator says nothing that the report does not say; that of the handler does."""

    async def wrong(sim: Simulator) -> None:
        assert "undone" == (await sim.call(fine)).value

    with pytest.raises(NotReplaySafeError) as caught:
        explore(app, scenario=wrong).assert_replay_safe()
    assert isinstance(caught.value.__cause__, AssertionError)

    with pytest.raises(NotReplaySafeError) as caught:
        explore(app, buggy, 1).assert_replay_safe()
    assert caught.value.__cause__ is not None
    assert "ZeroDivisionError" in caught.value.__cause__.__notes__[0]

    stuck = restate.Service("Stuck")

    @stuck.handler()
    async def waits(ctx: restate.Context) -> None:
        await ctx.awakeable()[1]

    with pytest.raises(NotReplaySafeError, match="waits for the awakeable") as caught:
        explore(restate.app([stuck]), waits).assert_replay_safe()
    assert caught.value.__cause__ is None


def test_a_mismatch_says_what_to_look_for() -> None:
    """Those who see one for the first time have most often awaited with asyncio."""
    gathering = restate.Service("Gathering")

    @gathering.handler()
    async def gathers(ctx: restate.Context) -> None:
        async def branch(name: str) -> None:
            await ctx.run_typed(f"{name}1", lambda: 1)
            await ctx.run_typed(f"{name}2", lambda: 2)

        await asyncio.gather(branch("a"), branch("b"))

    [finding] = explore(restate.app([gathering]), gathers).findings

    assert "serve the handler with restate_steps.app" in finding.why
    assert "check_deterministic" in finding.why


def test_only_the_test_itself_is_shown(pytester: pytest.Pytester) -> None:
    """The way from the test to the handler leads through this package, and says nothing."""
    pytester.makepyfile(f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from tests.testing.test_mistakes import app, buggy, fine
        from restate_steps.testing import explore, simulate

        def test_buggy():
            explore(app, buggy, 1).assert_replay_safe()

        def test_answer():
            report = explore(app, fine)
            report.outcomes *= 2
            report.assert_one_answer()
    """)

    output = pytester.runpytest_subprocess("-q").stdout.str()

    assert "restate_steps/testing/" not in output
    assert ">       explore(app, buggy, 1).assert_replay_safe()" in output
    assert ">       report.assert_one_answer()" in output


async def test_a_handler_that_calls_its_own_key() -> None:
    """The key is held until the handler ends, so the call never starts; the error says who holds it."""
    counter = restate.VirtualObject("Counter")

    @counter.handler()
    async def add(ctx: restate.ObjectContext) -> int:
        return 1

    @counter.handler()
    async def add_twice(ctx: restate.ObjectContext) -> int:
        return await ctx.object_call(add, ctx.key(), None) + 1

    async with simulate(restate.app([counter])) as sim:
        with pytest.raises(StuckError, match="Counter/a/add is queued, and waits until Counter/a/add_twice has ended"):
            await sim.call(add_twice, key="a")
