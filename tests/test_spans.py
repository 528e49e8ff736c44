"""Spans of steps: one for each body that runs, none for a replayed result, with the right parent and attributes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import restate
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent
from pydantic_ai.capabilities import Instrumentation
from restate.vm import VMWrapper

import restate_steps
from restate_steps import RetryPolicy, _sdk, durable_step
from restate_steps._protocol.wire import encode, make
from restate_steps._spans import current_tracer
from restate_steps.agents import RestateAgent
from restate_steps.server import AppServer, RestateServer
from restate_steps.testing import MessageType, Simulator, explore, simulate
from tests.support.agents_kit import Script
from tests.support.harness import Env

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
QUICKLY = RetryPolicy(initial_retry_interval=timedelta(milliseconds=10))

shop = restate.Service("TracedShop")
cart = restate.VirtualObject("TracedCart")
failures: list[Exception] = []


class CardDeclined(Exception):
    """An error that a step declares."""


@durable_step
async def quote(order: str) -> int:
    return len(order)


@durable_step(name="charge {order}", retry=RetryPolicy(max_attempts=5), raises=(CardDeclined,), no_retry_on=KeyError)
async def charge(order: str) -> str:
    with trace.get_tracer("shop").start_as_current_span("POST"):
        if failures:
            raise failures.pop(0)
    return f"paid {order}"


@durable_step
def in_thread() -> str:
    with trace.get_tracer("shop").start_as_current_span("SELECT"):
        return "row"


@durable_step
async def whole() -> int:
    return await quote("part")


@durable_step
async def endless() -> None:
    await asyncio.Event().wait()


@shop.handler()
async def checkout(ctx: restate.Context, order: str) -> str:
    await quote(order)
    await ctx.sleep(timedelta(hours=1))
    return await charge(order)


@shop.handler()
async def together(ctx: restate.Context) -> list[Any]:
    with trace.get_tracer("shop").start_as_current_span("handler"):
        return list(await asyncio.gather(charge("tea"), in_thread(), whole()))


@shop.handler()
async def hang(ctx: restate.Context) -> None:
    await endless()


@cart.handler()
async def add(ctx: restate.ObjectContext, item: str) -> int:
    ctx.set("items", "x" * 40_000)
    return await quote(item)


def app_with(headers: Sequence[tuple[bytes, bytes]] = ()) -> Any:
    """The services, whose attempts get more headers, as from a server that traces."""
    application = restate_steps.app([shop, cart])

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "headers": [*scope["headers"], *headers]}, receive, send)

    return traced


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of the test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The public function accepts only the first provider of a process.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    failures.clear()
    return exporter


@pytest.fixture(params=[{}, {"always_replay": True}, {"mode": "request_response"}], ids=["bidi", "replay", "lambda"])
def sim(request: pytest.FixtureRequest, exporter: InMemorySpanExporter) -> Iterator[Simulator]:
    with simulate(restate_steps.app([shop, cart]), **request.param) as simulator:
        yield simulator


def steps_of(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """The spans of steps, in the order in which they ended."""
    return [span for span in exporter.get_finished_spans() if "restate.run.name" in (span.attributes or {})]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def test_each_body_has_a_span(sim: Simulator, exporter: InMemorySpanExporter) -> None:
    """It has the step's names, its attempt and the size of its result, and what the body calls is inside it."""
    await sim.call(checkout, "tea")

    quoted, paid = steps_of(exporter)
    common = {
        "restate.invocation.id": sim.invocations[0].id,
        "restate.invocation.target": "TracedShop/checkout",
        "restate.step.attempt": 1,
    }
    assert ["quote", "charge"] == [quoted.name, paid.name]
    assert {**common, "restate.run.name": "quote", "restate.step.result.size": 1} == attributes(quoted)
    assert {
        **common,
        "restate.run.name": "charge tea",
        "restate.step.max_attempts": 5,
        "restate.step.result.size": len('"paid tea"'),
    } == attributes(paid)
    assert trace.StatusCode.UNSET is paid.status.status_code
    [post] = [span for span in exporter.get_finished_spans() if span.name == "POST"]
    assert id_of(paid) == parent_of(post)


async def test_a_replay_has_no_spans(exporter: InMemorySpanExporter) -> None:
    """After a crash, only the step that had no result has another span."""
    with simulate(restate_steps.app([shop])) as sim:
        invocation = await sim.send(checkout, "tea")
        await sim.settle()
        await sim.crash()
        await invocation.result()

    assert ["quote", "charge"] == [span.name for span in steps_of(exporter)]
    assert [1, 1] == [attributes(span)["restate.step.attempt"] for span in steps_of(exporter)]


