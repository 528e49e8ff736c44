"""Code mode of pydantic-ai-harness: the model writes code that calls tools with ``asyncio.gather``, in a sandbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pydantic_ai_harness._monty_exec as monty_exec
import pytest
import restate
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai_harness import CodeMode

import restate_steps
from restate_steps import durable_step
from restate_steps.agents import RestateAgent, durable_model
from restate_steps.testing import Simulator, explore
from tests.support.agents_kit import serve_handler
from tests.support.harness import Env

Serve = Callable[..., Env]

CODE = """
import asyncio
paris, tokyo = await asyncio.gather(temperature(city='Paris'), temperature(city='Tokyo'))
{'warmer': 'Paris' if paris > tokyo else 'Tokyo', 'by': abs(paris - tokyo)}
"""
ANSWER = "{'warmer': 'Tokyo', 'by': 4}"

ran: Counter[str] = Counter()


async def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    for part in messages[-1].parts:
        if isinstance(part, ToolReturnPart):
            return ModelResponse(parts=[TextPart(str(part.content))])
    return ModelResponse(parts=[ToolCallPart("run_code", {"code": CODE})])


@durable_step(name="measure {city}")
async def measure(city: str) -> int:
    ran[city] += 1
    return {"Paris": 18, "Tokyo": 22}[city]


async def temperature(city: str) -> int:
    """Return the temperature of a city."""
    return await measure(city)


def plain_agent() -> Agent[None, str]:
    """An agent without a capability of this package: its model and its tool make the steps."""
    model = durable_model(FunctionModel(scripted), name="coder")
    return Agent(model, tools=[temperature], capabilities=[CodeMode()])


def durable_agent(max_parallel_tools: int | None = None) -> RestateAgent[None, str]:
    return RestateAgent(
        Agent(FunctionModel(scripted), name="coder", capabilities=[CodeMode()], tools=[temperature]),
        disable_auto_wrapping_tools=True,
        max_parallel_tools=max_parallel_tools,
    )


def limited_agent() -> RestateAgent[None, str]:
    """The tool that runs the code lends its slot to the tools that the code calls."""
    return durable_agent(max_parallel_tools=1)


AGENTS = {"plain": plain_agent, "durable": durable_agent, "limited": limited_agent}


@pytest.mark.parametrize("kind", AGENTS)
def test_on_a_server(env_factory: Serve, kind: str) -> None:
    """Each tool that the code calls runs once, and both run at the same time."""
    ran.clear()

    async def handler(ctx: restate.Context) -> str:
        return (await AGENTS[kind]().run("Which city is warmer?")).output

    answer, names = serve_handler(env_factory, f"Code{kind.title()}", handler).with_steps()

    assert ANSWER == answer
    assert {"Paris": 1, "Tokyo": 1} == ran
    assert ["measure Paris", "measure Tokyo"] == [name for name in names if name.startswith("measure")]


@pytest.mark.parametrize("kind", AGENTS)
def test_explored(kind: str) -> None:
    """A crash at any point does not change the answer, and a recorded step does not run again."""
    service = restate.Service("Coder")

    @service.handler()
    async def code(ctx: restate.Context) -> str:
        return (await AGENTS[kind]().run("Which city is warmer?")).output

    def right(sim: Simulator) -> None:
        recorded: set[int] = set()
        for run in sim.effects.runs:
            assert run.completion_id not in recorded
            if run.recorded:
                recorded.add(run.completion_id)

    report = explore(restate_steps.app([service]), code, crashes=1, max_runs=40, check=right)

    report.assert_replay_safe()
    assert [repr(ANSWER)] == [str(outcome) for outcome, _ in report.outcomes]


def test_the_name_that_makes_it_work() -> None:
    """The harness asks a function whether its event loop can be woken from a thread."""
    assert callable(monty_exec.in_temporal_workflow)
    assert monty_exec.in_temporal_workflow() is False
