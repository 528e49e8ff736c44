"""A wrapper that makes an agent durable inside a handler, without changing the agent itself."""

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
from restate_steps.agents._durability import RestateDurability
from restate_steps.agents._failures import terminal_in_handler
from restate_steps.agents._pydantic_ai import overriding_model
from restate_steps.agents._run import OnToolError
from restate_steps.context import current_invocation, running_step
from restate_steps.options import RetryPolicy

__all__ = ["RestateAgent"]

AgentDepsT = TypeVar("AgentDepsT")
OutputDataT = TypeVar("OutputDataT")

_DEFAULT_NAME: Final = "agent"


class RestateAgent(WrapperAgent[AgentDepsT, OutputDataT]):
    """An agent whose runs are durable inside a Restate handler, and unchanged elsewhere.

    It is cheap to create, so wrap the agent where you run it.

    Args:
        agent: The agent. It is not changed.
        restate_context: The context of the running handler, found automatically by default. If you pass it, a run in
            any other handler is an error.
        event_stream_handler: Receives the events of a run, inside steps: the live stream of each model response, and
            each event of a tool call. A retried step calls it again.
        disable_auto_wrapping_tools: Run function tools in the handler instead of in a step each, so that they can use
            the Restate context and call steps. For a single tool, set ``metadata={'restate': False}``.
        name: The first part of each step's name in the journal. Defaults to the agent's name, or to ``agent`` if it
            has none. Changing it breaks invocations in flight.
        models: Additional models, by the names that select them in a run. An instance that is passed to
            ``run(model=...)`` need not be listed.
        max_parallel_tools: The maximum number of tool calls that a run executes at once; unlimited by default.
        on_tool_error: What to do when a tool call fails permanently; see :class:`RestateDurability`.
        run_options: The retry policy of all steps, as the SDK's ``RunOptions``. Its ``serde`` is ignored.
        model_retry: The retry policy of model requests, instead of ``run_options``.
        tool_retry: The retry policy of tool calls other than those of MCP servers, instead of ``run_options``.
        mcp_retry: The retry policy of requests to MCP servers, instead of ``run_options``.
        event_retry: The retry policy of calls of the event handler, instead of ``run_options``.

    Raises:
        UserError: An option is invalid, or the agent already has :class:`RestateDurability` and takes no options here.

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
            # Validate the options where the caller wrote them.
            RestateDurability[Any](**self._options)
        elif name or models or any(value not in (None, False, "raise") for value in self._options.values()):
            raise UserError(
                "the agent already has the capability RestateDurability, so options of RestateAgent would have no "
                "effect. Pass them to RestateDurability instead, or remove it from the agent."
            )

    @property
    def name(self) -> str:
        """The first part of each step's name in the journal."""
        return self._name

    @name.setter
    def name(self, value: str | None) -> None:
        self._name = value or _DEFAULT_NAME

    # The parameters are the agent's; type checkers see them in the base class.
    if not TYPE_CHECKING:

        @functools.wraps(WrapperAgent.override)
        def override(self, **kwargs):
            # Accept the names from models= here too.
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
        """Return the arguments of a run with the capability added."""
        if self._is_durable_already:
            return arguments
        options = dict(self._options)
        options["event_stream_handler"] = arguments.pop("event_stream_handler", None) or options["event_stream_handler"]
        # Steps run in this process, so model instances can be registered for a single run.
        models = dict(self._models)
        given: Any = arguments.get("capabilities") or ()
        for capability in given:
            if _is_capability(capability):
                models = {**models_to_fall_back_to(capability, models), **models}
        for model in (arguments.get("model"), overriding_model(self.wrapped)):
            if _is_model(model) and model is not self.wrapped.model:
                add_model(models, model)
        durability: RestateDurability[AgentDepsT] = RestateDurability(models=models, name=self._name, **options)
        # A name inferred from a variable would become part of step names, but only on some attempts.
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
                "restate_context is not the context of the running handler, so this run cannot use its journal. Create "
                "the RestateAgent inside the handler, with the handler's own context, or omit restate_context."
            )

    def _refuse_under_restate_app(self, method: str) -> None:
        invocation = current_invocation()
        if invocation is None or invocation.execution is not None:
            return
        with terminal_in_handler():
            raise UserError(
                f"RestateAgent.{method}() needs the handler loop, and this handler does not run on it. Serve the "
                "handler with restate_steps.app in place of restate.app; it takes the same arguments."
            )


def _is_model(value: Any) -> TypeGuard[Model[Any]]:
    return isinstance(value, Model)


def _is_capability(value: Any) -> TypeGuard[AbstractCapability[Any]]:
    return isinstance(value, AbstractCapability)
