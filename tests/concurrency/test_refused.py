"""What cannot be replayed in the same order is refused with a clear error, never left to hang (B7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import TaskGroup, durable_step, gather, race, wait_for
from restate_steps.concurrency import _scheduler
from restate_steps.testing import simulate


@durable_step(name="step {tag}")
async def step(tag: str) -> str:
    return tag


@durable_step(name="slow step {tag}")
async def slow_step(tag: str) -> str:
    await asyncio.sleep(0.01)
    return tag


@dataclass
class Attempt:
    """How the first attempt of a handler ended."""

    status: str
    failure: str
    journal: list[str]


# What fails is tried again half a second later, so that one attempt is seen.
ONE_ATTEMPT = timedelta(milliseconds=400)


async def attempt(body: Callable[[restate.Context], Awaitable[Any]]) -> Attempt:
    service = restate.Service("Refused")

    @service.handler()
    async def handler(ctx: restate.Context) -> Any:
        return await body(ctx)

    async with simulate(restate_steps.app([service])) as sim:
        invocation = await sim.send(handler)
        await sim.advance(ONE_ATTEMPT)
        assert invocation.attempts == 1
        return Attempt(invocation.status, invocation.last_failure or "", [entry.type for entry in invocation.journal])


async def refusal(body: Callable[[restate.Context], Awaitable[Any]]) -> str:
    """Return the message of the ConcurrencyError with which the attempt ends."""
    ended = await attempt(body)
    assert ended.status == "backing-off", str(ended)
    assert "ConcurrencyError" in ended.failure or "waits" in ended.failure, ended.failure
    return ended.failure


async def test_plain_gather_of_steps() -> None:
    """asyncio.gather over steps names the function to use instead."""

    async def body(ctx: restate.Context) -> None:
        await asyncio.gather(step("a"), step("b"))

    assert "restate_steps.gather" in await refusal(body)


async def test_plain_gather_of_steps_inside_a_branch() -> None:
    """The same inside a branch: two durable waits of one branch at once."""

    async def branch() -> None:
        await asyncio.gather(step("a"), step("b"))

    async def body(ctx: restate.Context) -> None:
        await gather(branch(), step("c"))

    assert "asyncio.gather" in await refusal(body)


async def test_a_plain_task_that_issues_commands_beside_its_branch() -> None:
    """A task started with asyncio.create_task may not add to the journal while its branch waits."""

    async def background(ctx: restate.Context) -> None:
        await asyncio.sleep(0.001)
        ctx.sleep(timedelta(seconds=1))

    async def body(ctx: restate.Context) -> None:
        async with TaskGroup() as group:
            group.create_task(slow_step("a"))
            task = asyncio.create_task(background(ctx))
            await ctx.awakeable()[1]
            await task

    ended = await attempt(body)
    assert "sys_sleep was called by a task that runs beside" in ended.failure
    assert "Command: Sleep" not in ended.journal


async def test_a_group_opened_while_a_step_is_awaited_elsewhere() -> None:
    """A step that a plain task awaits and a group beside it: refused when the group opens."""

    async def body(ctx: restate.Context) -> None:
        plain = asyncio.create_task(slow_step("plain"))
        await asyncio.sleep(0.001)
        try:
            await gather(step("a"), step("b"))
        finally:
            plain.cancel()

    assert "asyncio.create_task" in await refusal(body)


@pytest.mark.parametrize("inside", ["branch", "handler"])
async def test_a_local_time_out_around_a_durable_wait(inside: str) -> None:
    """asyncio.timeout around a durable wait is refused, and wait_for named."""

    async def timed(ctx: restate.Context) -> str:
        try:
            async with asyncio.timeout(0.005):
                await ctx.awakeable()[1]
        except TimeoutError:
            return await step("too late")
        return "in time"

    async def body(ctx: restate.Context) -> Any:
        if inside == "branch":
            return await gather(timed(ctx), step("a"))
        async with TaskGroup() as group:
            group.create_task(step("a"))
            return await timed(ctx)

    assert "restate_steps.wait_for" in await refusal(body)


async def test_a_local_wait_for_around_a_durable_wait() -> None:
    """asyncio.wait_for, which in Python 3.11 waits in a task of its own, is refused as well."""

    async def timed(ctx: restate.Context) -> Any:
        return await asyncio.wait_for(ctx.awakeable()[1], 0.005)

    async def body(ctx: restate.Context) -> Any:
        return await gather(timed(ctx), step("a"))

    assert "restate_steps.wait_for" in await refusal(body)


async def test_a_local_time_out_around_a_sequential_step() -> None:
    """With no branches open too: a handler that goes on after a local time-out is stopped at its next command."""

    @durable_step
    async def slow() -> None:
        await asyncio.sleep(0.05)

    async def body(ctx: restate.Context) -> Any:
        try:
            async with asyncio.timeout(0.005):
                await slow()
        except TimeoutError:
            return await step("too late")

    assert "step's own timeout= option" in await refusal(body)


async def test_an_event_set_from_outside_the_branches() -> None:
    """A step's body that wakes a branch: a replay does not run the body, so the branch would wait for ever."""

    async def waits(event: asyncio.Event) -> None:
        await event.wait()
        await step("woken")

    async def body(ctx: restate.Context) -> None:
        event = asyncio.Event()

        @durable_step
        async def sets() -> None:
            event.set()
            await asyncio.sleep(0)

        await gather(waits(event), sets(), ctx.awakeable()[1])

    assert "put the waiting into a step" in await refusal(body)


