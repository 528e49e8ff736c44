"""The surroundings of a run: context, waiting, ways to run, cancellation, and what replays do not change."""

# | no.  | scenario                                   | tests; t_a means test_agent.py                           |
# |------|--------------------------------------------|----------------------------------------------------------|
# | 58   | unserializable dependencies                | test_dependencies_are_the_same_object                    |
# | 59   | what a body sees of the run                | test_body_sees_the_run                                   |
# |      | context variables                          | test_context_variables_reach_bodies                      |
# | 69   | RequestInput, resolved and rejected        | test_approvals.py: test_handler_answers,                 |
# |      |                                            | test_approvals.py: test_rejected_token_denies,           |
# |      |                                            | test_run_is_suspended_while_it_waits                     |
# | 70   | the timeout is durable; an answer in place | test_timeout_of_a_wait_is_a_durable_timer,               |
# |      |                                            | test_answer_in_place_does_not_wait                       |
# | 71   | waiting inside a wrapped tool              | test_waiting_in_a_wrapped_tool_is_refused                |
# |      | waiting inside unwrapped tools             | test_waiting_in_unwrapped_tools                          |
# | 73   | run_stream                                 | t_a: test_streaming_to_the_handler_is_refused            |
# | 74   | iter                                       | t_a: test_streaming_to_the_handler_is_refused            |
# | 75   | toolsets and tokens at run time            | t_a: test_toolset_given_to_the_run_is_refused,           |
# |      |                                            | test_external_toolset_at_run_time,                       |
# |      |                                            | test_cancellation_token_is_refused                       |
# | 76   | outside a handler                          | t_a: test_outside_a_handler_nothing_changes              |
# |      | 12 invocations at once                     | test_invocations_at_once_do_not_mix                      |
# | 79   | cancelled during parallel tools            | test_cancelled_during_parallel_tools,                    |
# |      |                                            | test_cancelled_while_parallel_tools_wait                 |
# | 80   | a result that cannot be encoded            | t_a: test_result_that_cannot_be_encoded_ends_...         |
# | 81   | values as in a plain run                   | t_a: test_rich_results_reach_the_model,                  |
# |      |                                            | test_values_are_those_of_a_plain_run                     |
# | 82   | spans; @durable_operation                  | test_spans_are_not_repeated, test_durable_operation_once |
# | 83   | stable ids; history in the state           | t_a: test_ids_are_stable,                                |
# |      |                                            | test_history_in_the_state_survives_a_replay              |

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import httpx
import pytest
import restate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel
from pydantic_ai import Agent, CancellationToken, ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability, Instrumentation, RequestInput, durable_operation
from pydantic_ai.external_events import ExternalEventError, wait_for_external_event
from pydantic_ai.messages import (
    AgentStreamEvent,
    BinaryContent,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ToolReturn,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDefinition
from pydantic_ai.toolsets import ExternalToolset

import restate_steps
from restate_steps import restate_context, run_step
from restate_steps.agents import RestateAgent
from tests.support.agents_kit import Crowd, Script, Serve, returned, serve_handler
from tests.support.harness import Harness, InvocationFailed, eventually

OWN_STEPS = {"restate": False}


def say(messages: list[ModelMessage]) -> str:
    """Repeat what the tools returned."""
    return "; ".join(str(content) for content in returned(messages))


def numbered(name: str, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Several calls of one tool, numbered."""
    return [(name, {"number": number}) for number in range(count)]


# --- what a body sees -------------------------------------------------------------------------------------------


@dataclass
class Office:
    """Dependencies that cannot be serialized."""

    lock: threading.Lock
    seen: list[object]


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_dependencies_are_the_same_object(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """Dependencies that cannot be serialized are in a tool's body the very object that the run was given."""
    script = Script([("work", {}), ("other", {})], say)
    office = Office(threading.Lock(), [])
    agent = Agent(script.model, name="office", deps_type=Office)

    @agent.tool(metadata=metadata)
    async def work(ctx: RunContext[Office]) -> str:
        with ctx.deps.lock:
            ctx.deps.seen.append(ctx.deps)
        return "worked"

    @agent.tool
    def other(ctx: RunContext[Office]) -> str:
        with ctx.deps.lock:
            ctx.deps.seen.append(ctx.deps)
        return "worked"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go", deps=office)).output

    name = "SameUnwrapped" if metadata else "SameWrapped"
    assert "worked; worked" == serve_handler(env_factory, name, handler)()
    assert 2 <= len(office.seen)
    assert all(seen is office for seen in office.seen)


def test_body_sees_the_run(env_factory: Serve) -> None:
    """A tool's body sees the step of the run, its own retry and call id, the run's metadata and ids, and the agent."""
    script = Script(("work", {}), ("work", {}), say)
    seen: list[dict[str, Any]] = []
    agent = Agent(script.model, name="office", retries=2)

    @agent.tool
    async def work(ctx: RunContext[None]) -> str:
        seen.append(
            {
                "run_step": ctx.run_step,
                "retry": ctx.retry,
                "max_retries": ctx.max_retries,
                "tool_call_id": ctx.tool_call_id,
                "tool_name": ctx.tool_name,
                "metadata": ctx.metadata,
                "prompt": ctx.prompt,
                "agent": ctx.agent is agent,
                "run_id": ctx.run_id,
                "conversation_id": ctx.conversation_id,
                "requests": ctx.usage.requests,
                "messages": len(ctx.messages),
            }
        )
        if len(seen) == 1:
            raise ModelRetry("once more")
        return "worked"

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(agent, restate_context=ctx).run("go", metadata={"customer": 7})
        return [str(run.run_id), str(run.conversation_id)]

    run_id, conversation_id = serve_handler(env_factory, "Seeing", handler)()

    same = {
        "max_retries": 2,
        "tool_name": "work",
        "metadata": {"customer": 7},
        "prompt": "go",
        "agent": True,
        "run_id": run_id,
        "conversation_id": conversation_id,
    }
    assert [
        {**same, "run_step": 1, "retry": 0, "tool_call_id": "0-0", "requests": 1, "messages": 2},
        {**same, "run_step": 2, "retry": 1, "tool_call_id": "1-0", "requests": 2, "messages": 4},
    ] == seen


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


def test_context_variables_reach_bodies(env_factory: Serve) -> None:
    """A context variable that the handler sets is seen in every body, and one set in a body stays there."""
    seen: dict[str, set[str]] = {}
    both = Crowd(2)

    def note(place: str) -> None:
        seen.setdefault(place, set()).add(tenant.get())

    def answer(messages: list[ModelMessage]) -> Any:
        note("model")
        if returned(messages):
            return say(messages)
        return [("left", {}), ("right", {}), ("sync", {}), ("own", {})]

    agent = Agent(Script(answer).model, name="office")

    async def body(place: str) -> str:
        note(place)
        tenant.set(f"only in {place}")
        await both.join()
        note(f"{place} again")
        return place

    @agent.tool_plain
    async def left() -> str:
        return await body("left")

    @agent.tool_plain
    async def right() -> str:
        return await body("right")

    @agent.tool_plain
    def sync() -> str:
        note("sync")
        return "sync"

    @agent.tool_plain(metadata=OWN_STEPS)
    async def own() -> str:
        note("own")

        async def step() -> str:
            note("step")
            return "own"

        return await run_step(step, name="step")

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for _ in events:
            note("events")

    async def handler(ctx: restate.Context) -> str:
        tenant.set("acme")
        output = (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output
        note("handler")
        return output

    assert "left; right; sync; own" == serve_handler(env_factory, "Variables", handler)().strip()
    assert {
        "model": {"acme"},
        "left": {"acme"},
        "right": {"acme"},
        "sync": {"acme"},
        "own": {"acme"},
        "step": {"acme"},
        "events": {"acme"},
        "handler": {"acme"},
        "left again": {"only in left"},
        "right again": {"only in right"},
    } == seen


# --- waiting for others -----------------------------------------------------------------------------------------


def test_run_is_suspended_while_it_waits(env_factory: Serve, harness: Harness) -> None:
    """A run that waits for an approval is suspended, asks once, and continues when the token is resolved over HTTP."""
    script = Script([("pay", {"number": 5}), ("look", {})], say)
    ran: Counter[str] = Counter()
    tokens: list[str] = []

    def ask(ctx: RunContext[None], requests: DeferredToolRequests, token: str) -> None:
        ran["ask"] += 1
        tokens.append(token)

    agent = Agent(script.model, name="payer", capabilities=[RequestInput(ask)])

    @agent.tool_plain(requires_approval=True)
    async def pay(number: int) -> str:
        ran["pay"] += 1
        return f"paid {number}"

    @agent.tool_plain
    async def look() -> str:
        ran["look"] += 1
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    served = serve_handler(env_factory, "Suspended", handler)
    invocation = served.send()
    eventually(lambda: tokens)
    if harness.always_replay:
        eventually(lambda: "suspended" == served.env.server.admin.invocation(invocation)["status"])
    served.env.resolve_awakeable(tokens[0], {"approvals": {"0-0": True}})

    assert {"paid 5", "seen"} == set(served.env.attach(invocation).split("; "))
    assert {"ask": 1, "pay": 1, "look": 1} == ran
    assert 2 == script.requests


def test_timeout_of_a_wait_is_a_durable_timer(env_factory: Serve) -> None:
    """A wait without an answer ends by a durable timer; the model learns of it, and the run ends."""
    script = Script(("pay", {}), say)
    ran: Counter[str] = Counter()
    request = RequestInput[None](lambda *_: ran.update(["ask"]), timeout=timedelta(milliseconds=30))
    agent = Agent(script.model, name="payer", capabilities=[request])

    @agent.tool_plain(requires_approval=True)
    async def pay() -> str:
        ran["pay"] += 1
        return "paid"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    served = serve_handler(env_factory, "TimedWait", handler)
    invocation = served.send()

    assert "No decision on this tool call arrived" in served.env.attach(invocation)
    assert {"ask": 1} == ran
    assert "Command: Sleep" in [entry.type for entry in served.env.server.admin.journal(invocation)]


def test_answer_in_place_does_not_wait(env_factory: Serve) -> None:
    """A request with an immediate answer is sent once, and starts no timer."""
    script = Script(("pay", {"number": 5}), say)
    ran: Counter[str] = Counter()

    async def ask(ctx: RunContext[None], requests: DeferredToolRequests, token: str) -> DeferredToolResults:
        ran["ask"] += 1
        return requests.build_results(approve_all=True)

    agent = Agent(script.model, name="payer", capabilities=[RequestInput(ask, timeout=timedelta(hours=1))])

    @agent.tool_plain(requires_approval=True)
    async def pay(number: int) -> str:
        ran["pay"] += 1
        return f"paid {number}"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    served = serve_handler(env_factory, "InPlace", handler)
    invocation = served.send()

    assert "paid 5" == served.env.attach(invocation)
    assert {"ask": 1, "pay": 1} == ran
    assert "Command: Sleep" not in [entry.type for entry in served.env.server.admin.journal(invocation)]


def test_waiting_in_a_wrapped_tool_is_refused(env_factory: Serve) -> None:
    """A wrapped tool cannot wait for an event from outside; that is terminal, and the tool runs once."""
    script = Script(("wait", {}), "unreachable")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="waiter")

    @agent.tool_plain
    async def wait() -> str:
        ran["wait"] += 1
        return str(await wait_for_external_event("decision", ask=lambda token: ran.update(["ask"])))

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match="was called from inside a durable unit"):
        serve_handler(env_factory, "WaitWrapped", handler)()
    assert {"wait": 1} == ran


def test_waiting_in_unwrapped_tools(env_factory: Serve) -> None:
    """Two parallel tools that make their own steps wait for one event each, which come in the other order."""
    script = Script(numbered("wait", 2), say)
    ran: Counter[str] = Counter()
    tokens: dict[int, str] = {}
    agent = Agent(script.model, name="waiter")

    @agent.tool_plain(metadata=OWN_STEPS)
    async def wait(number: int) -> str:
        def ask(token: str) -> None:
            ran[f"ask {number}"] += 1
            tokens[number] = token

        answer = await wait_for_external_event(f"decision {number}", ask=ask, timeout=timedelta(hours=1))
        return await run_step(lambda: f"{number}: {answer}", name="after")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    served = serve_handler(env_factory, "WaitUnwrapped", handler)
    invocation = served.send()
    eventually(lambda: len(tokens) == 2)
    served.env.resolve_awakeable(tokens[1], {"yes": [1]})
    served.env.resolve_awakeable(tokens[0], "no")

    assert "0: no; 1: {'yes': [1]}" == served.env.attach(invocation)
    assert {"ask 0": 1, "ask 1": 1} == ran
    assert 2 == script.requests


def test_rejected_event_in_an_unwrapped_tool(env_factory: Serve) -> None:
    """An event that is rejected over HTTP is an error for the tool that waits, with the reason."""
    script = Script(("wait", {}), say)
    tokens: list[str] = []
    agent = Agent(script.model, name="waiter")

    @agent.tool_plain(metadata=OWN_STEPS)
    async def wait() -> str:
        try:
            return str(await wait_for_external_event("decision", ask=tokens.append))
        except ExternalEventError as error:
            return f"rejected: {error}"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    served = serve_handler(env_factory, "RejectedEvent", handler)
    invocation = served.send()
    eventually(lambda: tokens)
    url = f"{served.env.server.ingress_url}/restate/awakeables/{tokens[0]}/reject"
    httpx.post(url, content="closed", headers={"content-type": "text/plain"}, trust_env=False).raise_for_status()

    assert "rejected: closed" == served.env.attach(invocation)
    assert 1 == len(tokens)


# --- ways to run ------------------------------------------------------------------------------------------------


def test_external_toolset_at_run_time(env_factory: Serve) -> None:
    """A toolset whose tools are executed elsewhere may be given to a run."""
    script = Script(("elsewhere", {"word": "hi"}), say)
    agent = Agent(script.model, name="late", output_type=[str, DeferredToolRequests])
    definition = ToolDefinition(
        name="elsewhere", parameters_json_schema={"type": "object", "properties": {"word": {"type": "string"}}}
    )

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx)
        toolset = ExternalToolset[None]([definition])
        first = await durable.run("go", toolsets=[toolset])
        assert isinstance(first.output, DeferredToolRequests)
        [call] = first.output.calls
        word = await run_step(lambda: str(call.args_as_dict()["word"]).upper(), name="elsewhere")
        second = await durable.run(
            message_history=first.all_messages(),
            toolsets=[toolset],
            deferred_tool_results=DeferredToolResults(calls={call.tool_call_id: word}),
        )
        return str(second.output)

    assert "HI" == serve_handler(env_factory, "ExternalLate", handler)()
    assert 2 == script.requests


