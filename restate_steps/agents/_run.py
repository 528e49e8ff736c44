"""State shared by the components of one agent run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic_ai.tools import DeferredToolRequests, RunContext

from restate_steps.context import Invocation, running_step

__all__ = ["Run", "current_run", "run_of_body", "unit_context"]

T = TypeVar("T")

unit_context: Final[ContextVar[RunContext[Any] | None]] = ContextVar("restate_steps_agents_unit_context", default=None)
"""The context, in the handler, of whoever asks for a unit: of a tool call, or of a model request."""

_run: Final[ContextVar[Run | None]] = ContextVar("restate_steps_agents_run", default=None)


class Run:
    """One run of an agent in a handler.

    Args:
        invocation: The invocation that the handler runs for.
        agent_name: The first part of each step's name.
        max_parallel_tools: How many tool calls of one response run at once; None for all of them.
        changes: How often each MCP server has said that its tools have changed, by the id of the toolset.

    Attributes:
        requests: What the run waits for people to decide, while it does.
        latest: When the latest response of the model came, by its own timestamp.
        has_fallback: Whether another model is asked when a request fails.
        request_timeout: How long the next request to the model may take, in seconds.
    """

    def __init__(
        self,
        invocation: Invocation,
        agent_name: str,
        max_parallel_tools: int | None,
        changes: Mapping[str, Callable[[], int]],
    ) -> None:
        self.invocation = invocation
        self.agent_name = agent_name
        self.requests: DeferredToolRequests | None = None
        self.latest: datetime | None = None
        self.has_fallback = False
        self.request_timeout: float | None = None
        self._changes = changes
        self._seen = {name: count() for name, count in changes.items()}
        self._slots = asyncio.Semaphore(max_parallel_tools) if max_parallel_tools is not None else None

    def enter(self) -> None:
        """Make it the run of the code that follows, and of the tasks that it starts."""
        _run.set(self)

    async def call_tool(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a tool call, when one of the slots for tool calls is free."""
        if self._slots is None:
            return await function()
        async with self._slots:
            return await function()

    def tools_changed(self) -> list[str]:
        """Return the ids of the MCP toolsets whose tools have changed since the last call; called in a body."""
        changed: list[str] = []
        for name, count in self._changes.items():
            if (number := count()) != self._seen[name]:
                self._seen[name] = number
                changed.append(name)
        return changed


def run_of_body() -> Run | None:
    """Return the run that the body of a unit works for."""
    return _run.get()


def current_run() -> Run | None:
    """Return the run that the caller belongs to; None outside of one, and inside a step's body."""
    return _run.get() if running_step.get() is None else None
