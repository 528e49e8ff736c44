"""The outermost capability: wraps the run and each tool call.

Capabilities are layers. pydantic-ai requires the engine itself to be the innermost; this one goes around all others,
including their spans.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from pydantic_ai import AgentRunResult
from pydantic_ai.capabilities import Instrumentation, ModelFallback
from pydantic_ai.capabilities.abstract import AbstractCapability, CapabilityOrdering, WrapRunHandler
from pydantic_ai.durable_exec import external_event_scope, record_durable_unit, replay_scope
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import RunContext, ToolDefinition

from restate_steps.agents._capabilities import parts_of
from restate_steps.agents._external_events import AwakeableWaiter
from restate_steps.agents._failures import is_cancellation, terminal_cause, terminal_in_handler
from restate_steps.agents._run import Run, RunSettings, current_run, unit_context
from restate_steps.context import Invocation, current_invocation, step_observer

__all__ = ["Outermost"]

AgentDepsT = TypeVar("AgentDepsT")


class Outermost(AbstractCapability[AgentDepsT]):
    """The outer half of :class:`RestateDurability`, which adds it to the agent.

    Args:
        settings: The settings of the agent's runs.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings

    def get_ordering(self) -> CapabilityOrdering:
        """Go around everything, including spans."""
        return CapabilityOrdering(position="outermost", wraps=(Instrumentation,))

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """Return None, because only the engine creates it."""
        return None

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Set up the shared state of a run, and make errors that no replay can fix terminal."""
        invocation = current_invocation()
        if invocation is None:
            return await handler()
        run = Run(invocation, self._settings)
        run.has_fallback = ctx.root_capability is not None and bool(parts_of(ctx.root_capability, ModelFallback))
        is_outermost = current_run() is None
        run.enter()
        with ExitStack() as stack:
            stack.enter_context(terminal_in_handler())
            if is_outermost:
                # Nested runs share one scope, because spans around them also count their steps.
                stack.enter_context(replay_scope())
                step_observer.set(_record_step)
            stack.enter_context(external_event_scope(AwakeableWaiter(run)))
            _nest_spans(stack, invocation)
            return await handler()

    async def wrap_tool_execute(
        self,
        ctx: RunContext[AgentDepsT],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Run a tool call as soon as a slot is free; tell the model about a terminal failure if so configured."""
        run = current_run()
        if run is None:
            return await handler(args)

        async def execute() -> Any:
            unit_context.set(ctx)
            # A tool that calls other tools, such as code mode, starts them in its own order.
            with self._settings.agent.parallel_tool_call_execution_mode("parallel"):
                return await handler(args)

        try:
            return await run.call_tool(execute)
        except Exception as error:
            failure = terminal_cause(error)
            if failure is None or is_cancellation(error) or not self._settings.tells_model_of(error):
                raise
            raise ToolFailed(failure.message) from error


def _record_step(executed: bool) -> None:
    record_durable_unit(executed=executed)


def _nest_spans(stack: ExitStack, invocation: Invocation) -> None:
    """Make the run's spans children of the invocation's span, unless the handler has opened a span."""
    if trace.get_current_span().get_span_context().is_valid:
        return
    headers = dict(invocation.context.request().attempt_headers)
    if headers.keys().isdisjoint(propagate.get_global_textmap().fields):
        return
    token = otel_context.attach(propagate.extract(headers))
    stack.callback(otel_context.detach, token)
