"""What is open costs the simulator nothing while it is idle, and what is in flight is waited for in real time."""

from __future__ import annotations

import asyncio
import signal
import socketserver
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import anyio
import httpx
import pytest
import restate
from fastmcp.client.transports import PythonStdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import restate_steps
from restate_steps import durable_step
from restate_steps.agents import RestateAgent
from restate_steps.testing import simulate
from restate_steps.testing._simulation import loop as simulated_loop
from tests.support import ROOT

CLERK = ROOT / "tests" / "support" / "mcp_clerk.py"
ECHO = "import sys, time\nfor line in sys.stdin:\n    time.sleep(0.2)\n    print(line, end='', flush=True)"
REAL_SECONDS = 0.2


# --- things that can be open ----------------------------------------------------------------------------------------


class Line:
    """A pipe to a program that repeats what it is told, after a while; a task reads what it says."""

    async def open(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self._program = await asyncio.create_subprocess_exec(sys.executable, "-c", ECHO, stdin=pipe, stdout=pipe)
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._program.stdout is not None
        while line := await self._program.stdout.readline():
            await self._heard.put(line)

    async def ask(self) -> str:
        assert self._program.stdin is not None
        self._program.stdin.write(b"hello\n")
        return (await self._heard.get()).decode().strip()

    async def close(self) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        await self._reader
        await self._program.wait()


class Pool:
    """A pool of connections to a web server, which keeps them."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> None:
        self._client = httpx.AsyncClient(trust_env=False)
        await self.ask()

    async def ask(self) -> str:
        return (await self._client.get(self._url)).text

    async def close(self) -> None:
        await self._client.aclose()


class Subscriber:
    """A connection on which a task listens, as that of a subscriber of Redis."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._news = asyncio.Event()
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            self._said = line.decode().strip()
            self._news.set()

    async def ask(self) -> str:
        self._writer.write(b"hello\n")
        await self._news.wait()
        return self._said

    async def close(self) -> None:
        self._writer.close()
        await self._listener


class Database:
    """A thread of its own that answers, as aiosqlite has one."""

    async def open(self) -> None:
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while (answer := self._asked.get()) is not None:
            time.sleep(REAL_SECONDS)
            answer()

    async def ask(self) -> str:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[str] = loop.create_future()
        self._asked.put(lambda: loop.call_soon_threadsafe(answered.set_result, "hello") and None)
        return await answered

    async def close(self) -> None:
        self._asked.put(None)
        self._thread.join()


class Program:
    """A program that nothing is read from."""

    async def open(self) -> None:
        self._idle = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")

    async def ask(self) -> str:
        code = f"import time; time.sleep({REAL_SECONDS})"
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        return "hello" if await program.wait() == 0 else "failed"

    async def close(self) -> None:
        self._idle.kill()
        await self._idle.wait()


class _Slow(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(REAL_SECONDS)
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: Any) -> None:
        pass


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            time.sleep(REAL_SECONDS)
            self.wfile.write(line)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture(params=["pipe", "pool", "subscriber", "database", "program"])
def thing(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Something that can be open, and that takes a while to answer."""
    kind = request.param
    if kind not in ("pool", "subscriber"):
        yield {"pipe": Line, "database": Database, "program": Program}[kind]()
        return
    address = ("127.0.0.1", 0)
    with ThreadingHTTPServer(address, _Slow) if kind == "pool" else _EchoServer(address, _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        yield Pool(f"http://127.0.0.1:{port}/") if kind == "pool" else Subscriber(port)
        server.shutdown()
        thread.join()


@durable_step
async def perform(action: Callable[[], Awaitable[Any]]) -> Any:
    return await action()


def app_of(handler: Callable[[restate.Context], Awaitable[Any]]) -> Any:
    service = restate.Service("Outside")
    service.handler("go")(handler)
    return restate_steps.app([service])


# --- idle -----------------------------------------------------------------------------------------------------------


async def nap() -> None:
    await asyncio.sleep(1)


async def nap_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(nap())
        group.create_task(nap())


async def nap_in_groups_of_anyio() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(nap_in_a_group)


async def nap_together() -> None:
    await asyncio.gather(nap(), asyncio.gather(nap(), nap()))


async def nap_within_a_limit() -> None:
    await asyncio.wait_for(nap(), 5)


async def wait_for_a_nap() -> None:
    await asyncio.wait([asyncio.create_task(nap())], timeout=5)


async def nap_behind_a_shield() -> None:
    await asyncio.shield(nap())


NAPS = [
    nap,
    nap_behind_a_shield,
    nap_in_a_group,
    nap_in_groups_of_anyio,
    nap_together,
    nap_within_a_limit,
    wait_for_a_nap,
]


async def test_what_is_idle_holds_up_no_time(thing: Any) -> None:
    """Time passes at once in steps and in the handler, whatever is open meanwhile."""

    async def handler(ctx: restate.Context) -> str:
        await perform(thing.open)
        for napping in NAPS:
            await perform(napping)
            await ctx.sleep(timedelta(seconds=1))
            await restate_steps.local(napping())
        answer: str = await perform(thing.ask)
        await perform(thing.close)
        return answer

    async with simulate(app_of(handler)) as sim:
        assert "hello" == (await sim.call("Outside/go")).value
        assert timedelta(seconds=3 * len(NAPS)) == sim.now
        assert 0 == sim.driver.trace.silences


# --- in flight ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limited", ["body", "handler", "local"])
async def test_what_is_in_flight_is_waited_for(thing: Any, limited: str) -> None:
    """A limit in virtual time is not reached while an answer is on its way in real time."""

    async def ask_within_a_limit() -> str:
        async with asyncio.timeout(60):
            return str(await thing.ask())

    async def handler(ctx: restate.Context) -> str:
        await perform(thing.open)
        if limited == "body":
            answer = str(await perform(ask_within_a_limit))
        else:
            async with asyncio.timeout(60):
                answer = str(await (perform(thing.ask) if limited == "handler" else restate_steps.local(thing.ask())))
        await perform(thing.close)
        return answer

    async with simulate(app_of(handler), disable_retries=True) as sim:
        assert "hello" == (await sim.call("Outside/go")).value
        assert timedelta(0) == sim.now
        assert 0 == sim.driver.trace.silences


async def test_a_handler_that_waits_outside_of_steps(thing: Any) -> None:
    """A handler under ``restate.app`` may await anything, and is waited for too."""
    service = restate.Service("Plain")

    @service.handler()
    async def handler(ctx: restate.Context) -> str:
        await thing.open()
        async with asyncio.timeout(5):
            answer: str = await thing.ask()
        await asyncio.sleep(1)
        await ctx.sleep(timedelta(seconds=1))
        await thing.close()
        return answer

    async with simulate(restate.app([service]), disable_retries=True) as sim:
        assert "hello" == (await sim.call("Plain/handler")).value
        assert timedelta(seconds=2) == sim.now
        assert 0 == sim.driver.trace.silences


async def test_an_answer_that_never_comes_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not come in real time holds up time no longer, so that the timeout of the step ends the wait."""
    line = Line()

    async def wait_forever() -> str:
        try:
            async with asyncio.timeout(60):
                await asyncio.Event().wait()
        except TimeoutError:
            return "gave up"
        return "heard"

    async def naps(count: int) -> None:
        for _ in range(count):
            await perform(nap)

    async def handler(ctx: restate.Context) -> str:
        await perform(line.open)
        with monkeypatch.context() as patch:
            patch.setattr(simulated_loop, "_ANSWER", 0.01)
            ended, _ = await restate_steps.gather(perform(wait_forever), naps(50))
        await perform(line.close)
        return str(ended)

    async with simulate(app_of(handler)) as sim:
        assert "gave up" == (await sim.call("Outside/go")).value
        assert timedelta(seconds=60) == sim.now
        assert 1 == sim.driver.trace.silences


# --- MCP servers ----------------------------------------------------------------------------------------------------


def calling(*tools: str) -> FunctionModel:
    """Return a model that calls tools one after another, and takes a minute for each answer."""

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        await asyncio.sleep(60)
        asked = sum(isinstance(message, ModelResponse) for message in messages)
        if asked < len(tools):
            return ModelResponse(parts=[ToolCallPart(tools[asked], {"name": "a"}, tool_call_id=f"call {asked}")])
        parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        return ModelResponse(parts=[TextPart("; ".join(str(part.content) for part in parts))])

    return FunctionModel(answer)


def rounded(now: timedelta) -> timedelta:
    """Leave out the time in which the end of a session polls for the end of the program."""
    return now - now % timedelta(minutes=1)


@asynccontextmanager
async def clerk(tmp_path: Path, **options: Any) -> AsyncIterator[MCPToolset[None]]:
    transport = PythonStdioTransport(CLERK, [str(tmp_path / "ledger")], keep_alive=False)
    yield MCPToolset[None](transport, id="clerk", **options)


@pytest.mark.parametrize("always_replay", [False, True])
async def test_an_mcp_server_on_stdio(tmp_path: Path, always_replay: bool) -> None:
    """A server that is a program costs no more than its answers take, however much time the agent lets pass."""
    async with clerk(tmp_path) as toolset:
        agent = Agent(calling("file", "file", "file"), name="office", toolsets=[toolset])

        async def handler(ctx: restate.Context) -> str:
            output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
            await ctx.sleep(timedelta(days=1))
            return output

        async with simulate(app_of(handler), always_replay=always_replay) as sim:
            result = await sim.call("Outside/go")
            assert "filed a; filed a; filed a" == result.value
            assert timedelta(days=1, minutes=4) == rounded(sim.now)
            assert 0 == sim.driver.trace.silences


@pytest.mark.parametrize("limit", ["of the session", "of the run", "around the run"])
async def test_a_tool_of_an_mcp_server_that_takes_a_while(tmp_path: Path, limit: str) -> None:
    """A limit in virtual time is not reached while the answer of a tool is on its way in real time."""
    options = {"read_timeout": 60} if limit == "of the session" else {}
    async with clerk(tmp_path, init_timeout=None, **options) as toolset:
        agent = Agent(calling("weigh"), name="office", toolsets=[toolset])

        async def handler(ctx: restate.Context) -> str:
            async with asyncio.timeout(3600 if limit == "around the run" else None):
                timeout = 3600 if limit == "of the run" else None
                return (await RestateAgent(agent, restate_context=ctx).run("go", timeout=timeout)).output

        async with simulate(app_of(handler), disable_retries=True) as sim:
            assert "a is light" == (await sim.call("Outside/go")).value
            assert timedelta(minutes=2) == rounded(sim.now)
            assert 0 == sim.driver.trace.silences


async def test_a_program_that_is_left_running() -> None:
    """It ends with the simulation, as a test must not leave programs behind."""
    programs: list[asyncio.subprocess.Process] = []

    async def handler(ctx: restate.Context) -> str:
        async def start() -> None:
            programs.append(await asyncio.create_subprocess_exec("sleep", "1000"))

        await ctx.run_typed("start", start)
        return "started"

    async with simulate(app_of(handler)) as sim:
        assert "started" == (await sim.call("Outside/go")).value
        [program] = programs
        assert program.returncode is None

    assert -signal.SIGKILL == program.returncode
