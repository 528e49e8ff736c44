"""Error texts that are not valid Unicode, such as those about file names of another encoding."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import durable_step
from restate_steps.testing import SimulatedInvocation, simulate
from tests.support.harness import Harness, eventually

NAME = "bad\udcff.txt"
svc = restate.Service("Surrogates")


@durable_step
async def reads() -> None:
    raise FileNotFoundError(NAME)


@durable_step(no_retry_on=FileNotFoundError)
async def reads_once() -> None:
    raise FileNotFoundError(NAME)


@svc.handler()
async def in_the_handler(ctx: restate.Context) -> None:
    raise FileNotFoundError(NAME)


@svc.handler()
async def in_a_step(ctx: restate.Context) -> None:
    await reads()


@svc.handler()
async def terminal(ctx: restate.Context) -> None:
    raise restate.TerminalError(f"no {NAME}")


@svc.handler()
async def terminal_step(ctx: restate.Context) -> None:
    await reads_once()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured logs travel between the processes of a test run, which cannot encode such a text either."""
    monkeypatch.setattr(logging.getLogger("restate.server"), "disabled", True)


@pytest.mark.parametrize("handler", [in_the_handler, in_a_step], ids=lambda each: each.__name__)
async def test_the_attempt_fails(handler: Any) -> None:
    """Otherwise the VM could not send the failure, and the invocation would wait forever."""
    async with simulate(restate_steps.app([svc]), disable_retries=True) as sim:
        invocation: SimulatedInvocation[Any] = await sim.send(handler)
        await sim.run_until_idle()

    assert "bad\\udcff.txt" in (invocation.last_failure or "")


@pytest.mark.parametrize("handler", [terminal, terminal_step], ids=lambda each: each.__name__)
async def test_a_terminal_error_ends_the_invocation(handler: Any) -> None:
    """Its message has the character as Python would write it."""
    async with simulate(restate_steps.app([svc])) as sim:
        with pytest.raises(restate.TerminalError, match=r"bad\\udcff\.txt"):
            await sim.call(handler)


def test_on_a_real_server(normal_harness: Harness) -> None:
    """The invocation has a failure, and its caller an answer."""
    with normal_harness.serve(restate_steps.app([svc])) as env:
        failing = env.send("Surrogates", "in_a_step")
        eventually(lambda: "bad\\udcff.txt" in env.server.admin.invocation(failing).get("last_failure", ""))
        env.server.admin.kill(failing)
