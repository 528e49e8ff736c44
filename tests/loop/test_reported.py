"""Programs of users that an earlier engine refused, stalled or answered wrongly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Protocol

import anyio
import anyio.to_thread
import pytest
import restate
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import Hooks
from pydantic_ai.capabilities.hooks import HookTimeoutError
from pydantic_ai.exceptions import RunTimedOut
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import DynamicToolset, FunctionToolset
from restate.exceptions import RetryableError

import restate_steps
from restate_steps import durable_step, restate_context
from restate_steps.agents import RestateDurability
from restate_steps.testing import Simulator, explore, simulate
from tests.support.harness import Env, Harness, InvocationFailed, eventually

SOON = timedelta(milliseconds=10)

bodies: Counter[str] = Counter()
"""How often each body has run in this run."""


@durable_step(name="{tag}")
async def work(tag: str) -> str:
    bodies[tag] += 1
    await asyncio.sleep(0)
    return tag


@durable_step(name="{tag}")
async def takes_a_while(tag: str, seconds: float = 0.03) -> str:
    bodies[tag] += 1
    await asyncio.sleep(seconds)
    return tag


def app_of(body: Callable[[restate.Context], Awaitable[Any]]) -> Any:
    service = restate.Service("Reported")

    @service.handler()
    async def run(ctx: restate.Context) -> Any:
        return await body(ctx)

    return restate_steps.app([service])


def always(body: Callable[[restate.Context], Awaitable[Any]], *answers: Any, runs: int = 100, crashes: int = 1) -> None:
    """Check that a handler gives one of the answers in every order and after every crash, and repeats no body."""

    def once(simulator: Simulator) -> None:
        # A crash may repeat the bodies that ran when it came; nothing else may.
        crashes = sum(invocation.attempts - 1 for invocation in simulator.invocations)
        assert all(count <= 1 + crashes for count in bodies.values()), bodies

    report = explore(
        app_of(body),
        "Reported/run",
        before_each=bodies.clear,
        check=once,
        crashes=crashes,
        max_runs=runs,
        max_seconds=15,
        progress=False,
    )
    report.assert_replay_safe()
    found = [outcome.value for outcome, _ in report.outcomes]
    assert all(value in answers for value in found), found


def returned(messages: list[ModelMessage]) -> list[Any]:
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


def calling(*tools: str) -> FunctionModel:
    """A model that calls these tools at once, and then says what they returned."""

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        found = returned(messages)
        if not found and tools:
            return ModelResponse(parts=[ToolCallPart(tool, {}) for tool in tools])
        return ModelResponse(parts=[TextPart("; ".join(map(str, found)) or "hello")])

    return FunctionModel(respond, model_name="calling")


UNWRAPPED = {"restate": False}


# --- what the invocations of one process share -----------------------------------------------------------------------


class Guard(Protocol):
    """Lets one at a time run a function."""

    def __call__(self, inside: Callable[[], Awaitable[str]]) -> Awaitable[str]: ...


def semaphore() -> Guard:
    slots = asyncio.Semaphore(1)

    async def guard(inside: Callable[[], Awaitable[str]]) -> str:
        async with slots:
            return await inside()

    return guard


def lock() -> Guard:
    lock = anyio.Lock()

    async def guard(inside: Callable[[], Awaitable[str]]) -> str:
        async with lock:
            return await inside()

    return guard


def agent() -> Guard:
    agent = Agent(calling("go"), name="limited", max_concurrency=1, deps_type=Any, capabilities=[RestateDurability()])

    @agent.tool(metadata=UNWRAPPED)
    async def go(ctx: RunContext[Any]) -> str:
        found: str = await ctx.deps()
        return found

    async def guard(inside: Callable[[], Awaitable[str]]) -> str:
        return (await agent.run("go", deps=inside)).output

    return guard


GUARDS = [semaphore, lock, agent]


class Shared:
    """A service whose handler holds a guard over steps, in one of several ways."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.failed = False
        self.inside: list[str] = []
        service = restate.Service("Shared")
        service.handler(name="run")(self.run)
        self.app = restate_steps.app([service])

    async def run(self, ctx: restate.Context, how: str) -> str:
        return await self.guard(lambda: self.hold(ctx, how))

    async def hold(self, ctx: restate.Context, how: str) -> str:
        self.inside.append(how)
        first = await work(f"{how} begins")
        if how == "waits":
            await ctx.awakeable()[1]
        elif how == "sleeps":
            await ctx.sleep(SOON)
        elif how == "fails" and not self.failed:
            self.failed = True
            raise RetryableError("once more", retry_after=SOON)
        elif how == "refused":
            await asyncio.open_connection("127.0.0.1", 1)
        await takes_a_while(f"{how} ends")
        return first


