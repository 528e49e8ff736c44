"""The limits of time of a run and of a request, and the time that a run goes by."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import restate
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ModelRequestTimeout, RunTimedOut
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.settings import ModelSettings

from restate_steps import RetryPolicy, restate_context, run_step
from restate_steps.agents import RestateAgent, RestateDurability
from tests.support.agents_kit import Serve, serve_handler

LONG = timedelta(days=30)


def calling(*tools: str) -> FunctionModel:
    """A model that calls these tools at once, and then says what they returned."""

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        returned = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        if not returned:
            return ModelResponse(parts=[ToolCallPart(tool, {}) for tool in tools])
        return ModelResponse(parts=[TextPart("; ".join(str(part.content) for part in returned))])

    return FunctionModel(respond, model_name="calling")


def waiting_agent(undone: Counter[str]) -> Agent[None, str]:
    """An agent whose tools wait for a month, and undo what they have begun when they are cancelled."""
    agent = Agent(calling("wait", "wait"), name="patient")

    @agent.tool_plain(metadata={"restate": False})
    async def wait() -> str:
        try:
            await restate_context().sleep(LONG)
        except asyncio.CancelledError:
            await run_step(lambda: undone.update(["undone"]), name="undo")
            raise
        return "waited"

    return agent


def test_run_ends_when_its_time_is_up(env_factory: Serve) -> None:
    """A durable timer ends a run that waits, its tools undo what they did, and the handler continues."""
    undone: Counter[str] = Counter()
    agent = waiting_agent(undone)

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent).run("go", timeout=0.05)).output
        except RunTimedOut:
            after: str = await run_step(lambda: "too late", name="after")
            return after

    assert "too late" == serve_handler(env_factory, "TimedRun", handler)()
    assert {"undone": 2} == undone


def test_run_in_time_is_left_alone(env_factory: Serve) -> None:
    """A run that ends in time leaves no timer behind that the invocation would wait for."""
    agent = Agent(calling("look", "look"), name="quick", capabilities=[RestateDurability()])

    @agent.tool_plain
    async def look() -> str:
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        return (await agent.run("go", timeout=LONG.total_seconds())).output

    assert "seen; seen" == serve_handler(env_factory, "InTime", handler)()


def test_time_left_is_that_of_the_journal(env_factory: Serve) -> None:
    """In the handler, the time that is left is the same on every replay; in a step it is the real one."""
    agent = Agent(calling("left_in_handler", "left_in_step"), name="clock")
    seen: list[float | None] = []

    @agent.tool(metadata={"restate": False})
    async def left_in_handler(ctx: RunContext[None]) -> str:
        seen.append(ctx.remaining_time())
        await run_step(lambda: None, name="pause")
        return "ok"

    @agent.tool
    async def left_in_step(ctx: RunContext[None]) -> bool:
        left = ctx.remaining_time()
        return left is not None and 0 < left < 60

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent).run("go", timeout=60)).output
        await run_step(lambda: None, name="more")
        return output

    assert "ok; True" == serve_handler(env_factory, "TimeLeft", handler)()
    assert 1 == len(set(seen))


def test_request_timeout_is_kept_in_the_step(env_factory: Serve) -> None:
    """A request that takes too long is made again by Restate, up to the limit, and then raises pydantic-ai's error."""
    asked: Counter[str] = Counter()

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["model"] += 1
        await asyncio.Event().wait()
        raise AssertionError

    agent = Agent(FunctionModel(respond, model_name="slow"), name="slow")

    async def handler(ctx: restate.Context) -> list[Any]:
        settings: ModelSettings = {"request_timeout": 0.01}
        durable = RestateAgent(agent, model_retry=RetryPolicy(max_attempts=2))
        try:
            await durable.run("go", model_settings=settings)
        except ModelRequestTimeout as error:
            await run_step(lambda: None, name="more")
            return [error.model_name, error.timeout]
        raise AssertionError

    assert ["slow", 0.01] == serve_handler(env_factory, "SlowModel", handler)()
    assert {"model": 2} == asked


def test_timestamps_are_those_of_responses(env_factory: Serve) -> None:
    """A history can be put into state: what the run adds has times that a replay gives it again."""
    agent = Agent(calling("look"), name="dated")
    histories: list[list[datetime]] = []

    @agent.tool_plain
    async def look() -> str:
        return "seen"

    async def handler(ctx: restate.Context) -> int:
        result = await RestateAgent(agent).run("go")
        times = [message.timestamp for message in result.all_messages() if message.timestamp is not None]
        times += [part.timestamp for message in result.all_messages() for part in message.parts if _dated(part)]
        histories.append(times)
        await run_step(lambda: None, name="more")
        return len(times)

    env = serve_handler(env_factory, "DatedHistory", handler).env
    assert env.call("DatedHistory", "run") > 4
    assert all(times == histories[0] for times in histories)


def _dated(part: Any) -> bool:
    return getattr(part, "timestamp", None) is not None
