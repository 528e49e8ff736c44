"""Agents that review the clauses of a contract concurrently, and another agent that merges the reviews.

``asyncio.gather`` runs whole agents concurrently, and a replay repeats the order in which they continued. If the
process dies while some reviews are in flight, recorded reviews are not requested again.

    $ restate-steps dev examples.tour.workflow_parallel:app
    $ curl localhost:8080/ContractReview/review \\
        --json '["Rent is due on the 1st.", "The landlord may enter at any time.", "Notice is three years."]'
"""

from __future__ import annotations

import asyncio
from typing import Literal

import restate
from pydantic import BaseModel, TypeAdapter
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, scripted
from restate_steps import typed_handler
from restate_steps.agents import RestateAgent

WARNINGS = {"at any time": "asks for notice in advance", "three years": "should be three months"}


class Review(BaseModel):
    """A lawyer's review of a clause."""

    clause: str
    risk: Literal["low", "high"]
    remark: str = ""


REVIEWS = TypeAdapter(list[Review])


@scripted
def lawyer_model(seen: Seen) -> Reply:
    remark = next((remark for words, remark in WARNINGS.items() if words in seen.prompt), "")
    return Review(clause=seen.prompt, risk="high" if remark else "low", remark=remark)


@scripted
def editor_model(seen: Seen) -> Reply:
    risky = [review for review in REVIEWS.validate_json(seen.prompt) if review.risk == "high"]
    return "Do not sign yet. " + " ".join(f"{review.clause!r} {review.remark}." for review in risky)


lawyer = Agent(lawyer_model, name="lawyer", output_type=Review, instructions="Review a clause for the tenant.")
editor = Agent(editor_model, name="editor", instructions="Sum up the reviews of a contract's clauses for the tenant.")

contracts = restate.Service("ContractReview")


@typed_handler(contracts)
async def review(ctx: restate.Context, clauses: list[str]) -> str:
    async def review_one(clause: str) -> Review:
        return (await RestateAgent(lawyer, restate_context=ctx).run(clause)).output

    reviews = await asyncio.gather(*[review_one(clause) for clause in clauses])
    return (await RestateAgent(editor, restate_context=ctx).run(REVIEWS.dump_json(reviews).decode())).output


app = restate_steps.app([contracts])