async def test_attempts_are_counted_by_the_server(sim: Simulator, exporter: InMemorySpanExporter) -> None:
    """Each failed attempt of a step has a span with its number and its error; the next step starts at one again."""
    failures.extend([ValueError("busy"), ValueError("still busy")])

    await sim.call(checkout, "tea")

    first, second, third = steps_of(exporter)[1:]
    assert [1, 2, 3] == [attributes(span)["restate.step.attempt"] for span in (first, second, third)]
    assert trace.StatusCode.ERROR is first.status.status_code
    assert "ValueError: busy" == first.status.description
    assert "ValueError" == attributes(first)["error.type"]
    assert attributes(first)["restate.step.terminal"] is False
    assert "restate.step.result.size" not in attributes(first)
    [event] = first.events
    assert "exception" == event.name
    assert "still busy" == (second.events[0].attributes or {})["exception.message"]
    assert trace.StatusCode.UNSET is third.status.status_code


async def test_the_last_attempt_is_terminal(exporter: InMemorySpanExporter) -> None:
    """The step's outcome is what it raised there."""
    svc = restate.Service("LastAttempt")

    @durable_step(retry=RetryPolicy(max_attempts=2))
    async def fail() -> None:
        raise ValueError("busy")

    @svc.handler()
    async def run(ctx: restate.Context) -> None:
        await fail()

    with simulate(restate_steps.app([svc])) as sim, pytest.raises(restate.TerminalError):
        await sim.call(run)

    assert [False, True] == [attributes(span)["restate.step.terminal"] for span in steps_of(exporter)]


@pytest.mark.parametrize("error", [CardDeclined("stolen"), KeyError("card"), restate.TerminalError("closed")])
async def test_a_terminal_failure(sim: Simulator, exporter: InMemorySpanExporter, error: Exception) -> None:
    """The span has the exception that the body raised, not the failure that is recorded."""
    failures.append(error)

    with pytest.raises(restate.TerminalError if not isinstance(error, CardDeclined) else Exception):
        await sim.call(checkout, "tea")

    span = steps_of(exporter)[-1]
    assert attributes(span)["restate.step.terminal"] is True
    assert type(error).__name__ == attributes(span)["error.type"].rsplit(".", 1)[-1]
    assert f"{type(error).__name__}: {error}" == span.status.description


async def test_an_interrupted_body(exporter: InMemorySpanExporter) -> None:
    """The span of a body that was cancelled with its attempt ends, and says so."""
    with simulate(restate_steps.app([shop])) as sim:
        invocation = await sim.send(hang)
        await sim.settle()
        await sim.disconnect()
        await sim.advance(timedelta(seconds=10))
        await invocation.kill()

    first, second = steps_of(exporter)
    assert [1, 2] == [attributes(span)["restate.step.attempt"] for span in (first, second)]
    assert "the attempt ended before the step" == first.status.description
    assert "asyncio.exceptions.CancelledError" == attributes(first)["error.type"]
    assert "restate.step.terminal" not in attributes(first)


async def test_the_handlers_own_span_is_the_parent(exporter: InMemorySpanExporter) -> None:
    """Concurrent steps are siblings, a step in a step is part of it, and a thread's spans are inside the step."""
    with simulate(restate_steps.app([shop])) as sim:
        await sim.call(together)

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {"charge", "in_thread", "whole"} == {span.name for span in steps_of(exporter)}
    for step in steps_of(exporter):
        assert id_of(spans["handler"]) == parent_of(step)
    assert id_of(spans["charge"]) == parent_of(spans["POST"])
    assert id_of(spans["in_thread"]) == parent_of(spans["SELECT"])


async def test_the_servers_span_is_the_parent(exporter: InMemorySpanExporter) -> None:
    """Unless the handler has a span of its own, the attempt's headers name the parent."""
    header = (b"traceparent", f"00-{TRACE:032x}-{PARENT:016x}-01".encode())
    with simulate(app_with([header])) as sim:
        await sim.call(checkout, "tea")

    for step in steps_of(exporter):
        assert step.context is not None
        assert (TRACE, PARENT) == (step.context.trace_id, parent_of(step))


async def test_without_a_traced_server_a_step_is_a_root(exporter: InMemorySpanExporter) -> None:
    with simulate(restate_steps.app([shop])) as sim:
        await sim.call(checkout, "tea")

    assert [None, None] == [parent_of(step) for step in steps_of(exporter)]


async def test_the_target_has_the_key_of_an_object(sim: Simulator, exporter: InMemorySpanExporter) -> None:
    """It is written as Restate does, also if the first message has much state and comes in parts."""
    for _ in range(2):
        await sim.call(add, "milk", key="alice")

    assert ["TracedCart/alice/add"] * 2 == [
        attributes(span)["restate.invocation.target"] for span in steps_of(exporter)
    ]
    assert [1, 1] == [attributes(span)["restate.step.attempt"] for span in steps_of(exporter)]


async def test_under_restate_app_too(exporter: InMemorySpanExporter) -> None:
    failures.append(ValueError("busy"))
    with simulate(restate.app([shop])) as sim:
        await sim.call(checkout, "tea")

    assert [1, 1, 2] == [attributes(span)["restate.step.attempt"] for span in steps_of(exporter)]