@pytest.fixture(params=["normal_harness", "replay_harness"])
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Env]]:
    """Serves an application to each of the two servers in turn."""
    harness = request.getfixturevalue(request.param)
    assert isinstance(harness, Harness)
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(harness.serve(app))


@pytest.mark.parametrize("guard", GUARDS)
def test_five_invocations_share_a_guard(serve: Callable[[Any], Env], guard: Callable[[], Guard]) -> None:
    """All get through, one after another, whether they sleep, fail once, or only work."""
    env = serve(Shared(guard()).app)
    hows = ["sleeps", "works", "fails", "sleeps", "works"]
    invocations = [env.send("Shared", "run", how) for how in hows]

    assert [f"{how} begins" for how in hows] == [env.attach(invocation, timeout=30) for invocation in invocations]


# An application that is dropped leaves its connections open.
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("ending", ["kill", "cancel", "refused", "drop"])
@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_is_released_when_its_holder_ends(
    serve: Callable[[Any], Env], guard: Callable[[], Guard], ending: str
) -> None:
    """However an attempt ends, those that wait go on, and so do later ones."""
    shared = Shared(guard())
    env = serve(shared.app)
    holder = env.send("Shared", "run", "refused" if ending == "refused" else "waits")
    eventually(lambda: shared.inside)
    waiting = [env.send("Shared", "run", how) for how in ("works", "sleeps")]
    if ending == "kill":
        env.server.admin.kill(holder)
    elif ending == "cancel":
        env.server.admin.cancel(holder)
        with pytest.raises(InvocationFailed, match="cancelled"):
            env.attach(holder, timeout=20)
    elif ending == "refused":
        eventually(lambda: env.server.admin.invocation(holder)["status"] == "paused")
    else:
        env.app_server.stop()
        env.app_server.start()
        env.server.admin.kill(holder)

    assert ["works begins", "sleeps begins"] == [env.attach(invocation, timeout=20) for invocation in waiting]
    assert "works begins" == env.call("Shared", "run", "works", timeout=20)


@pytest.mark.parametrize("ending", ["works", "crash", "cut", "kill", "cancel"])
@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("always_replay", [False, True], ids=["bidirectional", "always-replay"])
async def test_a_guard_is_released_in_the_simulator(
    guard: Callable[[], Guard], ending: str, always_replay: bool
) -> None:
    """The same without time and chance: the holder ends in one way, and two that wait get through."""
    bodies.clear()
    shared = Shared(guard())
    async with simulate(shared.app, always_replay=always_replay) as sim:
        holder = await sim.send("Shared/run", "waits")
        waiting = [await sim.send("Shared/run", how) for how in ("works", "sleeps")]
        if ending == "crash":
            # What the process kept is gone with it.
            shared.guard = guard()
            await sim.crash()
        elif ending == "cut":
            await sim.disconnect()
        elif ending == "kill":
            await holder.kill()
        elif ending == "cancel":
            await holder.cancel()
        if ending in ("works", "crash", "cut"):
            # The handler that was restarted may have found the guard taken.
            while holder.status != "completed":
                for awakeable in holder.awakeables:
                    await sim.resolve_awakeable(awakeable)
                await sim.advance(timedelta(seconds=1))
            assert (await holder.result()).value == "waits begins"
        assert [(await each.result()).value for each in waiting] == ["works begins", "sleeps begins"]
        assert (await sim.call("Shared/run", "works")).value == "works begins"


# --- timeouts of anyio around a local wait ---------------------------------------------------------------------------


async def event_with_fail_after() -> str:
    try:
        with anyio.fail_after(1):
            await anyio.Event().wait()
    except TimeoutError:
        return await work("timed out")
    return "unexpected"


async def event_with_move_on_after() -> str:
    with anyio.move_on_after(1) as scope:
        await anyio.Event().wait()
    return await work("timed out") if scope.cancelled_caught else "unexpected"


async def thread_with_move_on_after() -> str:
    with anyio.move_on_after(0.02) as scope:
        await anyio.to_thread.run_sync(time.sleep, 0.3, abandon_on_cancel=True)
    return await work("timed out") if scope.cancelled_caught else "unexpected"


async def local_with_fail_after() -> str:
    try:
        with anyio.fail_after(0.02):
            await restate_steps.local(asyncio.sleep(30))
    except TimeoutError:
        return await work("timed out")
    return "unexpected"


async def thread_in_time() -> str:
    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(time.sleep, 0.001)
    return await work("in time")


async def local_in_time() -> str:
    with anyio.move_on_after(60):
        await restate_steps.local(asyncio.sleep(0))
    return await work("in time")


