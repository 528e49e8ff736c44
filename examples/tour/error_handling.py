"""A parcel desk whose carrier is sometimes down: three attempts, then a person or the model takes over.

``track`` catches the error after three attempts, and opens a ticket. ``answer`` tells the model that the tool failed,
and leaves the answer to the model. The carrier never answers for parcels whose number starts with X.

    $ restate-steps dev examples.tour.error_handling:app
    $ curl localhost:8080/ParcelDesk/track --json '"P-1"'
    $ curl localhost:8080/ParcelDesk/track --json '"X-1"'
    $ curl localhost:8080/ParcelDesk/answer --json '"X-1"'
"""

from __future__ import annotations

from datetime import timedelta

import restate
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps import RetryPolicy, durable_step
from restate_steps.agents import RestateAgent

THREE_ATTEMPTS = RetryPolicy(max_attempts=3, initial_retry_interval=timedelta(milliseconds=50))
CANCELLED = 409


@scripted
def parcel_model(seen: Seen) -> Reply:
    located = seen.tools.get("locate")
    if located is None:
        return [call("locate", parcel=seen.prompt.split()[-1])]
    if located.outcome == "failed":
        return "I cannot reach the carrier now. Parcels take three days at most."
    return f"Your parcel is {located.content}."


agent = Agent(parcel_model, name="parcels", instructions="You tell customers where their parcels are.")


@agent.tool_plain
async def locate(parcel: str) -> str:
    """Ask the carrier where a parcel is."""
    return await ask_carrier(parcel)


async def ask_carrier(parcel: str) -> str:
    """Pretend to be the carrier's service."""
    if parcel.startswith("X"):
        raise ConnectionError("the carrier does not answer")
    return "on its way to Ghent"


@durable_step(name="open a ticket for {parcel}")
async def open_ticket(parcel: str) -> str:
    return f"ticket {parcel}"


desk = restate.Service("ParcelDesk")


@desk.handler()
async def track(ctx: restate.Context, parcel: str) -> str:
    durable_agent = RestateAgent(agent, restate_context=ctx, tool_retry=THREE_ATTEMPTS)
    try:
        return (await durable_agent.run(f"Where is parcel {parcel}")).output
    except restate.TerminalError as error:
        if error.status_code == CANCELLED:
            raise
        return f"We look into it: {await open_ticket(parcel)}."


@desk.handler()
async def answer(ctx: restate.Context, parcel: str) -> str:
    durable_agent = RestateAgent(agent, restate_context=ctx, tool_retry=THREE_ATTEMPTS, on_tool_error="tell_model")
    return (await durable_agent.run(f"Where is parcel {parcel}")).output


app = restate_steps.app([desk])
