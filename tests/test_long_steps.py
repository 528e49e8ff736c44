"""Bodies of steps that take long: the limits of the server, those of ``restate_steps.app``, and what exceeds them.

The server of the first part ends an attempt from which it has heard nothing for 2 s: 1 s until it asks the handler to
suspend, and 1 s until it ends the attempt. Over HTTP/1.1 it does not ask first, so it waits for 1 s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import restate
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

import restate_steps
from restate_steps import StepDefinitionError, durable_step, run_step
from restate_steps.agents import RestateAgent
from restate_steps.testing import record, replay, simulate
from tests.support.harness import Env, Harness, eventually

LIMITS = {"RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT": "1s", "RESTATE_WORKER__INVOKER__ABORT_TIMEOUT": "1s"}
LONGER_THAN_THE_LIMITS = 3.0
SECOND = timedelta(seconds=1)

Services = Callable[[], "list[restate.Service]"]


# --- a server with limits of 2 s --------------------------------------------------------------------------------------


class Runs:
    """Handlers with one long body each, all of which run at the same time.

    Attributes:
        bodies: How often each body ran.
        failures: The errors with which the server ended attempts.
    """

    def __init__(self) -> None:
        self.bodies: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    async def body(self, name: str) -> str:
        """Take too long the first time, and no time after that."""
        self.bodies[name] += 1
        if self.bodies[name] == 1:
            # Nothing may be sent to the server for longer than it allows, so there is no event to wait for.
            await asyncio.sleep(LONGER_THAN_THE_LIMITS)
        return name

    def service(self, name: str, of_handler: timedelta | None = None, **options: Any) -> restate.Service:
        service = restate.Service(name, **options)

        @service.handler(abort_timeout=of_handler)
        async def run(ctx: restate.Context) -> str:
            return await run_step(self.body, name, name="long")

        return service

    def agent(self, name: str) -> restate.Service:
        service = restate.Service(name)

        async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            return ModelResponse(parts=[TextPart(await self.body(name))])

        agent = RestateAgent(Agent(FunctionModel(answer), name=name))

        @service.handler()
        async def run(ctx: restate.Context) -> str:
            return (await agent.run("go")).output

        return service


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    apps: dict[Any, bool] = {
        restate.app([runs.service("Plain")]): False,
        restate.app([runs.service("PlainHttp1")]): True,
        restate_steps.app([runs.service("Steps"), runs.agent("Agent")]): False,
        restate_steps.app([runs.service("StepsHttp1")]): True,
        restate_steps.app([runs.service("OwnOfService", abort_timeout=SECOND)]): False,
        restate_steps.app([runs.service("OwnOfHandler", SECOND)]): False,
    }
    with Harness(env=LIMITS) as harness, ExitStack() as stack:
        envs = [stack.enter_context(harness.serve(app, http1=http1)) for app, http1 in apps.items()]
        sent = [(env, name, env.send(name, "run")) for env in envs for name in env.services]
        for env, name, invocation in sent:
            assert name == env.attach(invocation)
            query = f"SELECT event_json FROM sys_journal_events WHERE id = '{invocation}'"
            for event in env.server.admin.query(query):
                runs.failures[name] = json.loads(event["event_json"])["error_message"]
        yield runs


@pytest.mark.parametrize("name", ["Plain", "PlainHttp1"])
def test_a_body_that_exceeds_the_limits_of_the_server_runs_again(runs: Runs, name: str) -> None:
    """The server drops the result of the body, because its attempt is over."""
    assert 2 == runs.bodies[name]
    assert "the invocation stream was closed after the 'abort timeout' (1s) fired" in runs.failures[name]


@pytest.mark.parametrize("name", ["Steps", "StepsHttp1", "Agent"])
def test_an_application_raises_the_limits(runs: Runs, name: str) -> None:
    assert (1, None) == (runs.bodies[name], runs.failures.get(name))


@pytest.mark.parametrize("name", ["OwnOfService", "OwnOfHandler"])
def test_services_and_handlers_keep_their_own_limits(runs: Runs, name: str) -> None:
    assert 2 == runs.bodies[name]
    assert "'abort timeout' (1s)" in runs.failures[name]


# --- the settings -----------------------------------------------------------------------------------------------------


def idle_service(name: str, **options: Any) -> restate.Service:
    service = restate.Service(name, **options)

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await asyncio.sleep(0.05)

    return service


def timeouts(env: Env) -> tuple[str, str]:
    """Return the inactivity and the abort timeout that the server uses for the application's service."""
    answer = httpx.get(f"{env.server.admin_url}/services/{env.services[0]}", trust_env=False).raise_for_status().json()
    return answer["inactivity_timeout"], answer["abort_timeout"]