def test_cancellation_token_is_refused(env_factory: Serve) -> None:
    """A token that could cancel a run at any moment cannot be replayed; it is refused before the model is asked."""
    script = Script("unreachable")
    agent = Agent(script.model, name="token")

    async def handler(ctx: restate.Context) -> str:
        token = CancellationToken()
        return (await RestateAgent(agent, restate_context=ctx).run("go", cancellation_token=token)).output

    with pytest.raises(InvocationFailed, match=r"(?i)cancellation.token"):
        serve_handler(env_factory, "TokenRefused", handler)()
    assert 0 == script.requests


def test_invocations_at_once_do_not_mix(env_factory: Serve) -> None:
    """Twelve invocations of one agent, each with parallel tools, get their own answers and run everything once."""
    ran: Counter[str] = Counter()
    agent_runs: Counter[str] = Counter()

    def answer(messages: list[ModelMessage]) -> Any:
        prompt = str(messages[0].parts[0].content)  # type: ignore[union-attr]
        place = sum(message.kind == "response" for message in messages)
        agent_runs[f"{prompt} {place}"] += 1
        if place < 2:
            return [("work", {"number": number}) for number in range(3)]
        return say(messages)

    agent = Agent(Script(answer).model, name="shared", deps_type=str)

    async def body(label: str) -> str:
        ran[label] += 1
        await asyncio.sleep(0)
        return label

    @agent.tool
    async def work(ctx: RunContext[str], number: int) -> str:
        return await body(f"{ctx.deps}.{tenant.get()}.{ctx.run_step}.{number}")

    @agent.tool(metadata=OWN_STEPS)
    async def own(ctx: RunContext[str], number: int) -> str:
        return await run_step(body, f"{ctx.deps}.{number}", name="own")

    async def handler(ctx: restate.Context, name: str) -> str:
        tenant.set(name)
        durable = RestateAgent(agent, restate_context=ctx)
        first = (await durable.run(name, deps=name)).output
        await ctx.sleep(timedelta(milliseconds=1))
        return first

    served = serve_handler(env_factory, "AtOnce", handler)
    names = [f"n{number}" for number in range(12)]
    invocations = [served.send(name) for name in names]
    answers = [served.env.attach(invocation) for invocation in invocations]

    expected = {name: [f"{name}.{name}.{step}.{number}" for step in (1, 2) for number in range(3)] for name in names}
    assert ["; ".join(one) for one in expected.values()] == answers
    assert {label: 1 for one in expected.values() for label in one} == ran
    assert {f"{name} {place}": 1 for name in names for place in range(3)} == agent_runs


