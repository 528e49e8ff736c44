"""Limit the number of tool calls that a run executes at once.

* **S1** At most ``limit`` calls hold a slot.
* **S2** A call that calls other tools, as code mode does, releases its slot while they run, and acquires one before it
  continues. Otherwise, it would hold a slot while they wait for one, which is a deadlock if there is no other.
* **S3** A call that has ended holds no slot, even if calls that it made are still running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, TypeVar

__all__ = ["Slots"]

T = TypeVar("T")


class Slots:
    """Slots for the tool calls of one run.

    Args:
        limit: The maximum number of calls at once.
    """

    def __init__(self, limit: int) -> None:
        self.free = asyncio.Semaphore(limit)

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a tool call as soon as a slot is free."""
        outer = _slot.get()
        if outer is None or outer.slots is not self:
            return await self._run(function)
        outer.borrowers += 1
        outer.release()
        try:
            return await self._run(function)
        finally:
            outer.borrowers -= 1
            if not outer.borrowers:
                await outer.reacquire()

    async def _run(self, function: Callable[[], Awaitable[T]]) -> T:
        slot = _Slot(self)
        await slot.acquire()
        before = _slot.set(slot)
        try:
            return await function()
        finally:
            _slot.reset(before)
            slot.end()


class _Slot:
    """The slot of one call.

    Attributes:
        slots: The run's slots.
        borrowers: The number of running calls that it made.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.borrowers = 0
        self._is_held = self._has_ended = False

    async def acquire(self) -> None:
        await self.slots.free.acquire()
        self._is_held = True

    async def reacquire(self) -> None:
        if self._has_ended or self._is_held:
            return
        await self.acquire()
        if self._has_ended or self.borrowers:
            # Meanwhile it has ended, or calls another tool.
            self.release()

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self.slots.free.release()

    def end(self) -> None:
        self._has_ended = True
        self.release()


_slot: Final[ContextVar[_Slot | None]] = ContextVar("restate_steps_agents_slot", default=None)
