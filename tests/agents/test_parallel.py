"""Tool calls of one response side by side, and agents side by side, on the real server."""

# | no.  | scenario                                   | tests; t_a means test_agent.py                           |
# |------|--------------------------------------------|----------------------------------------------------------|
# | 41   | invalid arguments in one of the calls      | t_a: test_calls_of_one_response,                         |
# |      |                                            | test_first_of_two_calls_is_invalid                       |
# | 42   | sequential=True is a barrier               | test_sequential_tool_is_a_barrier                        |
# | 43   | one flaky parallel tool                    | test_flaky_tool_alone_runs_again,                        |
# |      |                                            | test_tools_that_ended_before_another_failed,             |
# |      |                                            | test_flaky_tool_beside_running_ones                      |
# | 44   | SIGKILL during parallel tools              | test_killed_during_parallel_tools                        |
# | 45   | two siblings raise                         | test_first_error_in_order_of_emission                    |
# | 46   | bodies outlast the inactivity timeout      | test_bodies_outlast_the_inactivity_timeout               |
# | 47   | exhaustive, with an output tool            | test_exhaustive_strategy_with_an_output_tool             |
# |      | several steps of their own                 | test_tools_with_several_steps_each                       |
# |      | raw awaits of the SDK                      | test_raw_awaits_in_parallel_tools                        |
# |      | max_parallel_tools                         | test_max_parallel_tools_bounds                           |
# |      | 32 tools                                   | test_many_tools_at_once                                  |
# |      | an agent under gather                      | t_a: test_agents_in_branches,                            |
# |      |                                            | test_agents_with_parallel_tools_under_gather             |
# |      | two agents in one handler                  | test_two_agents_in_one_handler                           |
# |      | agents called from tools, usage shared     | t_a: test_agent_called_from_a_tool,                      |
# |      |                                            | test_usage_of_sub_agents                                 |
# |      |                                            | test_sub_agents_in_parallel_tools                        |
# |      | custom events of parallel tools            | test_custom_events_of_parallel_tools,                    |
# |      |                                            | test_custom_events_with_a_limit                          |
# |      | concurrency, state, HTTP/1.1               | test_concurrency_inside_parallel_tools,                  |
# |      |                                            | test_state_in_parallel_tools,                            |
# |      |                                            | test_parallel_tools_over_http1                           |

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import restate
from pydantic_ai import Agent, CustomEvent, RunContext
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, ToolReturnPart
from pydantic_ai.output import ToolOutput
from restate.exceptions import RetryableError

import restate_steps
from restate_steps import gather, restate_context, run_step, step_info, wait_for
from restate_steps.agents import RestateAgent
from restate_steps.server._ports import free_ports
from tests.support import ROOT
from tests.support.agents_kit import Call, Crowd, Script, Serve, returned, serve_handler
from tests.support.harness import Harness, eventually

OWN_STEPS = {"restate": False}


def say(messages: list[ModelMessage]) -> str:
    """Repeat what the tools returned."""
    return "; ".join(str(content) for content in returned(messages))


def numbered(name: str, count: int) -> list[Call]:
    """Several calls of one tool, numbered."""
    return [(name, {"number": number}) for number in range(count)]


# --- scenarios --------------------------------------------------------------------------------------------------


