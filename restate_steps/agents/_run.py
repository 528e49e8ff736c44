"""State shared by the components of one agent run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic_ai.tools import DeferredToolRequests, RunContext

from restate_steps.agents._slots import Slots
from restate_steps.context import Invocation, running_step

__all__ = ["Run", "current_run", "run_of_body", "unit_context"]

T = TypeVar("T")

unit_context: Final[ContextVar[RunContext[Any] | None]] = ContextVar("restate_steps_agents_unit_context", default=None)
"""The handler-side run context of the tool call or model request that executes a unit."""

_run: Final[ContextVar[Run | None]] = ContextVar("restate_steps_agents_run", default=None)


class Run:
    """One run of an agent in a handler.

    Args:
        invocation: The handler's invocation.
        agent_name: The first part of each step's name.
        max_parallel_tools: The maximum number of tool calls to run at once, or None for no limit.
        changes: For each MCP toolset, by id, a function that counts the changes its server has announced.

    Attributes:
        requests: The tool calls that the next question to people is about.
        latest: The timestamp of the latest model response.
        has_fallback: True if another model takes over when a request fails.
        request_timeout: The timeout of the next model request, in seconds.
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
        self._slots = Slots(max_parallel_tools) if max_parallel_tools is not None else None

    def enter(self) -> None:
        """Make this the current run of the code that follows, and of the tasks that it starts."""
        _run.set(self)

    async def call_tool(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a tool call as soon as a slot is free."""
        return await function() if self._slots is None else await self._slots.run(function)

    def tools_changed(self) -> list[str]:
        """Return the ids of the MCP toolsets that have changed since the last call; for use in a step's body."""
        changed: list[str] = []
        for name, count in self._changes.items():
            if (number := count()) != self._seen[name]:
                self._seen[name] = number
                changed.append(name)
        return changed


def run_of_body() -> Run | None:
    """Return the run to which the running body of a unit belongs."""
    return _run.get()


def current_run() -> Run | None:
    """Return the caller's run, or None outside a run and inside the body of a step."""
    return _run.get() if running_step.get() is None else None