@pytest.mark.parametrize("waits", [event_with_fail_after, event_with_move_on_after, thread_in_time, local_in_time])
def test_an_anyio_timeout_around_a_local_wait(waits: Callable[[], Awaitable[str]]) -> None:
    """In a task beside steps, in every order."""

    async def chain() -> str:
        await work("one")
        return await work("two")

    async def body(ctx: restate.Context) -> list[str]:
        return await asyncio.gather(_awaited(waits()), chain())

    always(body, ["timed out", "two"], ["in time", "two"])


@pytest.mark.parametrize("waits", [thread_with_move_on_after, local_with_fail_after])
def test_an_anyio_timeout_around_a_slow_local_operation(
    serve: Callable[[Any], Env], waits: Callable[[], Awaitable[str]]
) -> None:
    """The timer goes by the server's clock while the operation holds the turn."""

    async def body(ctx: restate.Context) -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_awaited(each)) for each in (waits(), work("one"))]
        return [task.result() for task in tasks]

    env = serve(app_of(body))
    invocation = env.send("Reported", "run")

    assert ["timed out", "one"] == env.attach(invocation, timeout=15)


async def _awaited(awaitable: Awaitable[str]) -> str:
    return await awaitable


# --- tools beside each other -----------------------------------------------------------------------------------------


def test_tools_gathered_in_an_unwrapped_tool() -> None:
    """An unwrapped tool calls others that are steps, and plain steps, through asyncio.gather."""

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if found := returned(messages):
            return ModelResponse(parts=[TextPart(str(found))])
        return ModelResponse(parts=[ToolCallPart("both", {}, tool_call_id=each) for each in ("x", "y")])

    model = FunctionModel(respond, model_name="gathering")
    agent = Agent(model, name="gathering", capabilities=[RestateDurability()])

    async def search(tag: str) -> str:
        return await takes_a_while(f"search {tag}")

    @agent.tool(metadata=UNWRAPPED)
    async def both(ctx: RunContext[None]) -> list[str]:
        number = ctx.tool_call_id or ""
        return await asyncio.gather(search(f"{number} a"), search(f"{number} b"), _chain(number))

    async def _chain(number: str) -> str:
        await work(f"chain {number} 1")
        return await work(f"chain {number} 2")

    async def body(ctx: restate.Context) -> str:
        return (await agent.run("go")).output

    always(body, str([[f"search {each} a", f"search {each} b", f"chain {each} 2"] for each in ("x", "y")]), runs=60)


def test_dynamic_toolsets_that_take_time_to_list_their_tools() -> None:
    """Of two, one lists its tools from a step of 30 ms."""

    async def slow_tool() -> str:
        bodies["slow_tool"] += 1
        return "slow"

    async def fast_tool() -> str:
        bodies["fast_tool"] += 1
        return "fast"

    async def slow(ctx: RunContext[None]) -> FunctionToolset[None]:
        # Its listing is a step.
        await asyncio.sleep(0.03)
        return FunctionToolset([slow_tool])

    async def fast(ctx: RunContext[None]) -> FunctionToolset[None]:
        return FunctionToolset([fast_tool])

    agent = Agent(
        calling("slow_tool", "fast_tool"),
        name="dynamic",
        toolsets=[DynamicToolset(slow, id="slow"), DynamicToolset(fast, id="fast")],
        capabilities=[RestateDurability()],
    )

    async def body(ctx: restate.Context) -> str:
        return (await agent.run("go")).output

    always(body, "slow; fast", runs=60)


# --- what one handler shares between its tasks -----------------------------------------------------------------------


def test_two_runs_of_an_agent_with_room_for_one() -> None:
    """One waits for the other."""
    agent = Agent(calling("tool"), name="one at a time", max_concurrency=1, capabilities=[RestateDurability()])

    @agent.tool_plain
    async def tool() -> str:
        await asyncio.sleep(0)
        return "done"

    async def body(ctx: restate.Context) -> list[str]:
        return [run.output for run in await asyncio.gather(agent.run("a"), agent.run("b"))]

    # Without crashes: the limiter belongs to the process, and a crash of the simulator leaves it as it was.
    always(body, ["done", "done"], runs=60, crashes=0)


def test_a_capacity_limiter() -> None:
    """Tasks take turns."""

    async def body(ctx: restate.Context) -> list[str]:
        limiter = anyio.CapacityLimiter(1)
        found: list[str] = []

        async def one(tag: str) -> None:
            async with limiter:
                await work(f"{tag}1")
                found.append(await work(f"{tag}2"))

        async with anyio.create_task_group() as group:
            for tag in "abc":
                group.start_soon(one, tag)
        return found

    always(body, ["a2", "b2", "c2"])