# --- cancellation -----------------------------------------------------------------------------------------------


def test_cancelled_during_parallel_tools(normal_harness: Harness) -> None:
    """An invocation that is cancelled while two tools run ends with 409, and the bodies are cancelled."""
    script = Script(numbered("work", 2), "unreachable")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="cancelled")

    @agent.tool_plain
    async def work(number: int) -> str:
        ran[f"in {number}"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ran[f"cancelled {number}"] += 1
            raise
        return "unreachable"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    service = restate.Service("CancelBodies")
    service.handler(name="run")(handler)
    with normal_harness.serve(restate_steps.app([service])) as env:
        invocation = env.send("CancelBodies", "run")
        eventually(lambda: ran["in 0"] and ran["in 1"])
        env.server.admin.cancel(invocation)
        with pytest.raises(InvocationFailed) as failed:
            env.attach(invocation)
        eventually(lambda: ran["cancelled 0"] and ran["cancelled 1"])
    assert 409 == failed.value.status
    assert {"in 0": 1, "in 1": 1, "cancelled 0": 1, "cancelled 1": 1} == ran
    assert 1 == script.requests


def test_cancelled_while_parallel_tools_wait(normal_harness: Harness) -> None:
    """An invocation that is cancelled while two tools wait durably can clean up in each of them, and in the handler."""
    script = Script(numbered("wait", 2), "unreachable")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="cancelled")

    @agent.tool_plain(metadata=OWN_STEPS)
    async def wait(number: int) -> str:
        _, answer = restate_context().awakeable(type_hint=str)
        ran[f"in {number}"] += 1
        try:
            return await answer
        except restate.TerminalError:
            await run_step(lambda: ran.update([f"undone {number}"]), name="undo")
            raise

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent, restate_context=ctx, on_tool_error="tell_model").run("go")).output
        except restate.TerminalError:
            await run_step(lambda: ran.update(["clean"]), name="clean up")
            raise

    service = restate.Service("CancelWaits")
    service.handler(name="run")(handler)
    with normal_harness.serve(restate_steps.app([service])) as env:
        invocation = env.send("CancelWaits", "run")
        eventually(lambda: ran["in 0"] and ran["in 1"])
        env.server.admin.cancel(invocation)
        with pytest.raises(InvocationFailed) as failed:
            env.attach(invocation)
    assert 409 == failed.value.status
    assert {"in 0": 1, "in 1": 1, "undone 0": 1, "undone 1": 1, "clean": 1} == ran
    assert 1 == script.requests


