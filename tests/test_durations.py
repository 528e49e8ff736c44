"""Durations are seconds or timedeltas wherever a user passes one, and nothing else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import StepDefinitionError, as_completed, typed_handler, wait_for
from restate_steps.server import AdminClient, RestateServer
from restate_steps.testing import Simulator, restate_server, simulate
from tests.support.harness import Env, InvocationFailed

service = restate.Service("Durations")


@service.handler()
async def echo(ctx: restate.Context, text: str) -> str:
    return text


@service.handler()
async def wait(ctx: restate.Context, timeout: Any) -> str:
    try:
        await wait_for(asyncio.Event().wait(), {"nan": math.nan, "yes": True}.get(timeout, timeout))
    except TimeoutError:
        return "late"
    except StepDefinitionError as error:
        raise restate.TerminalError(str(error)) from error
    raise AssertionError


APP = restate_steps.app([service])


def _handler(**options: Any) -> Any:
    return typed_handler(restate.Service("Timed"), **options)


TAKERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("startup_timeout", lambda value: RestateServer(startup_timeout=value)),
    ("timeout", lambda value: AdminClient("http://127.0.0.1:9070", timeout=value)),
    ("inactivity_timeout", lambda value: _handler(inactivity_timeout=value)),
    ("abort_timeout", lambda value: _handler(abort_timeout=value)),
    ("journal_retention", lambda value: _handler(journal_retention=value)),
    ("idempotency_retention", lambda value: _handler(idempotency_retention=value)),
    ("workflow_retention", lambda value: _handler(workflow_retention=value)),
]


@pytest.mark.parametrize(("name", "take"), TAKERS, ids=[name for name, _ in TAKERS])
def test_what_is_no_duration_is_refused(name: str, take: Callable[[Any], Any]) -> None:
    """The error names the parameter, and says what to write."""
    take(5)
    take(0.5)
    take(timedelta(minutes=1))
    for value, reason in (
        (True, f"{name} must be a number of seconds or a datetime.timedelta, got True. Write {name}=5 or "),
        ("5 s", f"{name} must be a number of seconds"),
        (math.nan, f"{name} must be a finite number of seconds, got nan"),
        (math.inf, f"{name} must be a finite number of seconds, got inf"),
        (-1, rf"{name} must (not be negative|be longer than zero), got -1"),
        (timedelta(days=-1), rf"{name} must (not be negative|be longer than zero)"),
        (1e300, f"{name} is longer than a datetime.timedelta can be"),
    ):
        with pytest.raises(StepDefinitionError, match=reason):
            take(value)


def test_a_handler_takes_seconds() -> None:
    """The SDK gets timedeltas, and only what was set."""
    shop = restate.Service("Timed")

    @typed_handler(shop, inactivity_timeout=90, abort_timeout=0, journal_retention=timedelta(days=1))
    async def run(ctx: restate.Context) -> int:
        return 1

    handler = shop.handlers["run"]
    assert timedelta(seconds=90) == handler.inactivity_timeout
    assert timedelta(0) == handler.abort_timeout
    assert timedelta(days=1) == handler.journal_retention
    assert handler.idempotency_retention is None
    assert ("application/json", "application/json") == (handler.handler_io.accept, handler.handler_io.content_type)


async def test_the_simulator_takes_seconds() -> None:
    """A number means the same as on asyncio."""
    async with simulate(APP) as sim:
        sent = await sim.send(echo, "late", delay=90)
        assert sent.outcome is None
        await sim.advance(60.5)
        assert (None, timedelta(seconds=60.5)) == (sent.outcome, sim.now)
        await sim.advance(timedelta(seconds=29.5))
        assert "late" == (await sent.result()).value
        await _refused(sim)


async def _refused(world: Any) -> None:
    for call, name in ((lambda value: world.advance(value), "by"), (lambda value: send(world, value), "delay")):
        for value in (True, -1, math.nan, "1 h"):
            with pytest.raises(StepDefinitionError, match=f"^{name} must "):
                await call(value)


async def send(world: Simulator, delay: Any) -> Any:
    return await world.send(echo, "late", delay=delay)


async def test_the_client_of_a_real_server_takes_seconds() -> None:
    """As the simulator's."""
    async with restate_server(APP) as env:
        sent = await env.send(echo, "late", delay=0.01)
        await env.advance(0.001)
        assert "late" == (await sent.result()).value
        assert "late" == await env.attach(sent.id, timeout=timedelta(seconds=30))
        await env.until(lambda: True, timeout=5)
        await _refused(env)


@pytest.mark.parametrize("timeout", [-1, 0, 0.01])
def test_a_wait_that_is_over_in_a_handler(env_factory: Callable[..., Env], timeout: float) -> None:
    """As in asyncio, a timeout of zero or less is up already."""
    assert "late" == env_factory(service).call("Durations", "wait", timeout)


@pytest.mark.parametrize("timeout", ["nan", "yes", "soon"])
def test_a_wait_for_no_duration_in_a_handler(env_factory: Callable[..., Env], timeout: str) -> None:
    """The awaitable is not started, and Python does not warn about it."""
    with pytest.raises(InvocationFailed, match=r"timeout must be a (finite )?number of seconds"):
        env_factory(service).call("Durations", "wait", timeout)


async def test_a_wait_outside_a_handler() -> None:
    """None and infinity are no limit."""

    async def now() -> int:
        return 1

    no_duration: Any = "1 s"
    for timeout in (None, math.inf, 5, timedelta(seconds=5)):
        assert 1 == await wait_for(now(), timeout)
        assert [1] == [await each for each in as_completed([now()], timeout=timeout)]
    with pytest.raises(StepDefinitionError, match="timeout must be a number of seconds"):
        await wait_for(now(), no_duration)
    with pytest.raises(StepDefinitionError, match="timeout must be a number of seconds"):
        as_completed([now()], timeout=no_duration)
