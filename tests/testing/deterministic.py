"""Handlers that always do the same with the same journal, although much of what they do looks as if they did not."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import restate
from pydantic import BaseModel, Field
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from restate_steps import TaskGroup, as_completed, durable_step, gather, race, run_step
from restate_steps.agents import RestateAgent

sound = restate.Service("Sound")
account = restate.VirtualObject("Account")

logger = logging.getLogger("sound")


class Receipt(BaseModel):
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    total: Decimal


@durable_step
async def quote(item: str) -> float:
    await asyncio.sleep(random.random())
    return random.random() + time.time()


@durable_step
def pay(item: str) -> Receipt:
    return Receipt(total=Decimal(secrets.randbelow(100)))


@durable_step
async def read(path: str) -> str:
    return Path(path).read_text()


async def quote_again(item: str) -> float:
    return random.random()


# --- plain handlers of the SDK ----------------------------------------------------------------------------------


@sound.handler()
async def steps_of_the_sdk(ctx: restate.Context, item: str) -> str:
    number = await ctx.run_typed("draw", lambda: random.random())
    at = await ctx.run_typed("look", lambda: datetime.now(UTC).isoformat())
    if number < 0.5:
        await ctx.run_typed("small", lambda: os.urandom(4).hex())
    return f"{item} {number} {at}"


@sound.handler()
async def random_numbers_of_the_context(ctx: restate.Context) -> str:
    if ctx.random().random() < 0.5:
        await ctx.run_typed("heads", lambda: 1)
    if await ctx.time() % 2 < 1:
        await ctx.run_typed("even", lambda: 1)
    return f"{ctx.uuid()} {ctx.random().choice('abc')}"


@sound.handler()
async def sleeps_locally(ctx: restate.Context) -> None:
    await ctx.run_typed("first", lambda: 1)
    await asyncio.sleep(0.5)
    await ctx.sleep(timedelta(days=1))
    await asyncio.sleep(0)
    await ctx.run_typed("second", lambda: 1)


@sound.handler()
async def waits_until_midnight(ctx: restate.Context) -> None:
    """Compute delays from a clock: the recorded ones count."""
    await ctx.run_typed("first", lambda: 1)
    left = timedelta(days=1) - timedelta(seconds=time.time_ns() // 10**9 % 86_400)
    ctx.service_send(steps_of_the_sdk, arg="tea", send_delay=left)
    await ctx.sleep(left)


@sound.handler()
async def fails_by_chance(ctx: restate.Context) -> None:
    """Fail in some attempts, of which one gets through in the end."""
    await ctx.run_typed("first", lambda: 1)
    if random.random() < 0.4:
        raise ConnectionError("not this time")


@sound.handler()
async def waits_for_several(ctx: restate.Context) -> int:
    slow = ctx.run_typed("slow", lambda: 1)
    fast = ctx.sleep(timedelta(seconds=1))
    await restate.wait_completed(slow, fast)
    await restate.gather(slow, fast)
    return await slow


@sound.handler()
async def asks_for_approval(ctx: restate.Context) -> str:
    awakeable_id, approved = ctx.awakeable(type_hint=str)
    await ctx.run_typed("ask", lambda: awakeable_id)
    return await approved


@account.handler()
async def deposit(ctx: restate.ObjectContext, amount: int) -> int:
    balance = await ctx.get("balance", type_hint=int) or 0
    ctx.set("balance", balance + amount)
    keys = await ctx.state_keys()
    await ctx.run_typed(f"book {sorted(keys)}", lambda: 1)
    return balance + amount


@sound.handler()
async def calls_others(ctx: restate.Context) -> str:
    await ctx.object_call(deposit, key="a", arg=1)
    ctx.service_send(steps_of_the_sdk, arg="tea", send_delay=timedelta(minutes=1))
    return await ctx.service_call(steps_of_the_sdk, arg="milk")


@sound.handler()
async def fails(ctx: restate.Context) -> None:
    await ctx.run_typed("first", lambda: 1)
    raise restate.TerminalError("no", status_code=418)


# --- what is read, and makes no difference -----------------------------------------------------------------------


@sound.handler()
async def logs_and_measures(ctx: restate.Context) -> int:
    begin = time.perf_counter()
    logger.warning("begins in process %s", os.getpid())
    value = await ctx.run_typed("work", lambda: 1)
    logger.warning("took %s s, at %s", time.perf_counter() - begin, datetime.now())
    return value


@sound.handler()
async def looks_things_up(ctx: restate.Context) -> list[str]:
    known = {"apples", "pears", "plums"}
    seen: dict[int, object] = {id(known): known}
    counted = {name: len(name) for name in sorted(known)}
    await ctx.run_typed("first", lambda: 1)
    return [name for name in ("apples", "figs") if name in known and id(known) in seen] + list(counted)


@sound.handler()
async def imports_late(ctx: restate.Context) -> str:
    import colorsys
    from zoneinfo import ZoneInfo

    day = datetime(2025, 6, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert isinstance(day, datetime)
    assert type(day.date()) is date
    return f"{colorsys.rgb_to_hsv(1, 0, 0)} {day.isoformat()} {datetime.fromisoformat('2025-01-01')}"


@sound.handler()
async def seeds_its_random_numbers(ctx: restate.Context, seed: int) -> int:
    await ctx.run_typed("first", lambda: 1)
    random.seed(seed)
    drawn = random.Random(seed).randrange(100)
    return drawn + random.randrange(100)


# --- with restate_steps -----------------------------------------------------------------------------------------


@sound.handler()
async def many_branches(ctx: restate.Context, item: str) -> list[float]:
    async def buy(name: str) -> float:
        price = await quote(name)
        await asyncio.sleep(0.1)
        await pay(name)
        return price

    found = await gather(*(buy(f"{item} {number}") for number in range(3)))
    found.append(await race(quote("north"), quote("south")))
    for each in as_completed([quote("east"), quote("west")]):
        found.append(await each)
    async with TaskGroup() as group:
        group.create_task(buy("more"))
        group.create_task(buy("yet more"))
    await run_step(quote_again, "all", name="once more")
    return found


@sound.handler()
async def reads_in_a_step(ctx: restate.Context) -> int:
    return len(await read(__file__))


# --- an agent ---------------------------------------------------------------------------------------------------


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    if len(messages) == 1:
        return ModelResponse(
            parts=[ToolCallPart("weather", {"city": "Paris"}), ToolCallPart("weather", {"city": "Rome"})]
        )
    return ModelResponse(parts=[TextPart(f"it rains, says {random.random()}")])


agent = Agent(FunctionModel(answer), name="forecaster")


@agent.tool
async def weather(ctx: RunContext[object], city: str) -> str:
    return f"{city}: {await quote(city)} {datetime.now(UTC)}"


durable_agent = RestateAgent(agent)


@sound.handler()
async def asks_an_agent(ctx: restate.Context, question: str) -> str:
    result = await durable_agent.run(question)
    return result.output
