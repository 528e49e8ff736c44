"""Streams and events of agents, on the real server, with handlers that run through and with handlers that replay."""

# | no.  | scenario                     | tests                                                  |
# |------|------------------------------|--------------------------------------------------------|
# | 12   | live in the step             | test_deltas_are_live_in_the_step                       |
# | 13   | parallel tools, in order     | test_events_of_parallel_tools_come_in_order            |
# | 14   | two identical events         | test_identical_events_are_all_delivered                |
# | 15   | ProcessEventStream           | test_capability_sees_events_in_the_handler             |
# | 16   | no handler, no streaming     | test_nothing_is_streamed_without_a_handler             |
# | 17   | a stream that is never read  | test_stream_that_nobody_reads_is_drained               |
# | 19   | errors of the event handler  | test_mistake_in_the_event_handler_ends_the_invocation, |
# |      |                              | test_error_of_the_event_handler_repeats_its_step       |
# | 20   | enqueue in the event handler | test_event_handler_cannot_enqueue                      |
# | 21   | a streamed continuation      | test_suspended_stream_is_put_together                  |

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import restate
from pydantic_ai import Agent, CustomEvent, RunContext
from pydantic_ai.capabilities import ModelFallback, ProcessEventStream
from pydantic_ai.exceptions import ModelHTTPError, UserError
from pydantic_ai.messages import AgentStreamEvent, ModelMessage
from pydantic_ai.models import StreamedResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCalls, FunctionModel, FunctionStreamedResponse
from restate.exceptions import RetryableError

from restate_steps import run_step, step_info
from restate_steps.agents import RestateAgent
from restate_steps.context import running_step
from tests.support.agents_kit import Again, Crowd, Script, Serve, returned, serve_handler
from tests.support.harness import InvocationFailed

SOON = timedelta(milliseconds=1)


@dataclass(kw_only=True)
class Heartbeat(CustomEvent):
    """A sign of life, which is the same each time."""


def step_or_handler() -> str:
    """Return where the caller runs."""
    return step_info().name if running_step.get() is not None else "handler"


# --- the live stream --------------------------------------------------------------------------------------------


def test_deltas_are_live_in_the_step(env_factory: Serve) -> None:
    """The event handler gets each delta inside the model's step, while the model continues its response."""
    order: list[str] = []

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        for word in ("one", "two", "three"):
            order.append(f"said {word}")
            yield word

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == "part_start":
                order.append(f"saw {event.part.content} in {step_or_handler()}")
            elif event.event_kind == "part_delta":
                order.append(f"saw {event.delta.content_delta} in {step_or_handler()}")

    agent = Agent(FunctionModel(stream_function=stream, model_name="live"), name="live")
    again = Again()

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output
        again()
        return output

    answer, names = serve_handler(env_factory, "Live", handler).with_steps()

    assert "onetwothree" == answer
    assert ["live__model.request_stream"] == names
    step = "live__model.request_stream"
    assert [
        "said one",
        f"saw one in {step}",
        "said two",
        f"saw two in {step}",
        "said three",
        f"saw three in {step}",
    ] == order
    assert 2 == again.times


def test_nothing_is_streamed_without_a_handler(env_factory: Serve) -> None:
    """Without an event handler the request is for a complete response, even if the model can stream."""
    asked: Counter[str] = Counter()
    script = Script("done")

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        asked["stream"] += 1
        yield "streamed"

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> Any:
        asked["request"] += 1
        return await script.model.request(messages, None, info.model_request_parameters)

    agent = Agent(FunctionModel(respond, stream_function=stream, model_name="whole"), name="whole")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    answer, names = serve_handler(env_factory, "Whole", handler).with_steps()

    assert "done" == answer
    assert ["whole__model.request"] == names
    assert {"request": 1} == asked