def test_first_of_two_calls_is_invalid(env_factory: Serve) -> None:
    """A first call with invalid arguments gets a retry prompt beside the result of the second, and nothing hangs."""
    script = Script([("double", {"number": "x"}), ("double", {"number": 2})], ("double", {"number": 1}), say)
    ran: Counter[int] = Counter()
    agent = Agent(script.model, name="invalid")

    @agent.tool_plain
    async def double(number: int) -> int:
        ran[number] += 1
        return 2 * number

    async def handler(ctx: restate.Context) -> list[str]:
        messages = (await RestateAgent(agent, restate_context=ctx).run("go")).all_messages()
        parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        return [f"{part.tool_call_id} {part.outcome}" for part in parts]

    assert ["0-0 retried", "0-1 success", "1-0 success"] == serve_handler(env_factory, "FirstInvalid", handler)()
    assert {2: 1, 1: 1} == ran
    assert 3 == script.requests


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_sequential_tool_is_a_barrier(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """A tool marked as sequential runs alone; those before it have ended and those after it have not begun."""
    script = Script([*numbered("side", 2), ("alone", {}), ("side", {"number": 2}), ("side", {"number": 3})], say)
    together = Crowd(2)
    order: list[str] = []
    agent = Agent(script.model, name="barrier")

    async def body(name: str) -> str:
        order.append(f"{name} in")
        if name != "alone":
            await together.join()
        order.append(f"{name} out")
        return name

    @agent.tool_plain(metadata=metadata)
    async def side(number: int) -> str:
        return await run_step(body, str(number), name=f"side {number}")

    @agent.tool_plain(sequential=True, metadata=metadata)
    async def alone() -> str:
        return await run_step(body, "alone", name="alone")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    name = "BarrierUnwrapped" if metadata else "BarrierWrapped"
    assert "0; 1; alone; 2; 3" == serve_handler(env_factory, name, handler)()
    assert 10 == len(order)
    assert ["alone in", "alone out"] == order[4:6]
    assert {"0 in", "1 in"} == set(order[:2])
    assert {"2 in", "3 in"} == set(order[6:8])
    assert 2 == together.most


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_flaky_tool_alone_runs_again(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """Of three parallel tools, one of which fails when the others are recorded, the other two run once."""
    script = Script(numbered("work", 3), say)
    ran: Counter[int] = Counter()
    recorded = threading.Event()
    agent = Agent(script.model, name="flaky")

    def body(number: int) -> int:
        ran[number] += 1
        if number == 1 and ran[1] < 3:
            assert recorded.wait(timeout=30)
            raise RetryableError("not yet", retry_after=timedelta(milliseconds=1))
        return number

    @agent.tool_plain(metadata=metadata)
    async def work(number: int) -> int:
        return await run_step(asyncio.to_thread, body, number, name="work")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    served = serve_handler(env_factory, "FlakyUnwrapped" if metadata else "FlakyWrapped", handler)
    invocation = served.send()
    try:
        eventually(
            lambda: 3 == Counter(e.type for e in served.env.server.admin.journal(invocation))["Notification: Run"]
        )
    finally:
        recorded.set()

    assert "0; 1; 2" == served.env.attach(invocation)
    assert {0: 1, 1: 3, 2: 1} == ran
    assert 2 == script.requests


def test_tools_that_ended_before_another_failed(env_factory: Serve) -> None:
    """A parallel tool that fails after the others have ended does not make them run again, recorded yet or not."""
    script = Script(numbered("work", 3), say)
    ran: Counter[int] = Counter()
    ended = [asyncio.Event(), asyncio.Event()]
    agent = Agent(script.model, name="flaky")

    @agent.tool_plain
    async def work(number: int) -> int:
        ran[number] += 1
        if number < 2:
            ended[number].set()
        elif ran[2] < 3:
            for event in ended:
                await event.wait()
            raise RetryableError("not yet", retry_after=timedelta(milliseconds=1))
        return number

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "0; 1; 2" == serve_handler(env_factory, "EndedBefore", handler)()
    assert {0: 1, 1: 1, 2: 3} == ran
    assert 2 == script.requests


def test_flaky_tool_beside_running_ones(env_factory: Serve) -> None:
    """A parallel tool that fails while others are about to end does not make them run again."""
    script = Script(numbered("work", 3), say)
    ran: Counter[int] = Counter()
    failing = asyncio.Event()
    agent = Agent(script.model, name="flaky")

    @agent.tool_plain
    async def work(number: int) -> int:
        ran[number] += 1
        if number < 2:
            await failing.wait()
        elif ran[2] < 3:
            failing.set()
            raise RetryableError("not yet", retry_after=timedelta(milliseconds=1))
        return number

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "0; 1; 2" == serve_handler(env_factory, "BesideRunning", handler)()
    assert {0: 1, 1: 1, 2: 3} == ran
    assert 2 == script.requests


VICTIM = '''
"""A service that is killed while two parallel tools run: one has ended, the other waits for a file."""
import sys
from pathlib import Path

import restate
import restate_steps
from tests.support.agents_kit import Script, returned
from pydantic_ai import Agent

from restate_steps.agents import RestateAgent

folder = Path(sys.argv[2])
script = Script([("quick", {}), ("slow", {})], lambda messages: "; ".join(map(str, returned(messages))))
agent = Agent(script.model, name="victim")


def note(word: str) -> None:
    with (folder / "ledger").open("a") as file:
        file.write(word + "\\n")


@agent.tool_plain
async def quick() -> str:
    note("quick")
    return "q"


@agent.tool_plain
def slow() -> str:
    note("slow")
    gate = folder / "gate"
    with gate.open() as opened:
        return opened.read()


service = restate.Service("Victim")


@service.handler(name="run")
async def handler(ctx: restate.Context) -> str:
    return (await RestateAgent(agent, restate_context=ctx).run("go")).output
'''


def test_killed_during_parallel_tools(normal_harness: Harness, tmp_path: Path) -> None:
    """A process that is killed while one parallel tool runs is started again; the tool that had ended does not run."""
    (tmp_path / "victim.py").write_text(
        VICTIM
        + """

if __name__ == "__main__":
    import asyncio
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    asyncio.run(serve(restate_steps.app([service]), config))
"""
    )
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "ledger").touch()
    (port,) = free_ports(1)
    server = normal_harness.server

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "victim.py"), str(port), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        eventually(lambda: _is_up(port))
        return process

    process = start()
    try:
        server.admin.register(f"http://127.0.0.1:{port}")
        with httpx.Client(trust_env=False) as client:
            sent = client.post(f"{server.ingress_url}/Victim/run/send").raise_for_status().json()
            invocation = sent["invocationId"]
            eventually(lambda: {"quick", "slow"} == set((tmp_path / "ledger").read_text().split()))
            quick = "victim__function_toolset__<agent>.call_tool:quick"
            eventually(
                lambda: (
                    ("Notification: Run", quick)
                    in [(entry.type, entry.name) for entry in server.admin.journal(invocation)]
                )
            )
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = start()
            eventually(lambda: 2 == (tmp_path / "ledger").read_text().split().count("slow"))
            (tmp_path / "gate").write_text("s")
            url = f"{server.ingress_url}/restate/invocation/{invocation}/attach"
            assert "q; s" == client.get(url, timeout=30).raise_for_status().json()
    finally:
        process.kill()
        process.wait()
    assert {"quick": 1, "slow": 2} == Counter((tmp_path / "ledger").read_text().split())


