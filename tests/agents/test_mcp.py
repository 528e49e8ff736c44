"""MCP servers and dynamic toolsets, on real servers: on stdio, in memory, and over HTTP."""

# | no.  | scenario                                   | tests; t_a means test_agent.py                           |
# |------|--------------------------------------------|----------------------------------------------------------|
# | 48   | real stdio server                          | test_server_on_stdio; t_a: test_toolsets_without_an_id   |
# | 49   | cache_tools                                | test_one_listing_a_run, test_one_listing_a_step          |
# | 50   | instructions with a warm server            | test_instructions_are_a_step                             |
# | 51   | include_instructions=False                 | test_no_instructions_no_step                             |
# | 52   | {'restate': False} on an MCP tool          | test_mcp_tool_cannot_opt_out                             |
# | 53   | the agent's retry budget                   | test_budget_of_an_mcp_tool                               |
# |      | over HTTP                                  | test_server_over_http                                    |
# |      | connections only inside steps              | test_connections_are_made_in_steps                       |
# |      | tools/list_changed                         | test_tools_that_change_are_discovered_again              |
# |      | several servers and calls at once          | test_parallel_calls_of_several_servers                   |
# | 54   | several discovered concurrently            | test_dynamic_toolsets_are_discovered_at_once             |
# | 55   | invalid arguments or ModelRetry inside     | test_retry_prompts_of_a_dynamic_toolset                  |
# | 56   | instructions journaled, refreshed          | test_instructions_of_a_dynamic_toolset                   |
# | 57   | no id                                      | test_dynamic_toolsets_without_an_id                      |

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import restate
from fastmcp.client.transports import FastMCPTransport, PythonStdioTransport
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.capabilities import Capability, DynamicCapability
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import FunctionToolset

import restate_steps
from restate_steps import step_info
from restate_steps.agents import RestateAgent
from restate_steps.server import AppServer
from tests.support import ROOT
from tests.support.agents_kit import SESSIONS_LEFT_OPEN, Crowd, Script, Serve, returned, serve_handler
from tests.support.harness import Harness, InvocationFailed

pytestmark = SESSIONS_LEFT_OPEN


def say(messages: list[ModelMessage]) -> str:
    """Repeat what the tools returned."""
    return "; ".join(str(content) for content in returned(messages))


def outcomes(messages: list[ModelMessage]) -> list[str]:
    """Return the outcomes of the calls, and what the model got."""
    parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    return [f"{part.outcome}: {part.content}" for part in parts]


def instructions(messages: list[ModelMessage]) -> list[str]:
    """The instructions of each request of a run."""
    return [message.instructions or "" for message in messages if isinstance(message, ModelRequest)]


def of_kind(kind: str, names: list[str]) -> list[str]:
    """The names of steps that contain a word."""
    return [name for name in names if kind in name]


class Desk:
    """An MCP server in memory that counts what happens to it.

    Attributes:
        seen: How often the tools were listed and called, and how often somebody connected and left.
        connected_in: The steps in which somebody connected; an empty string outside of a step.
    """

    def __init__(self, *, instructions: str | None = None, legacy: bool = False) -> None:
        self.seen: Counter[str] = Counter()
        self.connected_in: list[str] = []
        self.server: MCPServer[Any] = MCPServer("desk", instructions=instructions, middleware=[self._count])
        self._legacy = legacy

    def toolset(self, **options: Any) -> MCPToolset[Any]:
        desk = self

        class Transport(FastMCPTransport):
            legacy_only = desk._legacy

            @asynccontextmanager
            async def connect_session(self, **arguments: Any) -> AsyncGenerator[Any]:
                try:
                    desk.connected_in.append(step_info().name)
                except RuntimeError:
                    desk.connected_in.append("")
                desk.seen["connected"] += 1
                try:
                    async with super().connect_session(**arguments) as session:
                        yield session
                finally:
                    desk.seen["left"] += 1

        return MCPToolset(Transport(self.server), **options)

    async def _count(self, ctx: Any, call_next: Any) -> Any:
        self.seen[str(ctx.method)] += 1
        return await call_next(ctx)


