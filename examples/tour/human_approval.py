"""An insurance agent that pays small claims itself, and asks an adjuster before it pays a large one.

While it waits for the adjuster, possibly for days, the handler is suspended and not in memory. Anyone with the token
can answer over HTTP, and the agent continues where it stopped. The program prints the request and the command to
approve it.

    $ restate-steps dev examples.tour.human_approval:app
    $ curl localhost:8080/Claims/handle --json '{"id": "C-7", "reason": "a burst pipe", "amount": "4200"}'
"""

from __future__ import annotations

import json
from decimal import Decimal

import restate
from pydantic import BaseModel
from pydantic_ai import Agent, ApprovalRequired, DeferredToolRequests, RunContext
from pydantic_ai.capabilities import RequestInput

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps.agents import RestateAgent

FREE_HAND = Decimal(1000)


class Claim(BaseModel):
    """A customer's claim."""

    id: str
    reason: str
    amount: Decimal


@scripted
def claims_model(seen: Seen) -> Reply:
    claim = Claim.model_validate_json(seen.prompt)
    paid = seen.tools.get("pay")
    if paid is None:
        return [call("pay", claim=claim.id, amount=str(claim.amount))]
    return f"Claim {claim.id} is rejected: {paid.content}" if paid.outcome == "denied" else str(paid.content)


async def ask_adjuster(ctx: RunContext, requests: DeferredToolRequests, token: str) -> None:
    """Ask for approval; a real program would send a mail. This is a step, so a replay does not send it again."""
    for approval in requests.approvals:
        answer = json.dumps({"approvals": {approval.tool_call_id: True}})
        print(f"Approve {approval.args}: curl localhost:8080/restate/awakeables/{token}/resolve --json '{answer}'")


agent = Agent(
    claims_model,
    name="claims",
    instructions="You handle insurance claims: pay them, and tell the customer.",
    capabilities=[RequestInput(ask_adjuster, name="adjuster")],
)


@agent.tool
async def pay(ctx: RunContext, claim: str, amount: Decimal) -> str:
    """Pay a claim."""
    if amount > FREE_HAND and not ctx.tool_call_approved:
        raise ApprovalRequired
    return f"Claim {claim} is paid: {amount} EUR."


claims = restate.Service("Claims")


@claims.handler()
async def handle(ctx: restate.Context, claim: Claim) -> str:
    result = await RestateAgent(agent, restate_context=ctx).run(claim.model_dump_json())
    return result.output


app = restate_steps.app([claims])