def _is_up(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_first_error_in_order_of_emission(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """Of two parallel tools that fail, the run ends with the error of the first call, even if it came later."""
    script = Script([("late", {}), ("early", {})], "unreachable")
    seen: list[str] = []
    failed_first = asyncio.Event()
    agent = Agent(script.model, name="failing")

    @agent.tool_plain(metadata=metadata)
    async def late() -> str:
        async def body() -> None:
            await failed_first.wait()
            raise restate.TerminalError("late")

        await run_step(body, name="late")
        return "unreachable"

    @agent.tool_plain(metadata=metadata)
    async def early() -> str:
        async def body() -> None:
            failed_first.set()
            raise restate.TerminalError("early")

        await run_step(body, name="early")
        return "unreachable"

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent, restate_context=ctx).run("go")).output
        except restate.TerminalError as error:
            message = error.message
            seen.append(message)
            await ctx.sleep(timedelta(milliseconds=1))
            return message

    name = "FirstErrorUnwrapped" if metadata else "FirstErrorWrapped"
    assert "late" in serve_handler(env_factory, name, handler)()
    assert 1 == len(set(seen))


@pytest.fixture(scope="module")
def impatient_harness() -> Iterator[Harness]:
    """A server that suspends a handler that has been waiting for a tenth of a second."""
    with Harness(env={"RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT": "100ms"}) as harness:
        yield harness


