"""The simulator as its users see it. That it does what the server does is shown in ``tests/conformance``."""

from __future__ import annotations

import ast
import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import anyio.to_thread
import pytest
import restate
from restate.entry_codec import JournalValueCodec

import restate_steps.testing
from restate_steps._protocol.wire import FrameReader, decode, encode, make
from restate_steps.testing import (
    InvocationPausedError,
    InvocationStatus,
    JournalMismatchError,
    MessageType,
    SimulationError,
    Simulator,
    StuckError,
    simulate,
)
from tests.support import shop

WAYS: list[dict[str, Any]] = [
    {"version": version, **way}
    for version in (6, 7)
    for way in ({}, {"always_replay": True}, {"mode": "request_response"})
]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(map(str, way.values())))
def sim(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A simulator of the shop, in each way in which it can be played."""
    shop.failing.clear()
    with simulate(shop.app, **request.param) as simulator:
        yield simulator


async def test_a_call_has_a_value_and_a_journal(sim: Simulator) -> None:
    """What the handler returned, decoded; the steps that were recorded; how often their bodies ran."""
    result = await sim.call(shop.checkout, "tea")

    assert "tea for 3" == result.value
    assert ["quote", "charge"] == result.journal.names
    assert {"quote": 1, "charge": 1} == dict(result.effects)
    assert [3, "tea for 3"] == [entry.value for entry in result.journal if entry.type == "Command: Run"]


async def test_time_is_virtual(sim: Simulator) -> None:
    """A month passes in no time."""
    began = time.monotonic()

    await sim.call(shop.checkout, "tea")

    assert timedelta(days=30) == sim.now
    assert time.monotonic() - began < timedelta(days=1).total_seconds()


async def test_handlers_without_argument_and_answer(sim: Simulator) -> None:
    """Nothing is sent, and nothing comes back."""
    assert (await sim.call(shop.nothing)).value is None


async def test_a_handler_can_be_named(sim: Simulator) -> None:
    """By its service and its name, with JSON on both sides."""
    assert "tea for 3" == (await sim.call("Shop/checkout", "tea")).value


async def test_gather_and_select(sim: Simulator) -> None:
    """The SDK's own combinators."""
    assert ["tea 1", "tea 2"] == (await sim.call(shop.both, "tea")).value
    assert "step" == (await sim.call(shop.first, "tea")).value


async def test_an_awakeable_is_resolved_from_outside(sim: Simulator) -> None:
    """The handler has stopped at the awakeable; it goes on with the answer."""
    invocation = await sim.send(shop.ask, "tea?")
    awakeable_id = await sim.awakeable(invocation)
    assert [awakeable_id] == invocation.awakeables
    assert invocation.status in ("running", "suspended")

    await sim.resolve_awakeable(awakeable_id, "yes")

    assert "completed" == invocation.status
    assert "tea? yes" == (await invocation.result()).value


async def test_an_awakeable_is_rejected_from_outside(sim: Simulator) -> None:
    """The handler gets the failure, and passes it on."""
    invocation = await sim.send(shop.ask, "tea?")

    await sim.reject_awakeable(await sim.awakeable(invocation), "no tea", code=410)

    with pytest.raises(restate.TerminalError, match="no tea") as caught:
        await invocation.result()
    assert 410 == caught.value.status_code


@pytest.mark.parametrize("wrong", ["tea", "sign_1AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"])
async def test_an_awakeable_that_is_none(sim: Simulator, wrong: str) -> None:
    """It is said so."""
    with pytest.raises(SimulationError, match="awakeable"):
        await sim.resolve_awakeable(wrong)


async def test_signals(sim: Simulator) -> None:
    """A named signal reaches the handler that waits for it."""
    invocation = await sim.send(shop.listen)

    await invocation.signal("go", "now")

    assert "now" == (await invocation.result()).value


async def test_cancellation(sim: Simulator) -> None:
    """What the handler waits for raises 409, and it can still clean up."""
    invocation = await sim.send(shop.cancellable)

    await invocation.cancel()

    assert "409 undone" == (await invocation.result()).value


async def test_kill(sim: Simulator) -> None:
    """It ends at once, and runs nothing more."""
    invocation = await sim.send(shop.cancellable)

    await invocation.kill()

    with pytest.raises(restate.TerminalError, match="killed"):
        await invocation.result()
    assert {} == dict(sim.effects)


async def test_state_outlives_invocations(sim: Simulator) -> None:
    """What one sets the next one gets; the test can look."""
    await sim.call(shop.add, 2, key="ann")

    assert 5 == (await sim.call(shop.add, 3, key="ann")).value
    assert {"count": 5} == sim.state("Cart", "ann")
    assert {} == sim.state("Cart", "bob")
    assert ["count"] == (await sim.call(shop.empty, key="ann")).value
    assert {} == sim.state("Cart", "ann")


async def test_lazy_state(sim: Simulator) -> None:
    """State that is asked for only when it is needed."""
    await sim.call(shop.touch, "a", key="ann")

    assert ["a", "b"] == (await sim.call(shop.touch, "b", key="ann")).value
    assert {"a": 1, "b": 1} == sim.state("Lazy", "ann")


async def test_a_key_is_locked(sim: Simulator) -> None:
    """Exclusive handlers of a key come one after the other; shared ones do not wait."""
    one = await sim.send(shop.add, 1, key="ann")
    two = await sim.send(shop.add, 1, key="ann")
    other = await sim.send(shop.add, 1, key="bob")

    assert "queued" == two.status
    assert "queued" != other.status
    assert 0 == (await sim.call(shop.look, key="ann")).value
    assert 1 == (await one.result()).value
    assert 2 == (await two.result()).value


async def test_calls_and_sends(sim: Simulator) -> None:
    """Handlers call each other; what is sent comes before what is called later."""
    assert 10 == (await sim.call(shop.order, "ann")).value
    assert 4 == len(sim.invocations)


async def test_delayed_sends(sim: Simulator) -> None:
    """What is to come later comes when it is time."""
    await sim.call(shop.later, "ann")
    assert {} == sim.state("Cart", "ann")

    await sim.advance(timedelta(hours=1, minutes=59))
    assert {} == sim.state("Cart", "ann")
    await sim.advance(timedelta(minutes=2))
    assert {"count": 1} == sim.state("Cart", "ann")


async def test_a_send_of_the_test_can_be_delayed(sim: Simulator) -> None:
    """It is scheduled until its time has come."""
    invocation = await sim.send(shop.add, 1, key="ann", delay=timedelta(hours=1))
    assert "scheduled" == invocation.status

    await sim.advance(timedelta(hours=2))

    assert "completed" == invocation.status


async def test_idempotency_keys(sim: Simulator) -> None:
    """Calls with the same key are one invocation."""
    first = await sim.call(shop.add, 1, key="ann", idempotency_key="k")
    again = await sim.call(shop.add, 1, key="ann", idempotency_key="k")

    assert first.invocation_id == again.invocation_id
    assert {"count": 1} == sim.state("Cart", "ann")


async def test_workflows_and_promises(sim: Simulator) -> None:
    """A workflow waits for a promise that another handler resolves; it runs once for each key."""
    workflow = await sim.send(shop.run, "tea", key="w")
    assert (await sim.call(shop.peek, key="w")).value is None

    await sim.call(shop.answer, "yes", key="w")

    assert "tea: yes" == (await workflow.result()).value
    assert "yes" == (await sim.call(shop.peek, key="w")).value
    with pytest.raises(restate.TerminalError, match="already"):
        await sim.call(shop.run, "tea", key="w")
    with pytest.raises(restate.TerminalError, match="already"):
        await sim.call(shop.answer, "no", key="w")


async def test_terminal_failures(sim: Simulator) -> None:
    """They reach the client with their status."""
    with pytest.raises(restate.TerminalError, match="sold out") as caught:
        await sim.call(shop.refuses)
    assert 410 == caught.value.status_code


async def test_a_step_is_retried_by_its_policy(sim: Simulator) -> None:
    """Its body runs again after the delays of its policy, in virtual time."""
    shop.failing["charge"] = 2

    result = await sim.call(shop.retried_step)

    assert 7 == result.value
    assert 3 == result.effects["charge"]
    assert timedelta(seconds=10) <= sim.now < timedelta(seconds=20)


async def test_a_step_runs_out_of_attempts(sim: Simulator) -> None:
    """After the last attempt the failure is terminal."""
    shop.failing["charge"] = 100

    with pytest.raises(restate.TerminalError, match="no answer"):
        await sim.call(shop.retried_step)
    assert 4 == sim.effects["charge"]


async def test_a_handler_is_retried_by_the_policy_of_its_service(sim: Simulator) -> None:
    """After 1 s and 2 s; what was recorded is not done again."""
    shop.failing["wobble"] = 2

    result = await sim.call(shop.wobble)

    assert "stands" == result.value
    assert 1 == result.effects["before"]
    assert timedelta(seconds=3) == sim.now


async def test_a_handler_is_paused_and_resumed(sim: Simulator) -> None:
    """Where the policy says so, after the last attempt; nothing is lost."""
    shop.failing["wobble"] = 4
    invocation = await sim.send(shop.wobble)

    with pytest.raises(InvocationPausedError, match=r"paused after .* attempts.*wobbles") as caught:
        await invocation.result()
    assert 500 == caught.value.code
    assert 'raise ValueError("wobbles")' in caught.value.__notes__[0]
    assert "paused" == invocation.status
    await invocation.resume()
    assert "stands" == (await invocation.result()).value
    assert 1 == sim.effects["before"]


async def test_a_handler_is_killed_by_its_policy(sim: Simulator) -> None:
    """The last error is the answer."""
    with pytest.raises(restate.TerminalError, match="falls"):
        await sim.call(shop.fall)


async def test_values_can_be_encoded() -> None:
    """Where the application has a codec for its journals, clients use it as well."""

    class Reversed(JournalValueCodec):
        def encode(self, buf: bytes) -> bytes:
            return buf[::-1]

        async def decode(self, buf: bytes) -> bytes:
            return buf[::-1]

    service = restate.Service("Secret")

    @service.handler()
    async def whisper(ctx: restate.Context, word: str) -> str:
        return await ctx.run_typed("whisper", lambda: f"{word}!")

    app = restate.app([service], journal_value_codec=Reversed())
    async with simulate(app, journal_value_codec=Reversed()) as sim:
        result = await sim.call(whisper, "tea")

    assert "tea!" == result.value
    assert b'"!aet"' == decode(result.journal.frames[2])["value"]["content"]


async def test_retries_can_be_disabled() -> None:
    """A mistake fails the test at once."""
    shop.failing["wobble"] = 1
    async with simulate(shop.app, disable_retries=True) as sim:
        with pytest.raises(restate.TerminalError, match="wobbles"):
            await sim.call(shop.wobble)
        assert timedelta(0) == sim.now


async def test_an_operator_pauses(sim: Simulator) -> None:
    """Time passes, and nothing happens until it is resumed."""
    invocation = await sim.send(shop.cancellable)

    await invocation.pause()
    await sim.advance(timedelta(hours=5))
    assert "paused" == invocation.status
    await invocation.resume()

    assert "not cancelled" == (await invocation.result()).value


async def test_a_crash_in_the_middle(sim: Simulator) -> None:
    """The process dies while the handler sleeps; the next one goes on, and does nothing twice."""
    invocation = await sim.send(shop.checkout, "tea")

    await sim.crash()
    await sim.advance(timedelta(days=10))
    await sim.crash()

    result = await invocation.result()
    assert "tea for 3" == result.value
    assert {"quote": 1, "charge": 1} == dict(result.effects)
    assert result.attempts >= 3


async def test_a_crash_while_nothing_runs_leaves_nothing_behind() -> None:
    """Event loops are used again; one that was told to stop while it stood still would stop at once the next time."""
    for _ in range(3):
        async with simulate(shop.app) as sim:
            invocation = await sim.send(shop.refuses)
            assert "completed" == invocation.status
            sim.driver.crash()
            assert ["tea 1", "tea 2"] == (await sim.call(shop.both, "tea")).value


async def test_a_cut_connection(sim: Simulator) -> None:
    """The process lives on; the attempt ends, and another one goes on."""
    invocation = await sim.send(shop.checkout, "tea")

    await sim.disconnect()

    assert "tea for 3" == (await invocation.result()).value


async def test_random_numbers_are_those_of_the_invocation(sim: Simulator) -> None:
    """They are the same whenever the seed is, and differ between invocations."""
    one, two = (await sim.call(shop.draws)).value, (await sim.call(shop.draws)).value

    assert one != two
    with simulate(shop.app) as other:
        assert one == (await other.call(shop.draws)).value
    with simulate(shop.app, seed=1) as other:
        assert one != (await other.call(shop.draws)).value


async def test_runs_are_repeatable() -> None:
    """Ten runs of the same calls are the same, message by message."""

    async def timeline() -> str:
        async with simulate(shop.app) as sim:
            await sim.call(shop.both, "tea")
            await sim.call(shop.order, "ann")
            await sim.call(shop.checkout, "tea")
            return sim.timeline()

    traces = [await timeline() for _ in range(10)]

    assert 1 == len(set(traces))


async def test_the_timeline_can_be_read(sim: Simulator) -> None:
    """It has what was asked for, what came of it, and what happened around."""
    await sim.call(shop.checkout, "tea")
    lines = sim.timeline()

    for part in ("attempt 1 of Shop/checkout begins", "→ run quote", "← run completion 1 = 3", "· time", "ends"):
        assert part in lines


async def test_a_handler_that_hangs_is_told_of() -> None:
    """Nobody resolves the awakeable: the error says what is waited for, and what to do."""
    async with simulate(shop.app) as sim:
        with pytest.raises(StuckError, match=r"Shop/ask is running.*\n.*sim.send"):
            await sim.call(shop.ask, "tea?")


async def test_a_handler_that_never_ends_is_told_of() -> None:
    """A loop without end is found."""
    service = restate.Service("Loop")

    @service.handler()
    async def loop(ctx: restate.Context) -> None:
        while True:
            await ctx.sleep(timedelta(seconds=1))

    async with simulate(restate.app([service])) as sim:
        sim.driver.max_events = 100
        with pytest.raises(StuckError, match="loop forever"):
            await sim.call(loop)


async def test_a_mismatch_is_told_at_once() -> None:
    """No retry can fix it, so there is none."""
    service = restate.Service("Changing")
    names = iter("ab")

    @service.handler()
    async def change(ctx: restate.Context) -> None:
        await ctx.run_typed(next(names), lambda: 1)
        await ctx.sleep(timedelta(seconds=1))

    async with simulate(restate.app([service]), always_replay=True) as sim:
        with pytest.raises(JournalMismatchError, match="570"):
            await sim.call(change)


async def test_calls_to_what_is_not_there() -> None:
    """It is said what there is, and how to have more."""
    service = restate.Service("Lonely")

    @service.handler()
    async def call(ctx: restate.Context) -> None:
        await ctx.object_call(shop.add, "ann", 1)

    async with simulate(restate.app([service])) as sim:
        with pytest.raises(SimulationError, match=r"no handler Cart/add.*it has Lonely/call.*all services together"):
            await sim.call(call)
        with pytest.raises(SimulationError, match="no handler Shop/nothing"):
            await sim.call(shop.nothing)


async def test_bad_calls() -> None:
    """Each mistake has an error that says what is wrong."""
    async with simulate(shop.app) as sim:
        with pytest.raises(SimulationError, match="'Service/handler'"):
            await sim.call("checkout", "tea")
        with pytest.raises(SimulationError, match="not a handler of a service"):
            await sim.call(test_bad_calls)
        with pytest.raises(SimulationError, match="needs a key"):
            await sim.call(shop.add, 1)
        with pytest.raises(SimulationError, match="a key was given, but Shop is a Service"):
            await sim.call(shop.checkout, "tea", key="ann")
        with pytest.raises(SimulationError, match="cannot be sent to Shop/checkout, which takes str: Object of type"):
            await sim.call(shop.checkout, cast(Any, object()))
        with pytest.raises(SimulationError, match=r"cannot be sent to Shop/checkout.*pass the function"):
            await sim.call("Shop/checkout", object())
        with pytest.raises(SimulationError, match="Shop/checkout takes an argument"):
            await sim.call(cast(Any, shop.checkout))
        with pytest.raises(SimulationError, match="Shop/nothing takes no argument"):
            await sim.call(cast(Any, shop.nothing), 1)
        with pytest.raises(SimulationError, match="a key must be a string, not 5"):
            await sim.call(shop.add, 1, key=cast(Any, 5))
        with pytest.raises(SimulationError, match="or workflow 'Crt'; there are Approval, Cart, Lazy"):
            sim.state("Crt", "ann")
        with pytest.raises(SimulationError, match="cannot be sent as JSON"):
            await sim.resolve_awakeable("sign_1", object())
        with pytest.raises(SimulationError, match="run needs a coroutine, such as"):
            sim.run(cast(Any, test_bad_calls))
    with pytest.raises(SimulationError, match="version of the service protocol is 6 or 7, not 5"):
        simulate(shop.app, version=5)
    with pytest.raises(SimulationError, match="mode is 'bidirectional' or 'request_response', not 'http1'"):
        simulate(shop.app, mode=cast(Any, "http1"))


async def test_values_from_outside_may_be_what_pydantic_writes() -> None:
    """An awakeable takes a model, a date or a decimal."""
    async with simulate(shop.app) as sim:
        invocation = await sim.send(shop.ask, "tea?")
        await sim.resolve_awakeable(await sim.awakeable(invocation), Decimal("9.50"))

        assert "9.50" in (await invocation.result()).value


async def test_a_handler_that_waits_for_a_client_is_told_of() -> None:
    """The message says for which awakeable."""
    async with simulate(shop.app) as sim:
        with pytest.raises(StuckError, match=r"Shop/ask is running, and waits for the awakeable 'sign_1\w+'"):
            await sim.call(shop.ask, "tea?")


def test_a_result_can_be_read() -> None:
    """In the message of an assertion for example."""
    with simulate(shop.app) as sim:
        result = sim.run(sim.call(shop.checkout, "tea"))

    assert re.search(r"journal=<Journal of Shop/checkout, \d+ entries>", repr(result))


def test_what_is_no_application() -> None:
    """An app is asked for its handlers when the simulator is made."""
    with pytest.raises(TypeError, match="application"):
        simulate(lambda: None)
    with pytest.raises(TypeError, match=r"simulate\(restate_steps.app\(\[\.\.\.\]\)\), not .*Service"):
        simulate(shop.shop)


async def test_local_time_is_virtual_too() -> None:
    """A body may sleep with asyncio; it takes virtual time, and siblings go on meanwhile."""
    service = restate.Service("Slow")

    async def slow() -> int:
        await asyncio.sleep(3600)
        return 1

    @service.handler()
    async def wait(ctx: restate.Context) -> int:
        one, two = ctx.run_typed("one", slow), ctx.run_typed("two", slow)
        await restate.gather(one, two)
        return await one + await two

    async with simulate(restate.app([service])) as sim:
        assert 2 == (await sim.call(wait)).value
        assert timedelta(hours=1) == sim.now


async def test_threads_are_waited_for() -> None:
    """A plain function runs in a thread, for as long as it takes in real time."""
    service = restate.Service("Threads")

    @service.handler()
    async def think(ctx: restate.Context) -> str:
        def slowly() -> str:
            time.sleep(0.05)
            return "thought"

        return await ctx.run_typed("think", slowly)

    async with simulate(restate.app([service])) as sim:
        assert "thought" == (await sim.call(think)).value


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("app", [restate.app, restate_steps.app], ids=["restate", "restate_steps"])
async def test_threads_of_anyio_are_waited_for(app: Any, limited: bool) -> None:
    """They go past the event loop, and are what pydantic-ai runs plain functions in; also under a limiter."""
    service = restate.Service("Anyio")

    @service.handler()
    async def think(ctx: restate.Context) -> str:
        limiter = anyio.CapacityLimiter(1) if limited else None

        def slowly() -> str:
            time.sleep(0.05)
            return "thought"

        async def body() -> str:
            return await anyio.to_thread.run_sync(slowly, limiter=limiter)

        return await anyio.to_thread.run_sync(slowly, limiter=limiter) + await ctx.run_typed("think", body)

    async with simulate(app([service])) as sim:
        assert "thoughtthought" == (await sim.call(think)).value
        assert timedelta(0) == sim.now


async def test_the_loop_of_the_test_is_left_alone() -> None:
    """The handler runs in a loop of its own; outside, the running loop and the current task are as before."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    seen: list[Any] = []
    service = restate.Service("Where")

    @service.handler()
    async def where(ctx: restate.Context) -> None:
        seen.append(asyncio.get_running_loop())

    async with simulate(restate.app([service])) as sim:
        await sim.call(where)
        assert loop is asyncio.get_running_loop()
        assert task is asyncio.current_task()
        await asyncio.sleep(0)
    assert [loop] != seen


def test_without_a_loop() -> None:
    """In a plain function a coroutine of the simulator can be run by any means."""
    with simulate(shop.app) as sim:
        assert "tea for 3" == asyncio.run(sim.call(shop.checkout, "tea")).value


async def test_async_generators_after_a_crash_left_some_open() -> None:
    """An event loop on which some had to be closed is not used again: asyncio would warn of the next one."""
    service, kept = restate.Service("Generators"), []

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    @service.handler()
    async def handler(ctx: restate.Context) -> int:
        kept.append(numbers())
        return sum([number async for number in kept[-1] if await ctx.sleep(timedelta(seconds=1)) is None])

    for _ in range(3):
        async with simulate(restate.app([service])) as sim:
            invocation = await sim.send(handler)
            await sim.crash()
            assert 3 == (await invocation.result()).value


SIMULATION = Path("testing/_simulation")
HEART = (
    SIMULATION / "commands.py",
    SIMULATION / "events.py",
    SIMULATION / "invocation.py",
    SIMULATION / "keys.py",
    SIMULATION / "manifest.py",
    SIMULATION / "messages.py",
    SIMULATION / "opaque.py",
    SIMULATION / "scopes.py",
    SIMULATION / "server_model.py",
    Path("_protocol/types.py"),
    Path("_protocol/wire.py"),
)
"""The modules of the simulated server."""


@pytest.mark.parametrize("module", HEART, ids=str)
def test_the_heart_does_no_io(module: Path) -> None:
    """Messages, journals and transitions use no asyncio, no clock and no randomness."""
    path = Path(restate_steps.__file__).parent / module
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))

    assert imported & {"asyncio", "time", "datetime", "random", "socket", "os", "threading", "secrets", "uuid"} == set()
    assert imported <= {
        "__future__",
        "base64",
        "bisect",
        "collections",
        "collections.abc",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "re",
        "restate_steps._ids",
        "struct",
        "typing",
        *(".".join(("restate_steps", *each.with_suffix("").parts)) for each in HEART),
    }


def test_statuses_and_message_types_have_names() -> None:
    """A status is its text, too; a message type of a newer protocol is refused."""
    assert InvocationStatus.SUSPENDED == "suspended"
    assert FrameReader().feed(encode(make(MessageType.END)))[0].type is MessageType.END
    with pytest.raises(ValueError, match="the message type 0x3fff is unknown"):
        FrameReader().feed(bytes.fromhex("3fff000000000000"))
