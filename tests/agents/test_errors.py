"""Errors of runs, and what is tried again, on the real server, with handlers that run through and that replay."""

# | no.  | scenario                        | tests                                                   |
# |------|---------------------------------|---------------------------------------------------------|
# | 65   | 429 is retried, 401 is terminal | test_requests_that_may_succeed_are_sent_again,          |
# |      |                                 | test_requests_that_can_never_succeed_end_the_invocation |
# | 66   | limits, used up retries,        | test_run_over_its_limit_ends_the_invocation,            |
# |      | unregistered model              | test_used_up_retries_end_the_invocation,                |
# |      |                                 | test_model_that_nobody_named_ends_the_invocation        |
# | 68   | used up attempts can be caught  | test_used_up_attempts_of_a_tool_can_be_caught,          |
# |      |                                 | test_used_up_attempts_of_a_model                        |

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import restate
from fastmcp.client.transports.base import ClientTransport
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.capabilities import SelectModel
from pydantic_ai.exceptions import (
    AgentRunError,
    ContentFilterError,
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelOverloadedError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelTimeoutError,
    ModelUnavailableError,
    OutputTokenLimitExceeded,
    SuspendedResponseExpired,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import UsageLimits

from restate_steps import RetryPolicy, run_step
from restate_steps.agents import RestateAgent, RestateDurability
from tests.support.agents_kit import Again, Script, Serve, Served, serve_handler
from tests.support.harness import InvocationFailed, eventually

SOON = timedelta(milliseconds=1)

Options = dict[str, Any]


class Failing:
    """A model that raises the error that the prompt names, and counts the requests for it.

    Args:
        errors: Errors by their names.
        once: True if the second request succeeds.
    """

    def __init__(self, errors: dict[str, Exception], *, once: bool = False) -> None:
        self.asked: Counter[str] = Counter()
        self._errors = errors
        self._once = once
        self.model = FunctionModel(self._answer, model_name="failing")

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        name = str(messages[0].parts[0].content)
        self.asked[name] += 1
        if self._once and self.asked[name] > 1:
            return ModelResponse(parts=[TextPart(name)])
        raise self._errors[name]


def serve_agent(serve: Serve, name: str, agent: Agent[None, str], **options: Any) -> Served:
    """Serve a handler that runs an agent on the prompt that it gets."""

    async def handler(ctx: restate.Context, prompt: str) -> str:
        return (await RestateAgent(agent, restate_context=ctx, **options).run(prompt)).output

    return serve_handler(serve, name, handler)


def failure_of(served: Served, prompt: str) -> tuple[int, str]:
    """Call a handler that fails, and return the status and the text of its error."""
    with pytest.raises(InvocationFailed) as failed:
        served(prompt)
    return failed.value.status, failed.value.message


# --- what is tried again, and what is not -----------------------------------------------------------------------


def test_requests_that_can_never_succeed_end_the_invocation(env_factory: Serve) -> None:
    """A request that the provider rejects is sent once, and its status is that of the invocation."""
    errors: dict[str, Exception] = {
        str(status): ModelHTTPError(status, "failing") for status in (400, 401, 403, 404, 413, 422)
    }
    failing = Failing(errors)
    served = serve_agent(env_factory, "NeverSucceeds", Agent(failing.model, name="never"))

    for name in errors:
        status, message = failure_of(served, name)
        assert int(name) == status
        assert f"ModelHTTPError: status_code: {name}" in message
    assert dict.fromkeys(errors, 1) == failing.asked


def test_requests_that_were_rejected_without_a_status_end_the_invocation(env_factory: Serve) -> None:
    """A rejection that came without a status, such as one in a stream, is terminal as well."""
    errors: dict[str, Exception] = {
        "rejected": ModelRequestRejectedError("failing", "no such parameter"),
        "too long": ModelContextWindowExceededError("failing", "too long", in_stream=True),
    }
    failing = Failing(errors)
    served = serve_agent(env_factory, "RejectedInStream", Agent(failing.model, name="rejected"))

    assert (500, "ModelRequestRejectedError: no such parameter") == failure_of(served, "rejected")
    assert (500, "ModelContextWindowExceededError: too long") == failure_of(served, "too long")
    assert dict.fromkeys(errors, 1) == failing.asked


def test_requests_that_may_succeed_are_sent_again(env_factory: Serve) -> None:
    """Limits of rate, conflicts, failures of the server and of the connection pass, so the request is sent again."""
    errors: dict[str, Exception] = {
        str(status): ModelHTTPError(status, "failing") for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)
    }
    errors["rate"] = ModelRateLimitError("failing", "slow down", in_stream=True)
    errors["overloaded"] = ModelOverloadedError("failing", "overloaded", in_stream=True)
    errors["connection"] = ModelConnectionError("failing", "refused", phase="connect")
    errors["attempt"] = ModelTimeoutError("failing", "read timed out", phase="read")
    errors["request"] = ModelRequestTimeout("failing", 1.5)
    errors["unknown"] = ModelAPIError("failing", "who knows")
    errors["other"] = OSError("broken pipe")
    failing = Failing(errors, once=True)
    served = serve_agent(env_factory, "MaySucceed", Agent(failing.model, name="may"))

    invocations = {name: served.send(name) for name in errors}

    assert {name: name for name in errors} == {name: served.env.attach(one) for name, one in invocations.items()}
    assert dict.fromkeys(errors, 2) == failing.asked


