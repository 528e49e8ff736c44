"""Handlers as tools of an agent, on the real server, with handlers that run through and that are replayed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import restate
from pydantic import BaseModel
from pydantic_ai import Agent, Tool
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from restate_steps import run_step, typed_handler
from restate_steps.agents import RestateAgent, remote_tool
from tests.support.harness import Env, InvocationFailed, eventually

Serve = Callable[..., Env]


class Question(BaseModel):
    """Something to find out."""

    topic: str
    depth: int = 1


class Answer(BaseModel):
    """A finding, as a handler returns it."""

    text: str
    sources: list[str]


class Script:
    """A model that answers with one list of tool calls after another, and then with what all of them returned.

    Attributes:
        requests: How often it was asked.
        model: The model itself.
    """

    def __init__(self, *turns: list[tuple[str, dict[str, Any]]]) -> None:
        self.requests = 0
        self._turns = turns
        self.model = FunctionModel(self._answer, model_name="script")

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.requests += 1
        turn = sum(message.kind == "response" for message in messages)
        if turn < len(self._turns):
            return ModelResponse(parts=[ToolCallPart(*call) for call in self._turns[turn]])
        returned = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        return ModelResponse(parts=[TextPart("; ".join(str(part.content) for part in returned))])


def asking(name: str, script: Script, *tools: Tool[object], **options: Any) -> restate.Service:
    """A service whose handler ``run`` runs an agent with these tools."""
    agent = Agent(script.model, name="caller", tools=tools)
    service = restate.Service(name)

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, **options).run("go")).output

    return service


def commands(env: Env, invocation_id: str) -> list[str]:
    """Return the commands of an invocation, without its input and output."""
    kinds = [entry.type.removeprefix("Command: ") for entry in env.server.admin.journal(invocation_id)]
    return [kind for kind in kinds if kind in ("Run", "Call")]


# --- calls ------------------------------------------------------------------------------------------------------


def test_agent_calls_another_agent(env_factory: Serve) -> None:
    """The other agent runs as an invocation of its own, once, and the caller has one entry for it in its journal."""
    inner = Script([("look", {})])
    researcher = Agent(inner.model, name="researcher")
    ran: Counter[str] = Counter()

    @researcher.tool_plain
    def look() -> str:
        ran["look"] += 1
        return "a book"

    research = restate.Service("Research")

    @research.handler()
    async def find_out(ctx: restate.Context, topic: str) -> str:
        return f"{topic}: {(await RestateAgent(researcher, restate_context=ctx).run(topic)).output}"

    script = Script([("find_out", {"topic": "tea"})])
    env = env_factory(asking("Writer", script, remote_tool(find_out)), research)
    invocation = env.send("Writer", "run")

    assert "tea: a book" == env.attach(invocation)
    assert ["Run", "Call", "Run"] == commands(env, invocation)
    assert {"look": 1} == ran
    assert [2, 2] == [script.requests, inner.requests]


def test_model_as_the_argument(env_factory: Serve) -> None:
    """The fields of a model are the arguments of the tool, and the handler gets and returns models."""
    research = restate.Service("ModelResearch")

    @research.handler()
    async def find_out(ctx: restate.Context, question: Question) -> Answer:
        return Answer(text=f"{question.topic} {question.depth}", sources=["a book"])

    script = Script([("find_out", {"topic": "tea", "depth": 2})])
    env = env_factory(asking("ModelWriter", script, remote_tool(find_out)), research)

    assert "text='tea 2' sources=['a book']" == env.call("ModelWriter", "run")


def test_handler_registered_with_its_types(env_factory: Serve) -> None:
    """Of a typed handler the tool has the types too, whatever they are."""
    research = restate.Service("TypedResearch")

    @typed_handler(research, "count")
    async def count_topics(ctx: restate.Context, questions: list[Question]) -> dict[str, int]:
        return {question.topic: question.depth for question in questions}

    script = Script([("count", {"questions": [{"topic": "tea"}, {"topic": "milk", "depth": 3}]})])
    env = env_factory(asking("TypedWriter", script, remote_tool(count_topics)), research)

    assert "{'tea': 1, 'milk': 3}" == env.call("TypedWriter", "run")


def test_handler_without_an_argument(env_factory: Serve) -> None:
    """A handler that takes nothing, and returns nothing, is a tool that takes and returns nothing."""
    ran: Counter[str] = Counter()
    bell = restate.Service("Bell")

    @bell.handler()
    async def ring(ctx: restate.Context) -> None:
        async def note() -> None:
            ran["ring"] += 1

        await run_step(note, name="ring")

    script = Script([("ring", {})])
    env = env_factory(asking("Ringer", script, remote_tool(ring)), bell)

    assert "None" == env.call("Ringer", "run")
    assert {"ring": 1} == ran


def test_handlers_with_keys(env_factory: Serve) -> None:
    """The key of an object or a workflow is fixed, or made of the argument."""
    desk = restate.VirtualObject("Desk")
    review = restate.Workflow("Review")

    @desk.handler()
    async def ask(ctx: restate.ObjectContext, question: Question) -> str:
        return f"{question.topic} at {ctx.key()}"

    @desk.handler(kind="shared")
    async def busy(ctx: restate.ObjectSharedContext) -> bool:
        return ctx.key() == "front"

    @review.main()
    async def decide(ctx: restate.WorkflowContext, question: Question) -> str:
        return f"{ctx.key()} is fine"

    script = Script([("ask", {"topic": "tea"})], [("busy", {})], [("decide", {"topic": "milk"})])
    tools = [
        remote_tool(ask, key=lambda question: f"desk of {question.topic}"),
        remote_tool(busy, key="front"),
        remote_tool(decide, key=lambda question: question.topic),
    ]
    env = env_factory(asking("Keys", script, *tools), desk, review)

    assert "tea at desk of tea; True; milk is fine" == env.call("Keys", "run")


def test_handler_of_another_codebase(env_factory: Serve) -> None:
    """A handler on another deployment is called by its name, with and without types."""
    research = restate.Service("FarResearch")
    desk = restate.VirtualObject("FarDesk")

    @typed_handler(research)
    async def find_out(ctx: restate.Context, question: Question) -> Answer:
        return Answer(text=question.topic, sources=["far"])

    @desk.handler()
    async def count(ctx: restate.ObjectContext, number: int) -> int:
        return number + len(ctx.key())

    @desk.handler()
    async def ring(ctx: restate.ObjectContext) -> None:
        return None

    tools = [
        remote_tool("FarResearch/find_out", input=Question, output=Answer, name="research", description="Find out."),
        remote_tool("FarDesk/count", input=int, key=str),
        remote_tool("FarDesk/ring", key="front"),
    ]
    script = Script([("research", {"topic": "tea"})], [("count", {"input": 41})], [("ring", {})])
    env_factory(research, desk)
    env = env_factory(asking("NearWriter", script, *tools))

    assert "text='tea' sources=['far']; 43; None" == env.call("NearWriter", "run")


def test_calls_of_one_response_run_side_by_side(env_factory: Serve) -> None:
    """Two calls in one response are in flight at once, and a replay does not confuse their results."""
    both = asyncio.Barrier(2)
    research = restate.Service("Parallel")

    @research.handler()
    async def find_out(ctx: restate.Context, topic: str) -> str:
        # It continues only once the other one is here as well.
        await run_step(lambda: both.wait(), name="meet", returns=int)
        return f"about {topic}"

    script = Script([("find_out", {"topic": "tea"}), ("find_out", {"topic": "milk"})])
    env = env_factory(asking("ParallelWriter", script, remote_tool(find_out)), research)
    invocation = env.send("ParallelWriter", "run")

    assert "about tea; about milk" == env.attach(invocation)
    assert ["Run", "Call", "Call", "Run"] == commands(env, invocation)
    assert 2 == script.requests


def test_idempotency_key(env_factory: Serve) -> None:
    """Calls with the same key are one invocation."""
    ran: Counter[str] = Counter()
    research = restate.Service("Idempotent")

    @research.handler()
    async def find_out(ctx: restate.Context, topic: str) -> str:
        async def note() -> None:
            ran[topic] += 1

        await run_step(note, name="note")
        return topic

    script = Script([("find_out", {"topic": "tea"})], [("find_out", {"topic": "tea"})], [("find_out", {"topic": "x"})])
    tool = remote_tool(find_out, idempotency_key=lambda topic: f"about {topic}")
    env = env_factory(asking("IdempotentWriter", script, tool), research)

    assert "tea; tea; x" == env.call("IdempotentWriter", "run")
    assert {"tea": 1, "x": 1} == ran


# --- failures ---------------------------------------------------------------------------------------------------


def refusing(name: str) -> tuple[restate.Service, Tool[object]]:
    """A service that refuses, and the tool for it."""
    service = restate.Service(name)

    @service.handler()
    async def find_out(ctx: restate.Context, topic: str) -> str:
        raise restate.TerminalError(f"nothing about {topic}", status_code=404)

    return service, remote_tool(find_out)


def test_terminal_error_of_the_handler_ends_the_run(env_factory: Serve) -> None:
    """A terminal error of the called handler ends the caller."""
    service, tool = refusing("Refusing")
    script = Script([("find_out", {"topic": "tea"})])
    env = env_factory(asking("Refused", script, tool), service)

    with pytest.raises(InvocationFailed, match="nothing about tea") as failed:
        env.call("Refused", "run")
    assert 404 == failed.value.status
    assert 1 == script.requests


def test_model_can_be_told_of_a_terminal_error(env_factory: Serve) -> None:
    """With on_tool_error='tell_model' the run continues, and the other call of the response counts."""
    service, tool = refusing("RefusingSome")
    script = Script([("find_out", {"topic": "tea"}), ("find_out", {"topic": "milk"})])
    env = env_factory(asking("Told", script, tool, on_tool_error="tell_model"), service)

    assert "nothing about tea; nothing about milk" == env.call("Told", "run")
    assert 2 == script.requests


def test_answer_that_does_not_fit_waits_for_a_redeploy(env_factory: Serve) -> None:
    """The model is not told that the other handler answers in another form, and the invocation does not end."""
    research = restate.Service("Changed")

    @research.handler()
    async def find_out(ctx: restate.Context, topic: str) -> str:
        return topic

    script = Script([("find_out", {"input": "tea"})])
    env = env_factory(asking("Outdated", script, remote_tool("Changed/find_out", input=str, output=Answer)), research)
    invocation = env.send("Outdated", "run")

    def last_failure() -> str | None:
        failure: str | None = env.server.admin.invocation(invocation).get("last_failure")
        return failure

    assert "the answer of Changed/find_out does not fit Answer" in str(eventually(last_failure))
    assert 1 == script.requests


async def test_outside_a_handler_is_refused() -> None:
    """Outside a handler nothing would record the call."""
    agent = Agent(Script([("find_out", {"topic": "tea"})]).model, tools=[refusing("Nowhere")[1]])

    with pytest.raises(UserError, match="the tool for Nowhere/find_out was called outside a Restate handler"):
        await agent.run("go")


def test_inside_a_step_is_refused(env_factory: Serve) -> None:
    """An agent in the body of a step cannot call another handler, and the step is not tried again."""
    _, tool = refusing("Unreached")
    script = Script([("find_out", {"topic": "tea"})])
    inner = Agent(script.model, tools=[tool])
    outer = Agent(TestModel(), name="outer")

    @outer.tool_plain
    async def ask_inner() -> str:
        return (await RestateAgent(inner).run("go")).output

    service = restate.Service("InStepCaller")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return (await RestateAgent(outer, restate_context=ctx).run("go")).output

    env = env_factory(service)

    with pytest.raises(InvocationFailed, match="was called inside the body of step"):
        env.call("InStepCaller", "run")
    assert 1 == script.requests


# --- what the model sees ----------------------------------------------------------------------------------------


async def plain_function(ctx: restate.Context, topic: str) -> str:
    return topic


def keyed() -> Callable[..., Any]:
    desk = restate.VirtualObject("KeyedDesk")

    @desk.handler()
    async def ask(ctx: restate.ObjectContext, topic: str) -> str:
        return topic

    return ask


def unkeyed() -> Callable[..., Any]:
    registered: Callable[..., Any] = restate.Service("Unkeyed").handler()(plain_function)
    return registered


def test_tool_is_described_by_the_handler() -> None:
    """Name, description and parameters are the handler's; its context is not among them."""
    research = restate.Service("Described")

    @research.handler(name="research")
    async def find_out(ctx: restate.Context, topic: str) -> str:
        """Find out something.

        Args:
            ctx: The context.
            topic: What it is about.
        """
        return topic

    tool = remote_tool(find_out).tool_def

    assert ["research", "Find out something."] == [tool.name, tool.description]
    assert {"topic": {"type": "string", "description": "What it is about."}} == tool.parameters_json_schema[
        "properties"
    ]
    assert {"restate": False} == tool.metadata


