"""Measured defects of other integrations of agents in Restate, and our behavior instead; one test per row.

How fast it is, ``benchmarks/agents.py`` measures. Here it is counted what speed is made of: bodies that are inside at
the same time, and entries in the journal.
"""

# | case                                              | the others          | test                                     |
# |---------------------------------------------------|---------------------|------------------------------------------|
# | 4 parallel tool calls of 0.3 s                    | one after another   | test_four_calls_are_inside_at_once       |
# | two calls, the first with invalid arguments       | hangs forever       | test_first_call_invalid                  |
# | parallel tools with several ctx.run, replayed     | error 570, wedged   | test_several_runs_in_parallel_tools      |
# | the model answers HTTP 400                        | retried without end | test_model_answers_400                   |
# | 5 turns of 4 tools: time of a run                 | 142 ms              | test_five_turns_of_four_tools            |
# | the same, 16 at once                              | 8.5 a second        | test_sixteen_runs_at_once                |
# | ModelRetry from one of two tools                  | handler fails       | test_model_retry_beside_a_sibling        |
# | event handler, wrapped tools and a call           | TypeError           | test_event_handler_with_wrapped_tools    |
# | ToolReturn, BinaryContent from a tool             | content lost        | test_content_stays_intact                |
# | CallDeferred, ApprovalRequired: metadata          | dropped             | test_metadata_of_deferrals_is_kept       |
# | MCP: ModelRetry                                   | raised in the step  | test_mcp_error_is_a_retry_prompt         |
# | MCP: connection                                   | on every attempt    | test_mcp_connects_only_in_steps          |
# | run(model=...)                                    | refused             | test_model_of_the_run                    |

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import restate
from fastmcp.client.transports import FastMCPTransport
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic_ai import Agent, ModelRetry, RunContext, ToolReturn
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelHTTPError
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import AgentStreamEvent, BinaryContent, ModelMessage, ToolReturnPart, UserPromptPart
from pydantic_ai.tools import DeferredToolRequests

from restate_steps import restate_context, step_info
from restate_steps.agents import RestateAgent
from tests.support.agents_kit import Crowd, Script, Serve, returned, serve_handler, steps
from tests.support.harness import Harness, InvocationFailed


def say(messages: list[ModelMessage]) -> str:
    """Repeat what the tools returned."""
    return "; ".join(str(content) for content in returned(messages))


def numbered(name: str, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Several calls of one tool, numbered."""
    return [(name, {"number": number}) for number in range(count)]


def outcomes(messages: list[ModelMessage]) -> list[str]:
    """Return the outcomes of the calls."""
    parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    return [part.outcome for part in parts]


def test_four_calls_are_inside_at_once(env_factory: Serve) -> None:
    """Four calls of one response run together: none comes out before all four are in."""
    script = Script(numbered("work", 4), say)
    together = Crowd(4)
    ran: Counter[int] = Counter()
    agent = Agent(script.model, name="parallel")

    @agent.tool_plain
    async def work(number: int) -> int:
        ran[number] += 1
        await together.join()
        return number

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "0; 1; 2; 3" == serve_handler(env_factory, "FourCalls", handler)()
    assert 4 == together.most
    assert dict.fromkeys(range(4), 1) == ran


def test_first_call_invalid(env_factory: Serve) -> None:
    """A first call with invalid arguments becomes a retry prompt, the second runs, and the run completes."""
    script = Script([("double", {"number": "x"}), ("double", {"number": 2})], say)
    ran: Counter[int] = Counter()
    agent = Agent(script.model, name="invalid")

    @agent.tool_plain
    async def double(number: int) -> int:
        ran[number] += 1
        return 2 * number

    async def handler(ctx: restate.Context) -> list[str]:
        return outcomes((await RestateAgent(agent, restate_context=ctx).run("go")).all_messages())

    assert ["retried", "success"] == serve_handler(env_factory, "InvalidFirst", handler)()
    assert {2: 1} == ran


def test_several_runs_in_parallel_tools(env_factory: Serve) -> None:
    """Parallel tools with several ctx.run each end and are replayed, and every body runs once."""
    script = Script(numbered("work", 4), say)
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="runs")

    @agent.tool_plain(metadata={"restate": False})
    async def work(number: int) -> str:
        def body(place: int) -> str:
            ran[f"{number}.{place}"] += 1
            return f"{number}.{place}"

        ctx = restate_context()
        # Different numbers of them, so that the tools get out of step.
        parts = [await ctx.run_typed(f"work {number}.{place}", body, place=place) for place in range(number + 1)]
        return "+".join(parts)

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        await ctx.sleep(timedelta(milliseconds=1))
        return output

    expected = [[f"{number}.{place}" for place in range(number + 1)] for number in range(4)]
    assert "; ".join("+".join(one) for one in expected) == serve_handler(env_factory, "SeveralRuns", handler)()
    assert {place: 1 for one in expected for place in one} == ran


def test_model_answers_400(env_factory: Serve) -> None:
    """A request that the provider rejects is made once, and ends the invocation with the provider's status."""
    script = Script(ModelHTTPError(400, "script", {"error": "no such parameter"}))
    agent = Agent(script.model, name="rejected")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match="no such parameter") as failed:
        serve_handler(env_factory, "Answers400", handler)()
    assert 400 == failed.value.status
    assert 1 == script.requests