def test_the_server_of_this_package_has_the_limits_of_production(normal_harness: Harness) -> None:
    with normal_harness.serve(restate.app([idle_service("IdlePlain")])) as env:
        assert ("1m", "10m") == timeouts(env)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "1h 10s"),
        ({"longest_step": timedelta(minutes=20)}, "20m 10s"),
        ({"longest_step": 7200}, "2h 10s"),
        ({"longest_step": 0.5}, "10s 500ms"),
        ({"longest_step": timedelta(days=36_500)}, "36500d 10s"),
    ],
)
def test_the_abort_timeout_fits_the_longest_step(
    normal_harness: Harness, options: dict[str, Any], expected: str
) -> None:
    """With some time to report that a step with such a timeout has timed out; idle handlers suspend as before."""
    with normal_harness.serve(restate_steps.app([idle_service("IdleSteps")], **options)) as env:
        assert ("1m", expected) == timeouts(env)


def test_suspending_at_every_wait_still_works(replay_harness: Harness) -> None:
    """An inactivity timeout of a service would override the server's, so an application sets none."""
    with replay_harness.serve(restate_steps.app([idle_service("IdleReplay")])) as env:
        assert ("0s", "1h 10s") == timeouts(env)


@pytest.mark.parametrize(
    "wrong", [0, -1, timedelta(0), float("nan"), float("inf"), 1e300, True, "1h", None, timedelta.max]
)
def test_a_wrong_longest_step_is_refused(wrong: Any) -> None:
    with pytest.raises(StepDefinitionError, match=r"longest_step (must|is longer)"):
        restate_steps.app([], longest_step=wrong)


# --- steps whose timeout is longer ------------------------------------------------------------------------------------


def app_with_timeout(
    timeout: timedelta,
    ran: list[str],
    *,
    of_service: dict[str, Any] | None = None,
    of_handler: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    service = restate.Service("Slow", **(of_service or {}))

    @durable_step(timeout=timeout)
    async def research() -> str:
        ran.append("research")
        return "done"

    @service.handler(**(of_handler or {}))
    async def run(ctx: restate.Context) -> str:
        try:
            return await research()
        except Exception as error:
            return f"caught {type(error).__name__}"

    return restate_steps.app([service], **options)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "the default": ({}, 3600, "longest_step= of restate_steps.app"),
    "longest_step=": ({"longest_step": 60}, 60, "longest_step= of restate_steps.app"),
    "of the service": ({"of_service": {"abort_timeout": 2 * SECOND}}, 2, "abort_timeout= of service 'Slow'"),
    "of the handler": (
        {"of_service": {"abort_timeout": timedelta(days=1)}, "of_handler": {"abort_timeout": 3 * SECOND}},
        3,
        "abort_timeout= of handler 'run'",
    ),
    "with its own inactivity timeout": (
        {"of_service": {"inactivity_timeout": 30 * SECOND}, "longest_step": 60},
        90,
        "longest_step= of restate_steps.app",
    ),
    "without streams": (
        {"of_service": {"inactivity_timeout": 30 * SECOND}, "longest_step": 60, "protocol": "request_response"},
        60,
        "longest_step= of restate_steps.app",
    ),
}


@pytest.mark.parametrize("limit", REFUSED)
async def test_a_timeout_that_is_longer_than_the_limit_is_refused(limit: str) -> None:
    """At once, whatever the handler catches; the invocation is paused, and the body does not run."""
    options, seconds, setting = REFUSED[limit]
    ran: list[str] = []
    async with simulate(app_with_timeout(timedelta(seconds=seconds + 0.5), ran, **options)) as sim:
        invocation = await sim.send("Slow/run")
        assert ("paused", 1) == (invocation.status, invocation.attempts)
    assert (
        f"StepDefinitionError: step 'research' has a timeout of {seconds + 0.5:g} s, but its handler allows "
        f"{seconds} s: after that, Restate ends the attempt and runs the body again, without end. Raise {setting} to "
        f"at least {seconds + 1} s and register the application again, or shorten the timeout."
    ) == invocation.last_failure
    assert [] == ran


@pytest.mark.parametrize("limit", REFUSED)
async def test_a_timeout_may_be_as_long_as_the_limit(limit: str) -> None:
    options, seconds, _ = REFUSED[limit]
    ran: list[str] = []
    async with simulate(app_with_timeout(timedelta(seconds=seconds), ran, **options)) as sim:
        assert "done" == (await sim.call("Slow/run")).value
    assert ["research"] == ran


async def test_a_recorded_step_is_not_refused(tmp_path: Path) -> None:
    """Only its body would take long."""
    ran: list[str] = []
    async with simulate(app_with_timeout(timedelta(hours=2), ran, longest_step=timedelta(hours=2))) as sim:
        journal = record(await sim.call("Slow/run"), tmp_path / "journal.json")
    replay(journal, app_with_timeout(timedelta(hours=2), ran))
    assert ["research"] == ran


def test_the_real_server_pauses(normal_harness: Harness) -> None:
    """With the reason among the events of the invocation."""
    ran: list[str] = []
    with normal_harness.serve(app_with_timeout(timedelta(hours=2), ran)) as env:
        invocation = env.send("Slow", "run")
        status = f"SELECT status FROM sys_invocation WHERE id = '{invocation}'"
        eventually(lambda: [{"status": "paused"}] == env.server.admin.query(status))
        events = env.server.admin.query(f"SELECT event_json FROM sys_journal_events WHERE id = '{invocation}'")
    assert "Raise longest_step= of restate_steps.app to at least 7200 s" in str(events)
    assert [] == ran


