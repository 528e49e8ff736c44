"""An agent with a scripted model: three requests to the model, and three calls of tools, one of which books."""

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

from chaos.diary import begin, nonces_in, saw
from chaos.ledger import act
from restate_steps.agents import RestateAgent

__all__ = ["Trip", "price_of", "travel"]


class Trip(BaseModel):
    """What a traveller wants: an id that no other trip has, and where to go."""

    id: str
    cities: list[str]


def price_of(city: str) -> int:
    """Tell what a city costs, in cents."""
    return 1_000 * len(city) + ord(city[0])


async def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Ask for the price of every city at once, book for the sum of them, and tell what was booked."""
    nonce = begin()
    await asyncio.sleep(random.uniform(0.1, 0.4))
    trip = _trip(messages)
    returned = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    answers = [json.loads(part.model_response_str()) for part in returned]
    if not returned:
        calls = [ToolCallPart("price", {"city": city}) for city in trip.cities]
        # A model's response has an id of its own, which is where the nonce goes.
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
    """Note what the handler has seen so far; called in the handler, before each request to the model."""
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