def test_memory_streams_between_tasks() -> None:
    """A producer and two consumers, with room for one item, and with none."""

    async def body(ctx: restate.Context) -> list[list[str]]:
        found: list[list[str]] = []
        for room in (0, 1):
            send, receive = anyio.create_memory_object_stream[str](room)
            got: list[str] = []

            async def produce(send: Any = send) -> None:
                async with send:
                    for tag in "abcd":
                        await send.send(await work(f"make {tag}"))

            async def consume(receive: Any, got: list[str] = got) -> None:
                async with receive:
                    async for item in receive:
                        got.append(await work(f"use {item}"))

            async with anyio.create_task_group() as group:
                group.start_soon(produce)
                group.start_soon(consume, receive.clone())
                group.start_soon(consume, receive)
            found.append(sorted(got))
        return found

    async def twice_counted(ctx: restate.Context) -> list[int]:
        return [len(set(each)) for each in await body(ctx)]

    async def attempt() -> Any:
        async with simulate(app_of(twice_counted)) as sim:
            invocation = await sim.send("Reported/run")
            result = await invocation.result()
            assert invocation.last_failure is None
            return result.value

    assert [4, 4] == asyncio.run(attempt())
    explore(app_of(twice_counted), "Reported/run", max_runs=100, max_seconds=15, progress=False).assert_replay_safe()


# --- timeouts of agents ----------------------------------------------------------------------------------------------


LONG = timedelta(days=1)


def test_the_timeout_of_an_unwrapped_tool() -> None:
    """The model hears of it, as it does outside of Restate."""

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if any(isinstance(message, ModelResponse) for message in messages):
            return ModelResponse(parts=[TextPart("it took too long")])
        return ModelResponse(parts=[ToolCallPart("tool", {})])

    model = FunctionModel(respond, model_name="patient")
    agent = Agent(model, name="patient", tool_timeout=5, capabilities=[RestateDurability()])

    @agent.tool_plain(metadata=UNWRAPPED)
    async def tool() -> str:
        await restate_context().sleep(LONG)
        return "unexpected"

    async def body(ctx: restate.Context) -> str:
        return (await agent.run("go")).output

    always(body, "it took too long", runs=60)


@pytest.mark.parametrize("around", ["model", "tool"])
def test_the_timeout_of_a_hook(around: str) -> None:
    """Around the step of a model request or of a tool."""
    hooks: Hooks[None] = Hooks()
    if around == "model":

        @hooks.on.model_request(timeout=5)
        async def wrap_request(ctx: Any, /, *, request_context: Any, handler: Any) -> Any:
            await restate_context().sleep(LONG)
            return await handler(request_context)

    else:

        @hooks.on.tool_execute(timeout=5)
        async def wrap_tool(ctx: Any, /, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
            found = await handler(args)
            await restate_context().sleep(LONG)
            return found

    agent = Agent(calling("tool"), name="hooked", capabilities=[RestateDurability(), hooks])

    @agent.tool_plain
    async def tool() -> str:
        return "done"

    async def body(ctx: restate.Context) -> str:
        try:
            return (await agent.run("go")).output
        except HookTimeoutError:
            return await work("too late")

    always(body, "too late", runs=60)


@pytest.mark.parametrize("around", ["model", "tool"])
def test_the_timeout_of_a_hook_in_time(around: str) -> None:
    """A step that is in time leaves nothing of the timer."""
    hooks: Hooks[None] = Hooks()

    @hooks.on.model_request(timeout=86400)
    async def wrap_request(ctx: Any, /, *, request_context: Any, handler: Any) -> Any:
        return await handler(request_context)

    @hooks.on.tool_execute(timeout=86400)
    async def wrap_tool(ctx: Any, /, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        return await handler(args)

    tools = ("tool",) if around == "tool" else ()
    agent = Agent(calling(*tools), name="hooked", capabilities=[RestateDurability(), hooks])

    @agent.tool_plain
    async def tool() -> str:
        return "done"

    async def body(ctx: restate.Context) -> str:
        try:
            return (await agent.run("go")).output
        except HookTimeoutError:
            return "too late"

    always(body, "done" if tools else "hello", "too late", runs=60)


def test_the_timeout_of_a_run() -> None:
    """A run whose tool waits longer ends with pydantic-ai's own error."""
    agent = Agent(calling("tool"), name="timed", capabilities=[RestateDurability()])

    @agent.tool_plain(metadata=UNWRAPPED)
    async def tool() -> str:
        await restate_context().sleep(LONG)
        return "unexpected"

    async def body(ctx: restate.Context) -> str:
        try:
            return (await agent.run("go", timeout=5)).output
        except RunTimedOut:
            return await work("too late")

    always(body, "too late", runs=60)