def test_what_a_provider_says_counts_more_than_the_status(env_factory: Serve) -> None:
    """A quota that is used up does not come back by waiting, whatever its status; what is unavailable does."""
    errors: dict[str, Exception] = {
        "quota": ModelHTTPError.for_category(ModelQuotaExceededError, status_code=429, model_name="failing"),
        "away": ModelHTTPError.for_category(ModelUnavailableError, status_code=403, model_name="failing"),
    }
    failing = Failing(errors, once=True)
    served = serve_agent(env_factory, "Categories", Agent(failing.model, name="categories"))

    assert "away" == served("away")
    status, message = failure_of(served, "quota")
    assert 429 == status
    assert "ModelQuotaExceededError" in message
    assert {"quota": 1, "away": 2} == failing.asked


def test_time_that_a_provider_asks_for_is_waited(env_factory: Serve) -> None:
    """A provider's ``Retry-After`` sets the delay of the next attempt, up to the policy's limit."""
    errors: dict[str, Exception] = {
        "hour": ModelHTTPError(429, "failing", headers={"Retry-After": "3600"}),
        "limited": ModelHTTPError(429, "failing", retry_after=24 * 3600),
    }
    failing = Failing(errors)
    agent = Agent(failing.model, name="asks")
    free = serve_agent(env_factory, "AsksForTime", agent)
    policy = RetryPolicy(max_retry_interval=timedelta(hours=2))
    limited = serve_agent(env_factory, "AsksForTooMuch", agent, model_retry=policy)

    assert timedelta(minutes=50) < due_in(free, free.send("hour")) < timedelta(minutes=70)
    assert timedelta(minutes=110) < due_in(limited, limited.send("limited")) < timedelta(minutes=130)
    assert {"hour": 1, "limited": 1} == failing.asked


def due_in(served: Served, invocation_id: str) -> timedelta:
    """Return how long a failed invocation waits for its next attempt."""

    def look() -> Any:
        row = served.env.server.admin.invocation(invocation_id)
        return row.get("next_retry_at") if row["status"] == "backing-off" else None

    found = datetime.fromisoformat(str(eventually(look)).replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)) - datetime.now(UTC)


# --- errors keep their type -------------------------------------------------------------------------------------


def http_error(category: Any, status: int, **more: Any) -> ModelHTTPError:
    """An error with all that a provider can say."""
    return ModelHTTPError.for_category(
        category,
        status_code=status,
        model_name="failing",
        body={"error": {"message": "größer als\n[1]", "param": None}},
        headers={"X-Request-Id": "7"},
        hint="Look at the settings.",
        suggested_model_id="other:model",
        provider_error_code="code_1",
        provider_error_type="type_1",
        **more,
    )


RAISED: dict[str, Exception] = {
    "http": http_error(None, 400),
    "window": http_error(ModelContextWindowExceededError, 400, retry_after=2.5),
    "window in a stream": ModelContextWindowExceededError("failing", "too long", in_stream=True),
    "filter": ContentFilterError("refused", body='{"reason": "violence"}'),
    "limit": UsageLimitExceeded("Exceeded the limit of a model."),
    "behavior": UnexpectedModelBehavior("strange", body="not JSON"),
    "length": OutputTokenLimitExceeded("cut off"),
    "expired": SuspendedResponseExpired("gone"),
}


def told(error: BaseException) -> list[Any]:
    """All that an error tells."""
    return [type(error), str(error), error.args, {key: value for key, value in vars(error).items() if key[0] != "_"}]


