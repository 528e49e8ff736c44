"""Plain handlers of the Restate SDK which together use everything the service protocol has.

Nothing of ``restate_steps`` is used here: a recording shows the server and the SDK alone.

Handlers and the code that drives them meet at :data:`board`, in memory: a handler publishes what only it knows, such
as the id of an awakeable, and waits inside a step at a gate that the driver opens. So the order in which things happen
is decided by the scenario, and by no clock.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import timedelta
from typing import Any

import restate
from restate.exceptions import RetryableError
from restate.serde import BytesSerde
from restate.server_context import ServerDurableFuture, ServerInvocationContext
from restate.vm import AllCompletedUnresolvedFuture, FirstCompletedUnresolvedFuture, SingleUnresolvedFuture

__all__ = ["SERVICES", "Board", "app", "board"]

HOUR = timedelta(hours=1)
SHORT = timedelta(milliseconds=60)
QUICKLY = restate.RunOptions[str](
    initial_retry_interval=timedelta(milliseconds=20), retry_interval_factor=2.0, max_attempts=5
)


class Board:
    """Where handlers and the driver meet; clear it before each scenario."""

    def __init__(self) -> None:
        self.published: dict[str, Any] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._counts: Counter[str] = Counter()

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def publish(self, name: str, value: Any = True) -> None:
        """Let the driver know something."""
        self.published[name] = value

    def count(self, name: str) -> int:
        """How many times this was asked with this name, this time included."""
        self._counts[name] += 1
        return self._counts[name]

    def open(self, name: str) -> None:
        """Let through whatever waits at a gate, now and later."""
        self._gate(name).set()

    async def at(self, name: str) -> None:
        """Publish as ``at <name>`` how many have come here, and wait until the gate is open."""
        self.publish(f"at {name}", self.count(f"at {name}"))
        await self._gate(name).wait()

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())


board = Board()

steps = restate.Service("Steps")
waits = restate.Service("Waits")
calls = restate.Service("Calls")
child = restate.Service("Child")
pausing = restate.Service(
    "Pausing",
    invocation_retry_policy=restate.InvocationRetryPolicy(
        initial_interval=timedelta(milliseconds=20), max_attempts=2, on_max_attempts="pause"
    ),
)
killing = restate.Service(
    "Killing",
    invocation_retry_policy=restate.InvocationRetryPolicy(
        initial_interval=timedelta(milliseconds=20), max_attempts=2, on_max_attempts="kill"
    ),
)
eager = restate.VirtualObject("Eager")
lazy = restate.VirtualObject("Lazy", enable_lazy_state=True)
flow = restate.Workflow("Flow")

promises = restate.Workflow("Promises")

SERVICES = (steps, waits, calls, child, pausing, killing, eager, lazy, flow, promises)


def app() -> Any:
    """Return the application with all services."""
    return restate.app(SERVICES)


async def say(what: str) -> str:
    return what


async def gated(what: str) -> str:
    await board.at(what)
    return what


async def fails_twice(what: str) -> str:
    times = board.count(what)
    if times < 3:
        raise ValueError(f"failure {times} of {what}")
    return what


# --- steps ------------------------------------------------------------------------------------------------------


@steps.handler()
async def none(ctx: restate.Context, arg: str) -> str:
    return arg


@steps.handler()
async def nothing_in_or_out(ctx: restate.Context) -> None:
    return None


@steps.handler(input_serde=BytesSerde(), output_serde=BytesSerde(), accept="*/*", content_type="application/x-raw")
async def raw(ctx: restate.Context, arg: bytes) -> bytes:
    return arg[::-1]


@steps.handler()
async def one(ctx: restate.Context, arg: str) -> str:
    return await ctx.run_typed("one", say, restate.RunOptions(), arg)


@steps.handler()
async def three(ctx: restate.Context) -> list[str]:
    return [await ctx.run_typed(name, say, restate.RunOptions(), name) for name in ("a", "b", "c")]


@steps.handler()
async def binary_and_empty(ctx: restate.Context) -> int:
    async def binary() -> bytes:
        return b"\x00\xff"

    async def empty() -> None:
        return None

    found = await ctx.run_typed("binary", binary, restate.RunOptions(serde=BytesSerde()))
    await ctx.run_typed("empty", empty)
    return len(found)


@steps.handler()
async def sync_step(ctx: restate.Context) -> str:
    return await ctx.run_typed("sync", lambda: "from a thread", restate.RunOptions[str](type_hint=str))


@steps.handler()
async def terminal(ctx: restate.Context) -> str:
    async def refuse() -> str:
        raise restate.TerminalError("refused", 418, metadata={"why": "tea", "who": "pot"})

    return await ctx.run_typed("refuse", refuse)


@steps.handler()
async def terminal_caught(ctx: restate.Context) -> str:
    async def refuse() -> str:
        raise restate.TerminalError("refused", 418)

    try:
        return await ctx.run_typed("refuse", refuse)
    except restate.TerminalError as error:
        return await ctx.run_typed("compensate", say, restate.RunOptions(), f"{error.status_code} {error.message}")


@steps.handler()
async def retried_by_server(ctx: restate.Context) -> str:
    before = await ctx.run_typed("before", say, restate.RunOptions(), "before")
    return before + await ctx.run_typed("flaky", fails_twice, restate.RunOptions(), "flaky")


@steps.handler()
async def retried_by_policy(ctx: restate.Context) -> str:
    return await ctx.run_typed("flaky", fails_twice, QUICKLY, "flaky")


@steps.handler()
async def exhausted(ctx: restate.Context) -> str:
    options = restate.RunOptions[str](initial_retry_interval=timedelta(milliseconds=20), max_attempts=2)
    try:
        return await ctx.run_typed("flaky", fails_twice, options, "flaky")
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@steps.handler()
async def retry_after(ctx: restate.Context) -> str:
    async def later() -> str:
        if board.count("later") < 2:
            raise RetryableError("not now", 503, retry_after=timedelta(milliseconds=30))
        return "now"

    return await ctx.run_typed("later", later)


@steps.handler()
async def handler_fails(ctx: restate.Context) -> str:
    first = await ctx.run_typed("first", say, restate.RunOptions(), "first")
    if board.count("handler") < 3:
        raise ValueError("the handler fails")
    return await ctx.run_typed("second", say, restate.RunOptions(), first + " second")


@steps.handler()
async def handler_fails_at_once(ctx: restate.Context) -> str:
    if board.count("handler") < 2:
        raise ValueError("the handler fails at once")
    return "done"


@steps.handler()
async def handler_retry_after(ctx: restate.Context) -> str:
    if board.count("handler") < 2:
        raise RetryableError("come back", 503, retry_after=timedelta(milliseconds=30))
    return "back"


@steps.handler()
async def handler_terminal(ctx: restate.Context) -> str:
    raise restate.TerminalError("no such order", 404, metadata={"order": "17"})


@steps.handler()
async def mismatch(ctx: restate.Context) -> str:
    name = "b" if board.count("mismatch") == 2 else "a"
    found = await ctx.run_typed(name, say, restate.RunOptions(), name)
    if name == "a" and board.count("first") == 1:
        raise ValueError("once more")
    return found


@steps.handler()
async def mismatch_of_kinds(ctx: restate.Context) -> str:
    if board.count("mismatch") == 2:
        await ctx.sleep(SHORT)
    found = await ctx.run_typed("a", say, restate.RunOptions(), "a")
    if board.count("first") == 1:
        raise ValueError("once more")
    return found


@steps.handler()
async def gather_steps(ctx: restate.Context) -> list[str]:
    futures = [ctx.run_typed(name, gated, restate.RunOptions(), name) for name in ("a", "b", "c")]
    await restate.gather(*futures)
    return [await future for future in futures]


@steps.handler()
async def as_completed_steps(ctx: restate.Context) -> list[str]:
    futures = [ctx.run_typed(name, gated, restate.RunOptions(), name) for name in ("a", "b", "c")]
    return [await future async for future in restate.as_completed(*futures)]


@steps.handler()
async def one_of_two_fails(ctx: restate.Context) -> list[str]:
    async def flaky() -> str:
        if board.count("flaky") < 2:
            await board.at("flaky")
            raise ValueError("once")
        return "flaky"

    fine = ctx.run_typed("fine", gated, restate.RunOptions(), "fine")
    other = ctx.run_typed("flaky", flaky)
    await restate.gather(fine, other)
    return [await fine, await other]


@steps.handler()
async def lost(ctx: restate.Context) -> str:
    await ctx.run_typed("kept", say, restate.RunOptions(), "kept")
    return await ctx.run_typed("lost", gated, restate.RunOptions(), "lost")


@steps.handler()
async def progress(ctx: restate.Context) -> list[str]:
    """Each attempt gets one step further, but the third."""
    seen: list[str] = []
    attempt = board.count("progress")
    for number, name in enumerate(("a", "b", "c"), 1):
        seen.append(await ctx.run_typed(name, say, restate.RunOptions(), name))
        if attempt == number or (attempt == 3 and number == 2):
            raise ValueError(f"attempt {attempt} got as far as {name}")
    return seen


@steps.handler()
async def random_and_time(ctx: restate.Context) -> bool:
    first = ctx.random().random(), str(ctx.uuid())
    when = await ctx.time()
    kept = board.published.setdefault("kept", [*first, when])
    assert kept == [*first, when]
    if board.count("random") < 2:
        raise ValueError("once more")
    return True


# --- waits ------------------------------------------------------------------------------------------------------


@waits.handler()
async def sleep(ctx: restate.Context) -> str:
    await ctx.sleep(SHORT, name="nap")
    return "awake"


@waits.handler()
async def step_sleep_step(ctx: restate.Context) -> list[str]:
    before = await ctx.run_typed("before", say, restate.RunOptions(), "before")
    await ctx.sleep(SHORT)
    return [before, await ctx.run_typed("after", say, restate.RunOptions(), "after")]


@waits.handler()
async def sleep_zero(ctx: restate.Context) -> str:
    await ctx.sleep(timedelta())
    return "awake"


@waits.handler()
async def two_sleeps(ctx: restate.Context) -> list[str]:
    late, early = ctx.sleep(SHORT * 5, name="late"), ctx.sleep(SHORT, name="early")
    order: list[str] = []
    async for slept in restate.as_completed(late, early):
        await slept
        order.append("late" if slept is late else "early")
    return order


@waits.handler()
async def step_wins(ctx: restate.Context) -> list[Any]:
    step = ctx.run_typed("step", say, restate.RunOptions(), "step")
    return list(await restate.select(step=step, timeout=ctx.sleep(HOUR)))


@waits.handler()
async def sleep_wins(ctx: restate.Context) -> list[Any]:
    step = ctx.run_typed("step", gated, restate.RunOptions(), "step")
    found = await restate.select(step=step, timeout=ctx.sleep(SHORT))
    board.publish("won")
    return list(found)


@waits.handler()
async def sleep_and_step(ctx: restate.Context) -> str:
    step = ctx.run_typed("step", say, restate.RunOptions(), "step")
    # Long enough for a whole attempt to be over before it ends.
    nap = ctx.sleep(SHORT * 6)
    await restate.gather(nap, step)
    return await step


@waits.handler()
async def unawaited_step(ctx: restate.Context) -> str:
    ctx.run_typed("never", say, restate.RunOptions(), "never")
    return await ctx.run_typed("awaited", say, restate.RunOptions(), "awaited")


@waits.handler()
async def awakeable(ctx: restate.Context) -> str:
    name, future = ctx.awakeable(type_hint=str)
    board.publish("awakeable", name)
    try:
        return await future
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@waits.handler()
async def awakeable_early(ctx: restate.Context) -> str:
    name, future = ctx.awakeable(type_hint=str)
    board.publish("awakeable", name)
    await ctx.run_typed("step", gated, restate.RunOptions(), "step")
    return await future


@waits.handler()
async def awakeable_unused(ctx: restate.Context) -> str:
    name, _ = ctx.awakeable(type_hint=str)
    board.publish("awakeable", name)
    return await ctx.run_typed("step", gated, restate.RunOptions(), "step")


@waits.handler()
async def three_awakeables(ctx: restate.Context) -> list[str]:
    pairs = [ctx.awakeable(type_hint=str) for _ in range(3)]
    board.publish("awakeables", [name for name, _ in pairs])
    return [await future async for future in restate.as_completed(*(future for _, future in pairs))]


@waits.handler()
async def all_awakeables(ctx: restate.Context) -> list[str]:
    pairs = [ctx.awakeable(type_hint=str) for _ in range(3)]
    board.publish("awakeables", [name for name, _ in pairs])
    await restate.gather(*(future for _, future in pairs))
    return [await future for _, future in pairs]


@waits.handler()
async def nested(ctx: restate.Context) -> list[str]:
    """All of (the first of a and b) and c: the SDK has no public way to ask for this, the protocol has."""
    pairs = [ctx.awakeable(type_hint=str) for _ in range(3)]
    board.publish("awakeables", [name for name, _ in pairs])
    assert isinstance(ctx, ServerInvocationContext)
    futures = [future for _, future in pairs]
    a, b, c = (SingleUnresolvedFuture(_handle(future)) for future in futures)
    tree = AllCompletedUnresolvedFuture([FirstCompletedUnresolvedFuture([a, b]), c])
    await ctx.create_poll_or_cancel_coroutine(tree)
    return [await future for future in futures if ctx.vm.is_completed(_handle(future))]


@waits.handler()
async def nested_other_way(ctx: restate.Context) -> list[str]:
    """The first of (all of a and b) and c."""
    pairs = [ctx.awakeable(type_hint=str) for _ in range(3)]
    board.publish("awakeables", [name for name, _ in pairs])
    assert isinstance(ctx, ServerInvocationContext)
    futures = [future for _, future in pairs]
    a, b, c = (SingleUnresolvedFuture(_handle(future)) for future in futures)
    tree = FirstCompletedUnresolvedFuture([AllCompletedUnresolvedFuture([a, b]), c])
    await ctx.create_poll_or_cancel_coroutine(tree)
    return [await future for future in futures if ctx.vm.is_completed(_handle(future))]


def _handle(future: Any) -> int:
    assert isinstance(future, ServerDurableFuture)
    return future.handle


@waits.handler()
async def complete_awakeable(ctx: restate.Context, arg: dict[str, str]) -> None:
    if "value" in arg:
        ctx.resolve_awakeable(arg["id"], arg["value"])
    else:
        ctx.reject_awakeable(arg["id"], arg["failure"], 422)


@waits.handler()
async def signal(ctx: restate.Context) -> list[str]:
    board.publish("signalled", ctx.request().id)
    seen: list[str] = []
    for name in ("go", "stop"):
        try:
            seen.append(await ctx.signal(name, type_hint=str))
        except restate.TerminalError as error:
            seen.append(f"{error.status_code} {error.message}")
    return seen


@waits.handler()
async def same_signal_twice(ctx: restate.Context) -> list[str]:
    first = await ctx.signal("go", type_hint=str)
    return [first, await ctx.signal("go", type_hint=str)]


@waits.handler()
async def send_signal(ctx: restate.Context, arg: dict[str, str]) -> None:
    if "value" in arg:
        ctx.resolve_signal(arg["id"], arg["name"], arg["value"])
    else:
        ctx.reject_signal(arg["id"], arg["name"], arg["failure"], 422)


@waits.handler()
async def cancelled_in_sleep(ctx: restate.Context) -> str:
    await ctx.sleep(HOUR)
    return "slept"


@waits.handler()
async def cancelled_and_compensated(ctx: restate.Context) -> str:
    try:
        await ctx.sleep(HOUR)
    except restate.TerminalError as error:
        done = await ctx.run_typed("undo", say, restate.RunOptions(), f"{error.status_code} {error.message}")
        await ctx.sleep(SHORT)
        return done
    return "slept"


@waits.handler()
async def cancelled_in_step(ctx: restate.Context) -> str:
    return await ctx.run_typed("step", gated, restate.RunOptions(), "step")


@waits.handler()
async def cancelled_twice(ctx: restate.Context) -> list[str]:
    seen: list[str] = []
    for _ in range(2):
        try:
            await ctx.sleep(HOUR)
        except restate.TerminalError as error:
            seen.append(f"{error.status_code} {error.message}")
    return seen


@waits.handler()
async def cancelled_in_gather(ctx: restate.Context) -> None:
    _, future = ctx.awakeable(type_hint=str)
    await restate.gather(ctx.sleep(HOUR), future)


@waits.handler()
async def cancel_other(ctx: restate.Context, invocation_id: str) -> None:
    ctx.cancel_invocation(invocation_id)


@waits.handler()
async def attach_to(ctx: restate.Context, invocation_id: str) -> str:
    try:
        return await ctx.attach_invocation(invocation_id, type_hint=str)
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


# --- calls ------------------------------------------------------------------------------------------------------


@child.handler()
async def echo(ctx: restate.Context, arg: str) -> str:
    return await ctx.run_typed("echo", say, restate.RunOptions(), arg)


@child.handler()
async def held(ctx: restate.Context, arg: str) -> str:
    return await ctx.run_typed("held", gated, restate.RunOptions(), arg)


@child.handler()
async def headers(ctx: restate.Context) -> dict[str, str]:
    return {name: value for name, value in ctx.request().headers.items() if name.startswith("x-conformance")}


@child.handler()
async def times(ctx: restate.Context, arg: str) -> int:
    return await ctx.run_typed("times", _times, restate.RunOptions(), arg)


async def _times(arg: str) -> int:
    return board.count(f"times {arg}")


@child.handler()
async def refuses(ctx: restate.Context) -> str:
    raise restate.TerminalError("the child refuses", 409, metadata={"by": "child"})


@child.handler()
async def waits_long(ctx: restate.Context) -> str:
    board.publish("child", ctx.request().id)
    await ctx.sleep(HOUR)
    return "slept"


@child.handler()
async def stubborn(ctx: restate.Context) -> str:
    board.publish("child", ctx.request().id)
    try:
        await ctx.sleep(HOUR)
    except restate.TerminalError:
        return "not today"
    return "slept"


@calls.handler()
async def call(ctx: restate.Context) -> str:
    return await ctx.service_call(echo, "hello")


@calls.handler()
async def call_with_headers(ctx: restate.Context) -> dict[str, str]:
    return await ctx.service_call(headers, None, headers={"x-conformance-a": "1", "x-conformance-b": "2"})


@calls.handler()
async def call_object(ctx: restate.Context) -> int:
    await ctx.object_call(eager_add, "called", 1)
    return await ctx.object_call(eager_add, "called", 2)


@calls.handler()
async def two_calls(ctx: restate.Context) -> list[str]:
    first, second = ctx.service_call(held, "first"), ctx.service_call(held, "second")
    await restate.gather(first, second)
    return [await first, await second]


@calls.handler()
async def call_refused(ctx: restate.Context) -> str:
    return await ctx.service_call(refuses, None)


@calls.handler()
async def call_with_id(ctx: restate.Context) -> list[Any]:
    called = ctx.service_call(echo, "hello")
    known = await called.invocation_id()
    return [known, await called]


@calls.handler()
async def idempotent(ctx: restate.Context) -> list[Any]:
    seen: list[Any] = []
    for key in ("k1", "k1", "k2"):
        called = ctx.service_call(times, "same", idempotency_key=key)
        seen += [await called, await called.invocation_id()]
    return seen


@calls.handler()
async def send(ctx: restate.Context) -> str:
    return await ctx.service_send(echo, "sent").invocation_id()


@calls.handler()
async def send_and_forget(ctx: restate.Context) -> None:
    ctx.service_send(say_so, "forgotten")


@child.handler()
async def say_so(ctx: restate.Context, arg: str) -> None:
    board.publish(f"said {arg}", ctx.request().id)


@calls.handler()
async def send_later(ctx: restate.Context) -> str:
    return await ctx.service_send(echo, "later", send_delay=SHORT).invocation_id()


@calls.handler()
async def send_much_later(ctx: restate.Context) -> str:
    return await ctx.service_send(echo, "much later", send_delay=HOUR).invocation_id()


@calls.handler()
async def send_idempotent(ctx: restate.Context) -> bool:
    first = ctx.service_send(times, "sent", idempotency_key="k3")
    second = ctx.service_send(times, "sent", idempotency_key="k3")
    return await first.invocation_id() == await second.invocation_id()


@calls.handler()
async def send_to_object(ctx: restate.Context) -> list[str]:
    handles = [ctx.object_send(eager_add, "sent", number) for number in (1, 2)]
    return [await handle.invocation_id() for handle in handles]


@calls.handler()
async def send_and_attach(ctx: restate.Context) -> str:
    known = await ctx.service_send(echo, "attached", idempotency_key="attached").invocation_id()
    return await ctx.attach_invocation(known, type_hint=str)


@calls.handler()
async def call_waiting(ctx: restate.Context) -> str:
    try:
        return await ctx.service_call(waits_long, None)
    except restate.TerminalError as error:
        board.publish("seen", [error.status_code, error.message])
        raise


@calls.handler()
async def call_waiting_caught(ctx: restate.Context) -> str:
    try:
        return await ctx.service_call(waits_long, None)
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@calls.handler()
async def call_object_caught(ctx: restate.Context, key: str) -> str:
    called = ctx.object_call(eager_add, key, 1)
    board.publish("child", await called.invocation_id())
    try:
        return str(await called)
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@calls.handler()
async def call_stubborn(ctx: restate.Context) -> str:
    return await ctx.service_call(stubborn, None)


@calls.handler()
async def call_and_cancel(ctx: restate.Context) -> str:
    called = ctx.service_call(waits_long, None)
    await ctx.run_typed("step", gated, restate.RunOptions(), "step")
    await called.cancel_invocation()
    try:
        return await called
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@calls.handler()
async def send_and_cancel(ctx: restate.Context) -> str:
    sent = ctx.service_send(waits_long, None)
    await ctx.run_typed("step", gated, restate.RunOptions(), "step")
    await sent.cancel_invocation()
    return await sent.invocation_id()


@pausing.handler()
async def call_nobody(ctx: restate.Context, arg: list[str]) -> str:
    try:
        return (await ctx.generic_call(arg[0], arg[1], b"")).decode()
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@pausing.handler()
async def send_nobody(ctx: restate.Context, arg: list[str]) -> str:
    try:
        return await ctx.generic_send(arg[0], arg[1], b"").invocation_id()
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@calls.handler()
async def call_workflow(ctx: restate.Context, key: str) -> list[str]:
    seen: list[str] = []
    for number in range(2):
        try:
            seen.append(await ctx.workflow_call(flow_run, key, f"call {number}"))
        except restate.TerminalError as error:
            seen.append(f"{error.status_code} {error.message}")
    return seen


@calls.handler()
async def call_scoped(ctx: restate.Context) -> str:
    return await ctx.scope("tenant").service_call(echo, "scoped", limit_key="one", idempotency_key="k4")


@calls.handler()
async def call_bad_input(ctx: restate.Context) -> str:
    try:
        return (await ctx.generic_call("Child", "echo", b"{")).decode()
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


# --- pausing and killing ------------------------------------------------------------------------------------------


@pausing.handler(name="fails")
async def pausing_fails(ctx: restate.Context) -> str:
    first = await ctx.run_typed("first", say, restate.RunOptions(), "first")
    if not board.published.get("mended"):
        raise ValueError("it is broken")
    return first


@killing.handler(name="fails")
async def killing_fails(ctx: restate.Context) -> str:
    await ctx.run_typed("first", say, restate.RunOptions(), "first")
    raise ValueError("it is broken")


@killing.handler(name="progresses")
async def killing_progresses(ctx: restate.Context) -> int:
    """Each attempt gets one step further than the one before."""
    attempt = board.count("progresses")
    for number in range(1, 4):
        await ctx.run_typed(f"step {number}", say, restate.RunOptions(), str(number))
        if attempt == number:
            raise ValueError(f"attempt {attempt}")
    return attempt


@killing.handler(name="step_fails")
async def killing_step_fails(ctx: restate.Context) -> str:
    async def broken() -> str:
        raise ValueError("the step is broken")

    return await ctx.run_typed("broken", broken)


@calls.handler()
async def call_killed(ctx: restate.Context) -> str:
    try:
        return await ctx.service_call(killing_fails, None)
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


# --- objects ------------------------------------------------------------------------------------------------------


def _object(of: restate.VirtualObject) -> Any:
    @of.handler()
    async def add(ctx: restate.ObjectContext, number: int) -> int:
        total = (await ctx.get("total", type_hint=int) or 0) + number
        ctx.set("total", total)
        return total

    @of.handler()
    async def everything(ctx: restate.ObjectContext) -> list[Any]:
        seen: list[Any] = [await ctx.get("a", type_hint=str), await ctx.state_keys()]
        ctx.set("a", "1")
        ctx.set("b", "2")
        ctx.set("c", "")
        seen += [await ctx.get("a", type_hint=str), await ctx.get("c", type_hint=str), await ctx.state_keys()]
        ctx.clear("a")
        seen += [await ctx.get("a", type_hint=str), await ctx.state_keys()]
        ctx.clear_all()
        seen += [await ctx.get("b", type_hint=str), await ctx.state_keys()]
        ctx.set("d", "4")
        return seen

    @of.handler()
    async def set_then_wait(ctx: restate.ObjectContext) -> list[Any]:
        seen: list[Any] = [await ctx.get("d", type_hint=str)]
        ctx.set("d", "5")
        ctx.set("e", "6")
        await ctx.sleep(SHORT)
        seen += [await ctx.get("d", type_hint=str), await ctx.get("f", type_hint=str), await ctx.state_keys()]
        return seen

    @of.handler()
    async def set_then_fail(ctx: restate.ObjectContext) -> list[Any]:
        seen: list[Any] = [await ctx.get("total", type_hint=int)]
        ctx.set("total", 100)
        await ctx.run_typed("step", say, restate.RunOptions(), "step")
        if board.count("set_then_fail") < 2:
            raise ValueError("after the state was set")
        return [*seen, await ctx.get("total", type_hint=int)]

    @of.handler()
    async def set_then_refuse(ctx: restate.ObjectContext) -> None:
        ctx.set("total", 200)
        raise restate.TerminalError("the state was set")

    @of.handler()
    async def hold(ctx: restate.ObjectContext, name: str) -> str:
        ctx.set("holder", name)
        board.publish(f"holds {name}")
        return await ctx.run_typed("hold", gated, restate.RunOptions(), name)

    @of.handler(kind="shared")
    async def look(ctx: restate.ObjectSharedContext) -> list[Any]:
        return [ctx.key(), await ctx.get("holder", type_hint=str), await ctx.state_keys()]

    @of.handler()
    async def clear(ctx: restate.ObjectContext) -> None:
        ctx.clear_all()

    return add


eager_add = _object(eager)
lazy_add = _object(lazy)


# --- workflows ----------------------------------------------------------------------------------------------------


@flow.main(name="run")
async def flow_run(ctx: restate.WorkflowContext, arg: str) -> str:
    ctx.set("arg", arg)
    return await ctx.run_typed("run", say, restate.RunOptions(), arg)


@promises.main(name="run")
async def promises_run(ctx: restate.WorkflowContext) -> str:
    try:
        return await ctx.promise("verdict", type_hint=str).value()
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@promises.handler()
async def resolve(ctx: restate.WorkflowSharedContext, value: str) -> str:
    try:
        await ctx.promise("verdict", type_hint=str).resolve(value)
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"
    return "done"


@promises.handler()
async def reject(ctx: restate.WorkflowSharedContext, message: str) -> str:
    try:
        await ctx.promise("verdict", type_hint=str).reject(message, 422)
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"
    return "done"


@promises.handler()
async def peek(ctx: restate.WorkflowSharedContext) -> str:
    try:
        return json.dumps(await ctx.promise("verdict", type_hint=str).peek())
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"


@promises.handler()
async def value(ctx: restate.WorkflowSharedContext) -> str:
    try:
        return await ctx.promise("verdict", type_hint=str).value()
    except restate.TerminalError as error:
        return f"{error.status_code} {error.message}"
