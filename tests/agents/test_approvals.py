"""Pending approvals of agents, listed and decided on the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
import restate
from pydantic_ai import Agent
from pydantic_ai.capabilities import HandleDeferredToolCalls, RequestInput
from pydantic_ai.exceptions import CallDeferred
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDenied

import restate_steps
from restate_steps._ids import awakeable_id
from restate_steps.agents import RestateAgent, answer_request
from restate_steps.agents._external_events import ASK_STEP
from restate_steps.cli import main
from restate_steps.server import _approvals
from tests.support.harness import Env, Harness, InvocationFailed, eventually

Serve = Callable[..., Env]


def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Ask for two payments, then say what came of them."""
    returned = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if returned:
        return ModelResponse(parts=[TextPart("; ".join(str(part.content) for part in returned))])
    calls = [ToolCallPart("pay", {"amount": amount}, tool_call_id=f"pay-{amount}") for amount in (5, 60)]
    return ModelResponse(parts=calls)


def paying_service(name: str, *, timeout: timedelta | None = None) -> restate.Service:
    """A handler whose agent has to be allowed to pay."""
    agent = Agent(
        FunctionModel(respond, model_name="script"),
        name="payer",
        capabilities=[RequestInput(lambda ctx, requests, token: None, timeout=timeout, name="payments")],
    )

    @agent.tool_plain(requires_approval=True)
    async def pay(amount: int) -> str:
        return f"paid {amount}"

    service = restate.Service(name)

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    @service.handler()
    async def decide(ctx: restate.Context, token: str) -> None:
        decisions: dict[str, Any] = {"pay-5": True, "pay-60": ToolDenied("too much")}
        answer_request(ctx, token, DeferredToolResults(approvals=decisions))

    return service


def waiting(env: Env, service: str) -> tuple[str, _approvals.PendingRequest]:
    """Start an invocation, and return its id and what it waits for."""
    invocation = env.send(service, "run")

    def look() -> list[_approvals.PendingRequest]:
        return [each for each in _approvals.find_pending(env.server.admin_url) if each.invocation == invocation]

    [request] = eventually(look)
    return invocation, request


def post(env: Env, path: str, body: bytes, content_type: str = "application/json") -> None:
    """Send bytes to the ingress unchanged."""
    url = f"{env.server.ingress_url}{path}"
    httpx.post(url, content=body, headers={"content-type": content_type}, trust_env=False).raise_for_status()


def command(env: Env, *words: str) -> int:
    """Run the command line against the test's server."""
    urls = ["--admin", env.server.admin_url]
    if words[0] != "list":
        urls += ["--ingress", env.server.ingress_url]
    return main(["approvals", words[0], *urls, *words[1:]])


def answered(env: Env, *words: str) -> int:
    """Run a command that reaches the ingress only."""
    return main(["approvals", words[0], "--ingress", env.server.ingress_url, *words[1:]])


def test_both_sides_write_the_step_in_the_same_way() -> None:
    """The list of pending approvals looks for the step name that the agents record."""
    assert ASK_STEP == _approvals._MARK


