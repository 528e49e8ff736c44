"""An OpenAI Agents SDK agent whose model requests and tools are durable steps.

The model is ``gpt-5`` if ``OPENAI_API_KEY`` is set, otherwise a scripted one.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import restate
from agents import (
    Agent,
    Model,
    ModelResponse,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    Tool,
    TResponseInputItem,
    Usage,
    function_tool,
)
from agents.items import TResponseStreamEvent
from openai import AsyncOpenAI
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from pydantic import TypeAdapter

import restate_steps
from examples.ledger import note, pretend_to_work
from restate_steps import durable_step


class ResponseCodec:
    """Omit unset fields, because the SDK sends every field that is set back to OpenAI, even if it is None."""

    adapter = TypeAdapter(ModelResponse)

    def dump(self, type: Any, value: Any) -> bytes:
        return self.adapter.dump_json(value, exclude_unset=True)

    def load(self, type: Any, data: bytes) -> Any:
        return self.adapter.validate_json(data)


@durable_step(codec=ResponseCodec())
async def ask_model(model: Model, request: tuple[Any, ...], options: dict[str, Any]) -> ModelResponse:
    note()
    return await model.get_response(*request, **options)


class DurableModel(Model):
    """A model that makes each request of another model a durable step."""

    def __init__(self, model: Model) -> None:
        self.model = model

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        response: ModelResponse = await ask_model(self.model, args, kwargs)
        return response

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        raise NotImplementedError("A step records a complete response. Call Runner.run instead of Runner.run_streamed.")


class ScriptedModel(Model):
    """Call all tools at once for the city in the question, then answer with their results."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: Any,
        tools: list[Tool],
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        await pretend_to_work(3)
        items: list[Any] = [{"content": input}] if isinstance(input, str) else input
        results = [item["output"] for item in items if item.get("type") == "function_call_output"]
        if results:
            text = ResponseOutputText(type="output_text", text="; ".join(results), annotations=[])
            answer = ResponseOutputMessage(
                id="answer", type="message", role="assistant", status="completed", content=[text]
            )
            return ModelResponse(output=[answer], usage=Usage(), response_id=None)
        city = items[0]["content"].removeprefix("Plan a trip to ").removesuffix(".")
        return ModelResponse(
            output=[
                ResponseFunctionToolCall(
                    type="function_call",
                    call_id=f"call-{tool.name}",
                    name=tool.name,
                    arguments=json.dumps({"city": city}),
                )
                for tool in tools
            ],
            usage=Usage(),
            response_id=None,
        )

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        raise NotImplementedError


def choose_model() -> Model:
    """Return the real model if it can be used, otherwise the scripted one."""
    if os.environ.get("OPENAI_API_KEY"):
        return OpenAIResponsesModel("gpt-5", AsyncOpenAI())
    return ScriptedModel()


@durable_step
async def look_up_forecast(city: str) -> str:
    note()
    await pretend_to_work()
    return f"{city} will be sunny"


@durable_step
async def find_flight(city: str) -> str:
    note()
    await pretend_to_work()
    return f"the 9:40 to {city}"


@durable_step
async def reserve(flight: str) -> str:
    note()
    await pretend_to_work()
    return f"{flight} is reserved"


# By default a tool's error is text for the model, and the agent would continue after the invocation is cancelled.
@function_tool(failure_error_function=None)
async def forecast(city: str) -> str:
    """Return the weather forecast for a city."""
    return await look_up_forecast(city)


@function_tool(failure_error_function=None)
async def book_flight(city: str) -> str:
    """Book a flight to a city."""
    return await reserve(await find_flight(city))


agent = Agent(
    "Travel agent",
    instructions="You plan trips.",
    model=DurableModel(choose_model()),
    tools=[forecast, book_flight],  # run in parallel if one response calls both
)


async def plan_trip(city: str) -> str:
    """Run the agent. Outside a handler the steps are plain calls."""
    # Tracing would send every run to OpenAI, once more on each replay.
    result = await Runner.run(agent, f"Plan a trip to {city}.", run_config=RunConfig(tracing_disabled=True))
    return str(result.final_output)


trips = restate.Service("OpenAITrips")


@trips.handler()
async def plan(ctx: restate.Context, city: str) -> str:
    return await plan_trip(city)


app = restate_steps.app([trips])
