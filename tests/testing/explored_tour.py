"""The tour of agents, each program with what may come of it: wherever it crashes, whatever ends first."""

from __future__ import annotations

import importlib
import os
from typing import Any

from restate_steps.testing import SimulatedInvocation, Simulator
from tests.support.exploration import Subject, explored

os.environ.pop("TOUR_MODEL", None)

CLAIM = {"id": "C-7", "reason": "a burst pipe", "amount": "4200"}
REFUND = {"order": "A-9", "amount": "35"}
INSPECTED = {"id": "C-8", "item": "kitchen"}


def program(name: str) -> Any:
    """Import a program, and take its prints away: it is run many times."""
    module: Any = importlib.import_module(f"examples.tour.{name}")
    module.print = lambda *words: None
    return module


def tour(name: str, *answers: Any, title: str = "", runs: int = 6, **given: Any) -> None:
    """Add a program to what is explored."""
    explored(Subject(f"tour/{title or name}", program(name).app, answers=answers, runs=runs, **given))


async def decide(sim: Simulator, invocation: SimulatedInvocation[Any], approval: Any) -> Any:
    """Answer what an agent asks; nothing is asked if it was cancelled before."""

    def asked() -> list[Any]:
        steps = [entry for entry in invocation.journal if entry.type == "Notification: Run"]
        return [entry.value for entry in steps if (entry.name or "").endswith(".ask")]

    await sim.until(lambda: asked() or invocation.status == "completed")
    for request in asked():
        answer = {"approvals": {call["id"]: approval for call in request["calls"]}}
        await sim.resolve_awakeable(request["token"], answer)
    return (await invocation.result()).value


# --- one agent --------------------------------------------------------------------------------------------------


async def chat_twice(sim: Simulator) -> Any:
    await sim.call("TravelChat/say", "I want to see Lisbon.", key="ada")
    return (await sim.call("TravelChat/say", "How do I get there?", key="ada")).value


tour("chat", "Take TP 675, for 89.00 EUR.", scenario=chat_twice)
tour("error_handling", "Your parcel is on its way to Ghent.", handler="ParcelDesk/track", arg="P-1")
tour(
    "error_handling",
    "We look into it: ticket X-1.",
    title="error_handling_in_the_handler",
    handler="ParcelDesk/track",
    arg="X-1",
)
tour(
    "error_handling",
    "I cannot reach the carrier now. Parcels take three days at most.",
    title="error_handling_by_the_model",
    handler="ParcelDesk/answer",
    arg="X-1",
)
tour(
    "parallel_tools",
    {"pay": True, "reasons": ["fine: the policy is valid", "fine: no claim before", "fine: it was worth 1200 EUR"]},
    handler="ClaimChecks/evaluate",
    arg={"policy": "P-3", "damage": "bicycle", "amount": "900"},
)

# --- people -----------------------------------------------------------------------------------------------------


async def approve(sim: Simulator) -> Any:
    return await decide(sim, await sim.send("Claims/handle", CLAIM), True)


async def deny(sim: Simulator) -> Any:
    denied = {"kind": "tool-denied", "message": "It is not covered."}
    return await decide(sim, await sim.send("Claims/handle", CLAIM), denied)


async def approve_in_time(sim: Simulator) -> Any:
    return await decide(sim, await sim.send("Refunds/request", REFUND), True)


async def inspect(sim: Simulator) -> Any:
    invocation = await sim.send("InspectedClaims/handle", INSPECTED)
    await sim.call("Inspection/report", {"broken": ["stove", "sink"]}, key="C-8")
    return (await invocation.result()).value


TOO_LATE = (
    "I could not refund order A-9 today. "
    "No decision on this tool call arrived: No resolution arrived within 1 day, 0:00:00."
)

tour("human_approval", "Claim C-7 is paid: 4200 EUR.", scenario=approve)
tour("human_approval", "Claim C-7 is rejected: It is not covered.", title="human_approval_denied", scenario=deny)
tour(
    "human_approval_with_timeout",
    "Order A-9 is refunded: 35 EUR are on their way.",
    TOO_LATE,
    scenario=approve_in_time,
)
tour(
    "human_approval_with_timeout",
    TOO_LATE,
    title="human_approval_too_late",
    handler="Refunds/request",
    arg=REFUND,
)
tour("sub_workflow", "We pay 950 EUR for: stove, sink.", scenario=inspect)

# --- several agents ---------------------------------------------------------------------------------------------

tour(
    "multi_agent",
    {"text": "We are sorry. A technician comes tomorrow, for free.", "desks": ["triage", "billing", "repairs"]},
    handler="SupportDesk/ask",
    arg="Invoice 17 has a repair on it, and my boiler is cold again.",
)
tour(
    "remote_agents",
    "Your trip: flight TP 675 at 9:40, 3 nights at the Grand Hotel Lisbon.",
    handler="TripPlanner/plan",
    arg={"city": "Lisbon", "nights": 3},
)
tour(
    "workflow_sequential",
    {
        "english": "From 10:02 to 10:40 you could not log in, because of a bad certificate. We are sorry.",
        "german": "Von 10:02 bis 10:40 konnten Sie sich nicht anmelden. Das tut uns leid.",
    },
    handler="IncidentReport/write",
    arg="10:02 login was down, 10:40 it worked again, a bad certificate",
)
tour(
    "workflow_parallel",
    "Do not sign yet. 'Notice is three years.' should be three months.",
    handler="ContractReview/review",
    arg=["Rent is due on the 1st.", "Notice is three years."],
)
tour(
    "workflow_orchestrator",
    "240000 are sold in Austria; 310000 are sold in Belgium; KTM leads in Austria.",
    handler="MarketStudy/study",
    arg="e-bikes in Austria and Belgium",
)
tour(
    "workflow_evaluator_optimizer",
    {
        "text": "Meet a kettle of steel, 1.7 l. It boils your water in two minutes. Order today!",
        "drafts": 3,
        "good": True,
    },
    handler="ProductText/write",
    arg="a kettle of steel, 1.7 l",
)
