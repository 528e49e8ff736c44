"""Handlers so small that pairs of crashes are tried too, with local timers, clients, calls, state and retries.

The larger ones are in ``scenarios``. What a branch awaits locally takes time here that passes in the simulation: it can
end before or after whatever else happens.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import restate

import restate_steps as rs
from restate_steps import (
    RetryPolicy,
    TaskGroup,
    as_completed,
    durable_step,
    gather,
    race,
    restate_context,
    wait_for,
)
from restate_steps.testing import Simulator
from tests.support.exploration import Subject, explored

service = restate.Service("Small")
counter = restate.VirtualObject("SmallCounter")
HANDLERS: dict[str, Any] = {}
bodies: Counter[str] = Counter()
"""How often each body has run in this run of the exploration."""

HOUR = timedelta(hours=1)
MOMENT = 0.003


class _App:
    """The application, made when it is first used: the handlers below are added to the services one by one."""

    _app: Any = None

    def __call__(self, *args: Any) -> Any:
        self._app = self._app or rs.app([service, counter])
        return self._app(*args)


APP = _App()


def begin(seed: int) -> None:
    bodies.clear()


def small(*answers: Any, **options: Any) -> Callable[[Any], Any]:
    """Add a handler that is explored with two crashes, and say what it may answer."""

    def register(function: Any) -> Any:
        name = function.__name__
        given = {"crashes": 2, "runs": 138, **options}
        explored(Subject(f"small/{name}", APP, f"Small/{name}", answers=list(answers), setup=begin, **given))
        return service.handler()(function)

    return register


@durable_step(name="{tag}")
async def work(tag: str) -> str:
    bodies[tag] += 1
    return tag


@durable_step(name="{tag}")
async def slow_work(tag: str) -> str:
    bodies[tag] += 1
    await asyncio.sleep(0.01)
    return tag


@durable_step(name="{tag}")
def threaded_work(tag: str) -> str:
    bodies[tag] += 1
    return tag


class Refused(Exception):
    pass


@durable_step(name="{tag}", raises=(Refused,))
async def refuse(tag: str) -> str:
    raise Refused(tag)


# --- local waits ----------------------------------------------------------------------------------------------------


@small(["a", "b"])
async def local_timers_before_the_first_step(ctx: restate.Context) -> list[str]:
    async def branch(tag: str, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return await work(tag)

    return await gather(branch("a", 2 * MOMENT), branch("b", MOMENT))


@small(["a2", "b2"])
async def local_timers_between_steps(ctx: restate.Context) -> list[str]:
    async def branch(tag: str, seconds: float) -> str:
        await work(f"{tag}1")
        await asyncio.sleep(seconds)
        return await work(f"{tag}2")

    return await gather(branch("a", MOMENT), branch("b", 2 * MOMENT))


@small("undone, x")
async def compensation_after_a_local_timer(ctx: restate.Context) -> str:
    async def saga() -> str:
        try:
            return await refuse("no")
        except Refused:
            await asyncio.sleep(MOMENT)
            return await work("undone")

    return ", ".join(await gather(saga(), slow_work("x")))


@small("a", "b")
async def local_time_outs_that_wait_for_nothing_durable(ctx: restate.Context) -> str:
    async def branch(tag: str) -> str:
        try:
            async with asyncio.timeout(MOMENT):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return await work(tag)
        return "never"

    return await race(branch("a"), branch("b"))


@small(["a", "b"])
async def steps_that_run_in_threads(ctx: restate.Context) -> list[str]:
    return await gather(threaded_work("a"), threaded_work("b"))


# --- shared primitives ----------------------------------------------------------------------------------------------


@small(["a", "b"], ["b", "a"])
async def a_lock_that_is_handed_on(ctx: restate.Context) -> list[str]:
    lock, order = asyncio.Lock(), list[str]()

    async def branch(tag: str) -> None:
        await work(tag)
        async with lock:
            await asyncio.sleep(MOMENT)
            await work(f"{tag} locked")
            order.append(tag)

    await gather(branch("a"), branch("b"))
    return order


@small("set", "late")
async def a_time_out_around_an_event(ctx: restate.Context) -> str:
    event = asyncio.Event()

    async def sets() -> None:
        await slow_work("sets")
        event.set()

    async def waits() -> str:
        try:
            await wait_for(event.wait(), timedelta(milliseconds=10))
        except TimeoutError:
            return "late"
        return "set"

    return (await gather(waits(), sets()))[0]


@small(["1", "2"])
async def a_queue_between_branches(ctx: restate.Context) -> list[str]:
    queue = asyncio.Queue[str | None](maxsize=1)

    async def produce() -> None:
        for tag in ("1", "2"):
            await queue.put(await work(tag))
        await queue.put(None)

    async def consume() -> list[str]:
        got = []
        while (tag := await queue.get()) is not None:
            await asyncio.sleep(MOMENT)
            got.append(tag)
        return got

    return (await gather(consume(), produce()))[0]


@small("a then b")
async def a_condition_between_branches(ctx: restate.Context) -> str:
    condition, done = asyncio.Condition(), list[str]()

    async def first() -> None:
        await work("a")
        async with condition:
            done.append("a")
            condition.notify_all()

    async def second() -> None:
        async with condition:
            await condition.wait_for(lambda: bool(done))
        done.append(await work("b"))

    await gather(second(), first())
    return " then ".join(done)


# --- groups ---------------------------------------------------------------------------------------------------------


@small("a0a1b")
async def a_group_inside_a_branch(ctx: restate.Context) -> str:
    async def inner() -> str:
        found = "".join(await gather(work("a0"), work("a1")))
        await asyncio.sleep(0)
        return found

    return "".join(await gather(inner(), work("b")))


@small("a", "b", "c")
async def a_race_inside_a_race(ctx: restate.Context) -> str:
    return await race(race(work("a"), work("b")), work("c"))


@small("a", None)
async def a_race_against_a_durable_sleep(ctx: restate.Context) -> str | None:
    return await race(work("a"), ctx.sleep(timedelta(seconds=MOMENT)))


@small("quick, ended", "ab, ended")
async def a_group_in_a_plain_task_of_a_branch(ctx: restate.Context) -> str:
    ended: list[str] = []

    async def inner() -> str:
        try:
            return "".join(await gather(work("a"), work("b")))
        finally:
            ended.append("ended")

    async def outer() -> str:
        # As pydantic-ai runs the tools of an agent.
        return await asyncio.create_task(inner())

    return f"{await race(outer(), work('quick'))}, {', '.join(ended)}"


@small("no; a undone", "no; a was faster")
async def a_failing_branch_and_one_that_undoes(ctx: restate.Context) -> str:
    said: list[str] = []

    async def undoes() -> None:
        try:
            await work("a")
            await ctx.sleep(HOUR)
        except asyncio.CancelledError:
            said.append(await work("a undone"))
            raise

    try:
        await gather(undoes(), refuse("no"))
    except Refused as error:
        return f"{error}; {said[0] if said else 'a was faster'}"
    return "nothing failed"


@small(["a", "no"])
async def a_group_that_returns_exceptions(ctx: restate.Context) -> list[str]:
    return [str(each) for each in await gather(work("a"), refuse("no"), return_exceptions=True)]


@small("stopped at 1", "stopped at 2", "stopped at 3", "ended")
async def a_task_that_is_cancelled(ctx: restate.Context) -> str:
    reached = [0]

    async def goes_on() -> None:
        for number in (1, 2, 3):
            reached[0] = number
            await work(f"on {number}")
        reached[0] = 4

    async with TaskGroup() as group:
        task = group.create_task(goes_on())
        await work("enough")
        task.cancel()
    return f"stopped at {reached[0]}" if task.cancelled() else "ended"


@small(["a", "b"], ["a"], ["b"], [])
async def as_completed_with_a_time_limit(ctx: restate.Context) -> list[str]:
    found: list[str] = []
    try:
        async for task in as_completed([slow_work("a"), work("b")], timeout=timedelta(milliseconds=10)):
            found.append(await task)
    except TimeoutError:
        pass
    return sorted(found)


@small(["a", "b", "c"])
async def one_at_a_time(ctx: restate.Context) -> list[str]:
    return await rs.map(work, "abc", limit=1)


@small("late", "done", "done while cancelled")
async def a_time_out_that_comes_too_late(ctx: restate.Context) -> str:
    async def charges() -> str:
        try:
            await work("charge")
            return "done"
        except asyncio.CancelledError:
            await work("look")
            if bodies["charge"]:
                return "done while cancelled"
            raise

    try:
        return await wait_for(charges(), timedelta(milliseconds=5))
    except TimeoutError:
        return "late"


# --- clients, calls, state and retries --------------------------------------------------------------------------------


async def approve(sim: Simulator) -> Any:
    invocation = await sim.send("Small/waits_for_an_approval_beside_a_step")
    await sim.resolve_awakeable(await sim.awakeable(invocation), "approved")
    return (await invocation.result()).value


@small(["approved", "a"], scenario=approve)
async def waits_for_an_approval_beside_a_step(ctx: restate.Context) -> list[str]:
    return await gather(ctx.awakeable(type_hint=str)[1], slow_work("a"))


@small(["given", "taken given"])
async def a_branch_resolves_what_another_awaits(ctx: restate.Context) -> list[str]:
    name, awakeable = ctx.awakeable(type_hint=str)

    async def gives() -> str:
        found = await work("given")
        ctx.resolve_awakeable(name, found)
        return found

    async def takes() -> str:
        return f"taken {await awakeable}"

    return await gather(gives(), takes())


@counter.handler()
async def add(ctx: restate.ObjectContext, amount: int) -> int:
    total = (await ctx.get("total", type_hint=int) or 0) + amount
    await work("added")
    ctx.set("total", total)
    return total


@small([1, 3], [3, 2])
async def calls_beside_each_other(ctx: restate.Context) -> list[int]:
    return await gather(*(ctx.object_call(add, key="k", arg=amount) for amount in (1, 2)))


@small(["a", 1])
async def a_call_beside_a_step(ctx: restate.Context) -> list[Any]:
    return list(await gather(work("a"), ctx.object_call(add, key="k", arg=1)))


@counter.handler()
async def state_in_branches(ctx: restate.ObjectContext) -> list[str]:
    async def branch(tag: str) -> None:
        found = await ctx.get("tags", type_hint=list[str]) or []
        ctx.set("tags", [*found, tag])
        await work(tag)
        ctx.set(tag, tag)

    await gather(branch("a"), branch("b"))
    return sorted(await ctx.state_keys())


explored(
    Subject(
        "small/state_in_branches",
        APP,
        "SmallCounter/state_in_branches",
        key="k",
        answers=[["a", "b", "tags"]],
        setup=begin,
        crashes=2,
        runs=138,
    )
)


@durable_step(name="{tag}", retry=RetryPolicy(max_attempts=9, initial_retry_interval=timedelta(milliseconds=10)))
async def flaky(tag: str) -> str:
    bodies[tag] += 1
    if bodies[tag] < 3:
        raise ConnectionError(tag)
    return tag


# Crashes since the last entry count as attempts, as on a server; so there are more attempts than the body needs.
@small(["flaky", "a"])
async def a_step_that_is_retried_beside_another(ctx: restate.Context) -> list[str]:
    return await gather(flaky("flaky"), work("a"))


@durable_step(name="{tag}", timeout=timedelta(milliseconds=5), retry=RetryPolicy(max_attempts=1))
async def too_slow(tag: str) -> str:
    await asyncio.sleep(1)
    return tag


@small(["gave up", "a"])
async def a_step_that_takes_too_long_beside_another(ctx: restate.Context) -> list[str]:
    async def tries() -> str:
        try:
            return await too_slow("slow")
        except restate.TerminalError as error:
            if error.status_code == 409:
                raise
            return "gave up"

    return await gather(tries(), work("a"))


@small(["x", "a"], ["late", "a"])
async def started_steps_and_select(ctx: restate.Context) -> list[str]:
    async def selects() -> str:
        name, _ = await restate.select(x=slow_work.start("x"), late=ctx.sleep(timedelta(milliseconds=10)))
        return str(name)

    return await gather(selects(), work("a"))


# --- the cancellation of the invocation -------------------------------------------------------------------------------


@small("finished", "undone a, b", "undone a", "undone b", ends_cancelled=False)
async def every_branch_undoes(ctx: restate.Context) -> str:
    undone: list[str] = []

    async def branch(tag: str) -> None:
        try:
            await work(tag)
            await ctx.sleep(timedelta(milliseconds=5))
        except restate.TerminalError:
            await work(f"undo {tag}")
            undone.append(tag)
            raise

    try:
        await gather(branch("a"), branch("b"))
    except restate.TerminalError:
        return f"undone {', '.join(sorted(undone))}"
    return "finished"


@small("finished", "undone together", ends_cancelled=False)
async def the_handler_undoes_in_a_group(ctx: restate.Context) -> str:
    try:
        async with TaskGroup() as group:
            group.create_task(work("a"))
            await work("b")
            await ctx.sleep(timedelta(milliseconds=5))
    except restate.TerminalError:
        await gather(work("undo a"), work("undo b"))
        return "undone together"
    return "finished"


@small("a and b", "goes on with b", ends_cancelled=False)
async def a_branch_that_goes_on_after_the_cancellation(ctx: restate.Context) -> str:
    async def stubborn() -> str:
        try:
            first = await work("a")
        except restate.TerminalError:
            first = ""
        try:
            second = await work("b")
        except restate.TerminalError:
            second = await work("b again")
        return f"{first} and b" if first and second else "goes on with b"

    return (await gather(stubborn()))[0]


@small("done", "undone, too", ends_cancelled=False)
async def cancelled_while_a_lock_is_held(ctx: restate.Context) -> str:
    lock = asyncio.Lock()

    async def branch(tag: str) -> None:
        async with lock:
            try:
                await work(tag)
            finally:
                await restate_context().run_typed(f"release {tag}", lambda: None)

    try:
        await gather(branch("a"), branch("b"))
    except restate.TerminalError:
        async with lock:
            await work("undo")
        return "undone, too"
    return "done"
