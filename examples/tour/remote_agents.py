"""A trip planner that calls agents of other services as tools.

Each of these agents runs as its own invocation. It can be deployed and scaled elsewhere, has its own retries and entry
in Restate's UI, and keeps running if the planner crashes. The planner's journal has one entry per call.

    $ restate-steps dev examples.tour.remote_agents:app
    $ curl localhost:8080/TripPlanner/plan --json '{"city": "Lisbon", "nights": 3}'
"""

from __future__ import annotations

import restate
from pydantic import BaseModel
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps.agents import RestateAgent, remote_tool


class Trip(BaseModel):
    """A trip: the destination and the number of nights."""

    city: str
    nights: int


# --- the other agents, which could be deployed elsewhere --------------------------------------------------------


@scripted
def flights_model(seen: Seen) -> Reply:
    if "timetable" in seen.tools:
        return f"flight {seen.tools['timetable'].content}"
    return [call("timetable", city=seen.prompt)]


@scripted
def hotels_model(seen: Seen) -> Reply:
    trip = Trip.model_validate_json(seen.prompt)
    return f"{trip.nights} nights at the Grand Hotel {trip.city}"


flights_agent = Agent(flights_model, name="flights", instructions="You know all flights. Pick one.")
hotels_agent = Agent(hotels_model, name="hotels", instructions="You know all hotels. Pick one.")
flights = restate.Service("FlightAgent")
hotels = restate.Service("HotelAgent")


@flights_agent.tool_plain
async def timetable(city: str) -> str:
    """Look up the flights to a city."""
    return {"Lisbon": "TP 675 at 9:40"}.get(city, "SN 100 at 7:00")


@flights.handler()
async def find_flight(ctx: restate.Context, city: str) -> str:
    """Find a flight to a city."""
    return (await RestateAgent(flights_agent, restate_context=ctx).run(city)).output


@hotels.handler()
async def find_hotel(ctx: restate.Context, trip: Trip) -> str:
    """Find a hotel in a city for some nights."""
    return (await RestateAgent(hotels_agent, restate_context=ctx).run(trip.model_dump_json())).output


# --- the planner ------------------------------------------------------------------------------------------------


@scripted
def planner_model(seen: Seen) -> Reply:
    if not seen.tools:
        trip = Trip.model_validate_json(seen.prompt)
        return [call("find_flight", city=trip.city), call("find_hotel", city=trip.city, nights=trip.nights)]
    return f"Your trip: {seen.tools['find_flight'].content}, {seen.tools['find_hotel'].content}."


planner_agent = Agent(
    planner_model,
    name="planner",
    instructions="Plan a trip: ask for a flight and a hotel at the same time, and tell the customer.",
    tools=[remote_tool(find_flight), remote_tool(find_hotel)],
)
planner = restate.Service("TripPlanner")


@planner.handler()
async def plan(ctx: restate.Context, trip: Trip) -> str:
    return (await RestateAgent(planner_agent, restate_context=ctx).run(trip.model_dump_json())).output


app = restate_steps.app([planner, flights, hotels])
