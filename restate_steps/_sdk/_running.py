"""The running bodies of an attempt, and a warning about those that near the limit of their handler."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Final

from restate_steps._limits import BodyLimit
from restate_steps._loop import only_logs
from restate_steps._step_info import running_step

__all__ = ["RunningBodies"]

logger = logging.getLogger("restate_steps")

_WARN_AFTER: Final = 0.8
"""The part of the limit after which to warn."""


class RunningBodies:
    """The running bodies of an attempt.

    All of them share one timer, because a timer for each body would cost more than starting it.

    Args:
        loop: The server's event loop.
        limit: The time that the handler allows a body; None if it is unknown.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: BodyLimit | None) -> None:
        self._loop = loop
        self._limit = limit
        # When each body started and its context variables, in the order of the starts; None after the warning.
        self._bodies: dict[int, tuple[float, contextvars.Context] | None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._bodies)

    def add(self, handle: int, context: contextvars.Context) -> None:
        """Add a body that starts now."""
        self._bodies[handle] = self._loop.time(), context
        if self._timer is None and self._limit is not None:
            self._timer = self._loop.call_later(self._limit.seconds * _WARN_AFTER, self._warn)

    def discard(self, handle: int) -> None:
        """Remove a body that has ended."""
        self._bodies.pop(handle, None)

    def close(self) -> None:
        """Warn no more, because the attempt ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._limit = None

    @only_logs
    def _warn(self) -> None:
        limit, self._timer = self._limit, None
        if limit is None:
            return
        for handle, body in self._bodies.items():
            if body is None:
                continue
            started, context = body
            due = started + limit.seconds * _WARN_AFTER
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._warn)
                return
            self._bodies[handle] = None
            step = context.get(running_step)
            logger.warning(
                "the body of step %r has run for %g s. Its handler allows %g s: after that, Restate ends the attempt, "
                "drops the result and runs the body again. Raise %s, or limit the step with timeout=.",
                step.name if step is not None else "ctx.run",
                round(self._loop.time() - started, 1),
                limit.seconds,
                limit.setting,
            )