def test_bodies_outlast_the_inactivity_timeout(impatient_harness: Harness) -> None:
    """Parallel bodies that take longer than the server waits before it suspends the handler run once all the same."""
    script = Script(numbered("work", 3), say)
    ran: Counter[int] = Counter()
    together = Crowd(3)
    release = asyncio.Event()
    agent = Agent(script.model, name="slow")
    loops: list[asyncio.AbstractEventLoop] = []

    @agent.tool_plain
    async def work(number: int) -> int:
        ran[number] += 1
        await together.join()
        loop = asyncio.get_running_loop()
        # Nothing may happen for some multiples of the timeout, so the test cannot wait for an event.
        loop.call_later(0.5, release.set)
        await release.wait()
        return number

    async def handler(ctx: restate.Context) -> str:
        loops.append(asyncio.get_running_loop())
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    service = restate.Service("SlowBodies")
    service.handler(name="run")(handler)
    with impatient_harness.serve(restate_steps.app([service])) as env:
        assert "0; 1; 2" == env.call("SlowBodies", "run")
    assert {0: 1, 1: 1, 2: 1} == ran
    assert 2 == script.requests


def test_exhaustive_strategy_with_an_output_tool(env_factory: Serve) -> None:
    """With the exhaustive strategy the tools beside an output tool run, each once, in parallel with the output."""
    script = Script([("work", {"number": 0}), ("answer", {"text": "done"}), ("work", {"number": 1})], "unreachable")
    ran: Counter[str] = Counter()
    together = Crowd(2)

    async def answer(text: str) -> str:
        await run_step(lambda: ran.update(["answer"]), name="answer")
        return text.upper()

    agent = Agent(
        script.model, name="exhaustive", end_strategy="exhaustive", output_type=ToolOutput(answer, name="answer")
    )

    @agent.tool_plain
    async def work(number: int) -> int:
        ran[f"work {number}"] += 1
        await together.join()
        return number

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(agent, restate_context=ctx).run("go")
        return [run.output, say(run.all_messages())]

    output, told = serve_handler(env_factory, "Exhaustive", handler)()

    assert "DONE" == output
    assert {"0", "1"} < set(told.split("; "))
    assert {"work 0": 1, "work 1": 1, "answer": 1} == ran
    assert 1 == script.requests


# --- tools that make their own steps ----------------------------------------------------------------------------


def test_tools_with_several_steps_each(env_factory: Serve) -> None:
    """Four tools that make three steps each overlap at every step, and each step runs once."""
    script = Script(numbered("work", 4), say)
    ran: Counter[str] = Counter()
    together = Crowd(4)
    agent = Agent(script.model, name="several")

    async def body(number: int, place: int) -> str:
        ran[f"{number}.{place}"] += 1
        if place == 0:
            await together.join()
        return f"{number}.{place}"

    @agent.tool_plain(metadata=OWN_STEPS)
    async def work(number: int) -> str:
        return " ".join([await run_step(body, number, place, name="work") for place in range(3)])

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    answer, names = serve_handler(env_factory, "SeveralSteps", handler).with_steps()

    expected = [[f"{number}.{place}" for place in range(3)] for number in range(4)]
    assert "; ".join(" ".join(one) for one in expected) == answer
    assert {place: 1 for one in expected for place in one} == ran
    assert 4 == together.most
    assert 14 == len(names)
    assert 2 == script.requests


def test_raw_awaits_in_parallel_tools(env_factory: Serve) -> None:
    """Parallel tools that sleep, run, wait for awakeables and call services through the SDK end, each once."""
    script = Script(
        [("nap", {}), ("run", {}), ("receive", {"name": "a"}), ("receive", {"name": "b"}), ("call", {})], say
    )
    ran: Counter[str] = Counter()
    tokens: dict[str, str] = {}
    agent = Agent(script.model, name="raw")

    @agent.tool_plain(metadata=OWN_STEPS)
    async def nap() -> str:
        ctx = restate_context()
        await ctx.sleep(timedelta(milliseconds=5))
        await ctx.sleep(timedelta(milliseconds=5))
        return "slept"

    @agent.tool_plain(metadata=OWN_STEPS)
    async def run() -> str:
        def body(place: int) -> int:
            ran[f"run {place}"] += 1
            return place

        ctx = restate_context()
        first = await ctx.run_typed("first", body, place=1)
        second = await ctx.run_typed("second", body, place=2)
        return f"ran {first} {second}"

    @agent.tool_plain(metadata=OWN_STEPS)
    async def receive(name: str) -> str:
        token, answer = restate_context().awakeable(type_hint=str)
        tokens[name] = token
        return f"got {await answer}"

    service = restate.Service("RawAwaits")

    @service.handler()
    async def echo(ctx: restate.Context, word: str) -> str:
        ran[f"echo {word}"] += 1
        return word

    @agent.tool_plain(metadata=OWN_STEPS)
    async def call() -> str:
        ctx = restate_context()
        return f"{await ctx.service_call(echo, 'x')} {await ctx.service_call(echo, 'y')}"

    @service.handler(name="run")
    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    env = env_factory(service)
    invocation = env.send("RawAwaits", "run")
    eventually(lambda: len(tokens) == 2)
    env.resolve_awakeable(tokens["b"], "B")
    env.resolve_awakeable(tokens["a"], "A")

    assert "slept; ran 1 2; got A; got B; x y" == env.attach(invocation)
    assert {"run 1": 1, "run 2": 1, "echo x": 1, "echo y": 1} == ran
    assert 2 == script.requests


