"""Agents inside handlers, on the real server, with handlers that run through and with handlers that are replayed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydantic_ai.models
import pytest
import restate
from fastmcp.client.transports import PythonStdioTransport
from pydantic import BaseModel
from pydantic_ai import Agent, AgentRunResultEvent, ModelRetry, RunContext, ToolReturn
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UserError
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import (
    AgentStreamEvent,
    BinaryContent,
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset
from restate.exceptions import RetryableError

from restate_steps import RetryPolicy, durable_step, gather, restate_context, run_step, step_info
from restate_steps.agents import RestateAgent, RestateDurability
from tests.support import ROOT
from tests.support.agents_kit import SESSIONS_LEFT_OPEN, Serve, serve_handler, steps
from tests.support.harness import InvocationFailed

pytestmark = SESSIONS_LEFT_OPEN


GREETING = """
import restate

from pydantic_ai import Agent, RunContext
from pydantic_ai.durable_exec.restate import RestateAgent

agent = Agent(
    'openai:gpt-5',
    instructions="You're a helpful assistant.",
)


@agent.tool
async def greet(ctx: RunContext, name: str) -> str:
    return f'Hello {name}!'


svc = restate.Service('example')


@svc.handler()
async def handler(ctx: restate.Context, name: str) -> str:
    durable_agent = RestateAgent(agent, restate_context=ctx)
    result = await durable_agent.run(f'Use the greet tool for {name!r}.')
    return result.output


app = restate.app(services=[svc])
"""

STREAMING = """
from collections.abc import AsyncIterable

import restate

from pydantic_ai import Agent, RunContext
from pydantic_ai.durable_exec.restate import RestateAgent
from pydantic_ai.messages import AgentStreamEvent

agent = Agent('openai:gpt-5')


async def event_stream_handler(ctx: RunContext[None], stream: AsyncIterable[AgentStreamEvent]) -> None:
    async for event in stream:
        print(event.event_kind)


svc = restate.Service('example')


@svc.handler()
async def handler(ctx: restate.Context, prompt: str) -> str:
    durable_agent = RestateAgent(agent, restate_context=ctx, event_stream_handler=event_stream_handler)
    result = await durable_agent.run(prompt)
    return result.output


app = restate.app(services=[svc])
"""


class Parcel(BaseModel):
    """The weight of something, as a tool returns it."""

    weight: int


class Script:
    """A model that calls each of some tools once, one after another, and then repeats what the tools returned.

    Attributes:
        requests: How often it was asked.
        model: The model itself.
    """

    def __init__(self, *calls: tuple[str, dict[str, Any]]) -> None:
        self.requests = 0
        self._calls = calls
        self.model = FunctionModel(self._answer, stream_function=self._stream, model_name="script")

    def _next(self, messages: list[ModelMessage]) -> tuple[str, dict[str, Any]] | str:
        self.requests += 1
        returned = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        if len(returned) < len(self._calls):
            return self._calls[len(returned)]
        return "; ".join(str(part.content) for part in returned) or "nothing to do"

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        following = self._next(messages)
        if isinstance(following, str):
            return ModelResponse(parts=[TextPart(following)])
        return ModelResponse(parts=[ToolCallPart(*following)])

    async def _stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        following = self._next(messages)
        if isinstance(following, str):
            for word in following.split(" "):
                yield f"{word} "
        else:
            name, arguments = following
            yield {0: DeltaToolCall(name=name, json_args=str(arguments).replace("'", '"'), tool_call_id="call")}


def load_example(code: str, monkeypatch: pytest.MonkeyPatch, script: Script) -> dict[str, Any]:
    """Execute an example unchanged from the document, except for the import and the model's answers."""
    monkeypatch.setattr(pydantic_ai.models, "infer_model", lambda name, *_, **__: script.model)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(code.replace("pydantic_ai.durable_exec.restate", "restate_steps.agents"), namespace)
    return namespace


# --- the two examples -------------------------------------------------------------------------------------------