def five_turns(ran: Counter[str]) -> tuple[Script, Agent[str, str]]:
    """An agent whose model makes four calls in each of five turns."""
    script = Script(*[numbered("work", 4)] * 5, "done")
    agent = Agent(script.model, name="turns", deps_type=str)

    @agent.tool
    async def work(ctx: RunContext[str], number: int) -> int:
        ran[f"{ctx.deps} {ctx.run_step}.{number}"] += 1
        return number

    return script, agent


def test_five_turns_of_four_tools(env_factory: Serve) -> None:
    """Five turns of four calls are 26 steps, and nothing else is in the journal but the input and the output."""
    ran: Counter[str] = Counter()
    script, agent = five_turns(ran)

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go", deps="a")).output

    served = serve_handler(env_factory, "FiveTurns", handler)
    invocation = served.send()

    assert "done" == served.env.attach(invocation)
    assert 6 + 5 * 4 == len(steps(served.env, invocation))
    assert {"Command: Input": 1, "Command: Run": 26, "Notification: Run": 26, "Command: Output": 1} == Counter(
        entry.type for entry in served.env.server.admin.journal(invocation)
    )
    assert {f"a {turn}.{number}": 1 for turn in range(1, 6) for number in range(4)} == ran
    assert 6 == script.requests


def test_sixteen_runs_at_once(env_factory: Serve) -> None:
    """Sixteen invocations at once run side by side, and each body once."""
    ran: Counter[str] = Counter()
    script, agent = five_turns(ran)
    together = Crowd(16)

    async def handler(ctx: restate.Context, name: str) -> str:
        async def arrive() -> None:
            await together.join()

        await ctx.run_typed("arrive", arrive)
        return name + (await RestateAgent(agent, restate_context=ctx).run("go", deps=name)).output

    served = serve_handler(env_factory, "SixteenRuns", handler)
    names = [f"n{number}" for number in range(16)]
    invocations = [served.send(name) for name in names]

    assert [f"{name}done" for name in names] == [served.env.attach(invocation) for invocation in invocations]
    assert {f"{name} {turn}.{number}": 1 for name in names for turn in range(1, 6) for number in range(4)} == ran
    assert 16 == together.most
    assert 16 * 6 == script.requests


def test_model_retry_beside_a_sibling(env_factory: Serve) -> None:
    """A ModelRetry from one of two tools is a retry prompt; the sibling finishes, and the handler continues."""
    script = Script([("refuse", {}), ("work", {})], say)
    ran: Counter[str] = Counter()
    together = Crowd(2)
    agent = Agent(script.model, name="refusing")

    @agent.tool_plain
    async def refuse() -> str:
        ran["refuse"] += 1
        await together.join()
        raise ModelRetry("not now")

    @agent.tool_plain
    async def work() -> str:
        ran["work"] += 1
        await together.join()
        return "worked"

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(agent, restate_context=ctx).run("go")
        return [*outcomes(run.all_messages()), run.output]

    retried, success, output = serve_handler(env_factory, "RetryBeside", handler)()

    assert ["retried", "success"] == [retried, success]
    assert "not now" in output
    assert "worked" in output
    assert {"refuse": 1, "work": 1} == ran
    assert 2 == script.requests


def test_event_handler_with_wrapped_tools(env_factory: Serve) -> None:
    """An event handler and wrapped tools work together, and each event of a call is delivered once."""
    script = Script(numbered("work", 2), say)
    seen: Counter[str] = Counter()
    agent = Agent(script.model, name="watched")

    @agent.tool_plain
    async def work(number: int) -> int:
        return number

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            seen[event.event_kind] += 1

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx, event_stream_handler=watch)
        return (await durable.run("go")).output

    assert "0; 1 " == serve_handler(env_factory, "Watched", handler)()
    assert [2, 2] == [seen["function_tool_call"], seen["function_tool_result"]]
    assert 2 == script.requests