def serve_catching(
    serve: Serve, name: str, agent: Agent[None, str], again: Again, seen: list[list[Any]], **options: Any
) -> Served:
    """Serve a handler that catches what the run raises, makes a step, and is replayed from there."""
    limits: UsageLimits | None = options.pop("usage_limits", None)

    async def handler(ctx: restate.Context, prompt: str) -> str:
        try:
            await RestateAgent(agent, restate_context=ctx, **options).run(prompt, usage_limits=limits)
        except (AgentRunError, restate.TerminalError) as error:
            await run_step(lambda: None, name="caught")
            seen.append(told(error))
            again()
            return "caught"
        return "unreachable"

    return serve_handler(serve, name, handler)


@pytest.mark.parametrize("name", RAISED)
def test_error_of_a_model_reaches_the_caller_as_it_is(env_factory: Serve, name: str) -> None:
    """An error of a model is caught with its own type and data, on the first run and on each replay."""
    failing = Failing(RAISED)
    again = Again()
    seen: list[list[Any]] = []
    served = serve_catching(env_factory, "Catches", Agent(failing.model, name="catches"), again, seen)

    answer, names = served.with_steps(name)

    assert "caught" == answer
    assert ["catches__model.request", "caught"] == names
    assert 2 == again.times
    assert [told(RAISED[name])] * 2 == seen
    assert {name: 1} == failing.asked


def test_error_of_the_run_reaches_the_caller_as_it_is(env_factory: Serve) -> None:
    """An error of the run itself, such as a refusal or a limit, is caught with its own type, on each replay too."""
    refusal = ModelResponse(parts=[], finish_reason="content_filter", provider_details={"finish_reason": "safety"})
    refused, endless = Script(refusal), Script(("look", {}))
    for script, options, error, text in (
        (refused, {}, ContentFilterError, "Content filter triggered"),
        (endless, {"usage_limits": UsageLimits(request_limit=2)}, UsageLimitExceeded, "request_limit of 2"),
    ):
        again = Again()
        seen: list[list[Any]] = []
        agent = Agent(script.model, name="raises", tools=[look])

        served = serve_catching(env_factory, f"Raises{error.__name__}", agent, again, seen, **options)

        assert "caught" == served("go")
        assert 2 == again.times
        assert [error] * 2 == [one[0] for one in seen]
        assert text in seen[0][1]
        assert seen[0] == seen[1]
    assert (1, 2) == (refused.requests, endless.requests)


def look() -> str:
    return "seen"


# --- attempts that are used up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"model_retry": RetryPolicy(max_attempts=2, initial_retry_interval=SOON)}, id="model_retry"),
        pytest.param(
            {"run_options": restate.RunOptions(max_attempts=2, initial_retry_interval=SOON)}, id="run_options"
        ),
    ],
)
@pytest.mark.parametrize("caught", [True, False])
def test_used_up_attempts_of_a_model(env_factory: Serve, options: Options, caught: bool) -> None:
    """An error that lasts until the attempts are used up is caught as what it is; else it ends the invocation."""
    errors: dict[str, Exception] = {
        "http": http_error(ModelOverloadedError, 503),
        "wait": http_error(ModelRateLimitError, 429, retry_after=0.001),
        "lost": ModelConnectionError("failing", "reset\n[by peer]", phase="read"),
    }
    failing = Failing(errors)
    agent = Agent(failing.model, name="used")
    for name, error in errors.items():
        if caught:
            again = Again()
            seen: list[list[Any]] = []
            served = serve_catching(env_factory, f"UsedUp{name.title()}", agent, again, seen, **options)
            assert "caught" == served(name)
            assert 2 == again.times
            assert [told(error)] * 2 == seen
        else:
            served = serve_agent(env_factory, "UsedUp", agent, **options)
            _, message = failure_of(served, name)
            assert str(error) in message
    assert dict.fromkeys(errors, 2) == failing.asked


def test_used_up_attempts_of_a_tool_can_be_caught(env_factory: Serve) -> None:
    """A tool that fails until its attempts are used up ends the run with a TerminalError, on each replay too."""
    ran: Counter[str] = Counter()
    script = Script(("charge", {}))
    agent = Agent(script.model, name="charges")
    again = Again()
    seen: list[list[Any]] = []

    @agent.tool_plain
    def charge() -> str:
        ran["charge"] += 1
        raise OSError("the bank is closed")

    policy = RetryPolicy(max_attempts=3, initial_retry_interval=SOON)
    served = serve_catching(env_factory, "Charges", agent, again, seen, tool_retry=policy)

    assert "caught" == served("go")
    assert 2 == again.times
    assert [restate.TerminalError] * 2 == [one[0] for one in seen]
    assert all("the bank is closed" in one[1] for one in seen)
    assert {"charge": 3} == ran
    assert 1 == script.requests


# --- a policy for each kind of step -----------------------------------------------------------------------------


