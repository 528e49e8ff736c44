"""Replay-safe concurrency: asyncio's functions, in an order that the journal determines."""

from restate_steps._public import publish
from restate_steps.concurrency._api import AsCompleted, TaskGroup, as_completed, gather, map, race, wait_for
from restate_steps.concurrency._scope import Task

__all__ = ["AsCompleted", "Task", "TaskGroup", "as_completed", "gather", "map", "race", "wait_for"]

publish("restate_steps", globals(), __all__)
