"""The tour of agents, program by program, on the real server, with handlers that run through and that are replayed."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import httpx
import pytest
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset

from tests.support import ROOT
from tests.support.exploration import subjects
from tests.support.harness import Env, Harness, eventually

Serve: TypeAlias = Callable[[str], Env]

PROGRAMS = sorted(path.stem for path in (ROOT / "examples" / "tour").glob("[!_]*.py"))
WAITING = ("human_approval", "human_approval_with_timeout", "sub_workflow")
"""The programs that wait for people."""


class Ran(Counter[str]):
    """The number of requests to each model, and of calls to each tool that is a step.

    Attributes:
        hangs: The name of the model or tool whose first call gets no answer, so that it is in flight when the
            application stops.
        meet: The names of models or tools that wait for each other, and what they wait at.
    """

    hangs = ""
    meet: tuple[str, asyncio.Barrier] | None = None

    async def began(self, name: str) -> None:
        """Take note that something runs."""
        self[name] += 1
        if name == self.hangs and self[name] == 1:
            await asyncio.Event().wait()
        if self.meet is not None and re.fullmatch(self.meet[0], name):
            async with asyncio.timeout(30):
                await self.meet[1].wait()


def program(name: str) -> Any:
    """Import a program of the tour."""
    return importlib.import_module(f"examples.tour.{name}")


@pytest.fixture(autouse=True)
def tour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tour importable, with scripted models."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delenv("TOUR_MODEL", raising=False)


@pytest.fixture
def serve(harness: Harness) -> Iterator[Serve]:
    """Serves a program by its name, on each of the two servers in turn."""
    with ExitStack() as stack:

        def serve_program(name: str) -> Env:
            env = stack.enter_context(harness.serve(program(name).app))
            if name in WAITING and not harness.always_replay:
                for service in env.services:
                    suspend_soon(env, service)
            return env

        yield serve_program


def suspend_soon(env: Env, service: str) -> None:
    """Have the server suspend whatever waits, as it does by itself only after a minute."""
    url = f"{env.server.admin_url}/services/{service}"
    httpx.patch(url, json={"inactivity_timeout": "100ms"}, trust_env=False).raise_for_status()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Count what runs, from outside of the programs."""
    counted = Ran()
    request, call_tool = FunctionModel.request, FunctionToolset.call_tool

    async def counting_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        await counted.began(self.model_name)
        return await request(self, *args, **kwargs)

    async def counting_call(self: Any, name: str, args: Any, ctx: Any, tool: Any) -> Any:
        if (tool.tool_def.metadata or {}).get("restate") is not False:
            await counted.began(name)
        return await call_tool(self, name, args, ctx, tool)

    monkeypatch.setattr(FunctionModel, "request", counting_request)
    monkeypatch.setattr(FunctionToolset, "call_tool", counting_call)
    return counted


def steps(env: Env, invocation: str) -> list[str]:
    """The names of the steps, without what pydantic-ai puts around those of tools."""
    names = [str(entry.name) for entry in env.server.admin.journal(invocation) if entry.type == "Command: Run"]
    return [name.replace("function_toolset__<agent>.call_tool:", "") for name in names]


def commands(env: Env, invocation: str) -> list[str]:
    """Return the commands of an invocation, in order."""
    types = [entry.type for entry in env.server.admin.journal(invocation)]
    return [type.removeprefix("Command: ") for type in types if type.startswith("Command: ")]


def invocations_of(env: Env, service: str) -> list[str]:
    """The ids of the invocations of a service, except those of earlier tests."""
    where = f"target_service_name = '{service}' AND pinned_deployment_id = '{env.deployment_id}'"
    return [row["id"] for row in env.server.admin.query(f"SELECT id FROM sys_invocation WHERE {where}")]


def until_suspended(env: Env, invocation: str) -> None:
    """Wait until nothing of an invocation is in memory."""
    eventually(lambda: env.server.admin.invocation(invocation)["status"] == "suspended")


def question(env: Env, invocation: str) -> tuple[str, str]:
    """Wait until an agent asks for an approval, and return the token, and the id of the only call."""

    def asked() -> Any:
        return [entry.value for entry in env.server.admin.journal(invocation) if (entry.name or "").endswith(".ask")]

    found = eventually(lambda: [value for value in asked() if value])[0]
    [call] = found["calls"]
    return found["token"], call["id"]


def restart(env: Env) -> None:
    """Stop the application in the middle of whatever it does, and start it again."""
    env.app_server.stop()
    env.app_server.start()


# --- one agent --------------------------------------------------------------------------------------------------


