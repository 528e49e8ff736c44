"""Steps in tasks and callbacks with a context of their own."""

from __future__ import annotations

import asyncio
import contextvars

import restate

import restate_steps
from restate_steps import durable_step
from restate_steps.testing import simulate


@durable_step
async def charge() -> str:
    return "charged"


async def test_a_step_in_an_empty_context_is_a_step() -> None:
    """Without the SDK's context variable it would be a plain call, which every replay repeats."""
    service = restate.Service("Contexts")

    @service.handler()
    async def handler(ctx: restate.Context) -> str:
        return await asyncio.create_task(charge(), context=contextvars.Context())

    async with simulate(restate_steps.app([service]), always_replay=True) as sim:
        result = await sim.call(handler)

    assert "charged" == result.value
    assert {"charge": 1} == dict(result.effects)