def desk_that_files(**options: Any) -> Desk:
    """A server with the tools ``file`` and ``shred``."""
    desk = Desk(**options)

    @desk.server.tool()
    def file(name: str) -> str:
        desk.seen[f"file({name})"] += 1
        return f"filed {name}"

    @desk.server.tool()
    def shred(name: str) -> str:
        desk.seen[f"shred({name})"] += 1
        raise ToolError(f"{name} is needed")

    return desk


def handler_of(agent: Agent[None, str]) -> Callable[..., Any]:
    """A handler that runs an agent, and is replayed once more after that."""

    async def handler(ctx: restate.Context) -> dict[str, Any]:
        run = await RestateAgent(agent, restate_context=ctx).run("go")
        await ctx.sleep(timedelta(milliseconds=1))
        messages = run.all_messages()
        return {"output": run.output, "outcomes": outcomes(messages), "instructions": instructions(messages)}

    return handler


# --- servers ----------------------------------------------------------------------------------------------------


def test_server_on_stdio(env_factory: Serve, harness: Harness, tmp_path: Path) -> None:
    """A server on stdio is called once for each call, its error is a retry prompt, and its sessions are closed."""
    ledger = tmp_path / "ledger"
    # The process ends with the session, which the last line in the ledger tells.
    transport = PythonStdioTransport(ROOT / "tests" / "support" / "mcp_clerk.py", [str(ledger)], keep_alive=False)
    toolset = MCPToolset[None](transport, id="clerk", include_instructions=True)
    script = Script(("file", {"name": "a"}), ("shred", {"name": "contract"}), ("shred", {"name": "b"}), say)
    agent = Agent(script.model, name="office", toolsets=[toolset])

    answer, names = serve_handler(env_factory, "OnStdio", handler_of(agent)).with_steps()

    filed, refused, shredded = answer["outcomes"]
    assert "success: filed a" == filed
    assert refused.startswith("retried: ")
    assert "the contract is needed" in refused
    assert "success: shredded b" == shredded
    assert all("Ask for one thing at a time." in text for text in answer["instructions"])
    noted = Counter(ledger.read_text().split())
    assert {"file(a)": 1, "shred(contract)": 1, "shred(b)": 1} == {k: n for k, n in noted.items() if "(" in k}
    if not harness.always_replay:
        assert 1 == noted["up"]
        assert 1 == noted["down"]
    assert [
        "office__mcp_server__clerk.call_tool:file",
        "office__mcp_server__clerk.call_tool:shred",
        "office__mcp_server__clerk.call_tool:shred",
    ] == of_kind("call_tool", names)


def test_server_over_http(env_factory: Serve, harness: Harness) -> None:
    """A run lists the tools of a server over HTTP once, and sends each call once."""
    methods: Counter[str] = Counter()
    desk = desk_that_files()
    inner = desk.server.streamable_http_app()

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        async def counted() -> Any:
            message = await receive()
            if message["type"] == "http.request" and message.get("body"):
                methods[json.loads(message["body"])["method"]] += 1
            return message

        await inner(scope, counted if scope["type"] == "http" else receive, send)

    script = Script([("file", {"name": "a"}), ("file", {"name": "b"})], say)
    with AppServer(counting, http1=True) as server:
        agent = Agent(script.model, name="web", toolsets=[MCPToolset(f"{server.url}/mcp", id="desk")])
        answer, names = serve_handler(env_factory, "OverHttp", handler_of(agent)).with_steps()

    assert "filed a; filed b" == answer["output"]
    assert {"file(a)": 1, "file(b)": 1} == {key: n for key, n in desk.seen.items() if "(" in key}
    assert 2 == methods["tools/call"]
    # A new session asks again, by itself, for the form of the results.
    assert methods["tools/list"] == 1 or harness.always_replay
    assert ["web__mcp_server__desk.get_tools"] == of_kind("get_tools", names)
    assert 2 == script.requests


