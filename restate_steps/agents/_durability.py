"""The capability that makes an agent durable on Restate."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, TypeVar, cast

from pydantic_ai import AgentRunResult
from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.agent.abstract import AbstractAgent
from pydantic_ai.capabilities import CombinedCapability, RequestInput
from pydantic_ai.capabilities.abstract import (
    AbstractCapability,
    CapabilityOrdering,
    WrapModelRequestHandler,
    WrapOutputProcessHandler,
    WrapRunHandler,
)
from pydantic_ai.durable_exec import DurabilityEngineSpec, conversation_id_from_run_id
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.output import OutputContext
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, RunContext
from restate import RunOptions

from restate_steps._app import local
from restate_steps.agents._byproducts import collector
from restate_steps.agents._capabilities import parts_of
from restate_steps.agents._codec import UNIT_CODEC, encoding_failure
from restate_steps.agents._operation_backend import TOOL_METADATA_KEY, OperationBackend, RetryPolicies
from restate_steps.agents._outermost import Outermost
from restate_steps.agents._pydantic_ai import EngineBase, has_output_validators, run_callables_locally
from restate_steps.agents._run import OnToolError, RunSettings, current_run, unit_context
from restate_steps.agents._timeouts import RunClock, clock_of_run, move_request_timeout
from restate_steps.context import current_invocation
from restate_steps.errors import StepDefinitionError
from restate_steps.options import RetryPolicy
from restate_steps.step import run_step

__all__ = ["RestateDurability"]

AgentDepsT = TypeVar("AgentDepsT")

_FALL_BACK_AT_ONCE: Final = RetryPolicy(max_attempts=1)


class RestateDurability(EngineBase[AgentDepsT]):
    """A capability that makes an agent durable inside a Restate handler.

    Each model request, tool call and tool discovery becomes a step. Pass the capability to the agent, then run the
    agent as usual. Outside a handler, and inside the body of a step, it has no effect.

    Use :class:`RestateAgent` instead if the agent should be durable in some places only, has no name, or gets toolsets
    from ``@agent.toolset``.

    Args:
        models: Additional models, by the names that select them in a run.
        event_stream_handler: Receives the events of a run, inside steps: the live stream of each model response, and
            each event of a tool call. A retried step calls it again.
        name: The first part of each step's name in the journal; defaults to the agent's name. Changing it breaks
            invocations in flight.
        disable_auto_wrapping_tools: Run function tools in the handler instead of in a step each, so that they can use
            the Restate context and call steps. For a single tool, set ``metadata={'restate': False}``.
        max_parallel_tools: The maximum number of tool calls that a run executes at once; unlimited by default.
        on_tool_error: What to do when a tool call fails permanently, for example because its attempts are used up.
            ``"raise"`` ends the run with the error. ``"tell_model"`` reports the failure to the model, which may
            continue without the result. A function receives the exception and returns whether to tell the model.
        run_options: The retry policy of all steps, as the SDK's ``RunOptions``. Its ``serde`` is ignored.
        model_retry: The retry policy of model requests, instead of ``run_options``.
        tool_retry: The retry policy of tool calls other than those of MCP servers, instead of ``run_options``.
        mcp_retry: The retry policy of requests to MCP servers, instead of ``run_options``.
        event_retry: The retry policy of calls of the event handler, instead of ``run_options``.

    Raises:
        UserError: An option is invalid.

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
        max_parallel_tools: int | None = None,
        on_tool_error: OnToolError = "raise",
        run_options: RunOptions[Any] | None = None,
        model_retry: RetryPolicy | None = None,
        tool_retry: RetryPolicy | None = None,
        mcp_retry: RetryPolicy | None = None,
        event_retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)
        run_callables_locally()
        if max_parallel_tools is not None and (not isinstance(max_parallel_tools, int) or max_parallel_tools < 1):
            raise UserError(f"max_parallel_tools must be at least 1, or None for no limit; got {max_parallel_tools!r}.")
        if on_tool_error not in ("raise", "tell_model") and not callable(on_tool_error):
            raise UserError(
                "on_tool_error must be 'raise', 'tell_model', or a function that takes the exception and returns a "
                f"bool; got {on_tool_error!r}."
            )
        self._max_parallel_tools = max_parallel_tools
        self._disable_auto_wrapping_tools = disable_auto_wrapping_tools
        self._on_tool_error: OnToolError = on_tool_error
        base = _policy_of(run_options)
        self._has_model_policy = model_retry is not None or run_options is not None
        self._policies = RetryPolicies(
            model=model_retry or base, tool=tool_retry or base, mcp=mcp_retry or base, event=event_retry or base
        )

    def for_agent(self, agent: AbstractAgent[AgentDepsT, Any]) -> AbstractCapability[AgentDepsT]:
        """Return a copy that is bound to the agent, combined with the outermost capability.

        Args:
            agent: The agent.
        """
        bound = super().for_agent(agent)
        engines: list[RestateDurability[AgentDepsT]] = parts_of(bound, RestateDurability)
        engine = engines[0]
        settings = RunSettings(
            agent=agent,
            agent_name=engine.name,
            max_parallel_tools=self._max_parallel_tools,
            on_tool_error=self._on_tool_error,
            tool_lists=engine._tool_lists,
        )
        return CombinedCapability([Outermost(settings), bound])

    @property
    def in_durable_context(self) -> bool:
        """True inside a handler, but not inside the body of a step."""
        return current_invocation() is not None

    def get_durable_operation_backend(self) -> OperationBackend:
        """Return the backend that runs pydantic-ai's durable units as steps."""
        policies = self._policies
        if not self._has_model_policy and (run := current_run()) is not None and run.has_fallback:
            # Do not retry: try the fallback model instead.
            policies = dataclasses.replace(policies, model=_FALL_BACK_AT_ONCE)
        return OperationBackend(
            agent_name=self.name,
            default_model_id=self.default_model_id,
            wraps_tools=not self._disable_auto_wrapping_tools,
            policies=policies,
        )

    # --- values that are the same on every replay ---------------------------------------------------------------

    def get_default_run_id(self) -> str | None:
        """Return the invocation's id and the run's number in it, the same on every replay."""
        invocation = current_invocation()
        if invocation is None:
            return None
        return f"{invocation.id}/{invocation.number('agent run')}"

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """Return an id derived from the run's id, the same on every replay."""
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    def get_run_clock(self) -> Callable[[], datetime] | None:
        """Return a clock that shows the journal's time; pydantic-ai calls this while it prepares a run."""
        if not self.in_durable_context:
            return None
        clock = RunClock(clock_of_run.get() if current_run() is not None else None)
        clock_of_run.set(clock)
        return clock

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        """Return when the run first started, recorded as a step; pydantic-ai calls this only for a timeout."""
        clock = clock_of_run.get()
        if not self.in_durable_context or clock is None:
            return None
        name = f"{self.name}__run_start_time"
        clock.time = await run_step(_now, name=lambda: name)
        return clock.time

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Run with durable sleeps, tool calls in an order that a replay repeats, and stable timestamps."""
        agent, run = self.agent, current_run()
        if agent is None or run is None:
            return await handler()
        with agent.using_sleep(_sleep), agent.parallel_tool_call_execution_mode("parallel_ordered_events"):
            result = await super().wrap_run(ctx, handler=handler)
        if run.latest is not None:
            _stamp(result.all_messages(), run.latest)
        return result

    async def wrap_model_request(
        self, ctx: RunContext[AgentDepsT], *, request_context: ModelRequestContext, handler: WrapModelRequestHandler
    ) -> ModelResponse:
        """Send the request in a step, and give the messages before its response a time from the journal."""
        run = current_run()
        if run is None:
            return await super().wrap_model_request(ctx, request_context=request_context, handler=handler)
        token = unit_context.set(ctx)
        try:
            response = await super().wrap_model_request(ctx, request_context=request_context, handler=handler)
        finally:
            unit_context.reset(token)
            run.request_timeout = None
        run.latest = response.timestamp
        if (clock := clock_of_run.get()) is not None and clock.time is not None:
            clock.time = max(clock.time, response.timestamp)
        _stamp(ctx.messages, response.timestamp)
        return response

    async def wrap_output_process(
        self,
        ctx: RunContext[AgentDepsT],
        *,
        output_context: OutputContext,
        output: Any,
        handler: WrapOutputProcessHandler,
    ) -> Any:
        """Run output functions and validators as local operations."""
        is_custom = output_context.has_function or has_output_validators(ctx.agent)
        if current_run() is None or not is_custom:
            return await super().wrap_output_process(ctx, output_context=output_context, output=output, handler=handler)

        async def process(value: Any) -> Any:
            return await local(handler(value))

        return await super().wrap_output_process(ctx, output_context=output_context, output=output, handler=process)

    async def before_model_request(
        self, ctx: RunContext[AgentDepsT], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Hand the request timeout over to the step."""
        request_context = await super().before_model_request(ctx, request_context)
        if (run := current_run()) is not None:
            move_request_timeout(run, request_context)
        return request_context

    # --- human in the loop --------------------------------------------------------------------------------------

    def get_ordering(self) -> CapabilityOrdering:
        """Go innermost, except for ``RequestInput``: ask people last, after everything that can decide alone."""
        ordering = super().get_ordering()
        return dataclasses.replace(ordering, wraps=(*ordering.wraps, RequestInput))

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[AgentDepsT], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Remember the pending requests so that ``restate-steps approvals`` can list them; others answer."""
        if (run := current_run()) is not None:
            run.requests = requests
        return None

    # --- bodies of steps ----------------------------------------------------------------------------------------

    def context_in_body(self, ctx: RunContext[AgentDepsT]) -> RunContext[AgentDepsT]:
        """Collect the usage and events that a body adds to the run; a replay would miss them."""
        collecting = collector.get()
        return ctx if collecting is None else collecting.track(ctx)


def _policy_of(options: RunOptions[Any] | None) -> RetryPolicy:
    if options is None:
        return RetryPolicy()
    try:
        return RetryPolicy(
            max_attempts=options.max_attempts,
            max_duration=options.max_duration,
            initial_retry_interval=options.initial_retry_interval,
            max_retry_interval=options.max_retry_interval,
            retry_interval_factor=options.retry_interval_factor,
        )
    except StepDefinitionError as error:
        raise UserError(f"run_options is invalid: {error}") from error


def _stamp(messages: list[ModelMessage], time: datetime) -> None:
    """Replace the timestamps that pydantic-ai takes from the clock with one that is the same on every replay.

    These are the timestamps of the requests after the last response, and of the attempts that failed before that
    response. Otherwise a replay would write a different history to Restate's state.
    """
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            if message.failed_attempts:
                message.failed_attempts = [
                    dataclasses.replace(attempt, timestamp=message.timestamp, duration=timedelta(0))
                    for attempt in message.failed_attempts
                ]
            break
        message.timestamp = time
        for part in message.parts:
            if hasattr(part, "timestamp"):
                cast(Any, part).timestamp = time


async def _now() -> datetime:
    return datetime.now(UTC)


async def _sleep(seconds: float) -> None:
    """Sleep: durably in a handler, locally elsewhere. A run inside a step's body inherits this function."""
    invocation = current_invocation()
    if invocation is None:
        await asyncio.sleep(seconds)
    else:
        await invocation.context.sleep(timedelta(seconds=max(seconds, 0)))
