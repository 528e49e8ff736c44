"""Durable models, toolsets and event handlers, for code that uses them without an agent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, ModelResponse
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext
from pydantic_ai.toolsets import AbstractToolset

from restate_steps.agents._codec import UNIT_CODEC
from restate_steps.agents._durability import RestateDurability
from restate_steps.agents._operation_backend import run_unit
from restate_steps.agents._pydantic_ai import wrap_leaves
from restate_steps.context import current_invocation
from restate_steps.options import RetryPolicy

__all__ = ["durable_event_handler", "durable_model", "durable_toolset"]

AgentDepsT = TypeVar("AgentDepsT")


def durable_model(model: Model[Any], *, name: str | None = None, retry: RetryPolicy | None = None) -> Model[Any]:
    """Return a model whose requests are durable steps, for code that uses a model without an agent.

    For an agent, use :class:`RestateAgent` alone; it makes the tools durable too. Outside a handler, and inside the
    body of a step, requests are not recorded. A streamed request is consumed in the step, and the resulting stream
    has the events of the complete response, on the first run and on every replay.

    Args:
        model: The model to wrap.
        name: The first part of each step's name; defaults to the model's name.
        retry: The retry policy of requests. Requests that the provider rejects are not retried.

    Returns:
        The durable model.

    Example:
        ```python
        from pydantic_ai.direct import model_request
        from pydantic_ai.messages import ModelRequest
        from pydantic_ai.models.test import TestModel

        summarizer = durable_model(TestModel(), name="summarizer")


        @svc.handler()
        async def summarize(ctx: restate.Context, text: str) -> str:
            response = await model_request(summarizer, [ModelRequest.user_text_prompt(text)])
            return response.text or ""
        ```
    """
    if not isinstance(model, Model):
        raise UserError(
            f"durable_model expects a Model instance, got {model!r}. Create one with pydantic_ai.models.infer_model."
        )
    return _StepModel(model, name or model.model_name, retry or RetryPolicy())


class _StepModel(WrapperModel):
    """A model that sends the requests of another model in steps."""

    def __init__(self, wrapped: Model[Any], name: str, retry: RetryPolicy) -> None:
        super().__init__(wrapped)
        self._name = name
        self._retry = retry

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        async def ask() -> ModelResponse:
            return await self.wrapped.request(messages, model_settings, model_request_parameters)

        if current_invocation() is None:
            return await ask()
        return await self._in_step("request", ask)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        arguments = (messages, model_settings, model_request_parameters, run_context)
        if current_invocation() is None:
            async with self.wrapped.request_stream(*arguments) as stream:
                yield stream
            return

        async def ask() -> ModelResponse:
            async with self.wrapped.request_stream(*arguments) as stream:
                async for _ in stream:
                    pass
            return stream.get()

        response = await self._in_step("request_stream", ask)
        yield CompletedStreamedResponse(response, model_request_parameters=model_request_parameters, replay_events=True)

    async def _in_step(self, operation: str, ask: Callable[[], Awaitable[ModelResponse]]) -> ModelResponse:
        async def unit() -> bytes:
            return UNIT_CODEC.dump(ModelResponse, await ask())

        recorded = await run_unit(unit, f"{self._name}__model.{operation}", retry=self._retry)
        return cast(ModelResponse, UNIT_CODEC.load(ModelResponse, recorded))


def durable_toolset(
    toolset: AbstractToolset[AgentDepsT], *, name: str = "tools", retry: RetryPolicy | None = None
) -> AbstractToolset[AgentDepsT]:
    """Return a toolset whose calls and tool discovery are durable steps, for code that calls tools itself.

    For an agent, use :class:`RestateAgent` alone. The rules for an agent's tools apply here too: metadata such as
    ``{'restate': False}``, control flow such as ``ModelRetry``, and requests to MCP servers only inside steps. Call one
    tool after another, or several at once with :func:`restate_steps.gather`.

    Args:
        toolset: A function, MCP or dynamic toolset, or a combination of them. Other kinds are not durable.
        name: The first part of each step's name.
        retry: The retry policy of the steps.

    Returns:
        The durable toolset.

    Example:
        ```python
        from pydantic_ai.toolsets import FunctionToolset


        def distance(place: str) -> int:
            return len(place)


        places = durable_toolset(FunctionToolset([distance]), name="places")
        ```
    """
    return wrap_leaves(RestateDurability[AgentDepsT](name=name, tool_retry=retry, mcp_retry=retry), toolset)


def durable_event_handler(
    handler: EventStreamHandler[AgentDepsT], *, name: str = "event_stream_handler", retry: RetryPolicy | None = None
) -> EventStreamHandler[AgentDepsT]:
    """Return an event handler that receives each event in its own durable step.

    Use it for agents that are not durable, and for other sources of events. An event handler that is passed to
    :class:`RestateAgent` is already durable, and receives the model's events live. Outside a Restate handler, the event
    handler is called with the whole stream, as usual.

    Args:
        handler: The event handler. It is called for each event, with a stream of that one event.
        name: The name of the steps.
        retry: The retry policy of the steps.

    Returns:
        The durable event handler.

    Example:
        ```python
        from pydantic_ai import Agent
        from pydantic_ai.models.test import TestModel


        shown: list[str] = []


        async def show(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
            async for event in events:
                shown.append(event.event_kind)


        agent = Agent(durable_model(TestModel()))
        await agent.run("Hello", event_stream_handler=durable_event_handler(show))
        ```
    """
    policy = retry or RetryPolicy()

    async def handle(ctx: RunContext[AgentDepsT], stream: AsyncIterable[AgentStreamEvent]) -> None:
        if current_invocation() is None:
            await handler(ctx, stream)
            return
        async for event in stream:
            await run_unit(_delivery(handler, ctx, event), name, retry=policy)

    return handle


def _delivery(
    handler: EventStreamHandler[AgentDepsT], ctx: RunContext[AgentDepsT], event: AgentStreamEvent
) -> Callable[[], Awaitable[bytes]]:
    async def one() -> AsyncIterator[AgentStreamEvent]:
        yield event

    async def deliver() -> bytes:
        await handler(ctx, one())
        return b"null"

    return deliver
