"""A claims agent whose tool starts a workflow with a human task, and waits for its result.

The inspection of a claim is a separate workflow whose key is the claim's id. It asks an inspector, waits for a durable
promise, and computes the estimate. The inspector reports to the workflow by its key and needs no token. The tool uses
the Restate context, so the agent must not wrap it in a step.

    $ restate-steps dev examples.tour.sub_workflow:app
    $ curl localhost:8080/InspectedClaims/handle/send --json '{"id": "C-8", "item": "kitchen"}'
    $ curl localhost:8080/Inspection/C-8/report --json '{"broken": ["stove", "sink"]}'
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

import restate
from pydantic import BaseModel
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps import durable_step, restate_context, serde
from restate_steps.agents import RestateAgent

PRICES = {"stove": Decimal(700), "sink": Decimal(250)}


class Claim(BaseModel):
    """A claim for a damaged item."""

    id: str
    item: str


class Findings(BaseModel):
    """The inspector's findings."""

    broken: list[str]


class Estimate(BaseModel):
    """The estimated cost of the repair."""

    broken: list[str]
    total: Decimal


# --- the workflow -----------------------------------------------------------------------------------------------

inspection = restate.Workflow("Inspection")


@durable_step(name="ask an inspector")
async def ask_inspector(claim: Claim) -> None:
    print(f"Please inspect the {claim.item}, and report to localhost:8080/Inspection/{claim.id}/report")


@durable_step(name="price {part}")
async def price(part: str) -> Decimal:
    return PRICES.get(part, Decimal(100))


@inspection.main()
async def inspect(ctx: restate.WorkflowContext, claim: Claim) -> Estimate:
    await ask_inspector(claim)
    findings = await ctx.promise("findings", serde=serde(Findings)).value()
    prices = await asyncio.gather(*[price(part) for part in findings.broken])
    return Estimate(broken=findings.broken, total=sum(prices, Decimal(0)))


@inspection.handler()
async def report(ctx: restate.WorkflowSharedContext, findings: Findings) -> None:
    await ctx.promise("findings", serde=serde(Findings)).resolve(findings)


# --- the agent --------------------------------------------------------------------------------------------------


@scripted
def claims_model(seen: Seen) -> Reply:
    claim = Claim.model_validate_json(seen.prompt)
    if "inspect_damage" not in seen.tools:
        return [call("inspect_damage", id=claim.id, item=claim.item)]
    estimate = Estimate.model_validate(seen.tools["inspect_damage"].content)
    return f"We pay {estimate.total} EUR for: {', '.join(estimate.broken)}."


agent = Agent(claims_model, name="claims", instructions="Have the damage inspected, and say what is paid for it.")


@agent.tool_plain(metadata={"restate": False})
async def inspect_damage(claim: Claim) -> Estimate:
    """Have an inspector look at the damage."""
    estimate: Estimate = await restate_context().workflow_call(inspect, key=claim.id, arg=claim)
    return estimate


claims = restate.Service("InspectedClaims")


@claims.handler()
async def handle(ctx: restate.Context, claim: Claim) -> str:
    return (await RestateAgent(agent, restate_context=ctx).run(claim.model_dump_json())).output


app = restate_steps.app([claims, inspection])
