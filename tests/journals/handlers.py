"""Handlers that use every feature, one each. Their journals are kept, so **what they ask for must never change**.

A handler that shall do something else gets another name, and the old one stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any, Literal
from uuid import UUID

import anyio
import restate
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, ModelRetry
from pydantic_ai.messages import TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import restate_steps as rs
from restate_steps import RetryPolicy, TaskGroup, as_completed, durable_step, gather, race, run_step, wait_for
from restate_steps.agents import RestateAgent

BRIEFLY = timedelta(milliseconds=20)
LONG = timedelta(days=30)

service = restate.Service("Kept")
counter = restate.VirtualObject("KeptCounter")
approval = restate.Workflow("KeptApproval")


class Declined(Exception):
    """What a step may raise, with its type kept."""

    # The recorded journals name the class with the module that it once had.
    __module__ = "journals.handlers"


class Order(BaseModel):
    id: str
    total: Decimal


@dataclass
class Place:
    street: str
    number: int | None = None


class Colour(Enum):
    RED = "red"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


@durable_step
async def double(value: int) -> int:
    return 2 * value


@durable_step(name="work {tag}")
async def work(tag: str) -> str:
    return tag.upper()


async def shout(word: str) -> str:
    return f"{word}!"


@durable_step
async def tell(awakeable: str) -> str:
    """Tells whoever records what to resolve."""
    return awakeable


@durable_step(raises=(Declined,))
async def decline(reason: str) -> None:
    raise Declined(reason)


@durable_step
async def refuse(reason: str) -> None:
    raise restate.TerminalError(reason, 418)


tries: dict[str, int] = {}


@durable_step(retry=RetryPolicy(max_attempts=3, initial_retry_interval=timedelta(milliseconds=1)))
async def third_time_lucky(key: str) -> str:
    tries[key] = tries.get(key, 0) + 1
    if tries[key] < 3:
        raise ConnectionError("not yet")
    return "at last"


@durable_step(retry=RetryPolicy(max_attempts=2, initial_retry_interval=timedelta(milliseconds=1)))
async def never(what: str) -> str:
    raise ConnectionError(what)


@durable_step
def in_a_thread(value: int) -> int:
    return value + 1


# --- steps ------------------------------------------------------------------------------------------------------


@service.handler()
async def values(ctx: restate.Context, value: int) -> list[Any]:
    return [await double(value), await in_a_thread(value), await work("a"), await double(value)]


@service.handler()
async def nothing(ctx: restate.Context) -> None:
    @durable_step
    async def none() -> None:
        return None

    @durable_step
    async def perhaps() -> int | None:
        return None

    await none()
    assert await perhaps() is None


@service.handler()
async def failures(ctx: restate.Context, reason: str) -> list[str]:
    seen: list[str] = []
    try:
        await decline(reason)
    except Declined as error:
        seen.append(f"Declined {error}")
    try:
        await refuse(reason)
    except restate.TerminalError as error:
        seen.append(f"{error.status_code} {error.message}")
    return seen


@service.handler()
async def uncaught(ctx: restate.Context, reason: str) -> None:
    await work("before")
    await refuse(reason)


@service.handler()
async def retried(ctx: restate.Context) -> list[str]:
    seen = [await third_time_lucky(ctx.request().id)]
    try:
        await never("no connection")
    except ConnectionError as error:
        seen.append(f"ConnectionError {error}")
    except restate.TerminalError as error:
        seen.append(f"TerminalError {error.status_code}")
    return seen


@service.handler()
async def names(ctx: restate.Context, items: list[str]) -> list[str]:
    """Names with indices: the same step again and again, alone and at the same time."""
    alone = [await work("same") for _ in range(2)]
    together = await gather(*(work("same") for _ in range(3)))
    inner = await gather(*(gather(double(1), double(1)) for _ in range(2)))
    return [*alone, *together, str(inner), *[await run_step(shout, item, name="item {word}") for item in items]]


@service.handler()
async def codec(ctx: restate.Context) -> list[str]:
    async def typed(tp: Any, value: Any) -> str:
        @durable_step(returns=tp)
        async def typed_step() -> Any:
            return value

        found = await typed_step()
        assert (type(value), value) == (type(found), found)
        return repr(found)

    return [
        await typed(Decimal, Decimal("1.50")),
        await typed(datetime, datetime(2025, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
        await typed(date, date(2025, 1, 2)),
        await typed(timedelta, timedelta(days=1, microseconds=1)),
        await typed(UUID, UUID(int=7)),
        await typed(bytes, b"\xff\x00\x01"),
        await typed(Colour, Colour.RED),
        await typed(Order, Order(id="o1", total=Decimal("9.90"))),
        await typed(Place, Place("Main", 1)),
        await typed(Cat | Dog, Dog(name="Rex")),
        await typed(tuple[int, str], (1, "two")),
        await typed(set[int], {3}),
        await typed(dict[int, list[Order]], {1: [Order(id="o2", total=Decimal(0))]}),
        await typed(float, float("inf")),
        await typed(int, 2**70),
        await typed(str, 'quotes " and ünïcödé \u2028'),
    ]


# --- concurrency ------------------------------------------------------------------------------------------------


async def chain(tag: str, length: int = 3) -> str:
    for number in range(length):
        await work(f"{tag}{number}")
    return tag


@service.handler()
async def gathered(ctx: restate.Context) -> list[str]:
    return list(await gather(chain("a"), chain("b", 2), chain("c", 1)))


@service.handler()
async def gathered_failure(ctx: restate.Context) -> str:
    async def fails() -> str:
        await work("before")
        await refuse("no")
        return "never"

    found = await gather(fails(), chain("x", 1), return_exceptions=True)
    try:
        await gather(fails(), chain("y", 1))
    except restate.TerminalError as error:
        return f"{type(found[0]).__name__} {found[1]} {error.status_code}"
    return "never"


@service.handler()
async def raced(ctx: restate.Context) -> str:
    async def sleeps() -> str:
        await ctx.sleep(LONG, name="loser")
        return "never"

    winner = await race(chain("fast", 1), sleeps())
    return f"{winner} {await work('after')}"


@service.handler()
async def completed_one_by_one(ctx: restate.Context) -> list[str]:
    found = [await next_one for next_one in as_completed([chain("a", 1), chain("b", 2), chain("c", 3)])]
    return sorted(found)


@service.handler()
async def mapped(ctx: restate.Context, items: list[int]) -> list[int]:
    async def one(item: int) -> int:
        return await double(await double(item))

    return await rs.map(one, items, limit=2)


@service.handler()
async def grouped(ctx: restate.Context) -> list[str]:
    async with TaskGroup() as group:
        first = group.create_task(chain("first", 2))
        second = group.create_task(chain("second", 1))
        await work("body")
    return [first.result(), second.result()]


@service.handler()
async def group_that_fails(ctx: restate.Context) -> str:
    async def undo() -> None:
        try:
            await ctx.sleep(LONG)
        finally:
            await work("undo")

    try:
        async with TaskGroup() as group:
            group.create_task(undo())
            group.create_task(refused_after_work())
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"
    return "never"


async def refused_after_work() -> None:
    await work("before")
    await refuse("no")


@service.handler()
async def in_time(ctx: restate.Context) -> str:
    return await wait_for(chain("quick", 2), timeout=LONG)


@service.handler()
async def too_late(ctx: restate.Context) -> str:
    async def sleeps() -> str:
        await ctx.sleep(LONG)
        return "never"

    try:
        return await wait_for(sleeps(), timeout=BRIEFLY)
    except TimeoutError:
        return await work("too late")


@service.handler()
async def nested(ctx: restate.Context) -> list[Any]:
    async def inner(tag: str) -> list[str]:
        async with TaskGroup() as group:
            tasks = [group.create_task(chain(f"{tag}{number}", 1)) for number in range(2)]
        return [task.result() for task in tasks]

    outer, raced = await gather(gather(inner("a"), inner("b")), race(chain("r", 1), inner("c")))
    return [outer, "r" if raced == "r" else "c"]


@service.handler()
async def compensated(ctx: restate.Context) -> list[str]:
    undo: list[Callable[[], Awaitable[str]]] = []
    try:
        for tag in ("flight", "hotel"):
            await work(f"book {tag}")
            undo.append(partial(work, f"cancel {tag}"))
        await refuse("no car")
    except restate.TerminalError:
        return [await action() for action in reversed(undo)]
    return []


@service.handler()
async def cancelled(ctx: restate.Context) -> str:
    async def sleeps() -> None:
        await ctx.sleep(LONG)

    await tell("waiting")
    try:
        await gather(sleeps(), chain("a", 1), sleeps())
    except restate.TerminalError as error:
        await gather(work("clean 1"), work("clean 2"))
        return f"compensated after {error.status_code}"
    return "never"


# --- the rest of the SDK ----------------------------------------------------------------------------------------


@service.handler()
async def slept(ctx: restate.Context) -> str:
    await ctx.sleep(BRIEFLY)
    await ctx.sleep(BRIEFLY, name="nap")
    return "awake"


@service.handler()
async def awakeables(ctx: restate.Context) -> list[str]:
    first_id, first = ctx.awakeable(type_hint=str)
    second_id, second = ctx.awakeable(type_hint=str)
    await tell(first_id)
    await tell(second_id)
    try:
        return [await first, await second]
    except restate.TerminalError as error:
        return [await work("rejected"), error.message]


@service.handler()
async def signalled(ctx: restate.Context) -> list[str]:
    ctx.resolve_signal(ctx.request().id, "go", "early")
    own_id, own = ctx.awakeable(type_hint=str)
    ctx.resolve_awakeable(own_id, "mine")
    return [await ctx.signal("go", type_hint=str), await own]


@counter.handler()
async def add(ctx: restate.ObjectContext, by: int) -> list[Any]:
    before = await ctx.get("count", type_hint=int) or 0
    keys = sorted(await ctx.state_keys())
    ctx.set("count", before + by)
    ctx.set("last", by)
    await work("added")
    ctx.clear("last")
    return [before, keys, await ctx.get("count", type_hint=int)]


@counter.handler(kind="shared", enable_lazy_state=True)
async def look(ctx: restate.ObjectSharedContext) -> list[Any]:
    return [await ctx.get("count", type_hint=int), await ctx.get("none"), sorted(await ctx.state_keys())]


@counter.handler()
async def forget(ctx: restate.ObjectContext) -> None:
    ctx.clear_all()


@service.handler()
async def child(ctx: restate.Context, value: int) -> int:
    if value < 0:
        raise restate.TerminalError("negative", 422)
    return await double(value)


@service.handler()
async def called(ctx: restate.Context, value: int) -> list[Any]:
    one = await ctx.service_call(child, value, headers={"reason": "test"})
    two = await gather(ctx.object_call(add, key="called", arg=value), ctx.service_call(child, value + 1))
    try:
        await ctx.service_call(child, -1)
    except restate.TerminalError as error:
        return [one, two, error.status_code]
    return []


@service.handler()
async def sent(ctx: restate.Context, value: int) -> list[Any]:
    first = ctx.service_send(child, value)
    ctx.object_send(forget, key="sent", arg=None, send_delay=BRIEFLY)
    invocation_id = await first.invocation_id()
    return [await ctx.attach_invocation(invocation_id, type_hint=int)]


@approval.main()
async def decide(ctx: restate.WorkflowContext, what: str) -> str:
    seen = await ctx.promise("decision", type_hint=str).peek()
    await work("asked")
    decision = await ctx.promise("decision", type_hint=str).value()
    return f"{what} {seen} {decision}"


@approval.handler()
async def say(ctx: restate.WorkflowSharedContext, decision: str) -> str:
    await ctx.promise("decision", type_hint=str).resolve(decision)
    try:
        await ctx.promise("decision", type_hint=str).resolve("again")
    except restate.TerminalError as error:
        return error.message
    return "never"


@service.handler()
async def random_and_time(ctx: restate.Context) -> list[Any]:
    """The way it takes depends on the random seed of the invocation."""
    number = ctx.random().randrange(1000)
    await work(f"number {number}")
    await work(f"id {ctx.uuid()}")
    return [number, await ctx.time() > 0, (await ctx.service_call(child, number)) == 2 * number]


# --- agents -----------------------------------------------------------------------------------------------------


async def weather_model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Asks for two tools at once, of which one wants to be asked again, then for one that makes steps, and answers."""
    responses = sum(isinstance(message, ModelResponse) for message in messages)
    if responses == 0:
        calls = [ToolCallPart("weather", {"city": "Oslo"}, "c1"), ToolCallPart("weather", {"city": "Nowhere"}, "c2")]
        return ModelResponse(parts=calls)
    if responses == 1:
        return ModelResponse(parts=[ToolCallPart("unwrapped", {"city": "Rome"}, "c3")])
    returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    return ModelResponse(parts=[TextPart(", ".join(str(part.content) for part in returns))])


