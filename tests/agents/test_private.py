"""The private names of pydantic-ai that the engine uses are still there; ``_private`` says what happens without."""

from __future__ import annotations

import inspect

import pydantic_ai._run_context as run_context
from pydantic_ai._cancel import RunCancellation
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.durable_exec import BaseDurabilityCapability
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.tools import RunContext
from pydantic_ai.toolsets import AbstractToolset


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_toolsets_without_an_id_are_bound_through_these() -> None:
    """A leaf is wrapped by a method that gets it alone, and judged at run time by another."""
    assert ["self", "ts"] == parameters(BaseDurabilityCapability._wrap_and_register_leaf)
    assert ["self", "toolset"] == parameters(BaseDurabilityCapability._reject_runtime_toolsets)
    assert ["self", "agent"] == parameters(BaseDurabilityCapability._bind_to_agent)
    assert isinstance(AbstractToolset._explicit_id, property)


def test_bodies_get_their_context_through_these() -> None:
    """The context of a body is a copy that the engine can change, with the list that events go to."""
    assert ["self", "ctx"] == parameters(BaseDurabilityCapability._durable_run_context)
    assert {"_event_stream_buffer", "_mcp_tool_defs_cache", "_cancellation"} <= set(RunContext.__dataclass_fields__)
    assert ["self", "event"] == parameters(RunContext._emit_event)
    assert ["self", "ctx", "event"] == parameters(AbstractCapability._prepare_event_dispatch)
    assert "_prepare_event_dispatch" in inspect.getsource(run_context.RunContext.emit)


def test_servers_that_change_their_tools_are_heard_through_this() -> None:
    """A notification of an MCP server calls a method of the toolset, which empties its cache."""
    toolset = MCPToolset("https://example.test/mcp")
    toolset._cached_tools = []
    toolset._invalidate_tools_cache()
    assert toolset._cached_tools is None


def test_runs_are_cancelled_through_these() -> None:
    """A run's own cancellation goes through two methods that can be replaced on the object."""
    assert ["self", "task"] == parameters(RunCancellation._issue)
    assert ["self", "timed_out"] == parameters(RunCancellation._request)
    assert "self._issue(" in inspect.getsource(RunCancellation._deliver)
    assert "self._request(" in inspect.getsource(RunCancellation.expire)
    assert hasattr(RunCancellation(), "_issued")
