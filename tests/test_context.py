"""What a body knows about its step, and what it must not do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import restate
from restate._preview import explicit_recovery
from restate.exceptions import RetryableError

from restate_steps import (
    ContextInStepError,
    RetryPolicy,
    StepInfo,
    durable_step,
    gather,
    restate_context,
    run_step,
    step_info,
)
from tests.support.harness import Env, InvocationFailed, eventually

Serve = Callable[..., Env]

SOON = timedelta(milliseconds=1)


def last_failure(env: Env, invocation: str) -> str:
    """Wait until an attempt has failed, and return what the operator sees: of a retry, or of a paused invocation."""

    def failure() -> Any:
        paused = f"SELECT event_json FROM sys_journal_events WHERE id = '{invocation}' AND event_type = 'Paused'"
        for row in env.server.admin.query(paused):
            return json.loads(row["event_json"])["last_failure"]["error_message"]
        return env.server.admin.invocation(invocation).get("last_failure")

    return str(eventually(failure))


# --- step_info --------------------------------------------------------------------------------------------------


def test_a_body_knows_its_name_invocation_and_key(env_factory: Serve) -> None:
    """`step_info` has the name in the journal, the id of the invocation, and a key that begins with it."""
    service = restate.Service("Info")

    @durable_step(name="look {n}")
    async def look(n: int) -> StepInfo:
        return step_info()

    @durable_step
    def look_from_a_thread() -> StepInfo:
        return step_info()

    @service.handler()
    async def run(ctx: restate.Context) -> list[Any]:
        one, two = await look(1), await look_from_a_thread()
        return [[one.name, one.invocation_id], [two.name, two.invocation_id], one.idempotency_key, two.idempotency_key]

    env = env_factory(service)
    invocation = env.send("Info", "run")
    one, two, *keys = env.attach(invocation)

    assert [["look 1", invocation], ["look_from_a_thread", invocation]] == [one, two]
    assert [f"{invocation}/0", f"{invocation}/1"] == keys


def test_the_key_is_the_same_on_every_attempt(env_factory: Serve) -> None:
    """A body that failed is handed its key again, and so are the steps that come after a replay."""
    service = restate.Service("KeyAttempts")
    keys: dict[str, list[str]] = {"first": [], "second": []}
    attempts: list[int] = []

    @durable_step
    async def first() -> None:
        keys["first"].append(step_info().idempotency_key)
        if len(keys["first"]) < 3:
            raise RetryableError("again", retry_after=SOON)

    @durable_step
    async def second() -> None:
        keys["second"].append(step_info().idempotency_key)
        if len(keys["second"]) < 2:
            raise RetryableError("again", retry_after=SOON)

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await first()
        attempts.append(1)
        if len(attempts) == 1:
            raise RetryableError("once more, as a replay", retry_after=SOON)
        await second()

    env = env_factory(service)
    invocation = env.send("KeyAttempts", "run")
    env.attach(invocation)

    assert {"first": [f"{invocation}/0"] * 3, "second": [f"{invocation}/1"] * 2} == keys


def test_every_step_has_a_key_of_its_own(env_factory: Serve) -> None:
    """Steps of one name and arguments differ by loop iteration, by branch, by nested branch and by invocation."""
    service = restate.Service("Keys")
    keys: list[str] = []

    @durable_step
    async def pay() -> None:
        keys.append(step_info().idempotency_key)

    async def twice() -> None:
        await pay()
        await pay()

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        for _ in range(3):
            await pay()
        await gather(twice(), twice(), gather(twice(), twice()))
        await gather(twice(), twice())
        await pay()

    env = env_factory(service)
    for _ in range(2):
        env.call("Keys", "run")

    assert 2 * (3 + 8 + 4 + 1) == len(keys)
    assert len(keys) == len(set(keys))


def test_an_inner_step_has_the_key_of_the_outer_one(env_factory: Serve) -> None:
    """A step within a step is part of it, so it is retried with it and shares its key."""
    service = restate.Service("InnerKey")

    @durable_step
    async def inner() -> StepInfo:
        return step_info()

    @durable_step
    async def outer() -> tuple[StepInfo, StepInfo]:
        return step_info(), await inner()

    @service.handler()
    async def run(ctx: restate.Context) -> list[str]:
        one, two = await outer()
        return [one.name, two.name, one.idempotency_key, two.idempotency_key]

    env = env_factory(service)
    invocation = env.send("InnerKey", "run")

    assert ["outer", "outer", f"{invocation}/0", f"{invocation}/0"] == env.attach(invocation)


async def test_a_body_outside_a_handler_knows_its_name_alone() -> None:
    """Code that asks for a key works in a plain call too, and gets an empty one; an inner step is part of the outer."""

    @durable_step
    async def inner() -> StepInfo:
        return step_info()

    @durable_step(name="outer {n}")
    async def outer(n: int) -> list[StepInfo]:
        return [step_info(), await inner(), step_info()]

    info = StepInfo("outer 1", invocation_id="", idempotency_key="")

    assert [info, info, info] == await outer(1)
    with pytest.raises(RuntimeError):
        step_info()


async def test_step_info_needs_a_body() -> None:
    """Outside a body there is no step to tell about."""
    with pytest.raises(RuntimeError, match=r"step_info\(\) was called outside the body of a step"):
        step_info()


def test_step_info_in_the_handler_is_an_error(env_factory: Serve) -> None:
    """Between its steps a handler is in none, also after one has run."""
    service = restate.Service("InfoInHandler")

    @durable_step
    async def look() -> str:
        return step_info().name

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        await look()
        try:
            return step_info().name
        except RuntimeError as error:
            return str(error)

    answer = env_factory(service).call("InfoInHandler", "run")
    assert answer.startswith("step_info() was called outside the body of a step")


# --- the context ------------------------------------------------------------------------------------------------


def test_restate_context_finds_the_handlers_context(env_factory: Serve) -> None:
    """Code far from the handler gets the very context that the handler was given."""
    service = restate.Service("Ambient")

    async def deep() -> Any:
        return restate_context()

    @service.handler()
    async def run(ctx: restate.Context) -> list[bool]:
        return [await deep() is ctx, *await gather(is_ctx(ctx), is_ctx(ctx))]

    async def is_ctx(ctx: restate.Context) -> bool:
        await restate_context().sleep(SOON)
        return await deep() is ctx

    assert [True, True, True] == env_factory(service).call("Ambient", "run")


async def test_restate_context_needs_a_handler() -> None:
    """Outside a handler there is no context, and the error says so."""
    with pytest.raises(RuntimeError, match=r"restate_context\(\) was called while no Restate handler is running"):
        restate_context()


@dataclass
class Given:
    """What a body can reach although it should not."""

    ctx: restate.ObjectContext
    pending: restate.RestateDurableFuture[Any]


async def _sleep(given: Given) -> None:
    await given.ctx.sleep(SOON)


async def _run(given: Given) -> None:
    await given.ctx.run_typed("inner", lambda: 1)


async def _context(given: Given) -> None:
    restate_context()


async def _await(given: Given) -> None:
    await given.pending


async def _select(given: Given) -> None:
    await restate.select(pending=given.pending)


async def _get(given: Given) -> None:
    await given.ctx.get("state")


async def _set(given: Given) -> None:
    given.ctx.set("state", 1)


async def _call(given: Given) -> None:
    await given.ctx.generic_call("Body", "run", b"", key="other")


async def _awakeable(given: Given) -> None:
    given.ctx.awakeable()


async def _in_a_task(given: Given) -> None:
    await asyncio.create_task(_sleep(given))


def _sleep_in_a_thread(given: Given) -> None:
    given.ctx.sleep(SOON)


def _context_in_a_thread(given: Given) -> None:
    restate_context()


async def _random(given: Given) -> None:
    given.ctx.random().random()


async def _uuid(given: Given) -> None:
    given.ctx.uuid()


MISUSES: dict[str, tuple[Callable[[Given], Any], str]] = {
    "sleep": (_sleep, r"the Restate context \(sys_sleep\)"),
    "run_typed": (_run, r"the Restate context \(sys_run\)"),
    "restate_context": (_context, r"restate_context\(\)"),
    "await": (_await, r"(the Restate context \(do_progress\)|awaiting a durable future)"),
    "select": (_select, r"(the Restate context \(do_progress\)|awaiting a durable future)"),
    "get": (_get, r"the Restate context \(sys_get_state\)"),
    "set": (_set, r"the Restate context \(sys_set_state\)"),
    "call": (_call, r"the Restate context \(sys_call\)"),
    "awakeable": (_awakeable, r"the Restate context \(sys_awakeable\)"),
    "sleep in a task of the body": (_in_a_task, r"the Restate context \(sys_sleep\)"),
    "sleep in a thread": (_sleep_in_a_thread, r"the Restate context \(sys_sleep\)"),
    "restate_context in a thread": (_context_in_a_thread, r"restate_context\(\)"),
    "random": (_random, r"the Restate context \(random\)"),
    "uuid": (_uuid, r"the Restate context \(random\)"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_the_context_inside_a_step_is_refused(env_factory: Serve, misuse: str) -> None:
    """Nothing that a body did with the context could be recorded, so the attempt fails and says what to do."""
    function, operation = MISUSES[misuse]
    service = restate.VirtualObject("Body")
    retry = RetryPolicy(max_attempts=1)

    @service.handler()
    async def run(ctx: restate.ObjectContext) -> None:
        _, pending = ctx.awakeable()
        await run_step(function, Given(ctx, pending), name="body", retry=retry)

    env = env_factory(service)
    with pytest.raises(
        InvocationFailed, match=rf"ContextInStepError.*{operation} was called inside the body of step 'body'"
    ):
        env.call("Body", "run", key="k")


def test_an_operator_sees_that_a_step_used_the_context(env_factory: Serve) -> None:
    """Without a limit of attempts the invocation waits for a redeploy, and its last failure says what to fix."""
    service = restate.Service("LastFailure")

    @durable_step
    async def remind() -> None:
        await restate_context().sleep(SOON)

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await remind()

    env = env_factory(service)
    failure = last_failure(env, env.send("LastFailure", "run"))

    assert "restate_context() was called inside the body of step 'remind'" in failure
    assert "Move the call out of the step into the handler, or remove @durable_step" in failure


def test_a_group_inside_a_step_is_a_local_one(env_factory: Serve) -> None:
    """What runs concurrently within a body is nobody's business but the body's."""
    service = restate.Service("LocalGroup")

    @durable_step
    async def body() -> list[int]:
        ready = asyncio.Barrier(2)

        async def one(n: int) -> int:
            await ready.wait()
            return n

        return list(await gather(one(1), one(2)))

    @service.handler()
    async def run(ctx: restate.Context) -> list[int]:
        return await body()

    assert [1, 2] == env_factory(service).call("LocalGroup", "run")


def test_a_step_leaves_the_handlers_context_alone(env_factory: Serve) -> None:
    """What the handler does after a step, or beside one, is not taken for the step's doing."""
    service = restate.Service("After")

    @durable_step
    async def body() -> int:
        return 1

    @service.handler()
    async def run(ctx: restate.Context) -> int:
        async def branch() -> int:
            await ctx.sleep(SOON)
            return await body()

        one = await body()
        await ctx.sleep(SOON)
        return one + sum(await gather(branch(), body(), branch()))

    assert 4 == env_factory(service).call("After", "run")


