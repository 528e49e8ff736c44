"""The same handlers explored in the simulator and run on the real server: what one says of them, the other shows."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import pytest
import restate

from restate_steps import durable_step, gather
from restate_steps.testing import explore
from tests.support.harness import Harness, eventually

service = restate.Service("Verdicts")
numbers = itertools.count()


@durable_step(name="{name}")
async def step(name: str, seconds: float = 0.0) -> str:
    await asyncio.sleep(seconds)
    return name


async def two(one: str, other: str, seconds: float) -> str:
    return await step(one, seconds) + await step(other)


@service.handler()
async def branches(ctx: restate.Context) -> list[str]:
    """Branches whose steps end in another order than they begin."""
    return await gather(two("a1", "a2", 0.02), two("b1", "b2", 0.0))


@service.handler()
async def sleeps(ctx: restate.Context) -> str:
    first = await step("first")
    await ctx.sleep(timedelta(milliseconds=20))
    return first + await step("second")


@service.handler()
async def renamed(ctx: restate.Context) -> None:
    """A step with another name in each attempt."""
    await ctx.sleep(timedelta(milliseconds=1))
    await ctx.run_typed(f"number {next(numbers)}", lambda: None)
    await ctx.sleep(timedelta(milliseconds=1))


@service.handler()
async def answers_by_chance(ctx: restate.Context) -> int:
    """A sleep that is there in every second attempt only."""
    if next(numbers) % 2:
        await ctx.sleep(timedelta(milliseconds=1))
    await step("then")
    return 1


@service.handler()
async def plain_asyncio(ctx: restate.Context) -> list[str]:
    """Branches that asyncio runs: the one that is awaited first is not the one that was recorded first."""

    async def part(name: str, seconds: float) -> str:
        async def wait() -> str:
            await asyncio.sleep(seconds)
            return name

        first = await ctx.run_typed(f"{name}1", wait)
        return first + await ctx.run_typed(f"{name}2", wait)

    return list(await asyncio.gather(part("a", 0.05), part("b", 0.0)))


@service.handler()
async def never(ctx: restate.Context) -> None:
    _, answer = ctx.awakeable()
    await answer


app = restate.app([service])

VERDICTS = {
    "branches": "safe",
    "sleeps": "safe",
    "renamed": "mismatch",
    "answers_by_chance": "mismatch",
    "plain_asyncio": "mismatch",
    "never": "stuck",
}


@pytest.mark.parametrize("handler", VERDICTS)
def test_the_simulator_says(handler: str) -> None:
    """What `explore` finds."""
    report = explore(app, f"Verdicts/{handler}")

    assert VERDICTS[handler] == (report.findings[0].problem if report.findings else "safe"), str(report)


# On a server that one comes to grief only if the process dies at the right moment, which is why there is `explore`.
SHOWN = [handler for handler in VERDICTS if handler != "plain_asyncio"]


@pytest.mark.parametrize("handler", SHOWN)
def test_the_server_shows(handler: str, replay_harness: Harness) -> None:
    """A safe handler ends, a mismatch is tried again with 570, and one that is stuck waits."""
    with replay_harness.serve(app) as env:
        invocation = env.send("Verdicts", handler)

        def seen() -> str | None:
            row: dict[str, Any] = env.server.admin.invocation(invocation)
            if row["status"] == "completed":
                return "safe" if row.get("completion_result") == "success" else None
            if "570" in str(row.get("last_failure_error_code")) or "mismatch" in str(row.get("last_failure")):
                return "mismatch"
            if handler == "never" and row["status"] == "suspended":
                return "stuck"
            return None

        assert VERDICTS[handler] == eventually(seen)
