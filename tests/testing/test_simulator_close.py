"""A simulator that is closed ends what handlers have left behind, whatever that does in its clean-up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
import restate

import restate_steps
from restate_steps.testing import simulate
from restate_steps.testing._simulation import loop as simulated_loop

CleanUp = Callable[[], Awaitable[object]]

ended: list[str] = []
"""What has ended although it was cancelled."""


async def sleeps() -> None:
    await asyncio.sleep(5)


async def sleeps_with_anyio() -> None:
    await anyio.sleep(5)


async def sleeps_behind_a_shield() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(5)


async def waits_for_nothing() -> None:
    await asyncio.get_running_loop().create_future()


async def sleeps_forever() -> None:
    while True:  # noqa: ASYNC110 -- there is nothing to wait for
        await asyncio.sleep(1)


async def is_always_ready() -> None:
    while True:  # noqa: ASYNC110 -- there is nothing to wait for
        await asyncio.sleep(0)


async def is_always_ready_and_ignores_cancellation() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


async def ignores_cancellation() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)


async def waits_for_a_thread() -> None:
    await asyncio.to_thread(time.sleep, 0.01)
    ended.append("thread")


async def waits_for_a_thread_of_anyio() -> None:
    await anyio.to_thread.run_sync(time.sleep, 0.01)
    ended.append("thread")


async def fails() -> None:
    raise ValueError


CLEAN_UPS = [
    sleeps,
    sleeps_with_anyio,
    sleeps_behind_a_shield,
    waits_for_nothing,
    sleeps_forever,
    is_always_ready,
    is_always_ready_and_ignores_cancellation,
    ignores_cancellation,
    waits_for_a_thread,
    waits_for_a_thread_of_anyio,
    fails,
]


class Left:
    """A handler, or a step of one, that leaves something open whose clean-up is given."""

    def __init__(self, clean_up: CleanUp) -> None:
        self._clean_up = clean_up
        self._kept: list[object] = []

    async def _numbers(self) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await self._clean_up()

    async def generator(self, ctx: restate.Context) -> int:
        numbers = self._numbers()
        self._kept.append(numbers)
        return await anext(aiter(numbers))

    async def generator_of_a_body(self, ctx: restate.Context) -> int:
        async def body() -> int:
            return await self.generator(ctx)

        return await ctx.run_typed("body", body)

    async def _waits(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self._clean_up()

    async def task(self, ctx: restate.Context) -> int:
        task = asyncio.ensure_future(self._waits())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._kept.append(task)
        await asyncio.sleep(0)
        return 1

    async def handler(self, ctx: restate.Context) -> int:
        try:
            await ctx.awakeable()[1]
        finally:
            await self._clean_up()
        return 1

    async def body(self, ctx: restate.Context) -> int:
        await ctx.run_typed("body", self._waits)
        return 1


def run(app: Any, handler: Callable[[restate.Context], Awaitable[int]]) -> None:
    """Start a handler, and close the simulator."""

    async def handle(ctx: restate.Context) -> int:
        return await handler(ctx)

    service = restate.Service("Leaves")
    service.handler("leave")(handle)
    with simulate(app([service])) as sim:
        sim.run(sim.send("Leaves/leave"))


@pytest.mark.parametrize("clean_up", CLEAN_UPS, ids=lambda clean_up: clean_up.__name__)
@pytest.mark.parametrize("place", ["generator", "generator_of_a_body", "task", "handler", "body"])
@pytest.mark.parametrize("app", [restate.app, restate_steps.app], ids=["restate", "restate_steps"])
def test_closing_ends(app: Any, place: str, clean_up: CleanUp) -> None:
    """Time does not pass any more: what waits for it is cancelled, and what ignores that is left."""
    run(app, getattr(Left(clean_up), place))


@pytest.mark.parametrize("clean_up", [waits_for_a_thread, waits_for_a_thread_of_anyio])
@pytest.mark.parametrize("place", ["generator", "generator_of_a_body"])
def test_a_thread_of_a_clean_up_is_waited_for(place: str, clean_up: CleanUp) -> None:
    """It cannot be cancelled, and what it does comes before the simulator is closed."""
    ended.clear()
    run(restate.app, getattr(Left(clean_up), place))
    assert ["thread"] == ended


@pytest.mark.parametrize("start", [asyncio.to_thread, anyio.to_thread.run_sync], ids=["asyncio", "anyio"])
@pytest.mark.parametrize("place", ["generator", "generator_of_a_body", "task", "handler", "body"])
def test_a_thread_that_does_not_end_is_left(place: str, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says so, since Python itself waits for it before it exits."""
    monkeypatch.setattr(simulated_loop, "_THREADS", 0.01)
    released = threading.Event()

    async def waits() -> None:
        await start(released.wait)

    try:
        with pytest.warns(RuntimeWarning, match="a thread of the handler still runs"):
            run(restate.app, getattr(Left(waits), place))
    finally:
        released.set()


def test_a_loop_on_which_something_was_left_is_not_used_again() -> None:
    """What is left would run among the tasks of another simulator."""
    loops: list[asyncio.AbstractEventLoop] = []

    class Notes(Left):
        async def generator(self, ctx: restate.Context) -> int:
            loops.append(asyncio.get_running_loop())
            return await super().generator(ctx)

    for _ in range(2):
        run(restate.app, Notes(ignores_cancellation).generator)
    assert loops[0] is not loops[1]
    assert all(loop.is_closed() for loop in loops)
