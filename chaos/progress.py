"""Keeps the runs and the kills abreast, so that every kill happens while many runs are under way.

A kill waits until enough runs have ended, and a run waits to be started until the next kill is near.
"""

from __future__ import annotations

import asyncio

__all__ = ["Progress"]


class Progress:
    """How far the runs and the kills are.

    Args:
        runs: How many runs there are.
        at_once: How many of them may be under way.

    Attributes:
        ended: How many runs have ended.
    """

    def __init__(self, runs: int, at_once: int) -> None:
        self.ended = 0
        self._runs = runs
        self._at_once = at_once
        self._goal = 0
        self._changed = asyncio.Condition()

    @property
    def over(self) -> bool:
        """Whether all runs have ended, so that there is nothing left to disturb."""
        return self.ended >= self._runs

    async def one_ended(self) -> None:
        async with self._changed:
            self.ended += 1
            self._changed.notify_all()

    async def until(self, ended: int) -> None:
        """Wait until so many runs have ended; they are what the kills are waiting for."""
        async with self._changed:
            self._goal = ended
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self.ended >= ended)

    async def may_start(self, number: int) -> None:
        """Wait until the run with this number may be started."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < self._goal + self._at_once and self._has_room(number))

    def _has_room(self, number: int) -> bool:
        return number - self.ended < self._at_once
