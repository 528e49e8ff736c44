"""Models, toolsets and event handlers made durable one by one, without a durable agent around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable
from typing import Any

import pytest
import restate
from mcp.server import MCPServer
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.exceptions import ModelHTTPError, UserError
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RunUsage

from restate_steps import RetryPolicy, gather, run_step
from restate_steps.agents import durable_event_handler, durable_model, durable_toolset
from tests.support.agents_kit import Serve, serve_handler, steps
from tests.support.harness import InvocationFailed

HELLO = [ModelRequest.user_text_prompt("Hello")]


def counting(asked: Counter[str], *problems: Exception) -> FunctionModel:
    """A model that counts how often it is asked, and has these problems before it answers."""
    failing = iter(problems)

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["model"] += 1
        for problem in failing:
            raise problem
        return ModelResponse(parts=[TextPart(f"answer {asked['model']}")])

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> Any:
        asked["stream"] += 1
        for word in ("one", " two"):
            yield word

    return FunctionModel(respond, stream_function=stream, model_name="counting")


def context() -> RunContext[None]:
    """A run context for a toolset outside a run."""
    return RunContext(deps=None, model=TestModel(), usage=RunUsage())


async def call(toolset: Any, name: str, **arguments: Any) -> Any:
    """Call a tool as an agent would."""
    ctx = context()
    async with toolset:
        tools = await toolset.get_tools(ctx)
        return await toolset.call_tool(name, arguments, ctx, tools[name])


# --- models -----------------------------------------------------------------------------------------------------


def test_model_is_asked_once(env_factory: Serve) -> None:
    """Two requests are two steps, and a replay sends none."""
    asked: Counter[str] = Counter()
    model = durable_model(counting(asked), name="greeter")

    async def handler(ctx: restate.Context) -> list[str]:
        return [str((await model_request(model, HELLO)).text) for _ in range(2)]

    env = serve_handler(env_factory, "SingleModel", handler).env
    invocation = env.send("SingleModel", "run")

    assert ["answer 1", "answer 2"] == env.attach(invocation)
    assert {"model": 2} == asked
    assert ["greeter__model.request"] * 2 == steps(env, invocation)


def test_stream_is_consumed_in_the_step(env_factory: Serve) -> None:
    """The stream of a recorded response has its events, and is opened once."""
    asked: Counter[str] = Counter()
    model = durable_model(counting(asked))

    async def handler(ctx: restate.Context) -> tuple[str, list[str]]:
        async with model_request_stream(model, HELLO) as stream:
            kinds = [event.event_kind async for event in stream]
        await run_step(lambda: None, name="more")
        return str(stream.get().text), kinds

    env = serve_handler(env_factory, "SingleStream", handler).env
    invocation = env.send("SingleStream", "run")

    text, kinds = env.attach(invocation)
    assert "one two" == text
    assert "part_start" == kinds[0]
    assert {"stream": 1} == asked
    assert ["counting__model.request_stream", "more"] == steps(env, invocation)


def test_rejected_request_is_the_callers_to_catch(env_factory: Serve) -> None:
    """A request that the provider rejects is made once, and raises pydantic-ai's own error, on a replay too."""
    asked: Counter[str] = Counter()
    model = durable_model(counting(asked, ModelHTTPError(400, "m", {"why": "no"})))

    async def handler(ctx: restate.Context) -> tuple[int, Any, str]:
        try:
            await model_request(model, HELLO)
        except ModelHTTPError as error:
            more: str = await run_step(lambda: "more", name="more")
            return error.status_code, error.body, more
        raise AssertionError

    env = serve_handler(env_factory, "SingleRejected", handler).env

    assert [400, {"why": "no"}, "more"] == env.call("SingleRejected", "run")
    assert {"model": 1} == asked


def test_attempts_are_limited(env_factory: Serve) -> None:
    """With a limit of attempts an error that may pass ends the step, with the provider's status."""
    asked: Counter[str] = Counter()
    busy = [ModelHTTPError(503, "m")] * 5
    model = durable_model(counting(asked, *busy), retry=RetryPolicy(max_attempts=2))

    async def handler(ctx: restate.Context) -> int:
        try:
            await model_request(model, HELLO)
        except ModelHTTPError as error:
            return error.status_code
        raise AssertionError

    assert 503 == serve_handler(env_factory, "SingleLimited", handler)()
    assert {"model": 2} == asked


def test_models_under_gather(env_factory: Serve) -> None:
    """Requests in branches of a handler have steps of their own."""
    asked: Counter[str] = Counter()
    model = durable_model(counting(asked), name="m")

    async def handler(ctx: restate.Context) -> int:
        responses = await gather(*(model_request(model, HELLO) for _ in range(3)))
        return len({response.text for response in responses})

    assert 3 == serve_handler(env_factory, "SingleGather", handler)()
    assert {"model": 3} == asked