def test_first_example_runs_as_written(env_factory: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent without a name greets by its tool, and every step is journaled under a name that says what it is."""
    script = Script(("greet", {"name": "Ada"}))
    example = load_example(GREETING, monkeypatch, script)
    env = env_factory(example["svc"])

    invocation = env.send("example", "handler", "Ada")

    assert "Hello Ada!" == env.attach(invocation)
    assert [
        "agent__model.request",
        "agent__function_toolset__<agent>.call_tool:greet",
        "agent__model.request",
    ] == steps(env, invocation)
    assert 2 == script.requests


def test_second_example_runs_as_written(
    env_factory: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An event handler sees the model's stream once, inside the step of the model."""
    script = Script()
    example = load_example(STREAMING, monkeypatch, script)
    env = env_factory(example["svc"])

    invocation = env.send("example", "handler", "What is there to do?")

    assert "nothing to do " == env.attach(invocation)
    assert ["agent__model.request_stream"] == steps(env, invocation)
    assert ["part_start", "final_result", "part_delta", "part_delta", "part_end"] == capsys.readouterr().out.split()[:5]
    assert 1 == script.requests


def test_over_http1(env_factory: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent works in the request/response mode, too."""
    script = Script(("greet", {"name": "Ada"}))
    env = env_factory(load_example(GREETING, monkeypatch, script)["svc"], http1=True)

    assert "Hello Ada!" == env.call("example", "handler", "Ada")
    assert 2 == script.requests


# --- steps ------------------------------------------------------------------------------------------------------


def test_nothing_runs_twice(env_factory: Serve) -> None:
    """The body of each tool and each model request run once, no matter how often the handler is replayed."""
    script = Script(("add", {"a": 1, "b": 2}), ("shout", {"text": "hi"}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="counter")

    @agent.tool_plain
    async def add(a: int, b: int) -> int:
        ran["add"] += 1
        return a + b

    @agent.tool_plain
    def shout(text: str) -> str:
        ran["shout"] += 1
        return text.upper()

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "3; HI" == serve_handler(env_factory, "NothingTwice", handler)()
    assert {"add": 1, "shout": 1} == ran
    assert 3 == script.requests


def test_capability_of_the_agent(env_factory: Serve) -> None:
    """An agent that has the capability itself is durable without a wrapper, and may be wrapped all the same."""
    script = Script(("shout", {"text": "hi"}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="able", capabilities=[RestateDurability()])

    @agent.tool_plain
    async def shout(text: str) -> str:
        ran["shout"] += 1
        return text.upper()

    async def handler(ctx: restate.Context) -> list[str]:
        return [(await agent.run("go")).output, (await RestateAgent(agent).run("go")).output]

    assert ["HI", "HI"] == serve_handler(env_factory, "AbleAgent", handler)()
    assert {"shout": 2} == ran
    assert 4 == script.requests


def test_options_beside_the_capability_are_refused() -> None:
    """Options that would have no effect are an error."""
    agent = Agent(TestModel(), name="able", capabilities=[RestateDurability()])

    with pytest.raises(UserError, match="already has the capability RestateDurability"):
        RestateAgent(agent, disable_auto_wrapping_tools=True)


def test_model_request_failing_once_is_asked_again(env_factory: Serve) -> None:
    """An error that may pass, such as 503, is retried, and only the request that failed."""
    answers = iter([ModelHTTPError(503, "script"), ModelResponse(parts=[ToolCallPart("look", {})]), None])
    ran: Counter[str] = Counter()

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        ran["model"] += 1
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer or ModelResponse(parts=[TextPart("done")])

    agent = Agent(FunctionModel(respond), name="flaky")

    @agent.tool_plain
    def look() -> str:
        ran["look"] += 1
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "done" == serve_handler(env_factory, "FlakyModel", handler)()
    assert {"model": 3, "look": 1} == ran


def test_tool_failing_once_runs_again(env_factory: Serve) -> None:
    """A tool that raises is retried by Restate, and the model does not notice."""
    script = Script(("look", {}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="flaky")

    @agent.tool_plain
    def look() -> str:
        ran["look"] += 1
        if ran["look"] == 1:
            raise RetryableError("not yet", retry_after=timedelta(milliseconds=1))
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "seen" == serve_handler(env_factory, "FlakyTool", handler)()
    assert {"look": 2} == ran
    assert 2 == script.requests


# --- what the model and the tools exchange ----------------------------------------------------------------------


def test_model_retry_is_a_value(env_factory: Serve) -> None:
    """A tool that asks the model to try again is not retried by Restate: the model gets the request."""
    asked: Counter[str] = Counter()

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["model"] += 1
        if asked["model"] == 3:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart("book", {"day": asked["model"]})])

    agent = Agent(FunctionModel(respond), name="booker")

    @agent.tool_plain(retries=2)
    async def book(day: int) -> str:
        asked["tool"] += 1
        if day == 1:
            raise ModelRetry("day 1 is full")
        return "booked"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "done" == serve_handler(env_factory, "RetryAsValue", handler)()
    assert {"model": 3, "tool": 2} == asked


def test_calls_of_one_response(env_factory: Serve) -> None:
    """Of three calls in one response, one with invalid arguments gets a retry prompt, and the others run."""
    ran: Counter[str] = Counter()

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        ran["model"] += 1
        if ran["model"] == 1:
            calls = [("double", {"number": "x"}), ("double", {"number": 2}), ("spell", {})]
        elif ran["model"] == 2:
            calls = [("double", {"number": 1})]
        else:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart(*call) for call in calls])

    agent = Agent(FunctionModel(respond), name="several", retries=1)

    @agent.tool_plain
    async def double(number: int) -> int:
        ran["double"] += 1
        return 2 * number

    @agent.tool_plain(metadata={"restate": False})
    async def spell() -> str:
        return await run_step(lambda: "a", name="first") + await run_step(lambda: "b", name="second")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "done" == serve_handler(env_factory, "SeveralCalls", handler)()
    assert {"model": 3, "double": 2} == ran


def test_rich_results_reach_the_model(env_factory: Serve) -> None:
    """A tool's result reaches the model as in a plain run: data, files, and separate content."""
    seen: list[Any] = []

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        returned = [part for part in parts if isinstance(part, ToolReturnPart)]
        if len(returned) < 3:
            return ModelResponse(parts=[ToolCallPart(("weigh", "look", "film")[len(returned)], {})])
        seen.extend([part.content for part in returned])
        seen.append([part.content for part in parts if part.part_kind == "user-prompt"][-1])
        return ModelResponse(parts=[TextPart("done")])

    agent = Agent(FunctionModel(respond), name="viewer")

    @agent.tool_plain
    def weigh() -> Parcel:
        return Parcel(weight=7)

    @agent.tool_plain
    def look() -> BinaryContent:
        return BinaryContent(b"\xff\xd8", media_type="image/jpeg")

    @agent.tool_plain
    def film() -> ToolReturn[str]:
        return ToolReturn("one film", content=["see", BinaryContent(b"\x00\xff", media_type="video/mp4")])

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "done" == serve_handler(env_factory, "RichResults", handler)()
    assert {"weight": 7} == seen[0]
    assert b"\xff\xd8" == seen[1].data
    assert "one film" == seen[2]
    assert ["see", b"\x00\xff"] == [seen[3][0], seen[3][1].data]


def test_result_that_cannot_be_encoded_ends_the_invocation(env_factory: Serve) -> None:
    """A result that no attempt could record is a terminal error with the step's name, and the tool ran once."""
    script = Script(("look", {}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="opaque")

    @agent.tool_plain
    def look() -> object:
        ran["look"] += 1
        return object()

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match=re.escape("step 'opaque__function_toolset__<agent>.call_tool:look'")):
        serve_handler(env_factory, "OpaqueResult", handler)()
    assert {"look": 1} == ran


# --- events -----------------------------------------------------------------------------------------------------


def test_events_of_tools_are_delivered_once(env_factory: Serve) -> None:
    """With an event handler and wrapped tools, each event of a tool call has a step of its own and is seen once."""
    script = Script(("shout", {"text": "hi"}))
    seen: list[str] = []
    agent = Agent(script.model, name="loud")

    @agent.tool_plain
    async def shout(text: str) -> str:
        return text.upper()

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            seen.append(f"{event.event_kind} in {step_info().name.partition('__')[2]}")

    async def handler(ctx: restate.Context) -> str:
        agent_here = RestateAgent(agent, restate_context=ctx)
        return (await agent_here.run("go", event_stream_handler=watch)).output

    assert "HI " == serve_handler(env_factory, "ToolEvents", handler)()
    counts = Counter(seen)
    assert 1 == counts["function_tool_call in event_stream_handler"]
    assert 1 == counts["function_tool_result in event_stream_handler"]
    assert 2 == counts["part_start in model.request_stream"]
    assert 2 == script.requests


async def the_answer_of(agent: RestateAgent[None, str], method: str) -> str:
    """Run an agent by one of the methods that hand out parts of an answer."""
    if method == "iter":
        async with agent.iter("go") as run:
            nodes = [type(node).__name__ async for node in run]
        assert "End" == nodes[-1]
        assert run.result is not None
        return run.result.output
    if method == "run_stream":
        async with agent.run_stream("go") as stream:
            texts = [text async for text in stream.stream_text(debounce_by=None)]
        return texts[-1]
    async with agent.run_stream_events("go") as events:
        outputs = [event.result.output async for event in events if isinstance(event, AgentRunResultEvent)]
    return str(outputs[0])


STREAMING_METHODS = ["iter", "run_stream", "run_stream_events"]


@pytest.mark.parametrize("method", STREAMING_METHODS)
def test_methods_that_hand_out_parts_of_an_answer(env_factory: Serve, method: str) -> None:
    """They work in a handler: the tool and each complete response of the model are recorded as steps."""
    script = Script(("greet", {"name": "Ada"}))
    agent = Agent(script.model, name="stream")
    ran: list[str] = []

    @agent.tool_plain
    async def greet(name: str) -> str:
        ran.append(name)
        return f"Hello {name}!"

    async def handler(ctx: restate.Context) -> str:
        return await the_answer_of(RestateAgent(agent, restate_context=ctx), method)

    name = "Stream" + method.title().replace("_", "")
    answer, names = serve_handler(env_factory, name, handler).with_steps()

    assert "Hello Ada!" == answer.strip()
    assert ["Ada"] == ran
    assert 2 == script.requests
    assert 3 == len(names)


@pytest.mark.parametrize("method", STREAMING_METHODS)
def test_methods_that_hand_out_parts_of_an_answer_under_restate_app(env_factory: Serve, method: str) -> None:
    """They are refused there, and the error names the application to use."""
    agent = Agent(TestModel(), name="stream")

    async def handler(ctx: restate.Context) -> str:
        return await the_answer_of(RestateAgent(agent, restate_context=ctx), method)

    def serve(service: restate.Service) -> Any:
        return env_factory(service, app=restate.app)

    name = "Refused" + method.title().replace("_", "")
    with pytest.raises(InvocationFailed, match=rf"{method}\(\) needs the handler loop.* restate_steps\.app"):
        serve_handler(serve, name, handler)()


# --- tools that make their own steps ----------------------------------------------------------------------------


def test_metadata_leaves_a_tool_to_itself(env_factory: Serve) -> None:
    """A tool with the metadata {'restate': False} has no step of its own and may use the context."""
    script = Script(("wait", {"seconds": 0}), ("shout", {"text": "hi"}))
    agent = Agent(script.model, name="mixed")

    @agent.tool_plain(metadata={"restate": False})
    async def wait(seconds: int) -> str:
        await restate_context().sleep(timedelta(seconds=seconds))
        return await run_step(lambda: "waited", name="own step")

    @agent.tool_plain
    def shout(text: str) -> str:
        return text.upper()

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    service = restate.Service("OptOut")
    service.handler(name="run")(handler)
    env = env_factory(service)
    invocation = env.send("OptOut", "run")

    assert "waited; HI" == env.attach(invocation)
    assert [
        "mixed__model.request",
        "own step",
        "mixed__model.request",
        "mixed__function_toolset__<agent>.call_tool:shout",
        "mixed__model.request",
    ] == steps(env, invocation)


def test_metadata_sets_the_options_of_a_tool(env_factory: Serve) -> None:
    """A tool's metadata names its step and limits its attempts; what is left then reaches the caller."""
    script = Script(("look", {}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="tuned")
    options = {"name": "look twice", "timeout": timedelta(seconds=5), "retry": RetryPolicy(max_attempts=2)}

    @agent.tool_plain(metadata={"restate": options})
    async def look() -> str:
        ran["look"] += 1
        raise OSError("dark")

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent, restate_context=ctx).run("go")).output
        except restate.TerminalError as error:
            return error.message

    service = restate.Service("Tuned")
    service.handler(name="run")(handler)
    env = env_factory(service)
    invocation = env.send("Tuned", "run")

    assert "dark" in env.attach(invocation)
    assert ["tuned__model.request", "look twice"] == steps(env, invocation)
    assert {"look": 2} == ran


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"restate": True}, "Use False"),
        ({"restate": {"retries": 3}}, "unknown option 'retries'"),
        ({"restate": {"timeout": "3 s"}}, "timeout must be a number of seconds or a datetime.timedelta"),
        ({"restate": {"timeout": True}}, "timeout must be a number of seconds or a datetime.timedelta"),
    ],
)
def test_wrong_metadata_ends_the_invocation(env_factory: Serve, metadata: dict[str, Any], reason: str) -> None:
    """Invalid options of a tool are an immediate error that names the tool."""
    agent = Agent(Script(("look", {})).model, name="wrong")
    agent.tool_plain(metadata=metadata)(look)

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match=f"'look'.*{reason}"):
        serve_handler(env_factory, "WrongMetadata", handler)()