async def test_branches_that_wait_for_each_other() -> None:
    """A deadlock on locks is seen at once, and the message says who waits where."""

    async def takes(first: asyncio.Lock, second: asyncio.Lock, tag: str) -> None:
        async with first:
            await step(tag)
            async with second:
                await step(f"{tag}!")

    async def body(ctx: restate.Context) -> None:
        one, two = asyncio.Lock(), asyncio.Lock()
        await gather(takes(one, two, "a"), takes(two, one, "b"))

    message = await refusal(body)
    assert "nobody is left who could end the waiting" in message
    assert "Lock.acquire" in message
    assert "test_refused.py" in message


async def test_a_handler_that_waits_for_an_event_that_nobody_sets() -> None:
    """The handler's own coroutine cannot be interrupted with an exception, and the reason reaches the server."""

    async def body(ctx: restate.Context) -> None:
        async with TaskGroup() as group:
            group.create_task(step("a"))
            await asyncio.Event().wait()

    assert "nobody is left who could end the waiting" in (await attempt(body)).failure


async def test_a_branch_that_holds_up_the_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local wait that only a sibling could end, in a form that cannot be told from I/O, is refused after a while."""
    monkeypatch.setattr(_scheduler, "STALL_WARNING_SECONDS", 0.01)
    monkeypatch.setattr(_scheduler, "STALL_LIMIT_SECONDS", 0.03)

    async def body(ctx: restate.Context) -> None:
        future = asyncio.get_running_loop().create_future()

        async def waits() -> None:
            await future

        async def sets() -> None:
            await step("a")
            future.set_result(None)

        await gather(waits(), sets())

    message = await refusal(body)
    assert "held up the other branches" in message
    assert "put that into a step" in message


async def test_things_that_are_no_awaitables() -> None:
    """A function passed uncalled is told from a coroutine, and the coroutines beside it are closed."""
    with pytest.raises(TypeError, match=r"quote\(order\), not quote"):
        await gather(step("a"), step)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="at least one"):
        await race()
    with pytest.raises(TypeError, match="Call the function"):
        await wait_for(step, 1)  # type: ignore[arg-type]


async def test_a_local_wait_for_around_a_lock() -> None:
    """A timer around a primitive keeps the baton, so the outcome is the timer's, on every replay."""

    async def holds(lock: asyncio.Lock) -> None:
        async with lock:
            await step("hold")

    async def tries(lock: asyncio.Lock) -> str:
        await step("first")
        try:
            await asyncio.wait_for(lock.acquire(), 0.005)
        except TimeoutError:
            return "gave up"
        lock.release()
        return "got it"

    async def body(ctx: restate.Context) -> Any:
        lock = asyncio.Lock()
        return list(await gather(holds(lock), tries(lock)))

    assert (await attempt(body)).status == "completed"


