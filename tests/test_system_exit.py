"""Code that exits: a failed attempt, not the end of the server's process."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import durable_step
from restate_steps.testing import SimulatedInvocation, simulate

svc = restate.Service("Exits")


@durable_step
async def exits() -> None:
    sys.exit(3)


@durable_step
def exits_in_a_thread() -> None:
    sys.exit(3)


@svc.handler()
async def in_the_handler(ctx: restate.Context) -> None:
    sys.exit(3)


@svc.handler()
async def in_a_task(ctx: restate.Context) -> None:
    async def leave() -> None:
        sys.exit(3)

    await asyncio.gather(leave())


@svc.handler()
async def in_a_step(ctx: restate.Context) -> None:
    await exits()


@svc.handler()
async def in_a_thread(ctx: restate.Context) -> None:
    await exits_in_a_thread()


@pytest.mark.parametrize(
    ("handler", "who"),
    [
        (in_the_handler, "the handler"),
        (in_a_task, "the handler"),
        (in_a_step, "the body of step 'exits'"),
        (in_a_thread, "the body of step 'exits_in_a_thread'"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
async def test_the_attempt_fails(handler: Any, who: str) -> None:
    """Otherwise the process would end, and so would the next one that gets the invocation."""
    async with simulate(restate_steps.app([svc]), disable_retries=True) as sim:
        invocation: SimulatedInvocation[Any] = await sim.send(handler)
        await sim.run_until_idle()

    assert f"{who} raised SystemExit(3)" in (invocation.last_failure or "")