# --- values -----------------------------------------------------------------------------------------------------


class Colour(Enum):
    """A colour."""

    RED = "red"


class Parcel(BaseModel):
    """A model."""

    weight: Decimal
    sent: date


@dataclass
class Point:
    """A dataclass."""

    x: float
    y: float = 0.0


VALUES: dict[str, Any] = {
    "none": None,
    "text": "ä\u2028\x00",
    "number": 1e300,
    "big": 2**70,
    "list": [1, [None, {"a": True}]],
    "kind": {"kind": "tool-return", "x": 1},
    "empty": {},
    "model": Parcel(weight=Decimal("1.50"), sent=date(2026, 3, 1)),
    "models": [Point(1.5), Point(2.5, 3.5)],
    "date": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "uuid": UUID(int=7),
    "colour": Colour.RED,
    "bytes": b"plain",
    "image": BinaryContent(b"\xff\xd8", media_type="image/jpeg"),
    "images": ["see", BinaryContent(b"\xff\xd8", media_type="image/jpeg"), ImageUrl("https://example.com/a.png")],
    "rich": ToolReturn("value", content=["more", BinaryContent(b"\x00", media_type="video/mp4")], metadata={"n": 1}),
    "structured": ToolReturn(Point(1.0), metadata={"at": 5}),
}


