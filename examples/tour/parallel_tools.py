"""An agent that checks a claim in three ways at once: the model calls all three tools in one response.

The tool calls of one response run concurrently, each as its own step. The journal records the order in which they
finish, and a replay repeats it. A check that was recorded before a crash does not run again.

    $ restate-steps dev examples.tour.parallel_tools:app
    $ curl localhost:8080/ClaimChecks/evaluate --json '{"policy": "P-3", "damage": "bicycle", "amount": "900"}'
"""

from __future__ import annotations

from decimal import Decimal

import restate
from pydantic import BaseModel
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps.agents import RestateAgent

MARKET = {"bicycle": "1200", "phone": "400"}


class Claim(BaseModel):
    """A claim: the damaged item, and the amount that the customer asks for."""

    policy: str
    damage: str
    amount: Decimal


class Verdict(BaseModel):
    """The decision whether to pay the claim."""

    pay: bool
    reasons: list[str]


@scripted
def checks_model(seen: Seen) -> Reply:
    claim = Claim.model_validate_json(seen.prompt)
    if not seen.tools:
        return [
            call("check_policy", policy=claim.policy),
            call("check_history", policy=claim.policy),
            call("check_price", damage=claim.damage, amount=str(claim.amount)),
        ]
    found = {name: str(part.content) for name, part in seen.tools.items()}
    return Verdict(pay=all(text.startswith("fine") for text in found.values()), reasons=list(found.values()))


agent = Agent(
    checks_model,
    name="checks",
    output_type=Verdict,
    instructions="Make all three checks of a claim at once. Pay only if each of them says that it is fine.",
)


@agent.tool_plain
async def check_policy(policy: str) -> str:
    """Check that the policy was valid."""
    return "fine: the policy is valid" if policy.startswith("P") else "the policy has ended"


@agent.tool_plain
async def check_history(policy: str) -> str:
    """Check for earlier claims that look like fraud."""
    return "fine: no claim before"


@agent.tool_plain
def check_price(damage: str, amount: Decimal) -> str:
    """Check the market price of the item. This is a plain function, so it runs in a thread."""
    worth = Decimal(MARKET.get(damage, "0"))
    return f"fine: it was worth {worth} EUR" if amount <= worth else f"it was worth {worth} EUR only"


checks = restate.Service("ClaimChecks")


@checks.handler()
async def evaluate(ctx: restate.Context, claim: Claim) -> Verdict:
    return (await RestateAgent(agent, restate_context=ctx).run(claim.model_dump_json())).output


app = restate_steps.app([checks])