def test_a_refused_context_may_be_caught(env_factory: Serve) -> None:
    """The error is an ordinary exception of the body, so a body that can do without the context goes on."""
    service = restate.Service("Caught")

    @durable_step
    async def body() -> str:
        try:
            restate_context()
        except ContextInStepError as error:
            return f"{error.operation} in {error.step}"
        return ""

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return await body()

    assert "restate_context() in body" == env_factory(service).call("Caught", "run")


# --- the preview of explicit recovery ---------------------------------------------------------------------------


def of_the_service() -> restate.Service:
    service = explicit_recovery(restate.Service("Recovery"))

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await untouched()

    return service


def of_the_handler() -> restate.Service:
    service = restate.Service("Recovery")

    @explicit_recovery
    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await untouched()

    return service


RAN = threading.Event()


@durable_step
async def untouched() -> None:
    RAN.set()


@pytest.mark.parametrize("service", [of_the_handler, of_the_service])
def test_explicit_recovery_is_refused(env_factory: Serve, service: Callable[[], restate.Service]) -> None:
    """The SDK's preview runs every step again on every attempt, so no step runs, and Restate pauses the invocation."""
    RAN.clear()
    env = env_factory(service())
    invocation = env.send("Recovery", "run")
    failure = last_failure(env, invocation)

    assert "ConcurrencyError" in failure
    assert "the SDK's preview feature explicit_recovery, which runs every step again on every attempt" in failure
    assert "Remove explicit_recovery from the handler or service" in failure
    assert eventually(lambda: env.server.admin.invocation(invocation)["status"] == "paused")
    assert not RAN.is_set()
