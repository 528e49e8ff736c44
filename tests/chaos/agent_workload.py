"""An agent with a scripted model: three model requests and three tool calls, one of which books a trip."""

from __future__ import annotations

import asyncio
import json
import random

import restate
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.capabilities import ProcessHistory
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from restate_steps.agents import RestateAgent
from tests.chaos.event_log import begin, nonces_in, saw
from tests.chaos.payment_service import act

__all__ = ["Trip", "price_of", "travel"]


class Trip(BaseModel):
    """A trip: a unique id, and the cities to visit."""

    id: str
    cities: list[str]


def price_of(city: str) -> int:
    """Return the price of a city, in cents."""
    return 1_000 * len(city) + ord(city[0])


async def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Request the prices of all cities at once, book the trip for their sum, and answer with the booking."""
    nonce = begin()
    await asyncio.sleep(random.uniform(0.1, 0.4))
    trip = _trip(messages)
    returned = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    answers = [json.loads(part.model_response_str()) for part in returned]
    if not returned:
        calls = [ToolCallPart("price", {"city": city}) for city in trip.cities]
        # The response's id carries the nonce.
        return ModelResponse(parts=calls, provider_response_id=nonce)
    if returned[0].tool_name == "price":
        cents = sum(answer["cents"] for answer in answers)
        book_it = ToolCallPart("book", {"trip": trip.id, "cents": cents})
        return ModelResponse(parts=[book_it], provider_response_id=nonce)
    text = json.dumps([trip.id, answers[0]["cents"], answers[0]["receipt"]])
    return ModelResponse(parts=[TextPart(text)], provider_response_id=nonce)


def _trip(messages: list[ModelMessage]) -> Trip:
    [prompt] = [part for part in messages[0].parts if isinstance(part, UserPromptPart)]
    return Trip.model_validate_json(str(prompt.content))


async def note_history(messages: list[ModelMessage]) -> list[ModelMessage]:
    """Log the results that the handler has seen so far; runs in the handler, before each model request."""
    saw(_nonces(messages))
    return messages


def _nonces(messages: list[ModelMessage]) -> list[str]:
    return nonces_in(ModelMessagesTypeAdapter.dump_json(messages).decode())


agent = Agent(FunctionModel(script, model_name="scripted"), name="travel", capabilities=[ProcessHistory(note_history)])


@agent.tool_plain
async def price(city: str) -> dict[str, str | int]:
    nonce = begin()
    await asyncio.sleep(random.uniform(0.03, 0.25))
    return {"nonce": nonce, "cents": price_of(city)}


@agent.tool_plain
async def book(trip: str, cents: int) -> dict[str, str | int]:
    nonce = begin()
    return {"nonce": nonce, "cents": cents, "receipt": await act(f"book {trip}", str(cents))}


travel = restate.Service("Travel")


@travel.handler()
async def plan(ctx: restate.Context, trip: Trip) -> dict[str, object]:
    result = await RestateAgent(agent, restate_context=ctx).run(trip.model_dump_json())
    nonces = _nonces(result.all_messages())
    saw(nonces)
    return {"value": json.loads(result.output), "nonces": nonces}
