"""The testing kit's cost: the time of a simulated attempt, and the explored schedules per second.

    python -m benchmarks testing

Attempts are measured in CPU time of this process; the rate of schedules comes from the reports. "by hand" is the same
attempt with only bytes in and bytes out around it: no server state, no virtual time, no choice of the next event. The
CPU time of steps follows, as ``benchmarks.cpu`` measures it.
"""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import restate
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import restate_steps
from benchmarks import cpu
from benchmarks._handlers import SERVICE
from benchmarks._measure import Spread, by_turns, print_table, ratio, spread
from benchmarks._player import Player, Recording, first
from restate_steps import durable_step, gather
from restate_steps.agents import RestateAgent
from restate_steps.testing import Report, explore, record, replay, simulate
from restate_steps.testing._simulation.application import read_manifest
from restate_steps.testing._simulation.driver import Driver
from restate_steps.testing._simulation.manifest import Target

ATTEMPT_GOAL = 1.5
REPLAY_GOAL = 4.0
RATE_GOAL = 1_000.0
SECONDS = 6.0
ORDERS = 200
TIMES = 20

service = restate.Service(SERVICE)


@durable_step
async def step(number: int) -> int:
    return number


async def one() -> int:
    return 1


OPTIONS = restate.RunOptions(type_hint=int)


@service.handler()
async def runs(ctx: restate.Context, count: int) -> int:
    return sum([await ctx.run_typed("one", one, OPTIONS) for _ in range(count)])


@service.handler()
async def steps(ctx: restate.Context, count: int) -> int:
    return sum([await step(1) for _ in range(count)])


@service.handler()
async def two_plain(ctx: restate.Context) -> int:
    a, b = ctx.run_typed("a", one, OPTIONS), ctx.run_typed("b", one, OPTIONS)
    await restate.gather(a, b)
    return await a + await b


@service.handler()
async def two_branches(ctx: restate.Context) -> list[int]:
    return await gather(step(1), step(2))


async def branch(number: int) -> int:
    return await step(number) + await step(number)


@service.handler()
async def two_branches_of_two(ctx: restate.Context) -> list[int]:
    return await gather(branch(1), branch(2))


@durable_step
def plain_step(number: int) -> int:
    return number


@service.handler()
async def three_functions(ctx: restate.Context) -> int:
    return sum([await plain_step(number) for number in range(3)])


def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool once, then say something."""
    if len(messages) == 1:
        return ModelResponse(parts=[ToolCallPart("add", {"a": 1, "b": 2}, tool_call_id="call")])
    return ModelResponse(parts=[TextPart("3")])


agent = Agent(FunctionModel(answer), name="calculator")


@agent.tool_plain
async def add(a: int, b: int) -> int:
    return a + b


@service.handler()
async def agent_with_a_tool(ctx: restate.Context) -> str:
    return (await RestateAgent(agent, restate_context=ctx).run("1 + 2")).output


EXPLORED: dict[str, Callable[..., Any]] = {
    "two runs under restate.gather": two_plain,
    "two branches of a step": two_branches,
    "two branches of two steps": two_branches_of_two,
    "three plain functions": three_functions,
    "an agent with a tool": agent_with_a_tool,
}


def cost(action: Callable[[], object]) -> Callable[[], float]:
    """Return a function that measures the CPU time of an action, in seconds."""

    def measure() -> float:
        before = time.process_time()
        for _ in range(TIMES):
            action()
        return (time.process_time() - before) / TIMES

    return measure


def by_hand(player: Player, handler: str, journal: Recording) -> Callable[[], float]:
    """Return a function that measures the CPU time of an attempt against the player, in seconds."""
    return lambda: player.play(handler, journal, times=TIMES)[0] / TIMES


def attempts(app: Any) -> None:
    manifest = read_manifest(app)
    player = Player(app)

    def fresh(handler: str, count: int) -> Callable[[], object]:
        def play() -> None:
            driver = Driver(app, manifest)
            invocation = driver.model.submit(Target(SERVICE, handler), str(count).encode())
            driver.run(lambda: invocation.ended)
            driver.close()

        return play

    def replayed(handler: str, count: int) -> Callable[[], object]:
        with simulate(app) as simulator:
            simulator.run(simulator.call(f"{SERVICE}/{handler}", count))
            [recorded] = simulator.invocations
        journal = record(recorded, Path(tempfile.mkdtemp(), "journal.json"))
        return lambda: replay(journal, app)

    rows: list[list[str]] = []
    for label, handler, count, play, journal, goal in (
        ("10 runs by the SDK, fresh", "runs", 10, fresh, first(10), ATTEMPT_GOAL),
        ("10 steps, fresh", "steps", 10, fresh, first(10), ATTEMPT_GOAL),
        ("100 runs by the SDK, replayed", "runs", 100, replayed, None, REPLAY_GOAL),
        ("100 steps, replayed", "steps", 100, replayed, None, REPLAY_GOAL),
    ):
        given = player.record(handler, count) if journal is None else journal
        samples = by_turns(
            {"by hand": by_hand(player, handler, given), "simulated": cost(play(handler, count))},
            seconds=SECONDS / 2,
        )
        taken = spread([sample * 1e3 for sample in samples["simulated"]])
        found = ratio(samples["simulated"], samples["by hand"])
        alone = spread(samples["by hand"]).median * 1e3
        rows.append(
            [label, f"{alone:.2f}", f"{taken.median:.2f}", f"{found.median:.2f}", f"≤ {goal}", most(taken, goal)]
        )
    print("CPU time of a whole attempt, in milliseconds\n")
    print_table(["", "by hand", "simulated", "ratio", "goal", "verdict"], rows)
    player.close()


def exploration(app: Any) -> None:
    rows: list[list[str]] = []
    for label, handler in EXPLORED.items():
        orders: list[float] = []
        whole: list[float] = []
        deadline = time.perf_counter() + SECONDS / 2
        runs = 0
        while time.perf_counter() < deadline or len(whole) < 5:
            orders.append(rate_of(explore(app, handler, crashes=0, orders=ORDERS)))
            report = explore(app, handler)
            runs = report.runs
            whole.append(rate_of(report))
        calm, found = spread(orders), spread(whole)
        goal, verdict = f"≥ {RATE_GOAL:,.0f}", "met" if calm.median >= RATE_GOAL else "missed"
        if handler is agent_with_a_tool:
            # pydantic-ai takes most of the time.
            goal = verdict = ""
        rows.append([label, f"{calm.median:,.0f}", goal, verdict, str(runs), f"{found.median:,.0f}"])
    print(f"\nSchedules per second for {ORDERS} random orders, and runs per second for all orders and crashes\n")
    print_table(["", "schedules/s", "goal", "verdict", "total runs", "runs/s"], rows)


def rate_of(report: Report) -> float:
    report.assert_replay_safe()
    return report.rate


def most(taken: Spread, goal: float) -> str:
    return "met" if taken.most <= goal else "missed" if taken.least > goal else "unclear"


def main() -> int:
    logging.getLogger("restate").setLevel(logging.CRITICAL)
    gc.collect()
    gc.freeze()
    app = restate_steps.app([service])
    attempts(app)
    exploration(app)
    gc.unfreeze()
    print()
    return 0 if "--short" in sys.argv else cpu.main()


if __name__ == "__main__":
    sys.exit(main())