weather_agent = Agent(FunctionModel(weather_model), name="weather")


@weather_agent.tool_plain
async def weather(city: str) -> str:
    if city == "Nowhere":
        raise ModelRetry("there is no such city")
    return f"sun in {city}"


@weather_agent.tool_plain(metadata={"restate": False})
async def unwrapped(city: str) -> str:
    return await work(city)


@service.handler()
async def agent(ctx: restate.Context, question: str) -> str:
    result = await RestateAgent(weather_agent, restate_context=ctx).run(question)
    return f"{result.output} {await work('answered')}"


async def two_steps_model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if not returns:
        return ModelResponse(parts=[ToolCallPart("plan", {"days": days}, f"c{days}") for days in (1, 2)])
    return ModelResponse(parts=[TextPart("planned")])


planner = Agent(FunctionModel(two_steps_model), name="planner")


@planner.tool_plain
async def plan(days: int) -> list[str]:
    return [await work(f"day {day} of {days}") for day in range(days)]


@service.handler()
async def agent_with_durable_tools(ctx: restate.Context, question: str) -> str:
    """Tools that are not one step, but make steps."""
    durable = RestateAgent(planner, restate_context=ctx, disable_auto_wrapping_tools=True)
    return (await durable.run(question)).output


# --- plain asyncio ----------------------------------------------------------------------------------------------


