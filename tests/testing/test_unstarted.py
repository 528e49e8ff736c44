"""Invocations that are removed before they begin, and the order in which the messages of one invocation arrive.

What a server does is recorded (``cancel_queued_that_is_called`` and its like, and the programs of ``conformance``).
"""

from __future__ import annotations

from datetime import timedelta

import pytest
import restate
from restate import TerminalError

import restate_steps
from restate_steps.testing import SimulatedInvocation, Simulator, explore, simulate

HOUR = timedelta(hours=1)

desk = restate.VirtualObject("Desk")
office = restate.Service("Office")


@desk.handler()
async def occupy(ctx: restate.ObjectContext) -> None:
    await ctx.sleep(HOUR)


@desk.handler()
async def sit(ctx: restate.ObjectContext) -> str:
    await ctx.run_typed("sit", lambda: None)
    return "sat"


@office.handler()
async def send_in(ctx: restate.Context) -> str:
    return await ctx.object_call(sit, "front", None)


@office.handler()
async def listen(ctx: restate.Context) -> str:
    return await ctx.signal("word", type_hint=str)


@office.handler()
async def say_two_words(ctx: restate.Context) -> str:
    heard = ctx.service_call(listen, None)
    to = await heard.invocation_id()
    for word in ("first", "second"):
        ctx.resolve_signal(to, "word", word)
    return await heard


@office.handler()
async def ask(ctx: restate.Context) -> str:
    """The answer to the awakeable is sent before the result, so it is there first."""
    name, answer = ctx.awakeable(type_hint=str)
    who, _ = await restate.select(called=ctx.service_call(answer_and_end, name), answer=answer)
    return str(who)


@office.handler()
async def answer_and_end(ctx: restate.Context, awakeable_id: str) -> None:
    ctx.resolve_awakeable(awakeable_id, "yes")


app = restate_steps.app([desk, office])


async def busy(simulator: Simulator) -> SimulatedInvocation[None]:
    return await simulator.send(occupy, key="front")


@pytest.mark.parametrize("verb", ["cancel", "kill"])
async def test_a_client_that_waits_is_told_why(verb: str) -> None:
    """One that waited before it was removed sees the removal; one that comes later finds nothing."""
    async with simulate(app) as simulator:
        await busy(simulator)
        queued = await simulator.send(sit, key="front")
        assert "queued" == queued.status

        async def wait() -> str:
            with pytest.raises(TerminalError) as caught:
                await queued.result()
            return f"{caught.value.status_code} {caught.value.message}"

        waiting = simulator.start(wait())
        await simulator.settle()
        await (queued.cancel() if verb == "cancel" else queued.kill())

        assert {"cancel": "409 canceled", "kill": "409 killed"}[verb] == await waiting
        assert "404 not found" == await wait()


async def test_a_cancelled_caller_leaves_nothing_in_the_queue() -> None:
    """A call that waits for a key is removed with its caller: it never begins."""
    async with simulate(app) as simulator:
        holder = await busy(simulator)
        caller = await simulator.send(send_in)
        await simulator.settle()
        await caller.cancel()
        with pytest.raises(TerminalError, match="cancelled"):
            await caller.result()
        await holder.cancel()
        await simulator.run_until_idle()

        invocations = simulator.driver.model.invocations.values()
        assert [0] == [each.attempts for each in invocations if each.target.handler == "sit"]


async def test_a_removed_invocation_frees_its_idempotency_key() -> None:
    """The next call with the same key is a new invocation."""
    async with simulate(app) as simulator:
        removed = await simulator.send(sit, key="back", idempotency_key="once", delay=HOUR)
        await removed.cancel()

        assert "sat" == (await simulator.call(sit, key="back", idempotency_key="once")).value


@pytest.mark.parametrize(("handler", "only"), [(say_two_words, "first"), (ask, "answer")])
def test_messages_of_one_invocation_arrive_in_order(handler: object, only: str) -> None:
    """No order that is explored lets a message overtake another one of the same invocation to the same other."""
    report = explore(app, handler)  # type: ignore[arg-type]

    assert report.complete
    assert {only} == {outcome.value for outcome, _ in report.outcomes}