def described(content: Any) -> str:
    """A piece of content, without what a file derives from its data, and says of itself only when it is decoded."""
    if isinstance(content, BinaryContent):
        return f"{content.media_type} {content.data!r} {content.identifier}"
    if isinstance(content, ImageUrl):
        return f"{content.media_type} {content.url} {content.identifier}"
    return f"{content!r}"


async def outcome(agent: Any) -> list[Any]:
    """Return the tool's result from a run's messages, as the next model request contains it."""
    run = await agent.run("go")
    found: list[Any] = []
    for message in run.all_messages():
        for part in message.parts if isinstance(message, ModelRequest) else []:
            if isinstance(part, ToolReturnPart):
                found.append(["return", part.model_response_object(), str(part.metadata), part.outcome])
                found.append([described(file) for file in part.files])
            elif isinstance(part, UserPromptPart) and part.content != "go":
                found.append(["prompt", *map(described, part.content)])
    found.append(run.output)
    return found


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_those_of_a_plain_run(env_factory: Serve, kind: str) -> None:
    """Every kind of tool result reaches the model as in a run that is not durable."""
    agent = Agent(Script(("make", {}), "done").model, name="plain")

    @agent.tool_plain
    async def make() -> Any:
        return VALUES[kind]

    async def handler(ctx: restate.Context) -> list[Any]:
        return json.loads(json.dumps(await outcome(RestateAgent(agent, restate_context=ctx)), default=str))  # type: ignore[no-any-return]

    plain = json.loads(json.dumps(asyncio.run(outcome(agent)), default=str))

    assert plain == serve_handler(env_factory, "Plain" + kind.title(), handler)()


