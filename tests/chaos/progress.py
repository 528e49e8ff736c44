"""Synchronize runs and kills, so that every kill happens while many runs are in progress.

A kill waits until enough runs have ended. A run does not start until the next kill is near.
"""

from __future__ import annotations

import asyncio

__all__ = ["Progress"]


class Progress:
    """The progress of the runs and the kills.

    Args:
        runs: The number of runs.
        at_once: The maximum number of runs in progress.

    Attributes:
        ended: The number of runs that have ended.
    """

    def __init__(self, runs: int, at_once: int) -> None:
        self.ended = 0
        self._runs = runs
        self._at_once = at_once
        self._goal = 0
        self._changed = asyncio.Condition()

    @property
    def over(self) -> bool:
        """True if all runs have ended, so that kills have no effect."""
        return self.ended >= self._runs

    async def one_ended(self) -> None:
        async with self._changed:
            self.ended += 1
            self._changed.notify_all()

    async def until(self, ended: int) -> None:
        """Wait, for the next kill, until this number of runs has ended."""
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