class Unreachable(ClientTransport):
    """The way to a server that is down."""

    def __init__(self, tried: Counter[str]) -> None:
        self._tried = tried

    @asynccontextmanager
    async def connect_session(self, **session: Any) -> AsyncIterator[Any]:
        self._tried["mcp"] += 1
        raise ConnectionRefusedError("the MCP server is down")
        yield


def test_each_kind_of_step_has_its_policy(env_factory: Serve) -> None:
    """Requests to the model, tools, MCP servers and the event handler are retried each by a policy of its own."""
    tried: Counter[str] = Counter()

    async def charge() -> str:
        tried["tool"] += 1
        raise OSError("the tool is down")

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        tried["model"] += 1
        raise OSError("the model is down")

    async def watch(ctx: RunContext[None], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if event.event_kind == "function_tool_call":
                tried["event"] += 1
                raise OSError("the event handler is down")

    def policy(attempts: int) -> RetryPolicy:
        return RetryPolicy(max_attempts=attempts, initial_retry_interval=SOON)

    policies = {"model_retry": policy(2), "tool_retry": policy(3), "mcp_retry": policy(4), "event_retry": policy(5)}
    calling = Script(("charge", {})).model
    agents: dict[str, Agent[None, str]] = {
        "model": Agent(FunctionModel(answer), name="kinds"),
        "tool": Agent(calling, name="kinds", tools=[charge]),
        "MCP server": Agent(calling, name="kinds", toolsets=[MCPToolset(Unreachable(tried), id="down")]),
        "event handler": Agent(calling, name="kinds", tools=[charge]),
    }

    async def handler(ctx: restate.Context, kind: str) -> str:
        durable = RestateAgent(agents[kind], restate_context=ctx, **policies)
        return (await durable.run("go", event_stream_handler=watch if kind == "event handler" else None)).output

    served = serve_handler(env_factory, "Kinds", handler)

    for kind in agents:
        assert f"the {kind} is down" in failure_of(served, kind)[1]
    assert {"model": 2, "tool": 3, "mcp": 4, "event": 5} == tried


# --- what ends the invocation -----------------------------------------------------------------------------------


def test_run_over_its_limit_ends_the_invocation(env_factory: Serve) -> None:
    """A run that is over its limit would be over it on every attempt."""
    script = Script(("look", {}))
    agent = Agent(script.model, name="limited", tools=[look])

    async def handler(ctx: restate.Context) -> str:
        limits = UsageLimits(request_limit=2)
        return (await RestateAgent(agent, restate_context=ctx).run("go", usage_limits=limits)).output

    with pytest.raises(InvocationFailed, match="UsageLimitExceeded"):
        serve_handler(env_factory, "Limited", handler)()
    assert 2 == script.requests


def test_used_up_retries_end_the_invocation(env_factory: Serve) -> None:
    """A tool that asks the model once too often to try again ends the run, and the invocation."""
    ran: Counter[str] = Counter()
    script = Script(("book", {}))
    agent = Agent(script.model, name="booker")

    @agent.tool_plain(retries=2)
    def book() -> str:
        ran["book"] += 1
        raise ModelRetry("full")

    with pytest.raises(InvocationFailed, match=r"UnexpectedModelBehavior.*exceeded max retries"):
        serve_agent(env_factory, "UsedUpRetries", agent)("go")
    assert ({"book": 3}, 3) == (ran, script.requests)


def test_model_that_nobody_named_ends_the_invocation(env_factory: Serve) -> None:
    """A model that the durable agent does not know is a mistake that no attempt can fix."""
    own, other = Script("own"), Script("other")
    select = SelectModel[None](lambda ctx: other.model)
    agents = {
        "instance": Agent(own.model, name="unknown", capabilities=[select]),
        "capability": Agent(own.model, name="unknown", capabilities=[select, RestateDurability()]),
        "name": Agent(own.model, name="unknown"),
    }
    starts: Counter[str] = Counter()

    async def handler(ctx: restate.Context, how: str) -> str:
        starts[how] += 1
        agent = agents[how] if how == "capability" else RestateAgent(agents[how], restate_context=ctx)
        return (await agent.run("go", model="nobody:knows" if how == "name" else None)).output

    served = serve_handler(env_factory, "UnknownModel", handler)

    assert "was not registered with `RestateDurability`" in failure_of(served, "instance")[1]
    assert "was not registered with `RestateDurability`" in failure_of(served, "capability")[1]
    assert "nobody" in failure_of(served, "name")[1]
    assert {"instance": 1, "capability": 1, "name": 1} == starts
    assert (0, 0) == (own.requests, other.requests)