def test_connections_are_made_in_steps(env_factory: Serve, harness: Harness) -> None:
    """A connection is made in a step that needs it, once a run; an attempt that only replays makes none."""
    desk = desk_that_files(instructions="be brief")
    script = Script(("file", {"name": "a"}), ("file", {"name": "b"}), say)
    agent = Agent(script.model, name="office", toolsets=[desk.toolset(id="desk", include_instructions=True)])
    counts: list[int] = []

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        for _ in range(3):
            counts.append(desk.seen["connected"])
            await ctx.sleep(timedelta(milliseconds=1))
        return output

    answer, names = serve_handler(env_factory, "InSteps", handler).with_steps()

    assert "filed a; filed b" == answer
    assert "" not in desk.connected_in
    assert all("__mcp_server__desk." in name for name in desk.connected_in)
    assert 1 == len(set(counts))
    if harness.always_replay:
        assert len(of_kind("__mcp_server__", names)) >= desk.seen["connected"]
    else:
        assert 1 == desk.seen["connected"]
        assert 1 == desk.seen["left"]


# --- discovery --------------------------------------------------------------------------------------------------


def test_one_listing_a_run(env_factory: Serve, harness: Harness) -> None:
    """With the cache, a run lists the tools of a server once, in one step."""
    desk = desk_that_files()
    script = Script(("file", {"name": "a"}), ("file", {"name": "b"}), say)
    agent = Agent(script.model, name="office", toolsets=[desk.toolset(id="desk")])

    answer, names = serve_handler(env_factory, "OneListing", handler_of(agent)).with_steps()

    assert "filed a; filed b" == answer["output"]
    assert desk.seen["tools/list"] == 1 or harness.always_replay
    assert ["office__mcp_server__desk.get_tools"] == of_kind("get_tools", names)


def test_one_listing_a_step(env_factory: Serve, harness: Harness) -> None:
    """Without the cache, a run lists the tools of a server before each request, in one step each."""
    desk = desk_that_files()
    script = Script(("file", {"name": "a"}), ("file", {"name": "b"}), say)
    agent = Agent(script.model, name="office", toolsets=[desk.toolset(id="desk", cache_tools=False)])

    answer, names = serve_handler(env_factory, "ListingAStep", handler_of(agent)).with_steps()

    assert "filed a; filed b" == answer["output"]
    assert 3 == len(of_kind("get_tools", names))
    assert desk.seen["tools/list"] == 3 or harness.always_replay
    assert {"file(a)": 1, "file(b)": 1} == {key: n for key, n in desk.seen.items() if "(" in key}


def test_tools_that_change_are_discovered_again(env_factory: Serve) -> None:
    """When the server says that its tools have changed, the next request offers the new ones, on a replay as well."""
    desk = Desk(legacy=True)

    def grown() -> str:
        desk.seen["grown()"] += 1
        return "fruit"

    @desk.server.tool()
    async def grow(ctx: Context) -> str:
        desk.seen["grow()"] += 1
        desk.server.add_tool(grown, name="grown")
        await ctx.session.send_tool_list_changed()
        return "done"

    script = Script(("grow", {}), ("grown", {}), say)
    agent = Agent(script.model, name="garden", toolsets=[desk.toolset(id="desk")])

    answer, names = serve_handler(env_factory, "Growing", handler_of(agent)).with_steps()

    assert ["success: done", "success: fruit"] == answer["outcomes"]
    assert {"grow()": 1, "grown()": 1} == {key: n for key, n in desk.seen.items() if "()" in key}
    assert 2 == len(of_kind("get_tools", names))
    assert 3 == script.requests


def work_at(desk: Desk, together: Crowd) -> Callable[..., Any]:
    """A tool of a server that continues only once others are inside too."""

    async def work(number: int) -> str:
        desk.seen[f"work({number})"] += 1
        await together.join()
        return f"{number}"

    return work


def test_parallel_calls_of_several_servers(env_factory: Serve) -> None:
    """Calls of two servers in one response are inside at the same time, and each is made once."""
    together = Crowd(4)
    desks = [Desk(), Desk()]
    for place, desk in enumerate(desks):
        desk.server.add_tool(work_at(desk, together), name=f"work_{place}")
    calls = [(f"work_{number % 2}", {"number": number}) for number in range(4)]
    script = Script(calls, say)
    agent = Agent(script.model, name="office", toolsets=[desk.toolset(id=f"d{n}") for n, desk in enumerate(desks)])

    answer, names = serve_handler(env_factory, "SeveralServers", handler_of(agent)).with_steps()

    assert "0; 1; 2; 3" == answer["output"]
    assert {"work(0)": 1, "work(2)": 1} == {key: n for key, n in desks[0].seen.items() if "(" in key}
    assert {"work(1)": 1, "work(3)": 1} == {key: n for key, n in desks[1].seen.items() if "(" in key}
    assert 4 == together.most
    assert 2 == len(of_kind("get_tools", names))


