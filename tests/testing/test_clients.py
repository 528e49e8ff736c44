"""What a client does next is a choice like any other event, so that it may come before a step ends, or long after."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
import restate
from restate import TerminalError

import restate_steps
from restate_steps.testing import (
    InvocationEndedError,
    Outcome,
    Report,
    SimulatedInvocation,
    SimulationError,
    Simulator,
    StuckError,
    explore,
    simulate,
)
from tests.support.client_shop import APP, add, answer, approve, chat, pay, timer_or_step, work

Scenario = Callable[[Simulator], Coroutine[Any, Any, Any]]


def explored(scenario: Scenario, **options: Any) -> Report:
    report = explore(APP, scenario=scenario, max_seconds=20, progress=False, **options)
    report.assert_replay_safe()
    return report


def answers(report: Report) -> list[Any]:
    return sorted(outcome.value for outcome, _ in report.outcomes)


def test_a_timer_beats_a_step_of_what_was_sent() -> None:
    """The client that looks at the result has no say in what comes first."""

    async def scenario(sim: Simulator) -> Any:
        return (await (await sim.send(timer_or_step)).result()).value

    report = explored(scenario)
    assert report.complete
    assert answers(report) == ["step", "timer"]


def test_a_signal_arrives_while_a_step_runs() -> None:
    """It interrupts at every place, or comes too late."""

    async def scenario(sim: Simulator) -> Any:
        sent = await sim.send(chat)
        await sent.signal("interrupt", "stop")
        return (await sent.result()).value

    report = explored(scenario, crashes=0)
    assert report.complete
    assert answers(report) == [["one", "stop"], ["one", "two", "stop"], ["one", "two", "three"], ["stop"]]


def test_an_awakeable_is_resolved_too_late() -> None:
    """Time may pass before a client acts."""

    async def scenario(sim: Simulator) -> Any:
        sent = await sim.send(pay)
        await sim.resolve_awakeable(await sim.awakeable(sent), "paid")
        return (await sent.result()).value

    report = explored(scenario)
    assert answers(report) == ["paid", "too late"]


def test_a_second_call_comes_while_the_first_runs() -> None:
    """And waits for its turn at the object."""

    async def scenario(sim: Simulator) -> Any:
        first = await sim.send(add, 1, key="a")
        second = await sim.call(add, 2, key="a")
        return [(await first.result()).value, second.value]

    report = explored(scenario)
    assert report.complete
    assert answers(report) == [[1, 3]]


def test_a_promise_is_resolved_while_a_step_runs() -> None:
    """By another handler, which a client calls."""

    async def scenario(sim: Simulator) -> Any:
        run = await sim.send(approve, key="a")
        await sim.call(answer, "yes", key="a")
        return (await run.result()).value

    assert answers(explored(scenario, crashes=0)) == ["looked", "yes"]


@pytest.mark.parametrize("action", ["cancel", "kill"])
def test_an_operator_acts_while_a_step_runs(action: str) -> None:
    """Before it has begun, and when it has ended."""

    async def scenario(sim: Simulator) -> Any:
        sent = await sim.send(chat)
        await getattr(sent, action)()
        try:
            return (await sent.result()).value
        except TerminalError:
            return sorted(sent.effects)

    report = explored(scenario, crashes=0)
    assert report.complete
    found = [outcome.value for outcome, _ in report.outcomes]
    assert [] in found
    assert ["one"] in found


def test_clients_act_at_once() -> None:
    """Each may be first."""

    async def scenario(sim: Simulator) -> Any:
        others = [sim.start(sim.call(add, by, key="a")) for by in (1, 2)]
        return [(await other).value for other in others]

    report = explored(scenario, crashes=0)
    assert report.complete
    assert answers(report) == [[1, 3], [3, 2]]


def test_a_client_that_was_started_acts_in_the_middle_of_others() -> None:
    """It waits, sends and reads, as the scenario itself does."""

    async def interrupts(sim: Simulator, sent: SimulatedInvocation[Any]) -> str:
        await sim.until(lambda: sent.effects["one"])
        await sent.signal("interrupt", "stop")
        return "interrupted"

    async def scenario(sim: Simulator) -> Any:
        sent = await sim.send(chat)
        other = sim.start(interrupts(sim, sent))
        return [(await sent.result()).value, await other]

    report = explored(scenario, crashes=0)
    assert {tuple(done) for done, _ in answers(report)} == {
        ("one", "stop"),
        ("one", "two", "stop"),
        ("one", "two", "three"),
    }


def test_the_failure_of_a_started_client_is_a_finding() -> None:
    """Even if the scenario does not await it."""

    async def complains(sim: Simulator) -> None:
        total = (await sim.call(add, 1, key="a")).value
        assert total == 1, "was not the first"

    async def scenario(sim: Simulator) -> Any:
        sim.start(complains(sim))
        return (await sim.call(add, 2, key="a")).value

    report = explore(APP, scenario=scenario, crashes=0, progress=False)
    [finding] = report.findings
    assert finding.problem == "assertion"
    assert "was not the first" in str(finding.error)


async def test_without_exploring_everything_settles_before_a_client_acts() -> None:
    """As a test expects that does one thing after another."""
    async with simulate(APP) as sim:
        sent = await sim.send(chat)
        await sent.signal("interrupt", "stop")
        assert (await sent.result()).value == ["one", "two", "three"]
        other = sim.start(sim.call(add, 1, key="a"))
        assert (await sim.call(add, 2, key="a")).value == 2
        assert (await other).value == 3


async def test_an_invocation_that_ends_before_its_awakeable() -> None:
    """Ends the wait with its outcome."""
    async with simulate(APP) as sim:
        sent = await sim.send(pay)
        assert await sim.awakeable(sent) == sent.awakeables[0]
        await sent.cancel()
        with pytest.raises(TerminalError, match="cancelled"):
            await sim.awakeable(sent, 1)
        sent = await sim.send(chat)
        with pytest.raises(InvocationEndedError, match="has ended without awakeable 0") as caught:
            await sim.awakeable(sent)
        assert caught.value.value == ["one", "two", "three"]


async def test_an_awakeable_that_is_made_later() -> None:
    """The client waits for it in virtual time, and hears who waits for what if it is never made."""
    service = restate.Service("Later")

    @service.handler()
    async def asks_later(ctx: restate.Context) -> list[str]:
        answers: list[str] = []
        for _ in range(2):
            await ctx.sleep(timedelta(days=1))
            answers.append(await ctx.awakeable(type_hint=str)[1])
        return answers

    async with simulate(restate_steps.app([service])) as sim:
        sent = await sim.send(asks_later)
        assert sent.awakeables == []
        await sim.resolve_awakeable(await sim.awakeable(sent), "yes")
        assert sim.now == timedelta(days=1)
        second = await sim.awakeable(sent, 1)
        assert sim.now == timedelta(days=2)
        with pytest.raises(StuckError, match=rf"has not made awakeable 2, and nothing .*\n.* the awakeable '{second}'"):
            await sim.awakeable(sent, 2)
        await sim.resolve_awakeable(second, "no")
        assert (await sent.result()).value == ["yes", "no"]


def test_a_scenario_that_waits_for_an_awakeable_may_be_cancelled() -> None:
    """The cancellation is then what the client ends up with."""

    async def scenario(sim: Simulator) -> Any:
        sent = await sim.send(pay)
        await sim.resolve_awakeable(await sim.awakeable(sent), "paid")
        return (await sent.result()).value

    report = explored(scenario, cancel=True, crashes=0)
    assert {str(outcome) for outcome, _ in report.outcomes} >= {"'paid'", "TerminalError 409: cancelled"}


async def test_a_condition_that_never_holds() -> None:
    """Says who waits for what."""
    async with simulate(APP) as sim:
        sent = await sim.send(chat)
        with pytest.raises(StuckError, match="the condition does not hold, and nothing more can happen"):
            await sim.until(lambda: sent.effects["four"])


def test_a_started_client_may_wait_for_the_simulator_only() -> None:
    """As the scenario itself."""

    async def waits() -> None:
        await restate_steps.wait_for(work("x"), timedelta(seconds=1))

    async def scenario(sim: Simulator) -> Any:
        sim.start(waits())
        return (await sim.call(add, 1, key="a")).value

    with pytest.raises(SimulationError, match="waits for something that is not the simulator"):
        explore(APP, scenario=scenario, progress=False)


async def test_an_outcome_needs_no_waiting() -> None:
    """It is there when the invocation has ended, as a value that can be compared."""
    async with simulate(APP) as sim:
        paid = await sim.send(pay)
        assert paid.outcome is None
        await sim.resolve_awakeable(await sim.awakeable(paid), "paid")
        assert paid.outcome == Outcome("value", "paid")

        cancelled = await sim.send(pay)
        await cancelled.cancel()
        assert cancelled.outcome == Outcome("failure", (409, "cancelled"))


async def paid_when_reserved(sim: Simulator) -> Any:
    order = await sim.send(pay)
    await sim.until(lambda: order.effects["reserve"])
    await sim.resolve_awakeable(await sim.awakeable(order), "paid")
    return (await order.result()).value


def test_waiting_for_a_condition_ends_with_the_invocation() -> None:
    """A scenario survives a cancellation before the condition holds, without a word of its own."""
    report = explored(paid_when_reserved, cancel=True)
    assert {"paid", (409, "cancelled")} <= {outcome.value for outcome, _ in report.outcomes}


async def test_waiting_for_a_condition_of_one_invocation() -> None:
    """It stops as soon as that one has ended, whatever the others do."""
    async with simulate(APP) as sim:
        await sim.send(pay)
        chatting = await sim.send(chat)
        with pytest.raises(InvocationEndedError, match="has ended before the condition held; it returned"):
            await sim.until(lambda: False, invocation=chatting)
        with pytest.raises(StuckError, match="nothing more can happen"):
            await sim.until(lambda: False)