@pytest.mark.parametrize("reads", [0, 1])
def test_stream_that_nobody_reads_is_drained(env_factory: Serve, reads: int) -> None:
    """A response is complete though the event handler stops reading it, and the calls in it are made."""
    script = Script([("look", {}), ("look", {})], "one two three")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="drained")

    @agent.tool_plain
    def look() -> str:
        ran["look"] += 1
        return "seen"

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        left = reads
        if left == 0:
            return
        async for _ in events:
            left -= 1
            if left == 0:
                break

    async def handler(ctx: restate.Context) -> list[Any]:
        result = await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")
        return [result.output, result.response.state, result.usage.output_tokens > 0]

    assert ["one two three ", "complete", True] == serve_handler(env_factory, f"Drained{reads}", handler)()
    assert ({"look": 2}, 2) == (ran, script.requests)


# --- events of the run ------------------------------------------------------------------------------------------


def test_events_of_parallel_tools_come_in_order(env_factory: Serve) -> None:
    """Three tools run at once and end in reverse; each of their events is delivered once, in the order of calls."""
    calls = [("fetch", {"number": number}) for number in (1, 2, 3)]
    script = Script(calls, lambda messages: " ".join(returned(messages)))
    crowd = Crowd(3)
    ended = {number: asyncio.Event() for number in (2, 3, 4)}
    ended[4].set()
    agent = Agent(script.model, name="ordered")
    seen: list[str] = []
    order: list[int] = []
    again = Again()

    @agent.tool_plain
    async def fetch(number: int) -> str:
        await crowd.join()
        await ended[number + 1].wait()
        order.append(number)
        if number in ended:
            ended[number].set()
        return f"got {number}"

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == "function_tool_call":
                seen.append(f"call {event.part.args_as_dict()['number']}")
            elif event.event_kind == "function_tool_result":
                seen.append(f"result {event.part.content}")

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output
        again()
        return output

    answer, names = serve_handler(env_factory, "Ordered", handler).with_steps()

    assert "got 1 got 2 got 3 " == answer
    assert [3, 2, 1] == order
    assert ["call 1", "call 2", "call 3", "result got 1", "result got 2", "result got 3"] == seen
    assert {"model.request_stream": 2, "event_stream_handler": 6, "function_toolset": 3} == Counter(
        name.split("__")[1] for name in names
    )
    assert 2 == again.times