def test_outside_a_handler_there_is_no_span(exporter: InMemorySpanExporter) -> None:
    assert 3 == asyncio.run(quote("tea"))
    assert [] == steps_of(exporter)


async def test_a_sampler_may_drop_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that is not recorded changes nothing."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
    failures.clear()
    with simulate(restate_steps.app([shop])) as sim:
        assert "paid tea" == (await sim.call(checkout, "tea")).value


def test_every_body_run_is_a_span(exporter: InMemorySpanExporter) -> None:
    """Under every order and every crash, there are as many spans as runs of bodies."""

    def as_many_spans_as_runs(sim: Simulator) -> None:
        assert dict(sim.effects) == Counter(attributes(span)["restate.run.name"] for span in steps_of(exporter))

    explore(
        restate_steps.app([shop]), together, before_each=exporter.clear, check=as_many_spans_as_runs
    ).assert_replay_safe()


# --- agents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("always_replay", [False, True])
async def test_the_steps_of_an_agent_are_inside_its_spans(exporter: InMemorySpanExporter, always_replay: bool) -> None:
    """The agent has the spans it has without steps, and each of its steps one more, also if everything is replayed."""
    script = Script([("look_up", {})], "done")
    agent = Agent(script.model, name="traced", capabilities=[Instrumentation()])

    @agent.tool_plain
    async def look_up() -> str:
        with trace.get_tracer("shop").start_as_current_span("SELECT"):
            return "row"

    service = restate.Service("TracedAgent")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with simulate(restate_steps.app([service]), always_replay=always_replay) as sim:
        await sim.call(run)

    found = exporter.get_finished_spans()
    by_id = {id_of(span): span.name for span in found}
    steps = steps_of(exporter)
    parents = [by_id.get(parent_of(step) or 0) for step in steps]
    assert ["chat script", "execute_tool look_up", "chat script"] == parents
    assert ["chat script", "execute_tool look_up", "chat script"] == [
        span.name for span in found if span.name.startswith(("chat", "execute_tool"))
    ]
    [inside] = [span for span in found if span.name == "SELECT"]
    assert id_of(steps[1]) == parent_of(inside)


# --- the real server --------------------------------------------------------------------------------------------


def test_under_the_span_of_a_real_server(exporter: InMemorySpanExporter) -> None:
    """A server that traces sends its span with each attempt, in the trace of the caller, and counts the attempts."""
    failures.append(ValueError("busy"))
    quickly = restate.Service("TracedReally")

    @quickly.handler()
    async def buy(ctx: restate.Context, order: str) -> str:
        await quote(order)
        return await charge.with_options(retry=QUICKLY)(order)

    # The server must have somewhere to send its spans to; nothing listens there.
    with (
        RestateServer(env={"RESTATE_TRACING_ENDPOINT": "http://127.0.0.1:9"}) as server,
        AppServer(restate_steps.app([quickly])) as served,
        httpx.Client(base_url=server.ingress_url, trust_env=False) as client,
    ):
        Env(server, served, client).call("TracedReally", "buy", "tea")

    spans = steps_of(exporter)
    assert ["quote", "charge", "charge"] == [span.name for span in spans]
    assert [1, 1, 2] == [attributes(span)["restate.step.attempt"] for span in spans]
    assert 1 == len({span.context.trace_id for span in spans if span.context is not None})
    assert None not in [parent_of(span) for span in spans]


# --- without tracing --------------------------------------------------------------------------------------------


def test_nothing_is_imported_without_a_provider() -> None:
    """A program without OpenTelemetry runs steps, and the package does not import it."""
    program = """
import asyncio, sys
sys.modules["opentelemetry"] = None
import restate, restate_steps
from restate_steps._spans import current_tracer
assert current_tracer() is None
assert "opentelemetry.trace" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_without_a_provider_there_is_no_tracer() -> None:
    assert current_tracer() is None


@pytest.mark.parametrize("size", [1, 7, 1000, 10_000])
def test_the_retry_count_of_a_message_in_parts(size: int) -> None:
    """The message that has it arrives in parts if a Virtual Object has much state."""
    items = [{"key": b"items", "value": b"x" * 5000}]
    start = encode(
        make(MessageType.START, id=b"1", debug_id="inv_1", known_entries=1, state_map=items, retry_count=300)
    )
    vm = VMWrapper([("content-type", "application/vnd.restate.invocation.v6")])
    context: Any = SimpleNamespace(vm=vm)

    for at in range(0, len(start), size):
        assert _sdk.retry_count(context) is None
        vm.notify_input(start[at : at + size])

    assert 300 == _sdk.retry_count(context)


def test_another_first_message_has_no_retry_count() -> None:
    """A later protocol may start in another way. Then spans have no attempt number, and everything else works."""
    vm = VMWrapper([("content-type", "application/vnd.restate.invocation.v6")])
    vm.notify_input(encode(make(MessageType.INPUT, value={"content": b"1"})))

    assert _sdk.retry_count(cast(Any, SimpleNamespace(vm=vm))) is None
