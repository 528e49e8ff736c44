"""User code that pydantic-ai awaits between steps, run as local operations.

Instructions, hooks, output functions, output validators and the methods of custom toolsets may use a database or an
HTTP client. In a handler they run on the server's event loop, where such clients live, one at a time. Their results are
not recorded, but the results of steps that they call are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from pydantic_ai.messages import InstructionPart
from pydantic_ai.tools import RunContext
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset

from restate_steps._app import local

__all__ = ["LocalToolset", "is_custom"]

AgentDepsT = TypeVar("AgentDepsT")


def is_custom(toolset: AbstractToolset[Any]) -> bool:
    """Return whether a toolset's class is defined outside pydantic-ai."""
    return not type(toolset).__module__.startswith("pydantic_ai.")


@dataclass
class LocalToolset(WrapperToolset[AgentDepsT]):
    """A custom toolset that runs unchanged on the server's event loop."""

    @property
    def id(self) -> str | None:
        """The toolset's id."""
        return self.wrapped.id

    async def for_run(self, ctx: RunContext[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        """Return the toolset for a run."""
        return replace(self, wrapped=await local(self.wrapped.for_run(ctx)))

    async def for_run_step(self, ctx: RunContext[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        """Return the toolset for a step of a run."""
        changed = await local(self.wrapped.for_run_step(ctx))
        return self if changed is self.wrapped else replace(self, wrapped=changed)

    async def __aenter__(self) -> Self:
        """Enter the toolset."""
        self._entered = local(self.wrapped)
        await self._entered.__aenter__()
        return self

    async def __aexit__(self, *args: Any) -> bool | None:
        """Exit the toolset."""
        return await self._entered.__aexit__(*args)

    async def get_instructions(
        self, ctx: RunContext[AgentDepsT]
    ) -> str | InstructionPart | Sequence[str | InstructionPart] | None:
        """Return the instructions of the toolset."""
        return await local(self.wrapped.get_instructions(ctx))

    async def get_tools(self, ctx: RunContext[AgentDepsT]) -> dict[str, ToolsetTool[AgentDepsT]]:
        """Return the tools of the toolset."""
        return await local(self.wrapped.get_tools(ctx))

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[AgentDepsT], tool: ToolsetTool[AgentDepsT]
    ) -> Any:
        """Call a tool of the toolset."""
        return await local(self.wrapped.call_tool(name, tool_args, ctx, tool))