def test_concurrency_inside_parallel_tools(env_factory: Serve) -> None:
    """Parallel tools may gather branches of their own, and limit their waits with durable timers."""
    script = Script([*numbered("work", 2), ("wait", {})], say)
    ran: Counter[tuple[int, int]] = Counter()
    agent = Agent(script.model, name="nested")

    @agent.tool_plain(metadata=OWN_STEPS)
    async def work(number: int) -> list[int]:
        async def body(place: int) -> int:
            ran[number, place] += 1
            return place

        async def branch(place: int) -> int:
            return 10 * await run_step(body, place, name="first") + await run_step(body, place + 3, name="second")

        return list(await gather(*(branch(place) for place in range(3))))

    @agent.tool_plain(metadata=OWN_STEPS)
    async def wait() -> str:
        _, answer = restate_context().awakeable(type_hint=str)
        try:
            return await wait_for(answer, timedelta(milliseconds=20))
        except TimeoutError:
            return await run_step(lambda: "late", name="late")

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        await ctx.sleep(timedelta(milliseconds=1))
        return output

    assert "[3, 14, 25]; [3, 14, 25]; late" == serve_handler(env_factory, "NestedBranches", handler)()
    assert {(number, place): 1 for number in range(2) for place in range(6)} == ran


def test_state_in_parallel_tools(env_factory: Serve) -> None:
    """Parallel tools that make their own steps may read and write the state of an object."""
    script = Script(
        [("put", {"key": "a"}), ("put", {"key": "b"}), ("get", {"key": "c"})],
        [("get", {"key": "a"}), ("get", {"key": "b"})],
        say,
    )
    agent = Agent(script.model, name="keeper")

    @agent.tool_plain(metadata=OWN_STEPS)
    async def put(key: str) -> str:
        value = await run_step(lambda: key.upper(), name="value")
        restate_context().set(key, value)
        return "kept"

    @agent.tool_plain(metadata=OWN_STEPS)
    async def get(key: str) -> str:
        return str(await restate_context().get(key))

    keeper = restate.VirtualObject("Keeper")

    @keeper.handler()
    async def run(ctx: restate.ObjectContext) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "kept; kept; None; A; B" == env_factory(keeper).call("Keeper", "run", key="k")


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_parallel_tools_over_http1(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """Parallel tools work in the request/response mode, too, and run everything once."""
    script = Script(numbered("work", 4), numbered("work", 2), say)
    ran: Counter[tuple[int, int]] = Counter()
    agent = Agent(script.model, name="plain")

    @agent.tool(metadata=metadata)
    async def work(ctx: RunContext[None], number: int) -> int:
        await run_step(lambda: ran.update([(ctx.run_step, number)]), name="first")
        return await run_step(lambda: number, name="second")

    name = "Http1Unwrapped" if metadata else "Http1Wrapped"
    service = restate.Service(name)

    @service.handler(name="run")
    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "0; 1; 2; 3; 0; 1" == env_factory(service, http1=True).call(name, "run")
    assert {(turn, number): 1 for turn, count in ((1, 4), (2, 2)) for number in range(count)} == ran
    assert 3 == script.requests


# --- how many ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_max_parallel_tools_bounds(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """With max_parallel_tools=2, six calls run two at a time, never three."""
    script = Script(numbered("work", 6), say)
    ran: Counter[int] = Counter()
    together = Crowd(2)
    agent = Agent(script.model, name="bounded")

    async def body(number: int) -> int:
        ran[number] += 1
        await together.join()
        return number

    @agent.tool_plain(metadata=metadata)
    async def work(number: int) -> int:
        return await run_step(body, number, name="work")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, max_parallel_tools=2).run("go")).output

    name = "BoundedUnwrapped" if metadata else "BoundedWrapped"
    assert "0; 1; 2; 3; 4; 5" == serve_handler(env_factory, name, handler)()
    assert dict.fromkeys(range(6), 1) == ran
    assert 2 == together.most


