"""A prompt chain of three agents, each of which works on the output of the previous one.

The first agent turns notes about an incident into typed facts, the second writes a text for customers, and the third
translates it. The chain is plain code in which every model request is a step. After a crash between two agents, the
handler continues with the next one.

    $ restate-steps dev examples.tour.workflow_sequential:app
    $ curl localhost:8080/IncidentReport/write --json '"10:02 login was down, 10:40 it worked again, a bad certificate"'
"""

from __future__ import annotations

import re

import restate
from pydantic import BaseModel
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, scripted
from restate_steps.agents import RestateAgent


class Facts(BaseModel):
    """The facts of an incident."""

    begun: str
    ended: str
    cause: str


class Report(BaseModel):
    """The report for customers, in two languages."""

    english: str
    german: str


@scripted
def facts_model(seen: Seen) -> Reply:
    times = re.findall(r"\d+:\d+", seen.prompt) or ["?"]
    return Facts(begun=times[0], ended=times[-1], cause=seen.prompt.rpartition(", ")[2])


@scripted
def writer_model(seen: Seen) -> Reply:
    facts = Facts.model_validate_json(seen.prompt)
    return f"From {facts.begun} to {facts.ended} you could not log in, because of {facts.cause}. We are sorry."


@scripted
def translator_model(seen: Seen) -> Reply:
    begun, ended = seen.prompt.split()[1:4:2]
    return f"Von {begun} bis {ended} konnten Sie sich nicht anmelden. Das tut uns leid."


analyst = Agent(facts_model, name="analyst", output_type=Facts, instructions="Extract the facts of an incident.")
writer = Agent(writer_model, name="writer", instructions="Tell customers what happened, in two sentences.")
translator = Agent(translator_model, name="translator", instructions="Translate into German.")

incidents = restate.Service("IncidentReport")


@incidents.handler()
async def write(ctx: restate.Context, notes: str) -> Report:
    facts = (await RestateAgent(analyst, restate_context=ctx).run(notes)).output
    english = (await RestateAgent(writer, restate_context=ctx).run(facts.model_dump_json())).output
    german = (await RestateAgent(translator, restate_context=ctx).run(english)).output
    return Report(english=english, german=german)


app = restate_steps.app([incidents])
