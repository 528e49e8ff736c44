"""An operator's cancellation, placed at every moment by ``explore(..., cancel=True)``."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import pytest
import restate

from restate_steps import durable_step, race
from restate_steps.testing import Schedule, Simulator, explore

bank = restate.Service("Bank")


@durable_step
async def debit() -> int:
    return 5


@durable_step
async def credit() -> None:
    return


@durable_step
async def refund() -> None:
    return


@bank.handler()
async def transfer(ctx: restate.Context) -> str:
    try:
        # It may be cancelled while the body of the debit runs: then the money is gone, and nobody was told.
        await debit()
        await ctx.sleep(timedelta(days=1))
        await credit()
    except restate.TerminalError:
        await refund()
        raise
    return "moved"


@bank.handler()
async def forgetful(ctx: restate.Context) -> str:
    await debit()
    await ctx.sleep(timedelta(days=1))
    await credit()
    return "moved"


@bank.handler()
async def waits_for_nobody(ctx: restate.Context) -> str:
    return await ctx.awakeable(type_hint=str)[1]


APP = restate.app([bank])


def a_debit_is_refunded(sim: Simulator) -> None:
    [invocation] = sim.invocations
    recorded = [entry.name for entry in invocation.journal if entry.type == "Notification: Run" and not entry.failure]
    moved = invocation.journal[-1].failure is None
    assert moved or "debit" not in recorded or "refund" in recorded


def test_a_cancellation_comes_at_every_moment() -> None:
    """Before and after each step, in the sleep, and after a crash: in each case the handler compensates."""
    report = explore(APP, transfer, cancel=True, check=a_debit_is_refunded)
    report.assert_replay_safe()
    assert report.complete
    assert {str(outcome) for outcome, _ in report.outcomes} == {"'moved'", "TerminalError 409: cancelled"}
    # Three moments: before each body and before time passes; and again after a crash, and where all is replayed.
    assert report.cancellations > 10
    assert "cancelled in" in report.summary()


def test_a_handler_that_does_not_compensate_is_found() -> None:
    """The finding has the shortest schedule, with the moment of the cancellation, and can be had again from it."""
    report = explore(APP, forgetful, cancel=True, check=a_debit_is_refunded)
    [finding] = report.findings
    assert finding.problem == "assertion"
    assert finding.schedule.cancel is not None
    assert not finding.schedule.crashes
    assert "an operator cancels Bank/forgetful" in finding.timeline
    [again] = explore(APP, forgetful, check=a_debit_is_refunded, schedule=finding.schedule).findings
    assert again.timeline == finding.timeline


def test_without_being_asked_nobody_cancels() -> None:
    """A handler that only a cancellation can end is stuck, cancellations explored or not."""
    for cancel in (False, True):
        report = explore(APP, waits_for_nobody, cancel=cancel)
        assert [finding.problem for finding in report.findings] == ["stuck"]
        assert report.cancellations == 0


def test_what_waits_for_a_client_is_cancelled_as_well() -> None:
    """A scenario that resolves an awakeable: the cancellation comes before it, too."""

    async def scenario(sim: Simulator) -> str:
        invocation = await sim.send(waits_for_nobody)
        await sim.resolve_awakeable(await sim.awakeable(invocation), "yes")
        return str((await invocation.result()).value)

    report = explore(APP, scenario=scenario, cancel=True)
    report.assert_replay_safe()
    assert {str(outcome) for outcome, _ in report.outcomes} == {"'yes'", "TerminalError 409: cancelled"}


@pytest.mark.parametrize("text", ["x1", "0.1x12!7~!9", "replay:1x3", "1.0.2!7!12"])
def test_a_schedule_with_a_cancellation_can_be_read_again(text: str) -> None:
    """What is printed is what is read."""
    assert str(Schedule.parse(text)) == text


@bank.handler()
async def races(ctx: restate.Context) -> str:
    return await race(named("a"), named("b"))


@durable_step(name="named {name}")
async def named(name: str) -> str:
    return name


@pytest.mark.parametrize("mode", ["bidirectional", "request_response"])
def test_an_answer_that_only_a_crash_can_give_over_http1(mode: Literal["bidirectional", "request_response"]) -> None:
    """There both bodies end before anything goes on, unless a crash comes between; that is no fault of the handler."""
    report = explore(APP, races, mode=mode)
    report.assert_replay_safe()
    assert {str(outcome) for outcome, _ in report.outcomes} == {"'a'", "'b'"}
    assert report.complete
