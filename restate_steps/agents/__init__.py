"""Agents of pydantic-ai whose model requests, tool calls and tool discovery are durable steps.

Needs the ``agents`` extra: ``pip install 'restate-steps[agents]'``.
"""

try:
    from pydantic_ai.durable_exec import BaseDurabilityCapability as _BaseDurabilityCapability
except ImportError as error:
    raise ImportError(
        "restate_steps.agents needs pydantic-ai 2.68 or newer, and it could not be imported "
        f"({error}). Run: pip install 'restate-steps[agents]'",
        name=error.name,
        path=error.path,
    ) from error

from restate_steps.agents._agent import RestateAgent
from restate_steps.agents._durability import RestateDurability

del _BaseDurabilityCapability

__all__ = ["RestateAgent", "RestateDurability"]
