"""The body of a step that runs in a thread cannot be stopped: its effect may come long after its step is given up."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import restate
from restate import TerminalError

import restate_steps
from restate_steps import durable_step
from restate_steps.testing import Simulator, explore, simulate

effects: list[str] = []

travel = restate.Service("Travel")


@durable_step
def book() -> str:
    effects.append("book")
    return "booked"


@durable_step
async def book_async() -> str:
    effects.append("book")
    return "booked"


@durable_step
def cancel() -> None:
    effects.append("cancel")


@travel.handler()
async def impatient(ctx: restate.Context) -> str:
    """Give a booking up after a while, and cancel it."""
    try:
        async with asyncio.timeout(1):
            return await book()
    except TimeoutError:
        await cancel()
        return "gave up"


@travel.handler()
async def impatient_async(ctx: restate.Context) -> str:
    try:
        async with asyncio.timeout(1):
            return await book_async()
    except TimeoutError:
        await cancel()
        return "gave up"


@travel.handler()
async def hasty(ctx: restate.Context) -> str:
    """Answer at once when the time is up."""
    try:
        async with asyncio.timeout(1):
            return await book_async()
    except TimeoutError:
        return "too late"


@travel.handler()
async def plain(ctx: restate.Context) -> str:
    """The same with the SDK's own ctx.run."""
    match await restate.select(booked=ctx.run_typed("book", book_plainly), late=ctx.sleep(timedelta(seconds=1))):
        case ["booked", found]:
            return str(found)
        case _:
            await ctx.run_typed("cancel", cancel_plainly)
            return "gave up"


def book_plainly() -> str:
    effects.append("book")
    return "booked"


def cancel_plainly() -> None:
    effects.append("cancel")


@travel.handler()
async def parts(ctx: restate.Context) -> str:
    """A body that uses a thread for a part of its work."""

    @durable_step
    async def body() -> str:
        effects.append("begin")
        await asyncio.to_thread(effects.append, "thread")
        return "done"

    try:
        async with asyncio.timeout(1):
            return await body()
    except TimeoutError:
        await cancel()
        return "gave up"


APP = restate_steps.app([travel])


def orders(handler: object) -> set[tuple[str, ...]]:
    """Return the orders in which effects can come, without a crash."""
    found: set[tuple[str, ...]] = set()

    def note(sim: Simulator) -> None:
        found.add(tuple(effects))

    report = explore(APP, handler, before_each=effects.clear, check=note, crashes=0, progress=False)  # type: ignore[arg-type]
    report.assert_replay_safe()
    assert report.complete
    return found


def test_the_effect_comes_after_later_steps() -> None:
    """A booking that leaks: the handler has cancelled it before it was made."""
    assert orders(impatient) == {("book",), ("book", "cancel"), ("cancel", "book")}


def test_a_plain_run_of_the_sdk() -> None:
    """The same."""
    assert orders(plain) == {("book",), ("book", "cancel"), ("cancel", "book")}


def test_an_async_body_ends_with_its_attempt() -> None:
    """Its effect may come late, until the connection closes; then it is cancelled."""
    assert orders(impatient_async) == {("book",), ("book", "cancel"), ("cancel",), ("cancel", "book")}


def test_a_body_that_the_handler_does_not_wait_for() -> None:
    """A payment behind the back of the handler, which has answered that there was none."""
    answers: set[tuple[str, ...]] = set()

    async def client(sim: Simulator) -> None:
        invocation = await sim.send(hasty)
        given = (await invocation.result()).value
        # What the body does may come after the answer.
        await sim.run_until_idle()
        answers.add((given, *effects))

    report = explore(APP, scenario=client, before_each=effects.clear, crashes=0, progress=False)
    report.assert_replay_safe()
    assert report.complete
    assert answers == {("booked", "book"), ("too late",), ("too late", "book")}


def test_a_part_of_a_body() -> None:
    """It may be late as well."""
    found = orders(parts)
    assert ("begin", "cancel", "thread") in found
    assert ("begin", "thread") in found
    assert ("cancel",) in found


async def test_without_exploring_a_thread_works_at_once() -> None:
    """As an async body does."""
    effects.clear()
    async with simulate(APP) as sim:
        assert (await sim.call(impatient)).value == "booked"
    assert effects == ["book"]


def test_a_thread_ends_with_its_process() -> None:
    """A crash takes it along, so the step runs again and no effect is doubled by it alone."""

    @travel.handler()
    async def once(ctx: restate.Context) -> str:
        return await book()

    def once_for_each_attempt(sim: Simulator) -> None:
        [invocation] = sim.invocations
        assert 1 <= effects.count("book") <= invocation.attempts

    app = restate_steps.app([travel])
    report = explore(app, once, before_each=effects.clear, check=once_for_each_attempt, crashes=2, progress=False)
    report.assert_replay_safe()
    assert report.complete


async def test_the_cancellation_of_an_invocation_does_not_stop_a_thread() -> None:
    """It works when the invocation has ended."""
    effects.clear()

    async def scenario(sim: Simulator) -> str:
        sent = await sim.send(impatient)
        await sent.cancel()
        try:
            return str((await sent.result()).value)
        except TerminalError:
            return "cancelled"

    found: set[tuple[str, ...]] = set()
    report = explore(
        APP,
        scenario=scenario,
        before_each=effects.clear,
        check=lambda sim: found.add(tuple(effects)),
        crashes=0,
        progress=False,
    )
    report.assert_replay_safe()
    assert {outcome.value for outcome, _ in report.outcomes} == {"booked", "gave up", "cancelled"}
    assert ("book",) in found