def test_content_stays_intact(env_factory: Serve) -> None:
    """A ToolReturn and a file from a tool reach the model as such, with their content."""
    seen: list[Any] = []

    def look(messages: list[ModelMessage]) -> Any:
        parts = [part for message in messages for part in message.parts]
        if len(returned(messages)) < 2:
            return [("film", {}), ("photo", {})]
        prompts = [part.content for part in parts if isinstance(part, UserPromptPart) and part.content != "go"]
        seen.extend(
            [returned(messages), prompts, [part.metadata for part in parts if isinstance(part, ToolReturnPart)]]
        )
        return "done"

    script = Script(look)
    agent = Agent(script.model, name="viewer")

    @agent.tool_plain
    async def film() -> ToolReturn[str]:
        return ToolReturn("a film", content=["see", BinaryContent(b"\x00", media_type="video/mp4")], metadata={"n": 1})

    @agent.tool_plain
    async def photo() -> BinaryContent:
        return BinaryContent(b"\xff\xd8", media_type="image/jpeg")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "done" == serve_handler(env_factory, "Intact", handler)()
    (a_film, a_photo), [[word, film_seen]], metadata = seen[:3]
    assert "a film" == a_film
    assert isinstance(a_photo, BinaryContent)
    assert (b"\xff\xd8", "image/jpeg") == (a_photo.data, a_photo.media_type)
    assert "see" == word
    assert (b"\x00", "video/mp4") == (film_seen.data, film_seen.media_type)
    assert [{"n": 1}, None] == metadata


def test_metadata_of_deferrals_is_kept(env_factory: Serve) -> None:
    """The metadata of a deferred call, and of one that wants approval, is there for the handler."""
    script = Script([("order", {}), ("pay", {})])
    agent = Agent(script.model, name="deferring", output_type=[str, DeferredToolRequests])

    @agent.tool_plain
    async def order() -> str:
        raise CallDeferred(metadata={"queue": "slow"})

    @agent.tool_plain
    async def pay() -> str:
        raise ApprovalRequired(metadata={"limit": 5})

    async def handler(ctx: restate.Context) -> Any:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        assert isinstance(output, DeferredToolRequests)
        return output.metadata

    expected = {"0-0": {"queue": "slow"}, "0-1": {"limit": 5}}
    assert expected == serve_handler(env_factory, "KeptMetadata", handler)()


class Desk:
    """An MCP server in memory with one tool, which counts its calls, and the steps in which somebody connects."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.connected_in: list[str] = []
        self.server: MCPServer[Any] = MCPServer("desk")
        self.server.add_tool(self.file)
        desk = self

        class Transport(FastMCPTransport):
            @asynccontextmanager
            async def connect_session(self, **arguments: Any) -> AsyncGenerator[Any]:
                try:
                    desk.connected_in.append(step_info().name)
                except RuntimeError:
                    desk.connected_in.append("outside of steps")
                async with super().connect_session(**arguments) as session:
                    yield session

        self.toolset: MCPToolset[None] = MCPToolset(Transport(self.server))

    async def file(self, name: str) -> str:
        """File a paper."""
        self.calls[name] += 1
        if name == "contract":
            raise ToolError("the contract is needed")
        return f"filed {name}"


def test_mcp_error_is_a_retry_prompt(env_factory: Serve) -> None:
    """The error of an MCP tool is a retry prompt for the model, and Restate does not repeat the call."""
    desk = Desk()
    script = Script(("file", {"name": "contract"}), ("file", {"name": "letter"}), say)
    agent = Agent(script.model, name="office", toolsets=[desk.toolset])

    async def handler(ctx: restate.Context) -> list[str]:
        return outcomes((await RestateAgent(agent, restate_context=ctx).run("go")).all_messages())

    assert ["retried", "success"] == serve_handler(env_factory, "McpError", handler)()
    assert {"contract": 1, "letter": 1} == desk.calls
    assert 3 == script.requests


def test_mcp_connects_only_in_steps(env_factory: Serve, harness: Harness) -> None:
    """A connection to an MCP server is made in a step that needs it; a replay makes none."""
    desk = Desk()
    script = Script(("file", {"name": "letter"}), say)
    agent = Agent(script.model, name="office", toolsets=[desk.toolset])

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        for _ in range(3):
            await ctx.sleep(timedelta(milliseconds=1))
        return output

    answer, names = serve_handler(env_factory, "McpConnects", handler).with_steps()

    assert "filed letter" == answer
    assert set(desk.connected_in) <= {name for name in names if "mcp_server" in name}
    assert len(desk.connected_in) <= (2 if harness.always_replay else 1)
    assert {"letter": 1} == desk.calls


def test_model_of_the_run(env_factory: Serve) -> None:
    """A model that is passed to the run replaces the agent's, and the step's name contains its name."""
    own, given = Script("own"), Script(("look", {}), "given", name="better")
    agent = Agent(own.model, name="choosing")

    @agent.tool_plain
    async def look() -> str:
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go", model=given.model)).output

    answer, names = serve_handler(env_factory, "GivenModel", handler).with_steps()

    assert "given" == answer
    assert [0, 2] == [own.requests, given.requests]
    assert ["choosing__model.request.better"] * 2 == [name for name in names if "model" in name]