@service.handler()
async def asyncio_gathered(ctx: restate.Context) -> list[Any]:
    """A chain, a chain with a time limit (a child task on Python 3.11, none on 3.12), and a timer."""

    async def chain(tag: str) -> str:
        return await work(f"{tag}1") + await work(f"{tag}2")

    return list(
        await asyncio.gather(asyncio.wait_for(chain("a"), 3600), chain("b"), asyncio.sleep(0.001, "slept"), double(1))
    )


@service.handler()
async def asyncio_group(ctx: restate.Context) -> list[str]:
    """A group, a queue and a lock."""
    queue: asyncio.Queue[str | None] = asyncio.Queue(1)
    lock = asyncio.Lock()
    found: list[str] = []

    async def produce() -> None:
        for tag in ("x", "y", "z"):
            await queue.put(await work(tag))
        await queue.put(None)

    async def consume() -> None:
        while (tag := await queue.get()) is not None:
            async with lock:
                found.append(await work(f"{tag}!"))

    async with asyncio.TaskGroup() as group:
        group.create_task(produce())
        group.create_task(consume())
        async with lock:
            found.append(await work("first"))
    return found


@service.handler()
async def asyncio_too_late(ctx: restate.Context) -> str:
    """A timeout around something that never comes, and a clean-up with a step."""
    try:
        async with asyncio.timeout(0.001):
            try:
                await ctx.awakeable()[1]
            finally:
                await work("cleaned")
    except TimeoutError:
        return await work("late")
    return "in time"


@service.handler()
async def anyio_scopes(ctx: restate.Context) -> list[str]:
    """Task groups and scopes of anyio, the inner one of which is cancelled."""
    found: list[str] = []

    async def child(tag: str) -> None:
        found.append(await work(tag))

    async with anyio.create_task_group() as group:
        group.start_soon(child, "a")
        group.start_soon(child, "b")
        with anyio.move_on_after(0.001):
            await ctx.awakeable()[1]
        found.append(await work("moved on"))
    return sorted(found)


app = rs.app([service, counter, approval])