def test_list_shows_what_is_asked(env_factory: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The list has the token, the agent, the handler, and each call with its arguments."""
    env = env_factory(paying_service("ListedPayments"))
    invocation, request = waiting(env, "ListedPayments")

    assert 0 == command(env, "list")
    shown = capsys.readouterr().out
    assert f"{request.token}  payments of payer, asked in ListedPayments/run ({invocation})" in shown
    assert '  pay-5  pay({"amount": 5})' in shown
    assert '  pay-60  pay({"amount": 60})' in shown


def test_approve_lets_all_run(env_factory: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """Approved by the id of the invocation, all calls run, and nothing is left to decide."""
    env = env_factory(paying_service("ApprovedPayments"))
    invocation, _ = waiting(env, "ApprovedPayments")

    assert 0 == command(env, "approve", invocation)
    assert "paid 5; paid 60" == env.attach(invocation)
    assert "approved: pay (pay-5), pay (pay-60)" in capsys.readouterr().out
    assert invocation not in [each.invocation for each in _approvals.find_pending(env.server.admin_url)]


def test_answered_request_is_not_listed(env_factory: Serve) -> None:
    """An answer counts as soon as the journal has it, even if the handler cannot run yet."""
    env = env_factory(paying_service("AnsweredPayments"))
    invocation, request = waiting(env, "AnsweredPayments")
    env.app_server.stop()

    assert 0 == command(env, "deny", request.token)

    eventually(lambda: request not in _approvals.find_pending(env.server.admin_url))
    env.app_server.start()
    env.attach(invocation)


def test_approve_one_call_with_other_arguments(env_factory: Serve) -> None:
    """One call is approved with arguments of the person's own, and the other is denied."""
    env = env_factory(paying_service("ChangedPayments"))
    invocation, request = waiting(env, "ChangedPayments")

    assert 0 == command(env, "approve", request.token, "--call", "pay-60", "--args", '{"amount": 6}')
    assert "Only another call was approved.; paid 6" == env.attach(invocation)


def test_deny_tells_the_model_why(env_factory: Serve) -> None:
    """A denial reaches the model with its message, and no tool runs."""
    env = env_factory(paying_service("DeniedPayments"))
    invocation, request = waiting(env, "DeniedPayments")

    assert 0 == command(env, "deny", request.token, "--message", "not today")
    assert "not today; not today" == env.attach(invocation)


def test_the_beginning_of_an_id_is_enough(env_factory: Serve) -> None:
    """The short ids that other commands print name a request too."""
    env = env_factory(paying_service("ShortPayments"))
    invocation, _ = waiting(env, "ShortPayments")

    assert 0 == command(env, "approve", f"{invocation[:20]}…")
    assert "paid 5; paid 60" == env.attach(invocation)


def test_handler_answers(env_factory: Serve) -> None:
    """Another handler answers with typed decisions."""
    env = env_factory(paying_service("HandledPayments"))
    invocation, request = waiting(env, "HandledPayments")

    env.call("HandledPayments", "decide", request.token)

    assert "paid 5; too much" == env.attach(invocation)


def test_time_that_is_up_is_not_listed(env_factory: Serve) -> None:
    """When the timer fires, the calls are denied, and nothing is pending any more."""
    env = env_factory(paying_service("LatePayments", timeout=timedelta(milliseconds=1)))
    invocation = env.send("LatePayments", "run")

    answer = env.attach(invocation)

    assert 2 == answer.count("No decision on this tool call arrived: No resolution arrived within 0:00:00.001000.")
    assert invocation not in [each.invocation for each in _approvals.find_pending(env.server.admin_url)]


def test_answer_that_is_no_json_denies(env_factory: Serve) -> None:
    """An answer that is not JSON cannot be taken back, so it counts as a denial, and the run continues."""
    env = env_factory(paying_service("GarbledPayments"))
    invocation, request = waiting(env, "GarbledPayments")

    env._request(
        "POST", f"/restate/awakeables/{request.token}/resolve", b"{", {"content-type": "application/json"}, None, 30
    )

    assert "The answer is not JSON" in env.attach(invocation)


def test_rejected_token_denies(env_factory: Serve) -> None:
    """A token that is rejected denies the calls with the reason."""
    env = env_factory(paying_service("RejectedPayments"))
    invocation, request = waiting(env, "RejectedPayments")

    env._request(
        "POST", f"/restate/awakeables/{request.token}/reject", b"closed", {"content-type": "text/plain"}, None, 30
    )

    assert "No decision on this tool call arrived: closed" in env.attach(invocation)


def test_cancelled_while_it_waits(env_factory: Serve) -> None:
    """A cancellation ends the wait, and the invocation with it."""
    env = env_factory(paying_service("CancelledPayments"))
    invocation, _ = waiting(env, "CancelledPayments")

    env.server.admin.cancel(invocation)

    with pytest.raises(InvocationFailed) as raised:
        env.attach(invocation)
    assert 409 == raised.value.status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("approve", "sign_1nothing"), "no request of an agent waits for an answer under 'sign_1nothing'"),
        (("approve", "{token}", "--call", "pay-7"), "the request has no call 'pay-7'; it has: 'pay-5', 'pay-60'"),
        (("approve", "{token}", "--args", '{"amount": 1}'), "--args applies to a single call, and 2 would be approved"),
    ],
    ids=["unknown", "wrong call", "arguments for two"],
)
def test_mistakes_are_explained(
    env_factory: Serve, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    """A mistake is reported on stderr, and answers nothing."""
    env = env_factory(paying_service("MistakenPayments"))
    _, request = waiting(env, "MistakenPayments")

    assert 1 == command(env, *(word.replace("{token}", request.token) for word in words))
    assert message in capsys.readouterr().err
    assert request in _approvals.find_pending(env.server.admin_url)


def test_result_from_outside_is_not_an_approval(env_factory: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A call that waits for a result cannot be approved; the error has the command that sends it."""
    agent = Agent(
        FunctionModel(respond, model_name="script"),
        name="payer",
        capabilities=[RequestInput(lambda ctx, requests, token: None)],
    )

    @agent.tool_plain
    async def pay(amount: int) -> str:
        raise CallDeferred

    service = restate.Service("OutsidePayments")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    env = env_factory(service)
    invocation, request = waiting(env, "OutsidePayments")

    assert 1 == command(env, "approve", request.token)
    assert f"restate-steps approvals resolve {request.token} JSON\n" in capsys.readouterr().err
    assert 0 == answered(
        env, "resolve", request.token, json.dumps({"calls": {"pay-5": "by cash", "pay-60": "by card"}})
    )
    assert "by cash; by card" == env.attach(invocation)


def test_calls_that_others_decide_are_not_asked_about(env_factory: Serve) -> None:
    """Calls that a policy has decided are not in the list, so approving the rest is a valid answer."""

    async def small_is_fine(ctx: Any, requests: DeferredToolRequests) -> DeferredToolResults:
        small = [call for call in requests.approvals if call.args_as_dict()["amount"] < 10]
        return requests.build_results(approvals={call.tool_call_id: True for call in small})

    agent = Agent(
        FunctionModel(respond, model_name="script"),
        name="payer",
        capabilities=[RequestInput(lambda ctx, requests, token: None), HandleDeferredToolCalls(small_is_fine)],
    )

    @agent.tool_plain(requires_approval=True)
    async def pay(amount: int) -> str:
        return f"paid {amount}"

    service = restate.Service("PolicyPayments")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    env = env_factory(service)
    invocation, request = waiting(env, "PolicyPayments")

    assert ["pay-60"] == [call.id for call in request.calls]
    assert 0 == command(env, "approve", request.token)
    assert "paid 5; paid 60" == env.attach(invocation)


def awaiting_service(name: str) -> restate.Service:
    """A handler that waits for an awakeable, without an agent."""
    service = restate.Service(name)

    @service.handler()
    async def run(ctx: restate.Context) -> Any:
        _, answer = ctx.awakeable(type_hint=dict)
        return await answer

    return service


def awaited(env: Env, invocation: str) -> str:
    """Wait until an invocation is listed with an awakeable, and return its id."""
    found = eventually(
        lambda: [each for each in _approvals.find_awakeables(env.server.admin_url) if each.invocation == invocation]
    )
    return found[0].id


def test_plain_awakeables(replay_harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    """Awakeables of other handlers are listed when the handler is suspended, and can be resolved and rejected."""
    with replay_harness.serve(restate_steps.app([awaiting_service("PlainAwaited")])) as env:
        resolved, rejected = env.send("PlainAwaited", "run"), env.send("PlainAwaited", "run")
        token, other = awaited(env, resolved), awaited(env, rejected)

        assert 0 == command(env, "list")
        assert f"{token}  awakeable, awaited in PlainAwaited/run ({resolved})\n" in capsys.readouterr().out

        assert 0 == answered(env, "resolve", token, '{"paid": 5}')
        assert {"paid": 5} == env.attach(resolved)
        assert 0 == answered(env, "reject", other, "--message", "not today")
        with pytest.raises(InvocationFailed, match="not today"):
            env.attach(rejected)


def test_the_awakeable_of_an_agent_is_listed_once(replay_harness: Harness) -> None:
    """It is a request, not a plain awakeable too."""
    with replay_harness.serve(restate_steps.app([paying_service("OncePayments")])) as env:
        invocation, _ = waiting(env, "OncePayments")
        eventually(lambda: env.server.admin.invocation(invocation)["status"] == "suspended")

        assert invocation not in [each.invocation for each in _approvals.find_awakeables(env.server.admin_url)]


def test_an_id_is_not_a_path(replay_harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    """A text with slashes in the place of an id reaches no handler."""
    called = threading.Event()
    service = restate.Service("NotAPath")

    @service.handler()
    async def resolve(ctx: restate.Context, value: int) -> None:
        called.set()

    with replay_harness.serve(restate_steps.app([service])) as env:
        assert 1 == answered(env, "resolve", "../../NotAPath", "1")
        assert "the server answered 400: bad awakeable id" in capsys.readouterr().err
        assert not called.is_set()


def test_an_awakeable_that_is_wrong(env_factory: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The ingress says why, in one line."""
    env = env_factory(paying_service("WrongAwakeable"))

    assert 1 == answered(env, "resolve", "sign_1nothing", "1")
    assert "error: cannot send the answer: the server answered 400: bad awakeable id" in capsys.readouterr().err
    assert 2 == answered(env, "resolve", "sign_1nothing", "{")
    assert "error: invalid value for '[JSON]': not JSON: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "value",
    [
        {"token": "order-1", "calls": []},
        {"token": awakeable_id(bytes(24), 17), "calls": []},
        {"token": 5},
        {"calls": []},
        {"token": "{own}", "calls": [{"x": 1}]},
        "text",
    ],
    ids=["another text", "of another invocation", "a number", "none", "other calls", "not an object"],
)
def test_a_step_with_such_a_name_is_not_a_request(
    env_factory: Serve, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    """A handler may name a step like that of an agent. What it records does not break the list."""
    service = restate.Service("ForeignAsks")

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        own, answer = ctx.awakeable()
        recorded = {**value, "token": own} if isinstance(value, dict) and value.get("token") == "{own}" else value
        await ctx.run_typed(f"shop{ASK_STEP}pay.ask", lambda: recorded)
        await answer

    env = env_factory(service)
    invocation = env.send("ForeignAsks", "run")
    eventually(lambda: [each for each in env.server.admin.journal(invocation) if each.type == "Notification: Run"])

    assert 0 == command(env, "list")
    assert "shop" not in capsys.readouterr().out