def test_tool_can_be_named_and_described() -> None:
    """A name and a description that are given take the place of the handler's."""
    tool = remote_tool(unkeyed(), name="ask", description="Ask.").tool_def

    assert ["ask", "Ask."] == [tool.name, tool.description]


def test_model_is_the_schema_of_the_tool() -> None:
    """A model as the input gives the tool its parameters, and its docstring if there is no other."""
    tool = remote_tool("Research/find_out", input=Question, output=Answer).tool_def

    assert "Something to find out." == tool.description
    assert ["topic", "depth"] == list(tool.parameters_json_schema["properties"])
    assert ["topic"] == tool.parameters_json_schema["required"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: remote_tool(plain_function), "is not a Restate handler"),
        (lambda: remote_tool("find_out"), "expects 'service/handler', got 'find_out'"),
        (lambda: remote_tool("Desk/front/find_out"), "goes into key="),
        (lambda: remote_tool(keyed()), "KeyedDesk is a virtual object, so a call of 'ask' needs a key"),
        (lambda: remote_tool(unkeyed(), key="k"), "Unkeyed is a service, which has no keys"),
        (lambda: remote_tool(cast(Any, unkeyed()), input=str), "a function declares its own types"),
    ],
    ids=["no handler", "no service", "key in the path", "key missing", "key too much", "types too much"],
)
def test_mistakes_are_told_at_once(make: Callable[[], Tool[object]], reason: str) -> None:
    """Invalid arguments are an error where the tool is created."""
    with pytest.raises(UserError, match=reason):
        make()