def look() -> str:
    return "seen"


def test_tools_decorated_as_steps(env_factory: Serve) -> None:
    """With disable_auto_wrapping_tools, a tool that is a durable step is one step, and gets the run's context."""
    script = Script(("weigh", {"parcel": "p1"}), ("price", {"grams": 10}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="own", deps_type=int)

    @agent.tool
    @durable_step(name="weigh {parcel}")
    async def weigh(ctx: RunContext[int], parcel: str) -> int:
        ran["weigh"] += 1
        return ctx.deps * len(parcel)

    @agent.tool_plain
    async def price(grams: int) -> str:
        base = await run_step(lambda: 5, name="base price")
        return f"{base * grams} cents"

    async def handler(ctx: restate.Context) -> str:
        own = RestateAgent(agent, restate_context=ctx, disable_auto_wrapping_tools=True)
        return (await own.run("go", deps=3)).output

    service = restate.Service("OwnSteps")
    service.handler(name="run")(handler)
    env = env_factory(service)
    invocation = env.send("OwnSteps", "run")

    assert "6; 50 cents" == env.attach(invocation)
    assert ["weigh p1", "base price"] == [name for name in steps(env, invocation) if "model" not in name]
    assert {"weigh": 1} == ran


def test_step_inside_a_wrapped_tool_is_part_of_it(env_factory: Serve) -> None:
    """A durable step called from a wrapped tool runs inline: the tool is the step."""
    script = Script(("weigh", {}))
    agent = Agent(script.model, name="inline")

    @durable_step
    async def measure() -> str:
        return step_info().name.rpartition(":")[2]

    @agent.tool_plain
    async def weigh() -> str:
        return await measure()

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "weigh" == serve_handler(env_factory, "InlineStep", handler)()


def test_context_in_a_wrapped_tool_is_refused(env_factory: Serve) -> None:
    """A wrapped tool that uses the context gets a clear error, which ends the invocation instead of repeating it."""
    script = Script(("wait", {}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="nested")

    @agent.tool_plain
    async def wait() -> str:
        ran["wait"] += 1
        await restate_context().sleep(timedelta(0))
        return "waited"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match="was called inside the body of step"):
        serve_handler(env_factory, "NestedContext", handler)()
    assert {"wait": 1} == ran


# --- errors -----------------------------------------------------------------------------------------------------


def test_request_the_provider_rejects_ends_the_invocation(env_factory: Serve) -> None:
    """A request that is rejected with 400 is sent once, and the caller gets the status."""
    asked: Counter[str] = Counter()

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["model"] += 1
        raise ModelHTTPError(400, "script", {"error": "no such parameter"})

    agent = Agent(FunctionModel(respond), name="rejected")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match="status_code: 400") as failed:
        serve_handler(env_factory, "Rejected", handler)()
    assert 400 == failed.value.status
    assert {"model": 1} == asked


