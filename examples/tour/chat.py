"""A travel agent with memory: each customer has a virtual object that stores the conversation in its state.

The handler stores pydantic-ai's message history unchanged. Restate runs the turns of one customer one at a time, and
those of different customers concurrently. A crash in the middle of a turn loses no message and repeats no recorded
step.

    $ restate-steps dev examples.tour.chat:app
    $ curl localhost:8080/TravelChat/ada/say --json '"I want to see Lisbon."'
    $ curl localhost:8080/TravelChat/ada/say --json '"How do I get there?"'
"""

from __future__ import annotations

from decimal import Decimal

import restate
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelRetry

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps import JsonCodec, serde
from restate_steps.agents import RestateAgent

FLIGHTS = {"Lisbon": ("TP 675", "89.00"), "Porto": ("TP 651", "74.50")}
# round_trip=False includes computed fields, which pydantic-ai expects to find in its own types.
HISTORY = serde(list[ModelMessage], codec=JsonCodec(round_trip=False))


class Flight(BaseModel):
    """A flight that can be booked."""

    number: str
    price: Decimal


@scripted
def travel_model(seen: Seen) -> Reply:
    if "find_flight" in seen.tools:
        flight = Flight.model_validate(seen.tools["find_flight"].content)
        return f"Take {flight.number}, for {flight.price} EUR."
    wanted = [city for prompt in seen.prompts for city in FLIGHTS if city in prompt]
    if not wanted:
        return "Where do you want to go?"
    if "get there" in seen.prompt:
        return [call("find_flight", city=wanted[-1])]
    return f"{wanted[-1]} is lovely. Shall I look for a flight?"


agent = Agent(travel_model, name="travel", instructions="You are a travel agent. Be brief.")


@agent.tool_plain
async def find_flight(city: str) -> Flight:
    """Find the best flight to a city."""
    if city not in FLIGHTS:
        raise ModelRetry(f"We fly to {' and '.join(FLIGHTS)} only.")
    number, price = FLIGHTS[city]
    return Flight(number=number, price=Decimal(price))


chat = restate.VirtualObject("TravelChat")


@chat.handler()
async def say(ctx: restate.ObjectContext, text: str) -> str:
    history = await ctx.get("history", serde=HISTORY)
    result = await RestateAgent(agent, restate_context=ctx).run(text, message_history=history)
    ctx.set("history", result.all_messages(), serde=HISTORY)
    return result.output


app = restate_steps.app([chat])