# --- instructions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_instructions_are_a_step(env_factory: Serve, warm: bool) -> None:
    """The instructions of a server are recorded as a step, whether or not the handler has connected before."""
    desk = desk_that_files(instructions="be brief")
    script = Script(("file", {"name": "a"}), say)
    toolset = desk.toolset(id="desk", include_instructions=True)
    agent = Agent(script.model, name="office", toolsets=[toolset])
    plain = handler_of(agent)

    async def handler(ctx: restate.Context) -> Any:
        if not warm:
            return await plain(ctx)
        async with restate_steps.local(toolset):
            return await plain(ctx)

    answer, names = serve_handler(env_factory, f"Instructed{warm}", handler).with_steps()

    assert "filed a" == answer["output"]
    assert all("be brief" in text for text in answer["instructions"])
    assert len(of_kind("get_instructions", names)) >= 1
    assert {"file(a)": 1} == {key: n for key, n in desk.seen.items() if "(" in key}


def test_no_instructions_no_step(env_factory: Serve) -> None:
    """The instructions of a server are requested only if they are included."""
    desk = desk_that_files(instructions="be brief")
    script = Script(("file", {"name": "a"}), say)
    agent = Agent(script.model, name="office", toolsets=[desk.toolset(id="desk", include_instructions=False)])

    answer, names = serve_handler(env_factory, "Uninstructed", handler_of(agent)).with_steps()

    assert not any("be brief" in text for text in answer["instructions"])
    assert [] == of_kind("get_instructions", names)


# --- options ----------------------------------------------------------------------------------------------------


def test_mcp_tool_cannot_opt_out(env_factory: Serve) -> None:
    """An MCP tool that is left out of steps is refused, terminally, before the server is called."""
    desk = desk_that_files()
    script = Script(("file", {"name": "a"}), say)

    async def opt_out(ctx: RunContext[None], tools: list[ToolDefinition]) -> list[ToolDefinition]:
        return [replace(tool, metadata={**(tool.metadata or {}), "restate": False}) for tool in tools]

    agent = Agent(script.model, name="office", toolsets=[desk.toolset(id="desk").prepared(opt_out)])

    with pytest.raises(InvocationFailed, match="MCP tool 'file'"):
        serve_handler(env_factory, "OptedOutMcp", handler_of(agent))()
    assert 0 == desk.seen["tools/call"]


def test_budget_of_an_mcp_tool(env_factory: Serve) -> None:
    """An MCP tool that keeps failing is called as often as the agent's budget says, then the run fails."""
    desk = desk_that_files()
    script = Script(("shred", {"name": "a"}))
    agent = Agent(script.model, name="office", retries=2, toolsets=[desk.toolset(id="desk")])

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent, restate_context=ctx).run("go")).output
        except UnexpectedModelBehavior as error:
            return str(error)

    assert "2" in serve_handler(env_factory, "McpBudget", handler)()
    assert 3 == desk.seen["shred(a)"]
    assert 3 == script.requests


# --- dynamic toolsets -------------------------------------------------------------------------------------------


