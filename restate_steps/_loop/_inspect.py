"""Views of running handlers, for the testing kit."""

from __future__ import annotations

import asyncio
from types import FrameType

from restate_steps._loop._frames import frames_of
from restate_steps._loop._loop import EXECUTION, loop_for
from restate_steps._loop._task import HandlerTask

__all__ = ["frames_above", "handler_tasks"]


def handler_tasks(server_loop: asyncio.AbstractEventLoop) -> list[HandlerTask]:
    """Return the tasks that have not ended, of all handlers that run on a server's event loop."""
    return [task for execution in loop_for(server_loop).executions for task in execution.live_tasks()]


def frames_above() -> list[FrameType]:
    """Return the frames in which the parents of the running task wait, outermost first, as if they were its callers."""
    execution = EXECUTION.get()
    task = execution.current_task() if execution is not None else None
    frames: list[FrameType] = []
    while task is not None and (task := task.parent) is not None:
        frames = [*frames_of(task.get_coro()), *frames]
    return frames
