"""One agent writes and another judges, until the judge is satisfied or there are three drafts.

The loop is plain code. The journal records every draft and verdict, so after a crash in the third round, the first two
do not run again.

    $ restate-steps dev examples.tour.workflow_evaluator_optimizer:app
    $ curl localhost:8080/ProductText/write --json '"a kettle of steel, 1.7 l"'
"""

from __future__ import annotations

import restate
from pydantic import BaseModel
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, scripted
from restate_steps.agents import RestateAgent

MOST_DRAFTS = 3


class Verdict(BaseModel):
    """The judge's verdict on a draft."""

    good: bool
    remarks: list[str] = []


class ProductText(BaseModel):
    """The text, the number of drafts, and the last verdict."""

    text: str
    drafts: int
    good: bool


@scripted
def writer_model(seen: Seen) -> Reply:
    product, _, remarks = seen.prompt.partition("\n")
    text = f"Meet {product}."
    if "too short" in remarks:
        text += " It boils your water in two minutes."
    if "no offer" in remarks:
        text += " Order today!"
    return text


@scripted
def judge_model(seen: Seen) -> Reply:
    remarks = ["too short"] if len(seen.prompt) < 60 else [] if "rder today" in seen.prompt else ["no offer"]
    return Verdict(good=not remarks, remarks=remarks)


writer = Agent(writer_model, name="writer", instructions="Write a text for a shop. Heed all remarks.")
judge = Agent(judge_model, name="judge", output_type=Verdict, instructions="Judge a text for a shop. Be strict.")

texts = restate.Service("ProductText")


@texts.handler()
async def write(ctx: restate.Context, product: str) -> ProductText:
    remarks: list[str] = []
    number = 0
    while True:
        number += 1
        prompt = "\n".join([product, *remarks])
        text = (await RestateAgent(writer, restate_context=ctx).run(prompt)).output
        verdict = (await RestateAgent(judge, restate_context=ctx).run(text)).output
        if verdict.good or number == MOST_DRAFTS:
            return ProductText(text=text, drafts=number, good=verdict.good)
        remarks += verdict.remarks


app = restate_steps.app([texts])