# --- a refusal is final, whatever the handler makes of it -------------------------------------------------------------


async def test_a_handler_cannot_answer_with_a_local_time_out() -> None:
    """The step's outcome is unknown when the local timer ends, so "timed out" must not become the answer."""

    @durable_step
    async def charge() -> str:
        await asyncio.sleep(0.05)
        return "charged"

    async def body(ctx: restate.Context) -> str:
        try:
            async with asyncio.timeout(0.005):
                return await charge()
        except TimeoutError:
            return "timed out"

    assert "cancelled by something local" in await refusal(body)


async def test_a_handler_cannot_answer_with_a_swallowed_refusal() -> None:
    """Neither by catching the error around the group, nor inside a branch, nor as a value of asyncio.gather."""

    async def impatient(ctx: restate.Context) -> str | None:
        try:
            async with asyncio.timeout(0.005):
                await ctx.awakeable()[1]
        except Exception:
            return None
        return "answered"

    async def around(ctx: restate.Context) -> str:
        try:
            await gather(impatient(ctx), step("a"))
        except Exception:
            return "order failed"
        return "done"

    async def in_a_group(ctx: restate.Context) -> str:
        async with TaskGroup() as group:
            task = group.create_task(impatient(ctx))
        return f"done: {task.result()}"

    async def as_a_value(ctx: restate.Context) -> Any:
        return [str(result) for result in await asyncio.gather(step("a"), step("b"), return_exceptions=True)]

    for body in (around, in_a_group, as_a_value):
        await refusal(body)


async def test_a_journaled_value_that_does_not_fit_cannot_become_an_answer() -> None:
    """A handler that catches every exception does not end with a falsehood after a bad deploy."""
    service, deployed = restate.Service("Refused"), []

    @durable_step(returns=int, verify=False, name="value")
    async def value() -> Any:
        return 1

    changed = value.with_options(returns=list[str])

    @service.handler()
    async def handler(ctx: restate.Context) -> str:
        try:
            await (changed() if deployed else value())
        except Exception:
            return "payment failed"
        await ctx.sleep(timedelta(days=1))
        return "fine"

    async with simulate(restate_steps.app([service])) as sim:
        invocation = await sim.send(handler)
        deployed.append("the second version")
        await sim.crash()
        assert invocation.status == "backing-off"
        assert "the journaled result of step 'value' does not fit list[str]" in (invocation.last_failure or "")


async def test_a_cancellation_that_nobody_asked_for() -> None:
    """Awaiting a cancelled task at the top of a handler: an error that says so, instead of an attempt without end."""

    async def body(ctx: restate.Context) -> None:
        async with TaskGroup() as group:
            task = group.create_task(step("a"))
            task.cancel()
            await task

    assert "nobody cancelled it" in await refusal(body)


async def test_the_context_in_another_thread() -> None:
    """An event loop of its own in a thread cannot add to the handler's journal."""

    async def body(ctx: restate.Context) -> None:
        await step("before")
        await asyncio.to_thread(lambda: asyncio.run(step("in a thread")))

    assert "another thread or event loop" in (await attempt(body)).failure


async def test_a_body_that_raises_what_is_no_exception() -> None:
    """The SDK would wait for such a body for ever; the step makes a failed attempt of it."""

    class Abort(BaseException):
        pass

    @durable_step
    async def aborts() -> None:
        raise Abort

    async def body(ctx: restate.Context) -> None:
        await gather(aborts(), step("a"))

    ended = await attempt(body)
    assert ended.status == "backing-off"
    assert "which is no Exception" in ended.failure
