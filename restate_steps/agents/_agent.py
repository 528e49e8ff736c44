"""An agent made durable inside a handler, without changing the agent itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeGuard, TypeVar

from pydantic_ai.agent import AbstractAgent, EventStreamHandler, WrapperAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model
from restate import RunOptions

from restate_steps.agents._capabilities import add_model, models_to_fall_back_to
from restate_steps.agents._durability import OnToolError, RestateDurability
from restate_steps.agents._failures import terminal_in_handler
from restate_steps.agents._pydantic_ai import overriding_model
from restate_steps.context import current_invocation, running_step
from restate_steps.options import RetryPolicy

__all__ = ["RestateAgent"]

AgentDepsT = TypeVar("AgentDepsT")
OutputDataT = TypeVar("OutputDataT")

_DEFAULT_NAME: Final = "agent"


class RestateAgent(WrapperAgent[AgentDepsT, OutputDataT]):
    """An agent whose runs are durable inside a Restate handler; elsewhere they are what they are without it.

    It is cheap to make, so make it where it is used.

    Args:
        agent: The agent. It is not changed.
        restate_context: The context of the handler that is running. It is found without being given; given, it is
            checked to be that of the handler in which the agent runs.
        event_stream_handler: Called with the events of a run, inside steps: with the live stream of each response of
            the model, and once more for every event of a tool call. A retried step calls it again.
        disable_auto_wrapping_tools: Leave function tools to the steps that they make themselves, so that they can use
            the Restate context. A single tool is left alone with ``metadata={'restate': False}``.
        name: The first part of each step's name in the journal; the agent's name if left out, or ``agent`` if it has
            none. Changing it breaks invocations that are under way.
        models: More models that a run may switch to, by the name to ask for them with. An instance that is given to
            ``run(model=...)`` need not be among them.
        max_parallel_tools: How many tool calls of one response run at once; all of them if left out.
        on_tool_error: What becomes of a tool call that has failed for good; see :class:`RestateDurability`.
        run_options: How all steps are retried, in the form of the SDK; a ``serde`` in it has no effect.
        model_retry: How requests to the model are retried, in place of ``run_options``.
        tool_retry: How calls of function tools are.
        mcp_retry: How requests to MCP servers are.
        event_retry: How calls of the event handler are.

    Raises:
        UserError: The agent has :class:`RestateDurability` already, and options were given here; or an option has a
            value that it cannot have.

    Example:
        ```python
        from pydantic_ai import Agent
        from pydantic_ai.models.test import TestModel

        agent = Agent(TestModel(), instructions="You're a helpful assistant.")


        @svc.handler()
        async def answer(ctx: restate.Context, question: str) -> str:
            result = await RestateAgent(agent, restate_context=ctx).run(question)
            return result.output
        ```
    """

    def __init__(
        self,
        agent: AbstractAgent[AgentDepsT, OutputDataT],
        *,
        restate_context: Any = None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None = None,
        disable_auto_wrapping_tools: bool = False,
        name: str | None = None,
        models: Mapping[str, Model] | None = None,
        max_parallel_tools: int | None = None,
        on_tool_error: OnToolError = "raise",
        run_options: RunOptions[Any] | None = None,
        model_retry: RetryPolicy | None = None,
        tool_retry: RetryPolicy | None = None,
        mcp_retry: RetryPolicy | None = None,
        event_retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__(agent)
        self._restate_context = restate_context
        attached = RestateDurability[Any].from_agent(agent)
        self._is_durable_already = attached is not None
        self._name = name or (attached.name if attached is not None else agent.name) or _DEFAULT_NAME
        self._models: dict[str, Model[Any]] = dict(models or {})
        self._options: dict[str, Any] = {
            "event_stream_handler": event_stream_handler,
            "disable_auto_wrapping_tools": disable_auto_wrapping_tools,
            "max_parallel_tools": max_parallel_tools,
            "on_tool_error": on_tool_error,
            "run_options": run_options,
            "model_retry": model_retry,
            "tool_retry": tool_retry,
            "mcp_retry": mcp_retry,
            "event_retry": event_retry,
        }
        if attached is None:
            # Only to check the options, where they are written.
            RestateDurability[Any](**self._options)
        elif name or models or any(value not in (None, False, "raise") for value in self._options.values()):
            raise UserError(
                "the agent has the capability RestateDurability already, so options of RestateAgent would have no "
                "effect. Give them to RestateDurability, or remove it from the agent."
            )

    @property
    def name(self) -> str:
        """The first part of each step's name in the journal."""
        return self._name

    @name.setter
    def name(self, value: str | None) -> None:
        self._name = value or _DEFAULT_NAME

    # The parameters are those of the agent, which type checkers see in the base class.
    if not TYPE_CHECKING:

        @functools.wraps(WrapperAgent.override)
        def override(self, **kwargs):
            # The names of models= are names for this as well.
            model = kwargs.get("model")
            if isinstance(model, str) and model in self._models:
                kwargs["model"] = self._models[model]
            return self.wrapped.override(**kwargs)

        @functools.wraps(WrapperAgent.run)
        async def run(self, *args, **kwargs):
            with terminal_in_handler():
                self._check_context()
                arguments = self._durable(kwargs)
                invocation = current_invocation()
                if invocation is None:
                    return await self.wrapped.run(*args, **arguments)
                return await invocation.on_handler_loop(lambda: self.wrapped.run(*args, **arguments))

        @functools.wraps(WrapperAgent.iter)
        def iter(self, *args, **kwargs):
            self._refuse_under_restate_app("iter")
            return self.wrapped.iter(*args, **self._durable(kwargs))

        @functools.wraps(WrapperAgent.run_stream)
        def run_stream(self, *args, **kwargs):
            self._refuse_under_restate_app("run_stream")
            return self.wrapped.run_stream(*args, **self._durable(kwargs))

        @functools.wraps(WrapperAgent.run_stream_events)
        def run_stream_events(self, *args, **kwargs):
            self._refuse_under_restate_app("run_stream_events")
            return self.wrapped.run_stream_events(*args, **self._durable(kwargs))

    def _durable(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Add the capability to the arguments of a run."""
        if self._is_durable_already:
            return arguments
        options = dict(self._options)
        options["event_stream_handler"] = arguments.pop("event_stream_handler", None) or options["event_stream_handler"]
        # A step runs in this process, where the instances are at hand.
        models = dict(self._models)
        given: Any = arguments.get("capabilities") or ()
        for capability in given:
            if _is_capability(capability):
                models = {**models_to_fall_back_to(capability, models), **models}
        for model in (arguments.get("model"), overriding_model(self.wrapped)):
            if _is_model(model) and model is not self.wrapped.model:
                add_model(models, model)
        durability: RestateDurability[AgentDepsT] = RestateDurability(models=models, name=self._name, **options)
        # A name that was inferred from a variable would get into the names of steps, on some attempts.
        return {
            **arguments,
            "capabilities": [*(arguments.get("capabilities") or ()), durability],
            "infer_name": False,
        }

    def _check_context(self) -> None:
        if self._restate_context is None or running_step.get() is not None:
            return
        invocation = current_invocation()
        if invocation is None or invocation.context is not self._restate_context:
            raise UserError(
                "restate_context is not the context of the handler that is running. Make the RestateAgent inside the "
                "handler, with the handler's own context, or leave restate_context out."
            )

    def _refuse_under_restate_app(self, method: str) -> None:
        invocation = current_invocation()
        if invocation is None or invocation.execution is not None:
            return
        with terminal_in_handler():
            raise UserError(
                f"RestateAgent.{method}() works in a handler only on the handler loop. Serve the handler with "
                "restate_steps.app instead of restate.app, which takes the same arguments."
            )


def _is_model(value: Any) -> TypeGuard[Model[Any]]:
    return isinstance(value, Model)


def _is_capability(value: Any) -> TypeGuard[AbstractCapability[Any]]:
    return isinstance(value, AbstractCapability)