def test_dynamic_toolsets_are_discovered_at_once(env_factory: Serve) -> None:
    """Three dynamic toolsets list their tools at the same time, and each of their tools is called once."""
    together = Crowd(3)
    ran: Counter[str] = Counter()
    discovered: Counter[str] = Counter()
    script = Script([(f"tool_{name}", {}) for name in "abc"], say)
    agent = Agent(script.model, name="office")

    def add(name: str) -> None:
        async def tool() -> str:
            ran[name] += 1
            return name

        @agent.toolset(id=name, per_run_step=True)
        async def make(ctx: RunContext[None]) -> FunctionToolset[None]:
            if ctx.run_step == 1 and not discovered[name]:
                discovered[name] += 1
                await together.join()
            toolset: FunctionToolset[None] = FunctionToolset()
            toolset.add_function(tool, takes_ctx=False, name=f"tool_{name}")
            return toolset

    for name in "abc":
        add(name)

    answer, names = serve_handler(env_factory, "DiscoveredAtOnce", handler_of(agent)).with_steps()

    assert "a; b; c" == answer["output"]
    assert {"a": 1, "b": 1, "c": 1} == ran
    assert 3 == together.most
    for name in "abc":
        assert f"office__dynamic_toolset__{name}.call_tool:tool_{name}" in names
        assert f"office__dynamic_toolset__{name}.get_tools" in names


def test_retry_prompts_of_a_dynamic_toolset(env_factory: Serve) -> None:
    """Invalid arguments, and a ModelRetry, of a tool of a dynamic toolset are retry prompts."""
    ran: Counter[int] = Counter()
    script = Script(("double", {"number": "x"}), ("double", {"number": 1}), ("double", {"number": 2}), say)
    agent = Agent(script.model, name="office", retries=3)

    @agent.toolset(id="made")
    def make(ctx: RunContext[None]) -> FunctionToolset[None]:
        async def double(number: int) -> int:
            ran[number] += 1
            if number == 1:
                raise ModelRetry("1 is too small")
            return 2 * number

        return FunctionToolset([double])

    answer = serve_handler(env_factory, "DynamicRetry", handler_of(agent))()

    invalid, small, doubled = answer["outcomes"]
    assert invalid.startswith("retried: ")
    assert small.startswith("retried: ")
    assert "1 is too small" in small
    assert "success: 4" == doubled
    assert {1: 1, 2: 1} == ran
    assert 4 == script.requests


def test_instructions_of_a_dynamic_toolset(env_factory: Serve) -> None:
    """The instructions of a dynamic toolset are recorded, and refreshed before each request."""
    made: Counter[str] = Counter()
    script = Script(("look", {}), ("look", {}), say)
    agent = Agent(script.model, name="office")

    @agent.toolset(id="made", per_run_step=True)
    async def make(ctx: RunContext[None]) -> FunctionToolset[None]:
        made[f"{ctx.run_step}"] += 1

        async def look() -> str:
            made["look"] += 1
            return "seen"

        return FunctionToolset([look], instructions=f"step {ctx.run_step}, {made[f'{ctx.run_step}']}")

    answer = serve_handler(env_factory, "DynamicInstructions", handler_of(agent))()

    assert ["step 1, 1", "step 2, ", "step 3, "] == [
        text if place == 0 else text[:8] for place, text in enumerate(answer["instructions"])
    ]
    assert 2 == made["look"]
    assert 3 == script.requests


@pytest.mark.parametrize("kind", ["decorator", "capability", "function"])
def test_dynamic_toolsets_without_an_id(env_factory: Serve, kind: str) -> None:
    """A dynamic toolset without an id, or a bare capability function, gets a stable name, and its tool runs once."""
    ran: Counter[str] = Counter()
    script = Script(("look", {}), ("look", {}), say)

    async def look() -> str:
        ran["look"] += 1
        return "seen"

    def make(ctx: RunContext[None]) -> FunctionToolset[None]:
        return FunctionToolset([look])

    def make_capability(ctx: RunContext[None]) -> Capability[None]:
        return Capability(tools=[look])

    capabilities: dict[str, Any] = {
        "decorator": [],
        "capability": [DynamicCapability(make_capability)],
        "function": [make_capability],
    }
    agent: Agent[None, str] = Agent(script.model, name="office", capabilities=capabilities[kind])
    if kind == "decorator":
        agent.toolset(make)

    served = serve_handler(env_factory, f"Unnamed{kind.title()}", handler_of(agent))
    first, names = served.with_steps()
    second, names_again = served.with_steps()

    assert "seen; seen" == first["output"] == second["output"]
    assert {"look": 4} == ran
    assert names == names_again
    assert 2 == len(of_kind("call_tool:look", names))