def test_max_parallel_tools_of_one(env_factory: Serve) -> None:
    """With max_parallel_tools=1, calls run one after another, in order."""
    script = Script(numbered("work", 3), say)
    order: list[str] = []
    agent = Agent(script.model, name="single")

    @agent.tool_plain
    async def work(number: int) -> int:
        order.append(f"{number} in")
        await asyncio.sleep(0)
        order.append(f"{number} out")
        return number

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, max_parallel_tools=1).run("go")).output

    assert "0; 1; 2" == serve_handler(env_factory, "SingleFile", handler)()
    assert ["0 in", "0 out", "1 in", "1 out", "2 in", "2 out"] == order


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_many_tools_at_once(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """Thirty-two calls of one response are inside at the same time, and each body runs once."""
    script = Script(numbered("work", 32), say)
    ran: Counter[int] = Counter()
    together = Crowd(32)
    agent = Agent(script.model, name="many")

    async def body(number: int) -> int:
        ran[number] += 1
        await together.join()
        return number

    @agent.tool_plain(metadata=metadata)
    async def work(number: int) -> int:
        return await run_step(body, number, name="work")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    answer = serve_handler(env_factory, "ManyUnwrapped" if metadata else "ManyWrapped", handler)()

    assert "; ".join(map(str, range(32))) == answer
    assert dict.fromkeys(range(32), 1) == ran
    assert 32 == together.most
    assert 2 == script.requests


# --- several agents ---------------------------------------------------------------------------------------------


def test_agents_with_parallel_tools_under_gather(env_factory: Serve) -> None:
    """Three agents under gather, whose parallel tools make steps of their own, overlap and run everything once."""
    ran: Counter[str] = Counter()
    together = Crowd(6)
    scripts = {name: Script(numbered("work", 2), numbered("work", 2), say) for name in "abc"}

    def agent_named(name: str) -> Agent[None, str]:
        agent = Agent(scripts[name].model, name=name)

        @agent.tool(metadata=OWN_STEPS if name == "b" else None)
        async def work(ctx: RunContext[None], number: int) -> str:
            async def body() -> str:
                ran[f"{name}{ctx.run_step}.{number}"] += 1
                if ctx.run_step == 1:
                    await together.join()
                return f"{name}{ctx.run_step}.{number}"

            return await run_step(body, name="work")

        return agent

    agents = {name: agent_named(name) for name in "abc"}

    async def one(name: str) -> str:
        return (await RestateAgent(agents[name]).run("go")).output

    async def handler(ctx: restate.Context) -> list[str]:
        first = await gather(*(one(name) for name in "abc"))
        await ctx.sleep(timedelta(milliseconds=1))
        return list(first)

    expected = {name: [f"{name}{turn}.{number}" for turn in (1, 2) for number in (0, 1)] for name in "abc"}
    assert ["; ".join(one) for one in expected.values()] == serve_handler(env_factory, "GatheredAgents", handler)()
    assert {work: 1 for one in expected.values() for work in one} == ran
    assert 6 == together.most
    assert [3, 3, 3] == [script.requests for script in scripts.values()]


def test_two_agents_in_one_handler(env_factory: Serve) -> None:
    """Two agents that run one after the other, the second with what the first said, have slots of their own."""
    first_script = Script(numbered("work", 2), say)
    second_script = Script(numbered("work", 2), say)
    ran: Counter[str] = Counter()

    def agent_of(script: Script, name: str) -> Agent[None, str]:
        agent = Agent(script.model, name=name)

        @agent.tool_plain
        async def work(number: int) -> str:
            ran[f"{name}{number}"] += 1
            return f"{name}{number}"

        return agent

    first, second = agent_of(first_script, "x"), agent_of(second_script, "y")

    async def handler(ctx: restate.Context) -> list[str]:
        one = (await RestateAgent(first, restate_context=ctx).run("go")).output
        two = (await RestateAgent(second, restate_context=ctx).run(one)).output
        three = (await RestateAgent(first, restate_context=ctx).run(two)).output
        return [one, two, three]

    answer, names = serve_handler(env_factory, "TwoAgents", handler).with_steps()

    assert ["x0; x1", "y0; y1", "x0; x1"] == answer
    assert {"x0": 2, "x1": 2, "y0": 1, "y1": 1} == ran
    assert [4, 2] == [first_script.requests, second_script.requests]
    assert 12 == len(names)


def test_usage_of_sub_agents(env_factory: Serve) -> None:
    """Sub-agents that add to the usage of the run that calls them do so on a replay as on the first run."""
    inner_script = Script(("look", {}), say)
    script = Script([("wrapped", {}), ("unwrapped", {}), ("wrapped", {})], ("wrapped", {}), say)
    ran: Counter[str] = Counter()
    inner = Agent(inner_script.model, name="inner")
    outer = Agent(script.model, name="outer")
    attempts: list[Any] = []

    @inner.tool_plain
    async def look() -> str:
        ran["look"] += 1
        return "seen"

    @outer.tool
    async def wrapped(ctx: RunContext[None]) -> str:
        return (await RestateAgent(inner).run("go", usage=ctx.usage)).output

    @outer.tool(metadata=OWN_STEPS)
    async def unwrapped(ctx: RunContext[None]) -> str:
        return (await RestateAgent(inner).run("go", usage=ctx.usage)).output

    async def handler(ctx: restate.Context) -> list[Any]:
        run = await RestateAgent(outer, restate_context=ctx).run("go")
        await ctx.sleep(timedelta(milliseconds=1))
        usage = run.usage
        attempts.append([run.output, usage.requests, usage.tool_calls, usage.input_tokens, usage.output_tokens])
        await ctx.sleep(timedelta(milliseconds=1))
        return list(attempts[-1])

    answer = serve_handler(env_factory, "SubUsage", handler)()

    # Three requests of the outer agent and two of each of the four inner runs; a call of a tool likewise.
    assert ["seen; seen; seen; seen", 3 + 4 * 2, 4 + 4] == answer[:3]
    assert answer[3] > 0
    assert all(attempt == answer for attempt in attempts)
    assert {"look": 4} == ran
    assert [8, 3] == [inner_script.requests, script.requests]


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ProgressEvent(CustomEvent):
    """The progress of a tool."""

    number: int
    done: int


@pytest.mark.parametrize("metadata", [None, OWN_STEPS], ids=["wrapped", "unwrapped"])
def test_custom_events_of_parallel_tools(env_factory: Serve, metadata: dict[str, Any] | None) -> None:
    """Events of parallel tools reach the event handler once, in the order of each tool, with its call's id."""
    script = Script(numbered("work", 3), say)
    seen: list[tuple[str | None, int, int]] = []
    steps_of: set[str] = set()
    ran: Counter[int] = Counter()
    agent = Agent(script.model, name="emitting")

    @agent.tool(metadata=metadata)
    async def work(ctx: RunContext[None], number: int) -> int:
        for done in range(3):
            await run_step(lambda: ran.update([number]), name="work")
            await ctx.emit(ProgressEvent(number=number, done=done))
        return number

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if isinstance(event, ProgressEvent):
                seen.append((event.tool_call_id, event.number, event.done))
                steps_of.add(step_info().name.partition(" ")[0])

    async def handler(ctx: restate.Context) -> str:
        agent_here = RestateAgent(agent, restate_context=ctx, event_stream_handler=watch)
        output = (await agent_here.run("go")).output
        await ctx.sleep(timedelta(milliseconds=1))
        return output

    name = "EmittingUnwrapped" if metadata else "EmittingWrapped"
    assert "0; 1; 2 " == serve_handler(env_factory, name, handler)()
    assert {0: 3, 1: 3, 2: 3} == ran
    for number in range(3):
        assert [(f"0-{number}", number, done) for done in range(3)] == [one for one in seen if one[1] == number]
    assert 9 == len(seen)
    assert {"emitting__event_stream_handler"} == steps_of
    assert 2 == script.requests


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_custom_events_with_a_limit(env_factory: Serve, limit: int | None) -> None:
    """With few tools at once, wrapped and unwrapped ones that emit still end, and each event is delivered once."""
    first, second = [*numbered("wrapped", 2), *numbered("own", 3)], [("own", {"number": 3}), ("wrapped", {"number": 2})]
    script = Script(first, second, say)
    seen: Counter[tuple[str | None, int, int]] = Counter()
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="emitting")

    async def work(ctx: RunContext[None], number: int) -> int:
        for done in range(2):
            await run_step(lambda: ran.update([f"{ctx.tool_call_id} {done}"]), name="work")  # noqa: B023
            await ctx.emit(ProgressEvent(number=number, done=done))
            await ctx.emit(ProgressEvent(number=number, done=done + 10))
        return number

    agent.tool(name="wrapped")(work)
    agent.tool(name="own", metadata=OWN_STEPS)(work)

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if isinstance(event, ProgressEvent):
                seen[event.tool_call_id, event.number, event.done] += 1

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx, event_stream_handler=watch, max_parallel_tools=limit)
        return (await durable.run("go")).output

    assert "0; 1; 0; 1; 2; 3; 2 " == serve_handler(env_factory, f"Limited{limit}", handler)()
    calls = {"0-0": 0, "0-1": 1, "0-2": 0, "0-3": 1, "0-4": 2, "1-0": 3, "1-1": 2}
    assert {(call, number, done): 1 for call, number in calls.items() for done in (0, 10, 1, 11)} == seen
    assert {f"{call} {done}": 1 for call in calls for done in range(2)} == ran


