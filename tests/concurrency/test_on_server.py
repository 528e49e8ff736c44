"""Concurrency on the real server: normal, in always-replay mode, and in service protocol V7."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import TaskGroup, durable_step, gather
from tests.concurrency import scenarios
from tests.support.harness import Env, Harness, InvocationFailed, Serve, eventually


@pytest.fixture
def milliseconds() -> Iterator[None]:
    """Local work takes milliseconds, as it does for users."""
    scenarios.pace.milliseconds = 4.0
    yield
    scenarios.pace.milliseconds = 0.0


def answer(env: Env, service: str, handler: str, arg: Any = None, *, within: float = 30) -> Any:
    """Call a handler; if it does not end, fail with what the server knows about it."""
    invocation = env.send(service, handler, arg)
    try:
        return env.attach(invocation, timeout=within)
    except TimeoutError:
        row = env.server.admin.invocation(invocation)
        raise AssertionError(f"{handler} did not end: {json.dumps(row, indent=1, default=str)}") from None


@pytest.mark.usefixtures("milliseconds")
def test_every_scenario(env_factory: Serve) -> None:
    """Each scenario comes to a right answer, several times over."""
    env = env_factory(scenarios.service)
    for scenario in scenarios.SCENARIOS.values():
        for _ in range(3):
            assert answer(env, "Scenarios", scenario.name) in scenario.answers, scenario.name


@pytest.mark.usefixtures("milliseconds")
def test_every_scenario_in_protocol_v7(tmp_path: Any) -> None:
    """The same with acknowledged run results, the server's next protocol."""
    app = restate_steps.app([scenarios.service])
    with Harness(env={"RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true"}) as harness, harness.serve(app) as env:
        for scenario in scenarios.SCENARIOS.values():
            assert answer(env, "Scenarios", scenario.name) in scenario.answers, scenario.name


def test_twenty_branches_of_five_steps_fifty_times(env_factory: Serve) -> None:
    """A gather over 20 branches with 5 steps of random duration each ends well 50 times out of 50."""
    service = restate.Service("TwentyByFive")

    @durable_step(name="work {branch}.{number}")
    async def work(branch: int, number: int) -> int:
        await asyncio.sleep(random.random() * 0.004)
        return branch * 100 + number

    async def branch(number: int) -> int:
        return sum([await work(number, index) for index in range(5)])

    @service.handler()
    async def fan_out(ctx: restate.Context) -> list[int]:
        return await gather(*(branch(number) for number in range(20)))

    env = env_factory(service)
    expected = [sum(number * 100 + index for index in range(5)) for number in range(20)]
    invocations = [env.send("TwentyByFive", "fan_out") for _ in range(50)]
    assert [env.attach(invocation) for invocation in invocations] == [expected] * 50
    retried = env.server.admin.query(
        "SELECT id FROM sys_invocation WHERE target_service_name = 'TwentyByFive' AND last_failure IS NOT NULL"
    )
    assert retried == []


def test_a_thousand_branches(env_factory: Serve) -> None:
    """A wide fan-out of two steps a branch completes."""
    service = restate.Service("Thousand")

    @durable_step(name="first {number}")
    async def first(number: int) -> int:
        return number

    @durable_step(name="second {number}")
    async def second(number: int) -> int:
        return number * 2

    async def branch(number: int) -> int:
        return await second(await first(number))

    @service.handler()
    async def fan_out(ctx: restate.Context) -> int:
        return sum(await gather(*(branch(number) for number in range(1000))))

    assert answer(env_factory(service), "Thousand", "fan_out", within=90) == 999_000


def test_four_branches_take_as_long_as_one(normal_harness: Harness) -> None:
    """Bodies of sibling steps run at the same time: all four have begun before any has ended."""
    service = restate.Service("Overlap")
    together = threading.Barrier(4)

    @durable_step(name="meet {number}")
    def meet(number: int) -> int:
        together.wait(20)
        return number

    @service.handler()
    async def overlap(ctx: restate.Context) -> list[int]:
        return await gather(*(meet(number) for number in range(4)))

    with normal_harness.serve(restate_steps.app([service])) as env:
        assert answer(env, "Overlap", "overlap") == [0, 1, 2, 3]