def test_run_that_fails_ends_the_invocation(env_factory: Serve) -> None:
    """An error of the run keeps its type for the handler, and ends the invocation if the handler lets it pass."""
    asked: Counter[str] = Counter()

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["model"] += 1
        return ModelResponse(parts=[ToolCallPart("no_such_tool", {})])

    agent = Agent(FunctionModel(respond), name="lost", retries=1)

    async def handler(ctx: restate.Context) -> str:
        try:
            await RestateAgent(agent, restate_context=ctx).run("go")
        except UnexpectedModelBehavior:
            await run_step(lambda: None, name="caught")
            raise
        return "unreachable"

    with pytest.raises(InvocationFailed, match="UnexpectedModelBehavior"):
        serve_handler(env_factory, "LostAgent", handler)()
    assert {"model": 2} == asked


def test_mistake_in_a_tool_ends_the_invocation(env_factory: Serve) -> None:
    """A tool that raises UserError is not tried again."""
    ran: Counter[str] = Counter()
    agent = Agent(Script(("look", {})).model, name="mistaken")

    @agent.tool_plain(name="look")
    def broken() -> str:
        ran["look"] += 1
        raise UserError("the tool is not set up")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match="the tool is not set up"):
        serve_handler(env_factory, "Mistaken", handler)()
    assert {"look": 1} == ran