async def test_fixed_code_continues(tmp_path: Path) -> None:
    """The command of the refused step is in the journal, and fixed code issues the same one."""
    async with simulate(app_with_timeout(timedelta(hours=2), [])) as sim:
        invocation = await sim.send("Slow/run")
        journal = record(invocation, tmp_path / "journal.json")
    replay(journal, app_with_timeout(timedelta(hours=2), [], longest_step=timedelta(hours=2)))


@pytest.mark.parametrize("unit", ["tool", "request"])
async def test_a_unit_of_an_agent_with_a_longer_timeout_is_refused(unit: str) -> None:
    """A tool's ``timeout`` and a model request's ``request_timeout`` count like the timeout of a step."""
    ran: list[str] = []
    agent = Agent(TestModel(), name="slow")

    @agent.tool_plain(metadata={"restate": {"timeout": timedelta(hours=2)}} if unit == "tool" else None)
    async def research() -> str:
        ran.append("research")
        return "done"

    durable = RestateAgent(agent)
    service = restate.Service("SlowAgent")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        settings: Any = {"request_timeout": 7200} if unit == "request" else {}
        return (await durable.run("go", model_settings=settings)).output

    async with simulate(restate_steps.app([service])) as sim:
        invocation = await sim.send(run)
        assert ("paused", 1) == (invocation.status, invocation.attempts)
    assert "has a timeout of 7200 s, but its handler allows 3600 s" in (invocation.last_failure or "")
    assert [] == ran

    async with simulate(restate_steps.app([service], longest_step=7200)) as sim:
        await sim.call(run)
    assert ["research"] == ran


async def test_applications_of_the_sdk_are_unaffected() -> None:
    ran: list[str] = []
    service = restate.Service("SlowPlain", abort_timeout=SECOND)

    @durable_step(timeout=timedelta(hours=2))
    async def research() -> str:
        ran.append("research")
        return "done"

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return await research()

    async with simulate(restate.app([service])) as sim:
        assert "done" == (await sim.call(run)).value


# --- bodies that near the limit ---------------------------------------------------------------------------------------


class Warnings(logging.Handler):
    """The warnings about bodies, as they are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._new = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._new:
            self.messages.append(record.getMessage())
            self._new.notify_all()

    def about(self, step: str) -> list[str]:
        return [message for message in self.messages if f"the body of step '{step}' has run" in message]

    def wait_for(self, step: str) -> None:
        with self._new:
            assert self._new.wait_for(lambda: self.about(step), timeout=30), self.messages


@pytest.fixture
def warnings() -> Iterator[Warnings]:
    logger, handler = logging.getLogger("restate_steps"), Warnings()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def open_timers(loop: asyncio.AbstractEventLoop) -> int:
    """Count the timers of the loop that only log."""
    timers: list[asyncio.TimerHandle] = vars(loop)["_scheduled"]
    return sum(getattr(timer._callback, "only_logs", False) for timer in timers if not timer.cancelled())  # type: ignore[attr-defined]


def test_a_body_that_nears_the_limit_is_warned_about_once(normal_harness: Harness, warnings: Warnings) -> None:
    """In time, whether it is a coroutine, runs in a thread, or belongs to the SDK's own ``ctx.run``."""
    service = restate.Service("Warned")
    timers: list[int] = []

    @durable_step
    async def count_timers() -> None:
        timers.append(open_timers(asyncio.get_running_loop()))

    @durable_step
    async def first() -> None:
        await asyncio.to_thread(warnings.wait_for, "second")

    @durable_step
    def second() -> None:
        warnings.wait_for("second")

    async def raw() -> None:
        await asyncio.to_thread(warnings.wait_for, "ctx.run")

    async def second_after_first() -> None:
        await run_step(asyncio.to_thread, warnings.wait_for, "first", name="meanwhile", returns=None)
        await second()

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await count_timers()
        await asyncio.gather(first(), second_after_first())
        await ctx.run_typed("raw", raw)

    with normal_harness.serve(restate_steps.app([service], longest_step=0.25)) as env:
        env.call("Warned", "run")
        assert [1, 1, 1] == [len(warnings.about(step)) for step in ("first", "second", "ctx.run")]
        assert [] == warnings.about("count_timers")
        env.call("Warned", "run")
    expected = (
        r"the body of step 'first' has run for 0\.\d+ s. Its handler allows 0.25 s: after that, Restate ends the "
        r"attempt, drops the result and runs the body again. Raise longest_step= of restate_steps.app, or limit the "
        r"step with timeout=."
    )
    assert re.fullmatch(expected, warnings.about("first")[0])
    # The first attempt has left no timer behind.
    assert [1, 1] == timers


async def test_the_simulator_does_not_warn(warnings: Warnings) -> None:
    """Time that is simulated passes without anything that could go wrong."""
    service = restate.Service("Simulated")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        await run_step(asyncio.sleep, timedelta(days=1).total_seconds(), name="long")
        return "done"

    async with simulate(restate_steps.app([service])) as sim:
        assert "done" == (await sim.call(run)).value
    assert [] == warnings.messages
