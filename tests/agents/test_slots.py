"""The slots of tool calls: S1 to S3 of ``_slots``, without an agent."""

from __future__ import annotations

import asyncio

import pytest

from restate_steps.agents._slots import Slots


class Work:
    """Tool calls that count how many of them run at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.slots = Slots(limit)
        self.running = self.most = 0

    async def leaf(self) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(3):
            await asyncio.sleep(0)
        self.running -= 1
        return "leaf"

    async def calls(self, depth: int) -> list[str]:
        """Call two tools at once, down to a depth."""
        if not depth:
            return [await self.leaf()]
        inner = [self.slots.run(lambda: self.calls(depth - 1)) for _ in range(2)]
        found = [name for names in await asyncio.gather(*inner) for name in names]
        return [*found, await self.leaf()]

    def all_are_free(self) -> bool:
        return self.slots.free._value == self.limit


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_calls_in_calls(limit: int) -> None:
    """S1, S2: they neither wait for each other forever nor exceed the limit."""
    work = Work(limit)
    answers = await asyncio.wait_for(asyncio.gather(*(work.slots.run(lambda: work.calls(2)) for _ in range(3))), 10)

    assert [7] * 3 == [len(answer) for answer in answers]
    assert work.most == limit
    assert work.all_are_free()


async def test_a_call_that_ends_before_those_that_it_made() -> None:
    """S3."""
    work = Work(1)
    left: list[asyncio.Task[str]] = []

    async def leaves_a_task() -> None:
        left.append(asyncio.create_task(work.slots.run(work.leaf)))
        await asyncio.sleep(0)

    await work.slots.run(leaves_a_task)
    assert await asyncio.wait_for(work.slots.run(work.leaf), 10) == "leaf"
    assert await left[0] == "leaf"
    assert work.all_are_free()


@pytest.mark.parametrize("turns", range(12))
async def test_cancellation_at_any_moment(turns: int) -> None:
    """No slot is lost, and none is gained."""
    work = Work(1)
    others = [asyncio.create_task(work.slots.run(lambda: work.calls(1))) for _ in range(2)]
    for _ in range(turns):
        await asyncio.sleep(0)
    others[0].cancel()
    await asyncio.wait(others, timeout=10)

    assert others[0].cancelled() or others[0].done()
    assert await asyncio.wait_for(others[1], 10) == ["leaf"] * 3
    assert work.all_are_free()