def test_context_of_another_handler_is_refused(env_factory: Serve) -> None:
    """A RestateAgent that is kept from one invocation to the next says so."""
    agent = Agent(TestModel(), name="kept")
    kept: list[RestateAgent[None, str]] = []

    async def handler(ctx: restate.Context) -> str:
        if not kept:
            kept.append(RestateAgent(agent, restate_context=ctx))
            return "first"
        return (await kept[0].run("go")).output

    call = serve_handler(env_factory, "KeptContext", handler)
    assert "first" == call()
    with pytest.raises(InvocationFailed, match="not the context of the running handler"):
        call()


# --- toolsets ---------------------------------------------------------------------------------------------------


def test_toolsets_without_an_id(env_factory: Serve, tmp_path: Path) -> None:
    """Toolsets of every kind work without an id; what several of them discover at once is journaled one by one."""
    ledger = tmp_path / "ledger"
    ran: Counter[str] = Counter()
    servers = [
        MCPToolset(PythonStdioTransport(ROOT / "tests" / "support" / "mcp_places.py", [word, str(ledger)]))
        for word in ("near", "far")
    ]
    script = Script(("near", {"place": "A"}), ("far", {"place": "B"}), ("plain", {}), ("made", {}))
    plain: FunctionToolset[None] = FunctionToolset()
    agent = Agent(script.model, name="unnamed", toolsets=[*servers, plain])

    @plain.tool_plain(name="plain")
    def plain_tool() -> str:
        ran["plain"] += 1
        return "plain"

    @agent.toolset
    def make(ctx: RunContext[None]) -> FunctionToolset[None]:
        def made() -> str:
            ran["made"] += 1
            return "made"

        return FunctionToolset([made])

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    service = restate.Service("Unnamed")
    service.handler(name="run")(handler)
    env = env_factory(service)
    invocation = env.send("Unnamed", "run")

    assert "near A; far B; plain; made" == env.attach(invocation)
    assert {"plain": 1, "made": 1} == ran
    assert ["near", "far"] == ledger.read_text().split()
    assert 5 == script.requests
    names = set(steps(env, invocation))
    assert {"unnamed__mcp_server__unnamed-2.get_tools", "unnamed__dynamic_toolset__unnamed-4.call_tool:made"} <= names


