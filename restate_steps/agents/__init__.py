"""Durable pydantic-ai agents: model requests, tool calls and tool discovery are steps.

Requires the ``agents`` extra: ``pip install 'restate-steps[agents]'``.
"""

try:
    from pydantic_ai.durable_exec import BaseDurabilityCapability as _BaseDurabilityCapability
except ImportError as error:
    raise ImportError(
        "restate_steps.agents requires pydantic-ai 2.68 or newer, which could not be imported "
        f"({error}). Run: pip install 'restate-steps[agents]'",
        name=error.name,
        path=error.path,
    ) from error

from restate_steps._public import publish
from restate_steps.agents._agent import RestateAgent
from restate_steps.agents._conversations import RestateConversationStore
from restate_steps.agents._durability import RestateDurability
from restate_steps.agents._external_events import answer_request
from restate_steps.agents._remote import remote_tool
from restate_steps.agents._run import OnToolError
from restate_steps.agents._standalone import durable_event_handler, durable_model, durable_toolset

del _BaseDurabilityCapability

__all__ = [
    "OnToolError",
    "RestateAgent",
    "RestateConversationStore",
    "RestateDurability",
    "answer_request",
    "durable_event_handler",
    "durable_model",
    "durable_toolset",
    "remote_tool",
]

publish("restate_steps.agents", globals(), __all__)
