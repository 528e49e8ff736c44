"""The capability that makes an agent durable on Restate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar

from pydantic_ai import AgentRunResult
from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.capabilities.abstract import WrapRunHandler
from pydantic_ai.durable_exec import DurabilityEngineSpec, conversation_id_from_run_id
from pydantic_ai.models import Model
from pydantic_ai.tools import RunContext

from restate_steps.agents._codec import UNIT_CODEC, encoding_failure
from restate_steps.agents._errors import ending_the_invocation
from restate_steps.agents._units import TOOL_METADATA_KEY, StepBackend, one_unit_at_a_time
from restate_steps.agents._unnamed import AcceptsUnnamedToolsets
from restate_steps.context import current_invocation
from restate_steps.step import run_step

__all__ = ["RestateDurability"]

AgentDepsT = TypeVar("AgentDepsT")

_RUNS = "restate_steps.agents.runs"


class RestateDurability(AcceptsUnnamedToolsets[AgentDepsT]):
    """Makes an agent's model requests, tool calls and tool discovery durable steps inside a Restate handler.

    Give it to the agent, and run the agent inside a handler as anywhere else. Outside a handler, and inside the body of
    a step, it does nothing. Use :class:`RestateAgent` instead for an agent that is not durable everywhere, that has no
    name, or whose toolsets are added by ``@agent.toolset``.

    Args:
        models: More models that a run may switch to, by the name to ask for them with.
        event_stream_handler: Called with the events of a run, inside steps: with the live stream of each response of
            the model, and once more for every event of a tool call.
        name: The first part of each step's name in the journal; the agent's name if left out. Changing it breaks
            invocations that are under way.
        disable_auto_wrapping_tools: Leave function tools to the steps that they make themselves, so that they can use
            the Restate context. A single tool is left alone with ``metadata={'restate': False}``.

    Example:
        ```python
        from pydantic_ai import Agent
        from pydantic_ai.models.test import TestModel

        agent = Agent(TestModel(), name="support", capabilities=[RestateDurability()])
        result = await agent.run("Where is my parcel?")
        ```
    """

    engine_spec: ClassVar[DurabilityEngineSpec] = DurabilityEngineSpec(
        engine_name="Restate",
        durable_unit_noun="step",
        durable_container_noun="handler",
        codec=UNIT_CODEC,
        serialization_failure=encoding_failure,
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        sequential_tools_in_durable_context=True,
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        tool_config_key=TOOL_METADATA_KEY,
    )

    def __init__(
        self,
        *,
        models: Mapping[str, Model] | None = None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None = None,
        name: str | None = None,
        disable_auto_wrapping_tools: bool = False,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)
        self._disable_auto_wrapping_tools = disable_auto_wrapping_tools

    @property
    def in_durable_context(self) -> bool:
        """Whether a handler is running, and not the body of one of its steps."""
        return current_invocation() is not None

    def get_durable_operation_backend(self) -> StepBackend:
        """Return what runs pydantic-ai's durable units as steps."""
        return StepBackend(
            agent_name=self.name,
            default_model_id=self.default_model_id,
            wraps_tools=not self._disable_auto_wrapping_tools,
        )

    def get_default_run_id(self) -> str | None:
        """Return an id made of the invocation's and the number of the run in it, the same on every replay."""
        invocation = current_invocation()
        if invocation is None:
            return None
        # Per attempt, as the context is: on a replay the runs are counted anew, in the same order.
        numbers: dict[str, Any] = invocation.context.extension_data
        number = numbers[_RUNS] = numbers.get(_RUNS, -1) + 1
        return f"{invocation.id}/{number}"

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """Return an id derived from the run's, the same on every replay."""
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        """Return when the run started for the first time, recorded as a step; asked for only if it has a timeout."""
        if not self.in_durable_context:
            return None
        name = f"{self.name}__run_start_time"
        return await run_step(_now, name=lambda: name)

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Run with durable waits, one step at a time, and let errors that no replay can mend end the invocation."""
        agent = self.agent
        if agent is None or not self.in_durable_context:
            return await handler()
        with ending_the_invocation(), one_unit_at_a_time(), agent.using_sleep(_sleep):
            return await super().wrap_run(ctx, handler=handler)


async def _now() -> datetime:
    return datetime.now(UTC)


async def _sleep(seconds: float) -> None:
    """Wait, durably where that is possible; a run inside a step's body inherits this function."""
    invocation = current_invocation()
    if invocation is None:
        await asyncio.sleep(seconds)
    else:
        await invocation.context.sleep(timedelta(seconds=max(seconds, 0)))