@pytest.mark.parametrize("watched", [False, True], ids=["plain", "with events"])
def test_sub_agents_in_parallel_tools(env_factory: Serve, watched: bool) -> None:
    """Sub-agents in parallel tools, with parallel tools of their own, run everything once and share the usage."""
    inner_script = Script(numbered("look", 3), say)
    script = Script(numbered("ask", 3), say)
    ran: Counter[tuple[str, int]] = Counter()
    seen: Counter[tuple[str, int]] = Counter()
    usages: set[tuple[int, int]] = set()
    inner = Agent(inner_script.model, name="inner", deps_type=str)
    outer = Agent(script.model, name="outer")

    async def watch(ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if isinstance(event, ProgressEvent):
                seen[ctx.deps, event.number] += 1

    handler_of_events = watch if watched else None

    @inner.tool(metadata=OWN_STEPS)
    async def look(ctx: RunContext[str], number: int) -> int:
        await run_step(lambda: ran.update([(ctx.deps, number)]), name="look")
        await ctx.emit(ProgressEvent(number=number, done=0))
        return number

    @outer.tool(metadata=OWN_STEPS)
    async def ask(ctx: RunContext[None], number: int) -> str:
        durable = RestateAgent(inner, event_stream_handler=handler_of_events)
        return (await durable.run("go", deps=str(number), usage=ctx.usage)).output

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(outer, restate_context=ctx, event_stream_handler=handler_of_events)
        run = await durable.run("go")
        await ctx.sleep(timedelta(milliseconds=1))
        usages.add((run.usage.requests, run.usage.tool_calls))
        return run.output

    answer = serve_handler(env_factory, f"SubAgents{watched}", handler)()

    assert ["0", "1", "2"] * 3 == [one.strip() for one in answer.split(";")]
    assert {(str(number), place): 1 for number in range(3) for place in range(3)} == ran
    assert (dict(ran) if watched else {}) == seen
    assert {(2 + 3 * 2, 3 + 3 * 3)} == usages
    assert [6, 2] == [inner_script.requests, script.requests]
