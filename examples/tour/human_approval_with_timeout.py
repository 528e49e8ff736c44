"""A refund that a manager has to approve within a day; otherwise it is denied, and the model learns why.

The timer is durable: it keeps running while the handler is suspended or the process is down, and a crash does not
restart it. Every call of a tool that requires approval waits for the manager.

    $ restate-steps dev examples.tour.human_approval_with_timeout:app
    $ curl localhost:8080/Refunds/request --json '{"order": "A-9", "amount": "35", "answer_within": "PT1M"}'
"""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal

import restate
from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, RunContext
from pydantic_ai.capabilities import RequestInput

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps.agents import RestateAgent


class Refund(BaseModel):
    """A customer's request for a refund."""

    order: str
    amount: Decimal
    answer_within: timedelta = timedelta(days=1)


@scripted
def refunds_model(seen: Seen) -> Reply:
    refund = Refund.model_validate_json(seen.prompt)
    done = seen.tools.get("send_money")
    if done is None:
        return [call("send_money", order=refund.order, amount=str(refund.amount))]
    if done.outcome == "denied":
        return f"I could not refund order {refund.order} today. {done.content}"
    return f"Order {refund.order} is refunded: {done.content}."


agent = Agent(refunds_model, name="refunds", instructions="You refund orders, and tell the customer what was done.")


@agent.tool_plain(requires_approval=True)
async def send_money(order: str, amount: Decimal) -> str:
    """Refund an order."""
    return f"{amount} EUR are on their way"


async def ask_manager(ctx: RunContext, requests: DeferredToolRequests, token: str) -> None:
    """Ask for approval; a real program would send a mail. This is a step, so a replay does not send it again."""
    for approval in requests.approvals:
        answer = json.dumps({"approvals": {approval.tool_call_id: True}})
        print(f"Approve {approval.args}: curl localhost:8080/restate/awakeables/{token}/resolve --json '{answer}'")


refunds = restate.Service("Refunds")


@refunds.handler()
async def request(ctx: restate.Context, refund: Refund) -> str:
    approval = RequestInput(ask_manager, timeout=refund.answer_within, name="manager")
    result = await RestateAgent(agent, restate_context=ctx).run(refund.model_dump_json(), capabilities=[approval])
    return result.output


app = restate_steps.app([refunds])