def test_toolset_given_to_the_run_is_refused(env_factory: Serve) -> None:
    """A toolset that was not bound would run unrecorded, so it is refused."""
    agent = Agent(TestModel(), name="late")

    async def handler(ctx: restate.Context) -> str:
        toolset: FunctionToolset[None] = FunctionToolset([look])
        return (await RestateAgent(agent, restate_context=ctx).run("go", toolsets=[toolset])).output

    with pytest.raises(InvocationFailed, match="cannot be added at runtime with Restate"):
        serve_handler(env_factory, "LateToolset", handler)()


# --- replays ----------------------------------------------------------------------------------------------------


def test_ids_are_stable(env_factory: Serve) -> None:
    """Each run of an invocation has its own run and conversation id, the same on every replay."""
    agent = Agent(Script(("look", {})).model, name="stable", tools=[look])
    attempts: list[list[str]] = []

    async def handler(ctx: restate.Context) -> list[str]:
        runs = [await RestateAgent(agent, restate_context=ctx).run("go") for _ in range(2)]
        ids = [id for run in runs for id in (str(run.run_id), str(run.conversation_id))]
        attempts.append(ids)
        await ctx.sleep(timedelta(milliseconds=1))
        return ids

    ids = serve_handler(env_factory, "StableIds", handler)()

    assert 4 == len(set(ids))
    assert all(attempt == ids for attempt in attempts)


