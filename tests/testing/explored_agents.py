"""Agents as they are used: turns of a model and tools, several at a time, retries, approvals, and beside other work.

What the models answer depends on the messages alone, as the simulation starts each run from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import restate
from exploration import Subject, explored
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel

from restate_steps import durable_step, gather, race, restate_context, wait_for
from restate_steps.agents import RestateAgent, RestateDurability
from restate_steps.testing import Simulator

service = restate.Service("Agents")
calls: Counter[str] = Counter()
"""What was called in this run of the exploration."""


class _App:
    """The application, made when it is first used: the handlers below are added to the service one by one."""

    _app: Any = None

    def __call__(self, *args: Any) -> Any:
        self._app = self._app or restate.app([service])
        return self._app(*args)


APP = _App()


def begin(seed: int) -> None:
    calls.clear()


def agent_handler(*answers: Any, **options: Any) -> Callable[[Any], Any]:
    """Add a handler with an agent in it, and say what it may answer."""

    def register(function: Any) -> Any:
        name = function.__name__
        given = {"runs": 20, **options}
        explored(Subject(f"agents/{name}", APP, f"Agents/{name}", answers=list(answers), setup=begin, **given))
        return service.handler()(function)

    return register


def returned(messages: list[ModelMessage]) -> list[Any]:
    """What the tools have returned so far."""
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


def scripted(*turns: list[tuple[str, dict[str, Any]]]) -> FunctionModel:
    """Call these tools, turn by turn, then say what they returned."""

    def following(messages: list[ModelMessage]) -> list[tuple[str, dict[str, Any]]]:
        asked = sum(isinstance(message, ModelResponse) for message in messages)
        return turns[asked] if asked < len(turns) else []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        calls["model"] += 1
        tools = following(messages)
        if tools:
            return ModelResponse(parts=[ToolCallPart(*tool) for tool in tools])
        return ModelResponse(parts=[TextPart("; ".join(map(str, returned(messages))))])

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        tools = following(messages)
        if tools:
            yield {
                index: DeltaToolCall(name=name, json_args="{}", tool_call_id=f"call {index}")
                for index, (name, _) in enumerate(tools)
            }
        else:
            for result in returned(messages):
                yield f"{result};"

    return FunctionModel(answer, stream_function=stream, model_name="scripted")


# --- one agent -----------------------------------------------------------------------------------------------------

sequential = Agent(scripted([("add", {"a": 1, "b": 2})], [("shout", {"text": "hi"})]), name="sequential")


@sequential.tool_plain
async def add(a: int, b: int) -> int:
    return a + b


@sequential.tool_plain
def shout(text: str) -> str:
    return text.upper()


@agent_handler("3; HI")
async def two_turns_with_tools(ctx: restate.Context) -> str:
    return (await RestateAgent(sequential, restate_context=ctx).run("go")).output


together = Agent(scripted([("double", {"number": 2}), ("spell", {}), ("double", {"number": 3})]), name="together")


@durable_step(name="letter {letter}")
async def spelled(letter: str) -> str:
    return letter


@together.tool_plain
async def double(number: int) -> int:
    return 2 * number


@together.tool_plain(metadata={"restate": False})
async def spell() -> str:
    return "".join(await gather(spelled("a"), spelled("b")))


@agent_handler("4; ab; 6")
async def several_tools_in_one_turn(ctx: restate.Context) -> str:
    return (await RestateAgent(together, restate_context=ctx).run("go")).output


def asks_again(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    calls["asked"] += 1
    if calls["asked"] == 1:
        raise ModelHTTPError(503, "busy")
    asked = sum(isinstance(message, ModelResponse) for message in messages)
    if asked == 2:
        return ModelResponse(parts=[TextPart(str(returned(messages)[-1]))])
    return ModelResponse(parts=[ToolCallPart("book", {"day": asked + 1})])


booker = Agent(FunctionModel(asks_again, model_name="busy"), name="booker")


@booker.tool_plain(retries=2)
async def book(day: int) -> str:
    if day == 1:
        raise ModelRetry("day 1 is full")
    calls["book"] += 1
    if calls["book"] == 1:
        raise ConnectionError("not yet")
    return f"booked day {day}"


@agent_handler("booked day 2")
async def retries_of_the_model_and_of_a_tool(ctx: restate.Context) -> str:
    return (await RestateAgent(booker, restate_context=ctx).run("go")).output


able = Agent(scripted([("look", {})]), name="able", capabilities=[RestateDurability()])


@able.tool_plain
async def look() -> str:
    return "seen"


@agent_handler(["seen", "seen"])
async def an_agent_that_is_durable_itself(ctx: restate.Context) -> list[str]:
    return [(await able.run("go")).output, (await RestateAgent(able).run("go")).output]


async def note_events(ctx: RunContext[None], stream: AsyncIterable[AgentStreamEvent]) -> None:
    async for event in stream:
        calls[event.event_kind] += 1


streaming = Agent(scripted([("look", {})]), name="streaming")
streaming.tool_plain(look)


@agent_handler("seen;")
async def an_agent_that_streams(ctx: restate.Context) -> str:
    agent = RestateAgent(streaming, restate_context=ctx, event_stream_handler=note_events)
    return (await agent.run("go")).output


# --- approvals -----------------------------------------------------------------------------------------------------

asking = Agent(scripted([("pay", {"amount": 5})]), name="asking")


@asking.tool_plain(metadata={"restate": False})
async def pay(amount: int) -> str:
    _, approval = restate_context().awakeable(type_hint=str)
    await spelled("asked")
    return f"{await approval} {amount}"


async def approve(sim: Simulator) -> Any:
    invocation = await sim.send("Agents/a_tool_that_waits_for_an_approval")
    for awakeable in invocation.awakeables:
        await sim.resolve_awakeable(awakeable, "paid")
    return (await invocation.result()).value


@agent_handler("paid 5", scenario=approve)
async def a_tool_that_waits_for_an_approval(ctx: restate.Context) -> str:
    return (await RestateAgent(asking, restate_context=ctx).run("go")).output


# --- several agents, and other work ----------------------------------------------------------------------------------


@agent_handler(["3; HI", "4; ab; 6"])
async def two_agents_beside_each_other(ctx: restate.Context) -> list[str]:
    async def ask(agent: Agent[None, str]) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    return await gather(ask(sequential), ask(together))


tested = Agent(TestModel(custom_output_text="tested"), name="tested")
tested.tool_plain(look)


@agent_handler(["tested", "tested", "a"])
async def one_agent_twice_beside_a_step(ctx: restate.Context) -> list[str]:
    async def ask() -> str:
        return (await RestateAgent(tested, restate_context=ctx).run("go")).output

    return await gather(ask(), ask(), spelled("a"))


@agent_handler("3; HI", "late")
async def an_agent_with_a_time_limit(ctx: restate.Context) -> str:
    try:
        result = await wait_for(RestateAgent(sequential, restate_context=ctx).run("go"), timedelta(seconds=1))
    except TimeoutError:
        return await spelled("late")
    return result.output


@agent_handler("seen", "4; ab; 6")
async def the_faster_of_two_agents(ctx: restate.Context) -> str:
    async def ask(agent: Agent[None, str]) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    return await race(ask(able), ask(together))


@durable_step(name="reserve")
async def reserve() -> str:
    return "reserved"


@durable_step(name="give back")
async def give_back() -> str:
    return "given back"


@agent_handler("3; HI, reserved", "given back", ends_cancelled=False)
async def an_agent_whose_handler_undoes(ctx: restate.Context) -> str:
    try:
        asked = RestateAgent(sequential, restate_context=ctx).run("go")
        result, reserved = await gather(asked, reserve())
    except restate.TerminalError:
        return await give_back()
    return f"{result.output}, {reserved}"