async def test_model_outside_a_handler_is_itself() -> None:
    """Without a handler there is nothing to record."""
    asked: Counter[str] = Counter()
    model = durable_model(counting(asked))

    assert "answer 1" == (await model_request(model, HELLO)).text
    async with model_request_stream(model, HELLO) as stream:
        assert [] != [event async for event in stream]
    assert {"model": 1, "stream": 1} == asked


def test_name_is_no_model() -> None:
    """A name is refused with a word about what to do."""
    with pytest.raises(UserError, match="infer_model"):
        durable_model("openai:gpt-5")  # type: ignore[arg-type]


# --- toolsets ---------------------------------------------------------------------------------------------------


def test_function_toolset(env_factory: Serve) -> None:
    """A tool that the handler itself calls runs once; control flow passes through the step unchanged."""
    ran: Counter[str] = Counter()
    tools: FunctionToolset[None] = FunctionToolset()

    @tools.tool_plain
    async def add(a: int, b: int) -> int:
        ran["add"] += 1
        if b < 0:
            raise ModelRetry("b must not be negative")
        return a + b

    durable = durable_toolset(tools, name="sums")

    async def handler(ctx: restate.Context) -> list[Any]:
        first = await call(durable, "add", a=1, b=2)
        try:
            await call(durable, "add", a=1, b=-2)
        except ModelRetry as retry:
            return [first, retry.message]
        raise AssertionError

    env = serve_handler(env_factory, "SingleTools", handler).env
    invocation = env.send("SingleTools", "run")

    assert [3, "b must not be negative"] == env.attach(invocation)
    assert {"add": 2} == ran
    assert ["sums__function_toolset__unnamed-1.call_tool:add"] * 2 == steps(env, invocation)


def test_mcp_toolset(env_factory: Serve) -> None:
    """Requests to a server, for its tools and for calls, are inside steps."""
    server: Any = MCPServer("places")
    ran: Counter[str] = Counter()

    @server.tool()
    def distance(to: str) -> int:
        ran["distance"] += 1
        return len(to)

    durable = durable_toolset(MCPToolset(server, id="places"), name="trip")

    async def handler(ctx: restate.Context) -> Any:
        return await call(durable, "distance", to="Rome")

    env = serve_handler(env_factory, "SingleMcp", handler).env
    invocation = env.send("SingleMcp", "run")

    assert 4 == env.attach(invocation)
    assert {"distance": 1} == ran
    names = ["trip__mcp_server__places.get_tools", "trip__mcp_server__places.call_tool:distance"]
    assert names == steps(env, invocation)


# --- event handlers ---------------------------------------------------------------------------------------------


def test_event_handler(env_factory: Serve) -> None:
    """An event handler gets each event once, in its own step, even from an agent that is not durable."""
    seen: list[str] = []
    model = durable_model(counting(Counter()))
    agent = Agent(model)

    async def show(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        seen.extend([event.event_kind async for event in events])

    async def handler(ctx: restate.Context) -> str:
        return (await agent.run("Hello", event_stream_handler=durable_event_handler(show, name="show"))).output

    env = serve_handler(env_factory, "SingleEvents", handler).env
    invocation = env.send("SingleEvents", "run")

    assert "one two" == env.attach(invocation)
    assert len(seen) == steps(env, invocation).count("show") > 2
    assert ["part_start", "final_result"] == seen[:2]


async def test_event_handler_outside_a_handler() -> None:
    """Without a handler it gets the whole stream of each part of the run, of which only the first has events here."""
    calls: list[int] = []

    async def show(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        calls.append(len([event async for event in events]))

    await Agent(counting(Counter())).run("Hello", event_stream_handler=durable_event_handler(show))

    assert [4, 0] == calls


def test_what_a_tool_raises_for_good_is_terminal(env_factory: Serve) -> None:
    """A mistake in a tool ends the invocation at once."""
    ran: Counter[str] = Counter()
    tools: FunctionToolset[None] = FunctionToolset()

    @tools.tool_plain
    async def broken() -> int:
        ran["broken"] += 1
        raise UserError("not set up")

    async def handler(ctx: restate.Context) -> Any:
        return await call(durable_toolset(tools), "broken")

    env = serve_handler(env_factory, "SingleBroken", handler).env
    with pytest.raises(InvocationFailed, match="not set up"):
        env.call("SingleBroken", "run")
    assert {"broken": 1} == ran
