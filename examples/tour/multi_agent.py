"""A support desk of three agents that hand a customer over to each other, in one handler.

Each agent has its own instructions and tools. It answers or hands over to a colleague; both are output types. All three
share one journal, so a crash in the third agent repeats nothing of the first two.

    $ restate-steps dev examples.tour.multi_agent:app
    $ curl localhost:8080/SupportDesk/ask --json '"Invoice 17 has a repair on it, and my boiler is cold again."'
"""

from __future__ import annotations

import re
from typing import Literal

import restate
from pydantic import BaseModel
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps.agents import RestateAgent

MOST_HANDOFFS = 5


class Handoff(BaseModel):
    """Hand the customer over to a colleague."""

    to: Literal["billing", "repairs"]
    note: str


class Answer(BaseModel):
    """The answer for the customer, and the desks that were involved."""

    text: str
    desks: list[str]


@scripted
def triage_model(seen: Seen) -> Reply:
    return Handoff(to="billing" if "nvoice" in seen.prompt else "repairs", note="new")


@scripted
def billing_model(seen: Seen) -> Reply:
    if "read_invoice" in seen.tools:
        note = str(seen.tools["read_invoice"].content)
        return Handoff(to="repairs", note=note) if "repair" in note else f"Your invoice: {note}."
    number = re.search(r"\d+", seen.prompt)
    return [call("read_invoice", number=int(number[0]))] if number else "Which invoice do you mean?"


@scripted
def repairs_model(seen: Seen) -> Reply:
    if "send_technician" in seen.tools:
        return f"We are sorry. {seen.tools['send_technician'].content}"
    return [call("send_technician", free="repair" in seen.prompt.partition("Note:")[2])]


triage = Agent(triage_model, name="triage", output_type=Handoff, instructions="Find the right desk for a customer.")
billing = Agent[object, Handoff | str](
    billing_model, name="billing", output_type=[Handoff, str], instructions="You know all invoices."
)
repairs = Agent[object, Handoff | str](
    repairs_model, name="repairs", output_type=[Handoff, str], instructions="You send technicians."
)


@billing.tool_plain
async def read_invoice(number: int) -> str:
    """Read what an invoice is for."""
    return {17: "boiler repair, 180 EUR"}.get(number, "heating, 60 EUR")


@repairs.tool_plain
async def send_technician(free: bool) -> str:
    """Send a technician, for free if we have repaired the same thing before."""
    return f"A technician comes tomorrow, {'for free' if free else 'for 90 EUR'}."


desk = restate.Service("SupportDesk")


@desk.handler()
async def ask(ctx: restate.Context, question: str) -> Answer:
    handoff = (await RestateAgent(triage, restate_context=ctx).run(question)).output
    desks = [handoff.to]
    while len(desks) <= MOST_HANDOFFS:
        colleague = billing if handoff.to == "billing" else repairs
        prompt = f"{question}\nNote: {handoff.note}"
        output = (await RestateAgent(colleague, restate_context=ctx).run(prompt)).output
        if isinstance(output, str):
            return Answer(text=output, desks=["triage", *desks])
        handoff = output
        desks.append(handoff.to)
    raise restate.TerminalError(f"no desk is responsible: {desks}")


app = restate_steps.app([desk])