def test_chat(serve: Serve, ran: Ran) -> None:
    """A customer's earlier messages are there in the next turn, and those of another customer are not."""
    env = serve("chat")

    def say(who: str, text: str) -> Any:
        return env.call("TravelChat", "say", text, key=who)

    assert "Lisbon is lovely. Shall I look for a flight?" == say("ada", "I want to see Lisbon.")
    assert "Where do you want to go?" == say("bob", "How do I get there?")
    assert "Take TP 675, for 89.00 EUR." == say("ada", "How do I get there?")
    assert {"travel_model": 4, "find_flight": 1} == ran
    state = "SELECT value_utf8 FROM state WHERE service_name = 'TravelChat' AND service_key = 'ada'"
    [row] = env.server.admin.query(state)
    assert 6 == row["value_utf8"].count('"kind":"re')


def test_error_handling_retries(serve: Serve, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that fails once is tried again, and the model does not notice."""
    parcels = program("error_handling")

    async def moody(parcel: str) -> str:
        if ran["locate"] == 1:
            raise ConnectionError("not now")
        return "in Ghent"

    monkeypatch.setattr(parcels, "ask_carrier", moody)

    assert "Your parcel is in Ghent." == serve("error_handling").call("ParcelDesk", "track", "P-1")
    assert {"parcel_model": 2, "locate": 2} == ran


def test_error_handling_in_the_handler(serve: Serve, ran: Ran) -> None:
    """The handler catches the error after three attempts, and opens one ticket."""
    env = serve("error_handling")
    invocation = env.send("ParcelDesk", "track", "X-1")

    assert "We look into it: ticket X-1." == env.attach(invocation)
    assert {"parcel_model": 1, "locate": 3} == ran
    assert ["parcels__model.request", "parcels__locate", "open a ticket for X-1"] == steps(env, invocation)


def test_error_handling_by_the_model(serve: Serve, ran: Ran) -> None:
    """The model learns that the tool failed permanently, and answers without it."""
    env = serve("error_handling")

    assert "I cannot reach the carrier now. Parcels take three days at most." == env.call("ParcelDesk", "answer", "X-1")
    assert {"parcel_model": 2, "locate": 3} == ran


def test_parallel_tools(serve: Serve, ran: Ran) -> None:
    """The three checks are in flight at the same time, or none of them would finish, and each runs once."""
    ran.meet = ("check_.*", asyncio.Barrier(3))
    env = serve("parallel_tools")

    verdict = env.call("ClaimChecks", "evaluate", {"policy": "P-3", "damage": "bicycle", "amount": "900"})

    reasons = ["fine: the policy is valid", "fine: no claim before", "fine: it was worth 1200 EUR"]
    assert {"pay": True, "reasons": reasons} == verdict
    assert {"checks_model": 2, "check_policy": 1, "check_history": 1, "check_price": 1} == ran


def test_runs_at_the_same_time_do_not_mix(serve: Serve, ran: Ran) -> None:
    """Each of several claims gets the verdict of its own checks."""
    env = serve("parallel_tools")
    claims = [{"policy": policy, "damage": "phone", "amount": str(500)} for policy in ("P-1", "Q-2", "P-3", "Q-4")]

    sent = [env.send("ClaimChecks", "evaluate", claim) for claim in claims]

    valid, ended = "fine: the policy is valid", "the policy has ended"
    assert [valid, ended, valid, ended] == [env.attach(invocation)["reasons"][0] for invocation in sent]
    assert {"checks_model": 8, "check_policy": 4, "check_history": 4, "check_price": 4} == ran


# --- people -----------------------------------------------------------------------------------------------------


def test_human_approval(serve: Serve, ran: Ran) -> None:
    """A small claim is paid at once; a large one waits, suspended, through a restart, until the adjuster agrees."""
    env = serve("human_approval")
    claim = {"id": "C-7", "reason": "a burst pipe"}

    assert "Claim C-7 is paid: 90 EUR." == env.call("Claims", "handle", {**claim, "amount": "90"})
    assert {"claims_model": 2, "pay": 1} == ran

    ran.clear()
    invocation = env.send("Claims", "handle", {**claim, "amount": "4200"})
    token, call = question(env, invocation)
    until_suspended(env, invocation)
    restart(env)
    env.resolve_awakeable(token, {"approvals": {call: True}})

    assert "Claim C-7 is paid: 4200 EUR." == env.attach(invocation)
    # The tool runs once to find out that it must not, and once for good.
    assert {"claims_model": 2, "pay": 2} == ran
    asked = ["claims__model.request", "claims__pay", "claims__external_event.adjuster.ask"]
    assert [*asked, "claims__pay", "claims__model.request"] == steps(env, invocation)


def test_human_approval_denied(serve: Serve, ran: Ran) -> None:
    """If the adjuster denies, nothing is paid, and the model learns why."""
    env = serve("human_approval")
    invocation = env.send("Claims", "handle", {"id": "C-7", "reason": "a burst pipe", "amount": "4200"})
    token, call = question(env, invocation)

    env.resolve_awakeable(token, {"approvals": {call: {"kind": "tool-denied", "message": "It is not covered."}}})

    assert "Claim C-7 is rejected: It is not covered." == env.attach(invocation)
    assert {"claims_model": 2, "pay": 1} == ran


def test_human_approval_in_time(serve: Serve, ran: Ran) -> None:
    """A refund that is approved within the time is sent, once."""
    env = serve("human_approval_with_timeout")
    invocation = env.send("Refunds", "request", {"order": "A-9", "amount": "35"})
    token, call = question(env, invocation)
    until_suspended(env, invocation)

    env.resolve_awakeable(token, {"approvals": {call: True}})

    assert "Order A-9 is refunded: 35 EUR are on their way." == env.attach(invocation)
    assert {"refunds_model": 2, "send_money": 1} == ran
    assert 1 == commands(env, invocation).count("Sleep")


def test_human_approval_too_late(serve: Serve, ran: Ran) -> None:
    """When the timer ends, the refund is denied, the model is told, and the money stays."""
    env = serve("human_approval_with_timeout")
    invocation = env.send("Refunds", "request", {"order": "A-9", "amount": "35", "answer_within": "PT2S"})
    question(env, invocation)
    restart(env)

    assert env.attach(invocation).startswith("I could not refund order A-9 today. No decision")
    assert {"refunds_model": 2} == ran
    assert 1 == commands(env, invocation).count("Sleep")


def test_sub_workflow(serve: Serve, ran: Ran) -> None:
    """The agent and the workflow wait, both suspended, through a restart, until the inspector reports."""
    env = serve("sub_workflow")
    key = f"C-{os.urandom(4).hex()}"  # a workflow runs once for a key, and the tests share a server
    invocation = env.send("InspectedClaims", "handle", {"id": key, "item": "kitchen"})
    [inspection] = eventually(lambda: invocations_of(env, "Inspection"))
    until_suspended(env, invocation)
    until_suspended(env, inspection)
    restart(env)

    env.call("Inspection", "report", {"broken": ["stove", "sink"]}, key=key)

    assert "We pay 950 EUR for: stove, sink." == env.attach(invocation)
    assert {"claims_model": 2} == ran
    assert ["Input", "Run", "Call", "Run", "Output"] == commands(env, invocation)
    assert ["ask an inspector", "price stove", "price sink"] == steps(env, inspection)


# --- several agents ---------------------------------------------------------------------------------------------


def test_multi_agent(serve: Serve, ran: Ran) -> None:
    """The customer is handed over twice, and no desk gets a second request."""
    env = serve("multi_agent")
    invocation = env.send("SupportDesk", "ask", "Invoice 17 has a repair on it, and my boiler is cold again.")

    assert {
        "text": "We are sorry. A technician comes tomorrow, for free.",
        "desks": ["triage", "billing", "repairs"],
    } == env.attach(invocation)
    models = {"triage_model": 1, "billing_model": 2, "repairs_model": 2}
    assert {**models, "read_invoice": 1, "send_technician": 1} == ran
    assert [
        "triage__model.request",
        "billing__model.request",
        "billing__read_invoice",
        "billing__model.request",
        "repairs__model.request",
        "repairs__send_technician",
        "repairs__model.request",
    ] == steps(env, invocation)


def test_remote_agents(serve: Serve, ran: Ran) -> None:
    """Each colleague is an invocation of its own, both at the same time, with one entry in the planner's journal."""
    ran.meet = ("timetable|hotels_model", asyncio.Barrier(2))
    env = serve("remote_agents")
    invocation = env.send("TripPlanner", "plan", {"city": "Brussels", "nights": 3})

    assert "Your trip: flight SN 100 at 7:00, 3 nights at the Grand Hotel Brussels." == env.attach(invocation)
    assert {"planner_model": 2, "flights_model": 2, "hotels_model": 1, "timetable": 1} == ran
    assert ["Input", "Run", "Call", "Call", "Run", "Output"] == commands(env, invocation)
    assert [1, 1] == [len(invocations_of(env, service)) for service in ("FlightAgent", "HotelAgent")]


# --- workflows --------------------------------------------------------------------------------------------------


def test_workflow_sequential(serve: Serve, ran: Ran) -> None:
    """If the process dies during the second agent's request, the run continues there; the first is not repeated."""
    ran.hangs = "writer_model"
    env = serve("workflow_sequential")
    notes = "10:02 login was down, 10:40 it worked again, a bad certificate"
    invocation = env.send("IncidentReport", "write", notes)
    eventually(lambda: ran["writer_model"])
    restart(env)

    assert {
        "english": "From 10:02 to 10:40 you could not log in, because of a bad certificate. We are sorry.",
        "german": "Von 10:02 bis 10:40 konnten Sie sich nicht anmelden. Das tut uns leid.",
    } == env.attach(invocation)
    assert {"facts_model": 1, "writer_model": 2, "translator_model": 1} == ran
    assert [f"{agent}__model.request" for agent in ("analyst", "writer", "translator")] == steps(env, invocation)


def test_workflow_parallel(serve: Serve, ran: Ran) -> None:
    """A process that dies while one clause is still under review asks again for that one, and for no other."""
    ran.hangs = "lawyer_model"
    env = serve("workflow_parallel")
    clauses = ["Rent is due on the 1st.", "The landlord may enter at any time.", "Notice is three years."]
    invocation = env.send("ContractReview", "review", clauses)

    def reviewed() -> int:
        return [entry.type for entry in env.server.admin.journal(invocation)].count("Notification: Run")

    eventually(lambda: reviewed() == 2)
    restart(env)

    assert (
        "Do not sign yet. 'The landlord may enter at any time.' asks for notice in advance. "
        "'Notice is three years.' should be three months."
    ) == env.attach(invocation)
    assert {"lawyer_model": 4, "editor_model": 1} == ran
    assert [*["lawyer__model.request"] * 3, "editor__model.request"] == steps(env, invocation)


def test_workflow_orchestrator(serve: Serve, ran: Ran) -> None:
    """The workers are busy at the same time, and each does its task once."""
    ran.meet = ("statistics", asyncio.Barrier(2))
    env = serve("workflow_orchestrator")

    study = env.call("MarketStudy", "study", "e-bikes in Austria and Belgium")

    assert "240000 are sold in Austria; 310000 are sold in Belgium; KTM leads in Austria." == study
    assert {"planner_model": 1, "worker_model": 5, "statistics": 2, "editor_model": 1} == ran


def test_workflow_evaluator_optimizer(serve: Serve, ran: Ran) -> None:
    """The third draft is good enough, and each draft was written and judged once."""
    env = serve("workflow_evaluator_optimizer")

    assert {
        "text": "Meet a kettle of steel, 1.7 l. It boils your water in two minutes. Order today!",
        "drafts": 3,
        "good": True,
    } == env.call("ProductText", "write", "a kettle of steel, 1.7 l")
    assert {"writer_model": 3, "judge_model": 3} == ran


def test_workflow_evaluator_optimizer_gives_up(serve: Serve, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the maximum number of drafts, the last one is used."""
    monkeypatch.setattr(program("workflow_evaluator_optimizer"), "MOST_DRAFTS", 2)
    env = serve("workflow_evaluator_optimizer")

    written = env.call("ProductText", "write", "a kettle")

    assert {"text": "Meet a kettle. It boils your water in two minutes.", "drafts": 2, "good": False} == written
    assert {"writer_model": 2, "judge_model": 2} == ran


# --- the folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_docstring_can_be_followed(normal_harness: Harness, name: str) -> None:
    """The command lines that a program's docstring has are right."""
    docstring = program(name).__doc__.replace("\\\n", "")
    lines = [shlex.split(line)[1:] for line in docstring.splitlines() if line.lstrip().startswith("$ ")]

    assert ["restate-steps", "dev", f"examples.tour.{name}:app"] == lines[0]
    with normal_harness.serve(program(name).app) as env:
        for command, url, flag, body in lines[1:]:
            assert ("curl", "--json") == (command, flag)
            path = url.removeprefix("localhost:8080") + ("/send" if name.startswith("human") else "")
            headers = {"content-type": "application/json"}
            answer = httpx.post(env.server.ingress_url + path, content=body, headers=headers, trust_env=False)
            assert answer.is_success, answer.text


def test_table_has_every_program() -> None:
    """The docstring of the folder lists the programs that are there, and there are twelve."""
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.py\)", str(importlib.import_module("examples.tour").__doc__), re.M)

    assert [(name, name) for name in PROGRAMS] == sorted(listed)
    assert 12 == len(PROGRAMS)


def test_every_program_is_explored() -> None:
    """Each program is in the list of what is explored, with crashes and cancellations."""
    explored = {subject.name for subject in subjects()}

    assert {f"tour/{name}" for name in PROGRAMS} <= explored


def test_real_model_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable TOUR_MODEL puts another model in the place of a script."""
    scripted = program("_scripted").scripted

    assert "hello" == scripted(hello).model_name
    monkeypatch.setenv("TOUR_MODEL", "test")
    assert isinstance(scripted(hello), TestModel)


def hello(seen: Any) -> str:
    return "hello"