def test_timeout_of_a_run_counts_from_its_first_attempt(env_factory: Serve) -> None:
    """The start of a run with a timeout is recorded, so that a replay does not grant more time."""
    agent = Agent(TestModel(custom_output_text="in time"), name="timed")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go", timeout=60)).output

    service = restate.Service("TimedRun")
    service.handler(name="run")(handler)
    env = env_factory(service)
    invocation = env.send("TimedRun", "run")

    assert "in time" == env.attach(invocation)
    assert ["timed__run_start_time", "timed__model.request"] == steps(env, invocation)


def test_agents_in_branches(env_factory: Serve) -> None:
    """Several agents under gather run at the same time, and replay."""
    scripts = [Script(("look", {})) for _ in range(3)]
    agents = [Agent(script.model, name="branch", tools=[look]) for script in scripts]

    async def one(agent: Agent[None, str]) -> str:
        return (await RestateAgent(agent).run("go")).output

    async def handler(ctx: restate.Context) -> list[str]:
        return list(await gather(*(one(agent) for agent in agents)))

    assert ["seen"] * 3 == serve_handler(env_factory, "Branches", handler)()
    assert [2, 2, 2] == [script.requests for script in scripts]


def test_agent_called_from_a_tool(env_factory: Serve) -> None:
    """An agent in a wrapped tool is part of that step; in a tool that is left to itself its requests are steps."""
    inner_script = Script(("look", {}))
    inner = Agent(inner_script.model, name="inner", tools=[look])
    script = Script(("wrapped", {}), ("unwrapped", {}))
    outer = Agent(script.model, name="outer")

    @outer.tool_plain
    async def wrapped() -> str:
        return (await RestateAgent(inner).run("go")).output

    @outer.tool_plain(metadata={"restate": False})
    async def unwrapped() -> str:
        return (await RestateAgent(inner).run("go")).output

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(outer, restate_context=ctx).run("go")).output

    service = restate.Service("SubAgents")
    service.handler(name="run")(handler)
    env = env_factory(service)
    invocation = env.send("SubAgents", "run")

    assert "seen; seen" == env.attach(invocation)
    assert [
        "outer__model.request",
        "outer__function_toolset__<agent>.call_tool:wrapped",
        "outer__model.request",
        "inner__model.request",
        "inner__function_toolset__<agent>.call_tool:look",
        "inner__model.request",
        "outer__model.request",
    ] == steps(env, invocation)
    assert 4 == inner_script.requests


# --- outside a handler ------------------------------------------------------------------------------------------


async def test_outside_a_handler_nothing_changes() -> None:
    """Without a handler both ways are a plain run, streams and events included."""
    seen: list[str] = []

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            seen.append(event.event_kind)

    script = Script(("look", {}))
    plain = RestateAgent(Agent(script.model, tools=[look]), event_stream_handler=watch)
    able = Agent(script.model, name="able", tools=[look], capabilities=[RestateDurability()])

    assert "seen " == (await plain.run("go")).output
    assert "seen" == (await able.run("go")).output
    assert "function_tool_result" in seen
    async with plain.run_stream("go") as stream:
        assert "seen " == await stream.get_output()
    async with plain.iter("go") as run:
        async for _ in run:
            pass
    assert run.result is not None


async def test_context_given_outside_a_handler_is_refused() -> None:
    """A context that belongs to no handler that is running is a mistake."""
    with pytest.raises(UserError, match="not the context of the running handler"):
        await RestateAgent(Agent(TestModel()), restate_context=object()).run("go")


def test_name_of_an_agent() -> None:
    """The name of the steps is the one given, else the agent's, else a stable default."""
    unnamed = Agent(TestModel())
    named = Agent(TestModel(), name="support")
    able = Agent(TestModel(), name="able", capabilities=[RestateDurability(name="steps")])

    assert ["agent", "support", "given", "steps"] == [
        RestateAgent(unnamed).name,
        RestateAgent(named).name,
        RestateAgent(named, name="given").name,
        RestateAgent(able).name,
    ]


def test_missing_extra_is_explained() -> None:
    """Without pydantic-ai, the import says what to install."""
    import subprocess
    import sys

    code = "import sys; sys.modules['pydantic_ai'] = None; import restate_steps.agents"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert "pip install 'restate-steps[agents]'" in done.stderr
