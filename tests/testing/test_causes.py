"""A report names what is behind a hang or a long run, and not only where it shows."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
import restate

import restate_steps
from restate_steps import durable_step
from restate_steps.testing import InvocationPausedError, Simulator, check_deterministic, explore, simulate

outer = restate.Service("Outer")
cron = restate.Service("Cron")


@outer.handler()
async def first(ctx: restate.Context) -> str:
    return await ctx.service_call(second, None)


@outer.handler()
async def second(ctx: restate.Context) -> str:
    return await ctx.service_call(third, None)


@outer.handler(invocation_retry_policy=restate.InvocationRetryPolicy(max_attempts=2, on_max_attempts="pause"))
async def third(ctx: restate.Context) -> str:
    raise ConnectionError("the bank is closed")


@cron.handler()
async def tick(ctx: restate.Context) -> None:
    """Send itself again, as a cron job does."""
    await ctx.run_typed("work", lambda: None)
    ctx.service_send(tick, None, send_delay=timedelta(minutes=1))


@cron.handler()
async def sleeps(ctx: restate.Context, times: int) -> None:
    for _ in range(times):
        await ctx.sleep(timedelta(seconds=1))
    slept.append(times)


slept: list[int] = []
"""What :func:`sleeps` was called with, each time that it came to its end."""


APP = restate_steps.app([outer, cron])


async def test_a_callee_that_is_paused_is_the_cause() -> None:
    """Of a caller that waits for it through another one."""
    async with simulate(APP) as sim:
        with pytest.raises(InvocationPausedError, match=r"Outer/third is paused .*the bank is closed") as caught:
            await sim.call(first)
    assert "Outer/first waits for it." in caught.value.__notes__


def test_the_cause_is_in_the_report_of_an_exploration() -> None:
    """Also if nothing awaits the caller."""

    async def scenario(sim: Simulator) -> None:
        await sim.send(first)

    for options in ({"handler": first}, {"scenario": scenario}):
        report = explore(APP, crashes=0, progress=False, **options)  # type: ignore[arg-type]
        [finding] = report.findings
        assert finding.problem == "paused"
        assert "Outer/third" in finding.why
        assert "the bank is closed" in finding.why


def test_a_handler_that_sends_itself_again_is_checked() -> None:
    """For some rounds; a check comes to an end."""
    report = check_deterministic(tick, app=APP, interpreters=0)
    report.assert_deterministic()
    assert report.journal.names == ["work"]


def test_a_check_stops_when_its_time_is_used_up() -> None:
    """And says what was not checked."""
    slept.clear()
    report = check_deterministic(sleeps, 100_000, app=APP, interpreters=0, max_seconds=0.2)
    assert not slept
    # Where the machine is busy, the first attempt may not even have begun.
    assert any(what.startswith("Cron/sleeps: it has not") for what in report.not_checked), report.not_checked


def test_an_exploration_stops_within_a_run() -> None:
    """When its time is used up: here in the second one, which replays all that was before at each wait."""
    slept.clear()
    runs: list[None] = []
    report = explore(APP, sleeps, 1_500, before_each=lambda: runs.append(None), max_seconds=1, progress=False)
    assert len(slept) == len(runs) - 1
    assert not report.complete
    report.assert_replay_safe()


def test_failures_that_nothing_reads_are_mentioned() -> None:
    """A step and a call that the handler starts and forgets; one whose failure it handles is not."""
    service = restate.Service("Forgets")

    @durable_step(name="{what}")
    async def fails(what: str) -> None:
        raise restate.TerminalError(what)

    @service.handler()
    async def callee(ctx: restate.Context) -> None:
        raise restate.TerminalError("no")

    @service.handler()
    async def forgets(ctx: restate.Context) -> str:
        call = ctx.service_call(callee, None)
        forgotten = fails.start("forgotten")
        try:
            await fails("handled")
        except restate.TerminalError:
            await ctx.sleep(timedelta(seconds=1))
        await restate.wait_completed(call, forgotten)
        return "fine"

    report = explore(restate_steps.app([service]), forgets, progress=False)
    report.assert_replay_safe()
    assert report.unread_failures == {"forgotten", "Forgets/callee"}
    assert "failures that the handler never read: Forgets/callee, forgotten" in report.summary()


ledger = restate.VirtualObject("Ledger")


@ledger.handler()
async def book(ctx: restate.ObjectContext) -> None:
    ctx.set("balance", random.random())
    await ctx.run_typed("pay", lambda: None)


@ledger.handler()
async def write(ctx: restate.ObjectContext) -> None:
    ctx.set("text", "a long beginning, " * 30 + str(random.random()))
    await ctx.run_typed("pay", lambda: None)


def test_the_advice_for_a_value_that_differs() -> None:
    """It is not the order of tasks."""
    report = explore(restate_steps.app([ledger]), book, key="k", progress=False)
    [finding] = report.findings
    assert finding.problem == "mismatch"
    assert "only its value differs" in finding.why
    assert "check_deterministic finds the line" in finding.why
    assert "asyncio" not in finding.why


def test_texts_that_are_cut_show_their_first_difference() -> None:
    """Two equal beginnings say nothing."""
    report = check_deterministic(write, key="k", app=restate_steps.app([ledger]), interpreters=0)
    [finding] = report.findings
    assert finding.kind == "randomness"
    assert finding.recorded != finding.replayed
    assert finding.recorded.startswith("set state 'text' to 'a long beginning")
    assert len(finding.recorded) <= 120
