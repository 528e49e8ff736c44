"""State shared by the components of one agent run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from pydantic_ai.agent import AbstractAgent
from pydantic_ai.exceptions import UserError
from pydantic_ai.tools import DeferredToolRequests, RunContext

from restate_steps.agents._slots import Slots
from restate_steps.context import Invocation, running_step

__all__ = ["OnToolError", "Run", "RunSettings", "current_run", "run_of_body", "unit_context"]

T = TypeVar("T")

unit_context: Final[ContextVar[RunContext[Any] | None]] = ContextVar("restate_steps_agents_unit_context", default=None)
"""The handler-side run context of the tool call or model request that executes a unit."""

_run: Final[ContextVar[Run | None]] = ContextVar("restate_steps_agents_run", default=None)


OnToolError: TypeAlias = Literal["raise", "tell_model"] | Callable[[Exception], bool]
"""The reaction to a tool call that fails permanently.

``"raise"`` ends the run with the error. ``"tell_model"`` reports the failure to the model, and the run continues. A
function receives the exception and returns whether to tell the model.
"""


class ToolListVersion(Protocol):
    """The version of the tools of an MCP toolset."""

    @property
    def number(self) -> int:
        """A number that grows with each change."""
        ...


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of the runs of an agent.

    Attributes:
        agent: The agent.
        agent_name: The first part of each step's name.
        max_parallel_tools: The maximum number of tool calls to run at once, or None for no limit.
        on_tool_error: Whether to tell the model about the permanent failure of a tool call.
        tool_lists: The version of the tools of each MCP toolset, by its id.
    """

    agent: AbstractAgent[Any, Any]
    agent_name: str
    max_parallel_tools: int | None
    on_tool_error: OnToolError
    tool_lists: Mapping[str, ToolListVersion]

    def tells_model_of(self, error: Exception) -> bool:
        """Return whether to tell the model about a permanent failure of a tool call; never for a ``UserError``."""
        if isinstance(error, UserError):
            return False
        return self.on_tool_error(error) if callable(self.on_tool_error) else self.on_tool_error == "tell_model"


class Run:
    """One run of an agent in a handler.

    Args:
        invocation: The handler's invocation.
        settings: The settings of the agent's runs.

    Attributes:
        requests: The tool calls that the next question to people is about.
        latest: The timestamp of the latest model response.
        has_fallback: True if another model takes over when a request fails.
        request_timeout: The timeout of the next model request, in seconds.
    """

    def __init__(self, invocation: Invocation, settings: RunSettings) -> None:
        self.invocation = invocation
        self.agent_name = settings.agent_name
        self.requests: DeferredToolRequests | None = None
        self.latest: datetime | None = None
        self.has_fallback = False
        self.request_timeout: float | None = None
        self._tool_lists = settings.tool_lists
        self._seen = {name: version.number for name, version in settings.tool_lists.items()}
        limit = settings.max_parallel_tools
        self._slots = Slots(limit) if limit is not None else None

    def enter(self) -> None:
        """Make this the current run of the code that follows, and of the tasks that it starts."""
        _run.set(self)

    async def call_tool(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a tool call as soon as a slot is free."""
        return await function() if self._slots is None else await self._slots.run(function)

    def tools_changed(self) -> list[str]:
        """Return the ids of the MCP toolsets that have changed since the last call; for use in a step's body."""
        changed: list[str] = []
        for name, version in self._tool_lists.items():
            if (number := version.number) != self._seen[name]:
                self._seen[name] = number
                changed.append(name)
        return changed


def run_of_body() -> Run | None:
    """Return the run to which the running body of a unit belongs."""
    return _run.get()


def current_run() -> Run | None:
    """Return the caller's run, or None outside a run and inside the body of a step."""
    return _run.get() if running_step.get() is None else None
