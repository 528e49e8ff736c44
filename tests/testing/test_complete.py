"""A complete exploration reaches every state that one without shortcuts reaches.

An exploration skips a crash or a cancellation where an earlier run had one at the same place. Here each handler is
explored again without skipping anything: the journals that crashes cut short, and the answers, must be the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from random import Random
from typing import Any, TypeAlias

import pytest
import restate

import restate_steps
from restate_steps import durable_step, gather, race
from restate_steps.testing._exploration.exploration import Exploration
from restate_steps.testing._exploration.explore import explore_all
from restate_steps.testing._exploration.options import ExplorationOptions
from restate_steps.testing._exploration.report import Report
from restate_steps.testing._exploration.run import Run, RunSettings, perform
from restate_steps.testing._simulation.application import read_manifest
from restate_steps.testing._simulation.calls import NOTHING
from restate_steps.testing._simulation.schedule import Schedule
from restate_steps.testing._simulation.simulator import Simulator

Handler: TypeAlias = Callable[[restate.Context], Coroutine[Any, Any, str]]

service = restate.Service("Complete")


class _SkipsNothing(set[int]):
    """A set that says of every item that it is missing."""

    def __contains__(self, item: object) -> bool:
        return False


@durable_step(name="step {name}")
async def step(name: str) -> str:
    return name


@service.handler()
async def two_steps(ctx: restate.Context) -> str:
    return "".join(await gather(step("a"), step("b")))


@service.handler()
async def fastest(ctx: restate.Context) -> str:
    return await race(step("a"), step("b"))


@service.handler()
async def step_or_sleep(ctx: restate.Context) -> str:
    async def slept() -> str:
        await ctx.sleep(timedelta(seconds=1))
        return "slept"

    return await race(step("a"), slept()) + await step("z")


@service.handler()
async def cancels_a_task(ctx: restate.Context) -> str:
    slow = asyncio.create_task(step("slow"))
    await step("a")
    slow.cancel()
    try:
        await slow
    except asyncio.CancelledError:
        return await step("cancelled")
    return await step("finished")


@service.handler()
async def times_out(ctx: restate.Context) -> str:
    try:
        async with asyncio.timeout(1):
            return await step("slow")
    except TimeoutError:
        return await step("fallback")


@service.handler()
async def first_of_two_branches(ctx: restate.Context) -> str:
    async def branch() -> str:
        return await step("a1") + await step("a2")

    _, pending = await asyncio.wait(
        [asyncio.create_task(branch()), asyncio.create_task(step("b"))], return_when=asyncio.FIRST_COMPLETED
    )
    for task in pending:
        task.cancel()
    return await step("end")


def reached(handler: Handler, *, crashes: int, cancel: bool, skips_nothing: bool) -> tuple[set[object], Report]:
    """Explore a handler; return every journal that a crash can cut short, and every answer."""
    app = restate_steps.app([service])
    options = ExplorationOptions(crashes=crashes, cancel=cancel, max_runs=100_000, max_seconds=300)
    settings = RunSettings(app, read_manifest(app), options)
    states: set[object] = set()

    async def scenario(simulator: Simulator) -> str:
        return (await simulator.call_and_leave(handler, NOTHING, None)).value

    def performed(schedule: Schedule, random: Random | None) -> tuple[Run, Simulator]:
        run, simulator = perform(settings, scenario, schedule, random)
        states.update((point.fingerprint, point.crashes) for point in run.trace.crash_points)
        states.add(str(run.outcome))
        return run, simulator

    exploration = Exploration(options)
    if skips_nothing:
        exploration._seen = _SkipsNothing()  # pyright: ignore[reportPrivateUsage]
    return states, explore_all(performed, exploration)


@pytest.mark.parametrize(
    ("handler", "crashes", "cancel"),
    [
        (two_steps, 1, False),
        (fastest, 1, False),
        (step_or_sleep, 1, False),
        (cancels_a_task, 1, False),
        (times_out, 1, False),
        (first_of_two_branches, 1, False),
        (fastest, 2, False),
        (two_steps, 1, True),
        (times_out, 1, True),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_nothing_is_lost_by_skipping(handler: Handler, crashes: int, cancel: bool) -> None:
    everything, without_skipping = reached(handler, crashes=crashes, cancel=cancel, skips_nothing=True)
    states, report = reached(handler, crashes=crashes, cancel=cancel, skips_nothing=False)

    report.assert_replay_safe()
    assert report.complete
    assert without_skipping.complete
    assert everything == states
    assert report.runs < without_skipping.runs
