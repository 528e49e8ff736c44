"""Agents as they are used: turns of a model and tools, several at a time, retries, approvals, and beside other work.

What the models answer depends on the messages alone, as the simulation starts each run from nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import restate
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.capabilities import RequestInput
from pydantic_ai.exceptions import ModelHTTPError, RunCancelled, RunTimedOut
from pydantic_ai.messages import (
    AgentStreamEvent,
    CustomEvent,
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.toolsets import FunctionToolset

import restate_steps
from restate_steps import durable_step, gather, race, restate_context, wait_for
from restate_steps.agents import RestateAgent, RestateDurability
from restate_steps.testing import Simulator
from tests.support.exploration import Subject, explored

service = restate.Service("Agents")
calls: Counter[str] = Counter()
"""What was called in this run of the exploration."""


class _App:
    """The application, made when it is first used: the handlers below are added to the service one by one."""

    _app: Any = None

    def __call__(self, *args: Any) -> Any:
        self._app = self._app or restate_steps.app([service])
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
            asked = sum(isinstance(message, ModelResponse) for message in messages)
            ids = [f"call {asked}.{index}" for index in range(len(tools))]
            return ModelResponse(
                parts=[ToolCallPart(*tool, tool_call_id=id) for tool, id in zip(tools, ids, strict=True)]
            )
        return ModelResponse(parts=[TextPart("; ".join(map(str, returned(messages))))])

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        tools = following(messages)
        if tools:
            yield {
                index: DeltaToolCall(name=name, json_args=json.dumps(args), tool_call_id=f"call {index}")
                for index, (name, args) in enumerate(tools)
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


# --- several tools at once -----------------------------------------------------------------------------------------

THREE = [("chain", {"word": "a"}), ("chain", {"word": "b"}), ("double", {"number": 3})]
busy = Agent(scripted(THREE), name="busy")
busy.tool_plain(double)


@busy.tool_plain(metadata={"restate": False})
async def chain(word: str) -> str:
    return "".join([await spelled(f"{word}{number}") for number in range(3)])


@agent_handler("a0a1a2; b0b1b2; 6")
async def tools_with_steps_of_their_own(ctx: restate.Context) -> str:
    return (await RestateAgent(busy, restate_context=ctx).run("go")).output


@agent_handler("a0a1a2; b0b1b2; 6")
async def at_most_two_tools_at_once(ctx: restate.Context) -> str:
    return (await RestateAgent(busy, restate_context=ctx, max_parallel_tools=2).run("go")).output


@agent_handler(["a0a1a2; b0b1b2; 6"] * 2)
async def busy_agents_beside_each_other(ctx: restate.Context) -> list[str]:
    results = await gather(*(RestateAgent(busy, name=name).run("go") for name in ("left", "right")))
    return [result.output for result in results]


@agent_handler("a0a1a2; b0b1b2; 6", "late")
async def a_busy_agent_whose_time_is_up(ctx: restate.Context) -> str:
    try:
        return (await RestateAgent(busy, restate_context=ctx).run("go", timeout=10)).output
    except RunTimedOut:
        return await spelled("late")


sleepers = Agent(scripted([("nap", {"seconds": 2}), ("nap", {"seconds": 1})]), name="sleepers")


@sleepers.tool_plain(metadata={"restate": False})
async def nap(seconds: int) -> int:
    own = restate_context()
    await own.sleep(timedelta(seconds=seconds))
    slept: int = await own.run_typed("slept", lambda: seconds)
    await own.sleep(timedelta(seconds=1))
    return slept


@agent_handler("2; 1")
async def tools_that_use_the_context(ctx: restate.Context) -> str:
    return (await RestateAgent(sleepers, restate_context=ctx).run("go")).output


asking_others = Agent(scripted([("ask_busy", {"who": "x"}), ("ask_busy", {"who": "y"})]), name="boss")


@asking_others.tool(metadata={"restate": False})
async def ask_busy(ctx: RunContext[None], who: str) -> str:
    return f"{who}: {(await RestateAgent(busy).run('go', usage=ctx.usage)).output}"


@agent_handler("x: a0a1a2; b0b1b2; 6; y: a0a1a2; b0b1b2; 6")
async def agents_that_are_tools(ctx: restate.Context) -> str:
    return (await RestateAgent(asking_others, restate_context=ctx).run("go")).output


@dataclass(kw_only=True)
class Progress(CustomEvent, name="explored.progress"):
    at: str


telling = Agent(scripted([("tell", {"word": "a"}), ("tell", {"word": "b"}), ("tell_at_once", {})]), name="telling")


@telling.tool(metadata={"restate": False})
async def tell(ctx: RunContext[None], word: str) -> str:
    await ctx.emit(Progress(at=f"{word} begins"))
    said = await spelled(word)
    await ctx.emit(Progress(at=f"{word} ends"))
    return said + await spelled(word)


@telling.tool
async def tell_at_once(ctx: RunContext[None]) -> str:
    await ctx.emit(Progress(at="once"))
    return "told"


@agent_handler("aa;bb;told;")
async def tools_that_emit_events(ctx: restate.Context) -> str:
    agent = RestateAgent(telling, restate_context=ctx, event_stream_handler=note_events)
    return (await agent.run("go")).output


@agent_handler(["aa; bb; told"] * 2)
async def events_that_nobody_hears(ctx: restate.Context) -> list[str]:
    results = await gather(*(RestateAgent(telling, name=name).run("go") for name in ("left", "right")))
    return [result.output for result in results]


clumsy = Agent(scripted([("drop", {"number": 1}), ("chain", {"word": "c"}), ("drop", {"number": 2})]), name="clumsy")
clumsy.tool_plain(metadata={"restate": False})(chain)


@clumsy.tool_plain(metadata={"restate": False})
async def drop(number: int) -> str:
    await spelled("crash")
    raise restate.TerminalError(f"dropped {number}", status_code=418)


@agent_handler("dropped 1, swept")
async def tools_that_fail_beside_another(ctx: restate.Context) -> str:
    try:
        return (await RestateAgent(clumsy, restate_context=ctx).run("go")).output
    except restate.TerminalError as error:
        if error.status_code != 418:
            raise
        return f"{error.message}, {await spelled('swept')}"


@agent_handler("dropped 1; c0c1c2; dropped 2")
async def a_model_that_is_told_of_failures(ctx: restate.Context) -> str:
    return (await RestateAgent(clumsy, restate_context=ctx, on_tool_error="tell_model").run("go")).output


stoppable = Agent(scripted([("chain", {"word": "a"}), ("stop", {}), ("chain", {"word": "b"})]), name="stoppable")
stoppable.tool_plain(metadata={"restate": False})(chain)


@stoppable.tool(metadata={"restate": False})
async def stop(ctx: RunContext[None]) -> str:
    await spelled("enough")
    ctx.cancel()
    return "stopping"


@agent_handler("stopped", "stopping; a0a1a2; b0b1b2")
async def a_tool_that_cancels_the_run(ctx: restate.Context) -> str:
    try:
        return (await RestateAgent(stoppable, restate_context=ctx).run("go")).output
    except RunCancelled:
        return await spelled("stopped")


def toolset_of_today(ctx: RunContext[None]) -> FunctionToolset[None]:
    found: FunctionToolset[None] = FunctionToolset()
    found.add_function(double)
    found.add_function(look)
    return found


finding = Agent(scripted([("double", {"number": 2}), ("look", {}), ("dial", {})]), name="finding")
finding.toolset(toolset_of_today)
finding.toolset(lambda ctx: dialling)

dialling: FunctionToolset[None] = FunctionToolset()


@dialling.tool_plain
async def dial() -> str:
    return "dialled"


@agent_handler("4; seen; dialled")
async def tools_that_are_found_in_the_run(ctx: restate.Context) -> str:
    return (await RestateAgent(finding, restate_context=ctx).run("go")).output


@agent_handler("seen, 4; ab; 6")
async def tools_and_a_step_of_the_handler(ctx: restate.Context) -> str:
    async def slow() -> str:
        await ctx.sleep(timedelta(seconds=5))
        return await spelled("seen")

    seen, result = await gather(slow(), RestateAgent(together, restate_context=ctx).run("go"))
    return f"{seen}, {result.output}"


# --- approvals -----------------------------------------------------------------------------------------------------

asking = Agent(scripted([("pay", {"amount": 5})]), name="asking")


@asking.tool_plain(metadata={"restate": False})
async def pay(amount: int) -> str:
    _, approval = restate_context().awakeable(type_hint=str)
    await spelled("asked")
    return f"{await approval} {amount}"


async def approve(sim: Simulator) -> Any:
    invocation = await sim.send("Agents/a_tool_that_waits_for_an_approval")
    await sim.resolve_awakeable(await sim.awakeable(invocation), "paid")
    return (await invocation.result()).value


@agent_handler("paid 5", scenario=approve)
async def a_tool_that_waits_for_an_approval(ctx: restate.Context) -> str:
    return (await RestateAgent(asking, restate_context=ctx).run("go")).output


async def hand_out(ctx: RunContext[None], requests: DeferredToolRequests, token: str) -> None:
    calls["handed out"] += 1


careful = Agent(
    scripted([("transfer", {"amount": 5}), ("look", {}), ("transfer", {"amount": 6})]),
    name="careful",
    capabilities=[RequestInput(hand_out, timeout=timedelta(days=2))],
)
careful.tool_plain(look)


@careful.tool_plain(requires_approval=True)
async def transfer(amount: int) -> str:
    return f"transferred {amount}"


async def decide(sim: Simulator) -> Any:
    invocation = await sim.send("Agents/approvals_of_two_calls")
    decision = {"approvals": {"call 0.0": True, "call 0.2": False}}
    await sim.resolve_awakeable(await sim.awakeable(invocation), decision)
    return (await invocation.result()).value


UNDECIDED = "No decision on this tool call arrived: No resolution arrived within 2 days, 0:00:00."


@agent_handler("transferred 5; seen; The tool call was denied.", f"{UNDECIDED}; seen; {UNDECIDED}", scenario=decide)
async def approvals_of_two_calls(ctx: restate.Context) -> str:
    return (await RestateAgent(careful, restate_context=ctx).run("go")).output


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