@pytest.mark.parametrize("metadata", [None, {"restate": False}], ids=["wrapped", "unwrapped"])
def test_identical_events_are_all_delivered(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """Two events that do not differ are two deliveries, and a replay repeats neither."""
    script = Script(("wait", {}), "done")
    agent = Agent(script.model, name="same")
    seen: list[str] = []
    again = Again()

    @agent.tool(metadata=metadata)
    async def wait(ctx: RunContext[None]) -> str:
        await ctx.emit(Heartbeat())
        await ctx.emit(Heartbeat())
        return "waited"

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if isinstance(event, Heartbeat):
                seen.append(f"{event.tool_name} in {step_or_handler()}")

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output
        again()
        return output

    answer, names = serve_handler(env_factory, "Same", handler).with_steps()

    assert "done " == answer
    assert ["wait in same__event_stream_handler"] * 2 == seen
    # The call and its result are events, too, and so is each of the two.
    assert 4 == names.count("same__event_stream_handler")
    assert 2 == again.times


def test_capability_sees_events_in_the_handler(env_factory: Serve) -> None:
    """A capability that processes events runs in the handler, and sees the same events on each replay."""
    script = Script(("look", {}), "all done")
    ran: Counter[str] = Counter()
    attempts: list[list[str]] = []
    again = Again()

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            attempts[-1].append(f"{event.event_kind} in {step_or_handler()}")

    agent = Agent(script.model, name="processed", capabilities=[ProcessEventStream(watch)])

    @agent.tool_plain
    def look() -> str:
        ran["look"] += 1
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        attempts.append([])
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        again()
        return output

    answer, names = serve_handler(env_factory, "Processed", handler).with_steps()

    assert "all done " == answer
    assert [
        "processed__model.request_stream",
        "processed__function_toolset__<agent>.call_tool:look",
        "processed__model.request_stream",
    ] == names
    whole = attempts[-1]
    kinds = {event.removesuffix(" in handler") for event in whole}
    assert {"part_start", "part_end", "final_result", "function_tool_call", "function_tool_result"} <= kinds
    assert all(event.endswith(" in handler") for event in whole)
    assert 1 == whole.count("function_tool_call in handler")
    # An attempt that ended on the way saw the beginning of the same.
    assert all(whole[: len(attempt)] == attempt for attempt in attempts)
    assert (2, 2, {"look": 1}) == (again.times, script.requests, ran)


# --- errors of the event handler --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["part_start", "function_tool_call"])
def test_mistake_in_the_event_handler_ends_the_invocation(env_factory: Serve, kind: str) -> None:
    """An event handler that raises UserError is not called again, be it in the model's step or in one of its own."""
    raised: Counter[str] = Counter()
    agent = Agent(Script(("look", {}), "done").model, name="mistaken", tools=[look])

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == kind:
                raised[kind] += 1
                raise UserError("the screen is not set up")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output

    with pytest.raises(InvocationFailed, match="UserError: the screen is not set up"):
        serve_handler(env_factory, "MistakenHandler", handler)()
    assert {kind: 1} == raised


def look() -> str:
    return "seen"


def test_error_of_the_event_handler_repeats_its_step(env_factory: Serve) -> None:
    """An event handler that fails is called again, with the whole stream of the model or with the one event."""
    script = Script(("look", {}), "done")
    failed: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    agent = Agent(script.model, name="flaky")

    @agent.tool_plain(name="look")
    def look_once() -> str:
        seen["look"] += 1
        return "seen"

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            seen[event.event_kind] += 1
            if event.event_kind in ("final_result", "function_tool_result") and failed[event.event_kind] == 0:
                failed[event.event_kind] += 1
                raise RetryableError("the screen is dark", retry_after=SOON)

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output

    assert "done " == serve_handler(env_factory, "FlakyHandler", handler)()
    assert {"final_result": 1, "function_tool_result": 1} == failed
    # Of the model's second response the stream was seen twice, of the tool's events the one that failed.
    assert (3, 2, 1, 2) == tuple(
        seen[kind] for kind in ("part_start", "final_result", "function_tool_call", "function_tool_result")
    )
    assert (1, 3) == (seen["look"], script.requests)


@pytest.mark.parametrize("kind", ["part_start", "function_tool_call"])
def test_event_handler_cannot_enqueue(env_factory: Serve, kind: str) -> None:
    """A replay would lose messages that an event handler enqueues, so enqueueing is a permanent error."""
    called: Counter[str] = Counter()
    agent = Agent(Script(("look", {}), "done").model, name="enqueues", tools=[look])

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == kind:
                called[kind] += 1
                ctx.enqueue("one more thing")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output

    with pytest.raises(InvocationFailed, match=r"UserError: .*enqueue"):
        serve_handler(env_factory, "Enqueues", handler)()
    assert {kind: 1} == called


# --- streams that do not end in one piece -----------------------------------------------------------------------


class PausingStream(FunctionModel):
    """A model that suspends its streams, all but the last one.

    Args:
        texts: What it says in each stream.
    """

    def __init__(self, *texts: str) -> None:
        self.asked = 0
        self._texts = texts
        super().__init__(stream_function=self._say, model_name="pausing")

    async def _say(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        self.asked += 1
        yield self._texts[self._place(messages)]

    def _place(self, messages: list[ModelMessage]) -> int:
        return sum(len(message.parts) for message in messages if message.kind == "response")

    @asynccontextmanager
    async def request_stream(self, messages: list[ModelMessage], *more: Any) -> AsyncIterator[StreamedResponse]:
        async with super().request_stream(messages, *more) as stream:
            assert isinstance(stream, FunctionStreamedResponse)
            place = self._place(messages)
            stream.provider_response_id = f"job-{place}"
            if place < len(self._texts) - 1:
                stream.state = "suspended"
            yield stream


def test_suspended_stream_is_put_together(env_factory: Serve) -> None:
    """A response that is streamed in three pieces is three steps and one response, whose usage is summed once."""
    model = PausingStream("one ", "two ", "three")
    agent = Agent(model, name="pieces")
    seen: list[str] = []
    histories: set[bytes] = set()
    again = Again()

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == "part_start":
                seen.append(event.part.content)

    async def handler(ctx: restate.Context) -> list[Any]:
        result = await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")
        histories.add(result.all_messages_json())
        again()
        usage, response = result.usage, result.response
        same = (usage.input_tokens, usage.output_tokens) == (response.usage.input_tokens, response.usage.output_tokens)
        return [result.output, usage.requests, usage.input_tokens, usage.output_tokens, same, response.state]

    answer, names = serve_handler(env_factory, "Pieces", handler).with_steps()

    # Each stream of the model is estimated at 50 tokens, and each word of it at one.
    assert ["one two three", 1, 150, 3, True, "complete"] == answer
    assert ["pieces__model.request_stream"] * 3 == names
    assert ["one ", "two ", "three"] == seen
    assert (2, 3, 1) == (again.times, model.asked, len(histories))


def test_stream_that_breaks_off_is_not_continued_by_another_model(env_factory: Serve) -> None:
    """A broken stream has been delivered in part, so it is an error of the run, as without a journal."""
    second = Script("something else", name="second")

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        yield "once upon"
        raise ModelHTTPError(503, "breaks", in_stream=True)

    first = FunctionModel(stream_function=stream, model_name="breaks")
    agent = Agent(first, name="broken", capabilities=[ModelFallback(second.model)])
    seen: list[str] = []
    errors: list[str] = []
    again = Again()

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == "part_start":
                seen.append(event.part.content)

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx, models={"second": second.model}, event_stream_handler=watch)
        try:
            return (await durable.run("go")).output
        except ModelHTTPError as error:
            await run_step(lambda: None, name="caught")
            errors.append(f"{error.status_code} {error.in_stream}")
            again()
            return "caught"

    async def outside() -> str:
        plain = RestateAgent(agent, event_stream_handler=watch)
        try:
            return (await plain.run("go")).output
        except ModelHTTPError as error:
            return f"{error.status_code} {error.in_stream}"

    assert "503 True" == asyncio.run(outside())
    seen.clear()

    assert "caught" == serve_handler(env_factory, "BreaksOff", handler)()
    assert ["503 True"] * 2 == errors
    assert ["once upon"] == seen
    assert 0 == second.requests


def test_stream_that_cannot_be_opened_is_taken_over(env_factory: Serve) -> None:
    """When a stream fails before its first event, the next model is asked, and its stream is the one that is seen."""
    first = Script(ModelHTTPError(503, "first"), name="first")
    second = Script("here I am", name="second")
    agent = Agent(first.model, name="opened", capabilities=[ModelFallback(second.model)])
    seen: list[str] = []

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == "part_start":
                seen.append(event.part.content)

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx, models={"second": second.model}, event_stream_handler=watch)
        return (await durable.run("go")).output

    answer, names = serve_handler(env_factory, "TakenOver", handler).with_steps()

    assert "here I am " == answer
    assert ["opened__model.request_stream", "opened__model.request_stream.second"] == names
    assert (["here "], 1, 1) == (seen, first.requests, second.requests)


def test_stream_that_breaks_off_is_streamed_again(env_factory: Serve) -> None:
    """Without another model a broken stream is a failed attempt: the step and the event handler run again."""
    asked: Counter[str] = Counter()

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        asked["model"] += 1
        yield "once upon"
        if asked["model"] == 1:
            raise ModelHTTPError(503, "breaks", in_stream=True)
        yield " a time"

    agent = Agent(FunctionModel(stream_function=stream, model_name="breaks"), name="again")
    seen: list[str] = []

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == "part_start":
                seen.append(event.part.content)

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, event_stream_handler=watch).run("go")).output

    answer, names = serve_handler(env_factory, "StreamedAgain", handler).with_steps()

    assert "once upon a time" == answer
    assert ["again__model.request_stream"] == names
    assert (["once upon"] * 2, {"model": 2}) == (seen, asked)