# --- replays ----------------------------------------------------------------------------------------------------


def test_spans_are_not_repeated(env_factory: Serve, harness: Harness) -> None:
    """The spans of the model's requests and of the tools are exported once each, whatever is replayed."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    script = Script(numbered("work", 2), ("own", {}), say)
    settings = InstrumentationSettings(tracer_provider=provider)
    agent = Agent(script.model, name="traced", capabilities=[Instrumentation(settings)])

    @agent.tool_plain
    async def work(number: int) -> int:
        return number

    @agent.tool_plain(metadata=OWN_STEPS)
    async def own() -> str:
        first = await run_step(lambda: "first", name="first")
        return first + await run_step(lambda: "second", name="second")

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        for _ in range(3):
            await ctx.sleep(timedelta(milliseconds=1))
        return output

    assert "0; 1; firstsecond" == serve_handler(env_factory, "Traced", handler)()

    spans = [span for span in exporter.get_finished_spans() if span.attributes is not None]
    names = Counter(span.name for span in spans)
    assert 3 == names["chat script"]
    assert 2 == names["execute_tool work"]
    if not harness.always_replay:
        assert 1 == names["execute_tool own"]
        assert 1 == names["invoke_agent traced"]
        assert 1 == len({span.context.trace_id for span in spans if span.context is not None})
    calls = Counter(str((span.attributes or {}).get("gen_ai.tool.call.id")) for span in spans)
    assert {"0-0": 1, "0-1": 1} == {key: n for key, n in calls.items() if key.startswith("0-")}


class Audit(AbstractCapability[None]):
    """A capability that writes something down before each request to the model, in a step."""

    id = "audit"

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()

    @durable_operation(name="record")
    async def record(self, ctx: RunContext[None], place: int) -> str:
        self.ran[f"record {place}"] += 1
        return f"recorded {place}"

    async def before_model_request(
        self, ctx: RunContext[None], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        assert f"recorded {ctx.run_step}" == await self.record(ctx, ctx.run_step)
        return request_context


def test_durable_operation_once(env_factory: Serve) -> None:
    """A capability's durable operation is a step of its own, and runs once."""
    audit = Audit()
    script = Script(("look", {}), say)
    agent = Agent(script.model, name="audited", capabilities=[audit])

    @agent.tool_plain
    async def look() -> str:
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        await ctx.sleep(timedelta(milliseconds=1))
        return output

    answer, names = serve_handler(env_factory, "Audited", handler).with_steps()

    assert "seen" == answer
    assert {"record 1": 1, "record 2": 1} == audit.ran
    assert ["audited__capability__audit.record"] * 2 == [name for name in names if "capability" in name]


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_history_in_the_state_survives_a_replay(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """A history that is stored in the state is the same on every replay, and the next turn continues it."""
    name = "HistoryUnwrapped" if metadata else "HistoryWrapped"
    ran: Counter[str] = Counter()
    dumps: dict[str, set[bytes]] = {}

    def answer(messages: list[ModelMessage]) -> Any:
        if messages[-1].parts[-1].part_kind == "user-prompt":
            return numbered("work", 2)
        return f"{len(messages)} messages"

    agent = Agent(Script(answer).model, name="chat", instructions="be brief", system_prompt="you are a chat")

    @agent.tool_plain(metadata=metadata)
    async def work(number: int) -> int:
        return await run_step(lambda: ran.update([number]) or number, name="work")  # type: ignore[func-returns-value]

    chat = restate.VirtualObject(name)

    @chat.handler()
    async def turn(ctx: restate.ObjectContext, prompt: str) -> str:
        stored = await ctx.get("history")
        history = ModelMessagesTypeAdapter.validate_json(json.dumps(stored)) if stored else []
        run = await RestateAgent(agent, restate_context=ctx).run(prompt, message_history=history)
        dumps.setdefault(prompt, set()).add(run.all_messages_json())
        ctx.set("history", json.loads(run.all_messages_json()))
        await ctx.sleep(timedelta(milliseconds=1))
        ctx.set("ids", [run.run_id, run.conversation_id])
        await ctx.sleep(timedelta(milliseconds=1))
        return run.output

    env = env_factory(chat)

    assert "3 messages" == env.call(name, "turn", "one", key="k")
    assert "7 messages" == env.call(name, "turn", "two", key="k")
    assert {"one": 1, "two": 1} == {prompt: len(seen) for prompt, seen in dumps.items()}
    assert {0: 2, 1: 2} == ran