def test_a_finished_result_goes_to_the_server_at_once(normal_harness: Harness) -> None:
    """Whatever its siblings do: a body's result is recorded while another branch is held up between its steps."""
    service = restate.Service("Flush")
    holding, release = threading.Event(), threading.Event()

    @durable_step
    async def quick() -> str:
        await asyncio.to_thread(holding.wait, 30)
        return "quick"

    @durable_step
    async def step(name: str) -> str:
        return name

    async def held_up() -> str:
        await step("first")
        holding.set()
        await asyncio.to_thread(release.wait, 60)
        return await step("last")

    @service.handler()
    async def flush(ctx: restate.Context) -> list[str]:
        return list(await gather(quick(), held_up()))

    with normal_harness.serve(restate_steps.app([service])) as env:
        invocation = env.send("Flush", "flush")
        try:
            eventually(lambda: [e for e in env.server.admin.journal(invocation) if e.name == "quick" and e.completed])
        finally:
            release.set()
        assert env.attach(invocation) == ["quick", "last"]


def test_cancellation_reaches_every_branch_and_compensation_works(normal_harness: Harness) -> None:
    """An admin's cancellation is told once to each branch, in order; a gather can compensate afterwards."""
    service = restate.Service("Cancelled")
    waiting = threading.Event()

    @durable_step(name="{what}")
    async def note(what: str) -> str:
        return what

    async def branch(ctx: restate.Context, tag: str) -> None:
        await note(f"begin {tag}")
        if tag == "b":
            waiting.set()
        try:
            await ctx.sleep(timedelta(hours=1))
        except restate.TerminalError:
            await note(f"undo {tag}")
            raise

    @service.handler()
    async def cancelled(ctx: restate.Context) -> None:
        try:
            async with TaskGroup() as group:
                group.create_task(branch(ctx, "a"))
                group.create_task(branch(ctx, "b"))
        except restate.TerminalError:
            await gather(note("refund"), note("apologise"))
            raise

    with normal_harness.serve(restate_steps.app([service])) as env:
        invocation = env.send("Cancelled", "cancelled")
        assert waiting.wait(20)
        eventually(lambda: [e for e in env.server.admin.journal(invocation) if e.name == "begin b" and e.completed])
        env.server.admin.cancel(invocation)
        with pytest.raises(InvocationFailed) as failure:
            env.attach(invocation)
        assert failure.value.status == 409
        names = list(dict.fromkeys(entry.name for entry in env.server.admin.journal(invocation) if entry.name))
        # Each branch is told in the order in which it began to wait, which is the order in which the first steps ended.
        assert set(names[:2]) == {"begin a", "begin b"}
        assert set(names[2:4]) == {"undo a", "undo b"}
        assert names[4:] == ["refund", "apologise"]


def test_a_failing_body_is_retried_and_its_siblings_are_not(env_factory: Serve) -> None:
    """An ordinary exception in one branch's step repeats that step; recorded siblings do not run again."""
    service = restate.Service("Retried")
    ran: list[str] = []
    recorded = asyncio.Event()

    @durable_step
    async def fine() -> str:
        ran.append("fine")
        return "fine"

    @durable_step
    async def flaky() -> str:
        ran.append("flaky")
        if ran.count("flaky") < 3:
            raise OSError("try again")
        return "flaky"

    async def late() -> str:
        # The sibling is in the journal before this one begins to fail.
        await recorded.wait()
        return await flaky()

    async def early() -> str:
        found = await fine()
        recorded.set()
        return found

    @service.handler()
    async def retried(ctx: restate.Context) -> list[str]:
        recorded.clear()
        return list(await gather(early(), late()))

    assert answer(env_factory(service), "Retried", "retried") == ["fine", "flaky"]
    assert ran.count("fine") == 1
    assert ran.count("flaky") == 3
