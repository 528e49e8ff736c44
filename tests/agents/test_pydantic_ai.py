"""The private names of pydantic-ai that the engine uses are still there; ``_pydantic_ai`` says what happens without."""

from __future__ import annotations

import inspect

import pydantic_ai._run_context as run_context
import pytest
from pydantic_ai import Agent
from pydantic_ai._system_prompt import SystemPromptRunner
from pydantic_ai.capabilities import AbstractCapability, hooks
from pydantic_ai.durable_exec import BaseDurabilityCapability, _utils
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import RunContext
from pydantic_ai.toolsets import AbstractToolset

from restate_steps.agents import RestateDurability
from restate_steps.agents._pydantic_ai import has_output_validators, mark_streamed, overriding_model, streamed_before


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_toolsets_without_an_id_are_bound_through_these() -> None:
    """A leaf is wrapped by a method that gets it alone, and judged at run time by another."""
    assert ["self", "ts"] == parameters(BaseDurabilityCapability._wrap_and_register_leaf)
    assert ["self", "toolset"] == parameters(BaseDurabilityCapability._reject_runtime_toolsets)
    assert ["self", "agent"] == parameters(BaseDurabilityCapability._bind_to_agent)
    assert ["self", "ts"] == parameters(BaseDurabilityCapability._wrap_leaf_toolset)
    assert isinstance(AbstractToolset._explicit_id, property)
    assert vars(RestateDurability())["_toolsets_by_id"] == {}


def test_bodies_get_their_context_through_these() -> None:
    """The context of a body is a copy that the engine can change, with the list that events go to."""
    assert ["self", "ctx"] == parameters(BaseDurabilityCapability._durable_run_context)
    assert {"_event_stream_buffer", "_mcp_tool_defs_cache"} <= set(RunContext.__dataclass_fields__)
    assert ["self", "event"] == parameters(RunContext._emit_event)
    assert ["self", "ctx", "event"] == parameters(AbstractCapability._prepare_event_dispatch)
    assert "_prepare_event_dispatch" in inspect.getsource(run_context.RunContext.emit)


def test_servers_that_change_their_tools_are_heard_through_this() -> None:
    """A notification of an MCP server calls a method of the toolset, which empties its cache."""
    toolset = MCPToolset("https://example.test/mcp")
    toolset._cached_tools = []
    toolset._invalidate_tools_cache()
    assert toolset._cached_tools is None


def test_streams_that_were_delivered_in_part_are_known_by_these() -> None:
    """The mark on an error is what the functions set and find."""
    error, response = RuntimeError("lost"), ModelResponse(parts=[])
    assert _utils.streamed_before_failing(error) is None
    assert streamed_before(error) is None
    mark_streamed(error, response)
    assert _utils.streamed_before_failing(error) is response
    assert streamed_before(error) is response


def test_streams_go_on_without_the_functions_that_mark_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were they renamed, an error would go unmarked; nothing else changes."""
    monkeypatch.delattr(_utils, "streamed_before_failing")
    monkeypatch.delattr(_utils, "mark_streamed_before_failing")
    error = RuntimeError("lost")
    mark_streamed(error, ModelResponse(parts=[]))
    assert streamed_before(error) is None


def test_models_are_known_through_these() -> None:
    """More models are taken from an attribute when an agent is bound, and the override is a variable of the agent."""
    assert ["self", "agent"] == parameters(BaseDurabilityCapability._bind_models)
    assert vars(RestateDurability())["_extra_models"] == {}
    agent = Agent()
    assert overriding_model(agent) is None
    model = TestModel()
    with agent.override(model=model):
        assert overriding_model(agent) is model


def test_callables_run_locally_through_these() -> None:
    """Instructions, system prompts and hooks are awaited in one place each, and validators are kept in a list."""
    assert ["self", "run_context"] == parameters(SystemPromptRunner.run)
    assert inspect.iscoroutinefunction(inspect.unwrap(SystemPromptRunner.run))
    assert "func" == parameters(hooks._call_func)[0]
    assert "await _call_func(" in inspect.getsource(hooks._call_entry)
    assert ["self", "ts"] == parameters(BaseDurabilityCapability._wrap_other_leaf_toolset)
    agent = Agent()
    assert [] == agent._output_validators
    assert not has_output_validators(agent)
    agent.output_validator(lambda output: output)
    assert has_output_validators(agent)
