"""The one module that overrides private methods of pydantic-ai, and why.

pydantic-ai wants an id on every toolset and takes those only that the agent was constructed with, because other engines
register their units before a process takes work. Ours are made when they are needed, and the documented example gives
no id to an MCP server and none to ``@agent.toolset``. So here

* ``_wrap_and_register_leaf`` gives a toolset without an id (``_explicit_id`` tells a chosen one from a derived one) the
  number of its place: ``unnamed-1``, ``unnamed-2``. A copy gets it, because the same toolset can have another place in
  another agent, and which of the two runs first differs from process to process. ``get_wrapper_toolset``, which is
  public, puts the copy in the toolset's place.
* ``_reject_runtime_toolsets`` sees everything that was bound as known.

If one of them is renamed, ours is no longer called, and pydantic-ai refuses such toolsets with an error that says so.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

from pydantic_ai.durable_exec import BaseDurabilityCapability
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset

__all__ = ["AcceptsUnnamedToolsets"]

AgentDepsT = TypeVar("AgentDepsT")


class AcceptsUnnamedToolsets(BaseDurabilityCapability[AgentDepsT]):
    """A durability capability for agents whose toolsets have no id."""

    _bound: dict[int, AbstractToolset[Any]]
    """Every leaf that was bound, by its identity; holding it keeps the identity its own."""
    _wrappers: dict[int, AbstractToolset[Any]]
    """What takes the place of leaves without an id."""

    def _bind_to_agent(self, agent: Any) -> None:
        # The capability has just been copied for this agent.
        self._bound, self._wrappers = {}, {}
        super()._bind_to_agent(agent)

    def _wrap_and_register_leaf(self, ts: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        self._bound[id(ts)] = ts
        if ts._explicit_id is not None:  # pyright: ignore[reportPrivateUsage]
            return super()._wrap_and_register_leaf(ts)
        if id(ts) not in self._wrappers:
            self._wrappers[id(ts)] = self._wrap_unnamed(ts)
        return self._wrappers[id(ts)]

    def _wrap_unnamed(self, ts: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        named = cast(Any, copy.copy(ts))
        name = f"unnamed-{len(self._wrappers) + 1}"
        try:
            named.id = name
        except AttributeError:
            # An MCP toolset has a setter. Function and dynamic toolsets do not; for other kinds it is of no account.
            named._id = name
        wrapper = super()._wrap_and_register_leaf(named)
        return ts if wrapper is named else wrapper

    def _reject_runtime_toolsets(self, toolset: AbstractToolset[AgentDepsT]) -> None:
        nothing: AbstractToolset[AgentDepsT] = CombinedToolset([])
        super()._reject_runtime_toolsets(toolset.visit_and_replace(lambda ts: nothing if id(ts) in self._bound else ts))

    def get_wrapper_toolset(self, toolset: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT] | None:
        """Put the durable wrappers in the place of the agent's toolsets.

        Args:
            toolset: Everything that a run offers to the model.

        Returns:
            The same with the wrappers, or None if nothing is wrapped.
        """
        named = super().get_wrapper_toolset(toolset)
        if not self._wrappers:
            return named
        return (named or toolset).visit_and_replace(lambda ts: self._wrappers.get(id(ts), ts))
