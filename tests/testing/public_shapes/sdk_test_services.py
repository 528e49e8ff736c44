"""The services with which the SDKs are tested (sdk-python, test-services), as shapes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import restate

from tests.testing.public_shapes.shape import Shape, add

holder = restate.VirtualObject("AwakeableHolder")
blocking = restate.VirtualObject("CancelTestBlocking")
runner = restate.VirtualObject("CancelTestRunner")
recursive = restate.VirtualObject("KillTestSingleton")
waiting = restate.Workflow("BlockAndWait")
failing = restate.VirtualObject("Failing")
unsteady = restate.VirtualObject("NonDeterministic")
target = restate.VirtualObject("Counter")
proxy = restate.Service("Proxy")
utils = restate.Service("TestUtils")
commands = restate.VirtualObject("CommandInterpreter")
entries = restate.VirtualObject("MapObject")
layers = [restate.VirtualObject(f"InterpreterL{layer}") for layer in range(3)]
interpreter = restate.Service("InterpreterHelper")


# --- a tree of calls that is cancelled, or killed ------------------------------------------------------------------


@holder.handler()
async def hold(ctx: restate.ObjectContext, awakeable_id: str) -> None:
    ctx.set("id", awakeable_id)


@holder.handler()
async def unlock(ctx: restate.ObjectContext, value: str) -> None:
    found = await ctx.get("id", type_hint=str)
    if found is None:
        raise restate.TerminalError("nothing is held")
    ctx.resolve_awakeable(found, value)


@blocking.handler()
async def block(ctx: restate.ObjectContext) -> None:
    awakeable_id, held = ctx.awakeable(type_hint=str)
    await ctx.object_call(hold, key=ctx.key(), arg=awakeable_id)
    await held
    await ctx.sleep(timedelta(days=1024))


@runner.handler()
async def start_test(ctx: restate.ObjectContext) -> None:
    try:
        await ctx.object_call(block, key=ctx.key(), arg=None)
    except restate.TerminalError as error:
        if error.status_code != 409:
            raise
        ctx.set("cancelled", value=True)


@runner.handler()
async def verify_test(ctx: restate.ObjectContext) -> bool:
    return await ctx.get("cancelled", type_hint=bool) or False


@recursive.handler()
async def call_itself(ctx: restate.ObjectContext) -> None:
    await ctx.object_call(call_itself, key=ctx.key(), arg=None)


async def cancels(sim: Any) -> Any:
    sent = await sim.send(start_test, key="a")
    await sim.until(lambda: "id" in sim.state("AwakeableHolder", "a"))
    await sim.call(unlock, "go", key="a")
    await sent.cancel()
    await sent.result()
    return (await sim.call(verify_test, key="a")).value


async def recurses(sim: Any) -> Any:
    return (await sim.call(call_itself, key="a")).value


# --- promises, state and failures ----------------------------------------------------------------------------------


@waiting.main()
async def wait(ctx: restate.WorkflowContext) -> str:
    ctx.set("state", "waiting")
    found = await ctx.promise("go", type_hint=str).value()
    assert await ctx.promise("go", type_hint=str).peek() == found
    return found


@waiting.handler()
async def unblock(ctx: restate.WorkflowSharedContext, value: str) -> None:
    await ctx.promise("go", type_hint=str).resolve(value)


attempts = 0


def forget_attempts() -> None:
    global attempts
    attempts = 0


@failing.handler()
async def succeeds_in_the_end(ctx: restate.ObjectContext) -> int:
    global attempts
    attempts += 1
    if attempts < 4:
        raise ValueError(f"attempt {attempts}")
    return 4


@entries.handler()
async def put(ctx: restate.ObjectContext, key: str) -> None:
    ctx.set(key, key)


@entries.handler()
async def clear(ctx: restate.ObjectContext) -> list[str]:
    found: list[str] = []
    for key in await ctx.state_keys():
        found.append(await ctx.get(key, type_hint=str) or "")
        ctx.clear(key)
    return sorted(found)


async def unblocks(sim: Any) -> Any:
    sent = await sim.send(wait, key="a")
    await sim.call(unblock, "gone", key="a")
    return (await sent.result()).value


async def fails(sim: Any) -> Any:
    return (await sim.call(succeeds_in_the_end, key="a")).value


async def maps(sim: Any) -> Any:
    for key in ("b", "a"):
        await sim.call(put, key, key="m")
    return (await sim.call(clear, key="m")).value


# --- nondeterministic on purpose -----------------------------------------------------------------------------------

turns = 0


def forget_turns() -> None:
    global turns
    turns = 0


def is_left() -> bool:
    global turns
    turns += 1
    return turns % 2 == 1


@target.handler()
async def increase(ctx: restate.ObjectContext, by: int) -> int:
    total = (await ctx.get("total", type_hint=int) or 0) + by
    ctx.set("total", total)
    return total


@target.handler()
async def increase_and_fail(ctx: restate.ObjectContext, by: int) -> None:
    await increase(ctx, by)
    raise restate.TerminalError("increased, and failed")


@unsteady.handler()
async def sets_different_keys(ctx: restate.ObjectContext) -> None:
    ctx.set("left" if is_left() else "right", "value")
    await ctx.sleep(timedelta(milliseconds=100))
    ctx.object_send(increase, key=ctx.key(), arg=1)


@unsteady.handler()
async def sleeps_or_calls(ctx: restate.ObjectContext) -> None:
    if is_left():
        await ctx.sleep(timedelta(milliseconds=100))
    else:
        await ctx.object_call(increase, key="other", arg=1)
    await ctx.sleep(timedelta(milliseconds=100))
    ctx.object_send(increase, key=ctx.key(), arg=1)


@utils.handler()
async def count_bodies(ctx: restate.Context) -> int:
    ran = 0

    def body() -> None:
        nonlocal ran
        ran += 1

    for _ in range(2):
        await ctx.run_typed("count", body)
    return ran


async def sets(sim: Any) -> Any:
    return (await sim.call(sets_different_keys, key="a")).value


async def sleeps(sim: Any) -> Any:
    return (await sim.call(sleeps_or_calls, key="a")).value


async def counts_bodies(sim: Any) -> Any:
    return (await sim.call(count_bodies)).value


# --- calls that nobody awaits, and combinators ---------------------------------------------------------------------


@proxy.handler()
async def many_calls(ctx: restate.Context) -> int:
    """Call three, and wait for the last only."""
    ctx.object_send(increase, key="sent", arg=1)
    ctx.object_call(increase_and_fail, key="unawaited", arg=1)
    return await ctx.object_call(increase, key="awaited", arg=1)


@commands.handler()
async def await_any(ctx: restate.ObjectContext) -> str:
    steps = [ctx.run_typed(name, lambda name=name: name) for name in ("first", "second")]
    done, _ = await restate.wait_completed(*steps)
    result = str(await done[0])
    ctx.set("results", result)
    return result


@commands.handler()
async def await_all(ctx: restate.ObjectContext) -> str:
    def fail() -> str:
        raise restate.TerminalError("it fails")

    steps = [ctx.run_typed("right", lambda: "right"), ctx.run_typed("wrong", fail)]
    await restate.gather(*steps)
    parts: list[str] = []
    for step in steps:
        try:
            parts.append(await step)
        except restate.TerminalError as error:
            parts.append(error.message)
    return "|".join(parts)


async def calls_many(sim: Any) -> Any:
    return (await sim.call(many_calls)).value


async def awaits_any(sim: Any) -> Any:
    return (await sim.call(await_any, key="a")).value in ("first", "second")


async def awaits_all(sim: Any) -> Any:
    return (await sim.call(await_all, key="a")).value


# --- a program of calls, awakeables and state, in layers of objects ------------------------------------------------


@interpreter.handler()
async def resolve(ctx: restate.Context, awakeable_id: str) -> None:
    ctx.resolve_awakeable(awakeable_id, "ok")


async def interpret(ctx: restate.ObjectContext, layer: int) -> None:
    awakeable_id, resolved = ctx.awakeable(type_hint=str)
    ctx.service_send(resolve, arg=awakeable_id)
    below = None
    if layer < len(layers) - 1:
        below = ctx.generic_call(f"InterpreterL{layer + 1}", "interpret", b"null", key="a")
    await ctx.run_typed("body", lambda: layer)
    assert await resolved == "ok"
    if below is not None:
        await below
    ctx.set("counter", (await ctx.get("counter", type_hint=int) or 0) + 1)


def add_handler(layer: int) -> None:
    @layers[layer].handler("interpret")
    async def handler(ctx: restate.ObjectContext) -> None:
        await interpret(ctx, layer)


for number in range(len(layers)):
    add_handler(number)


async def interprets(sim: Any) -> Any:
    await sim.call("InterpreterL0/interpret", key="a")
    return [sim.state(f"InterpreterL{layer}", "a") for layer in range(len(layers))]


SERVICE = "sdk-python test-services: "
add(
    Shape(
        SERVICE + "AwakeableHolder, CancelTest",
        "a tree of calls is cancelled from above, and its root tells",
        restate.app([holder, blocking, runner]),
        cancels,
    )
)
add(
    Shape(
        SERVICE + "KillTest",
        "a handler of an object calls the object that it holds",
        restate.app([recursive]),
        recurses,
        problem="stuck",
    )
)
add(Shape(SERVICE + "BlockAndWaitWorkflow", "a promise, awaited and peeked at", restate.app([waiting]), unblocks))
add(
    Shape(
        SERVICE + "Failing",
        "three attempts fail, counted in a global variable",
        restate.app([failing]),
        fails,
        setup=forget_attempts,
        on_server=False,
    )
)
add(Shape(SERVICE + "ListObject, MapObject", "state, and its keys", restate.app([entries]), maps))
add(
    Shape(
        SERVICE + "NonDeterministic",
        "the key of the state depends on a global variable",
        restate.app([unsteady, target]),
        sets,
        problem="mismatch",
        kinds=("memory",),
        setup=forget_turns,
    )
)
add(
    Shape(
        SERVICE + "NonDeterministic",
        "it sleeps, or it calls, by a global variable",
        restate.app([unsteady, target]),
        sleeps,
        problem="mismatch",
        kinds=("memory",),
        setup=forget_turns,
    )
)
add(
    Shape(
        SERVICE + "TestUtilsService",
        "the answer says how many bodies ran in this attempt",
        restate.app([utils]),
        counts_bodies,
        problem="mismatch",
        runs=80,
        kinds=("unknown",),
    )
)
add(
    Shape(
        SERVICE + "Proxy",
        "a call that is never awaited",
        restate.app([proxy, target]),
        calls_many,
        unread=("Counter/increase_and_fail",),
    )
)
add(
    Shape(
        SERVICE + "VirtualObjectCommandInterpreter",
        "the first of what `wait_completed` says is done",
        restate.app([commands]),
        awaits_any,
    )
)
add(
    Shape(
        SERVICE + "VirtualObjectCommandInterpreter",
        "`gather`, then each result or failure",
        restate.app([commands]),
        awaits_all,
    )
)
add(
    Shape(
        SERVICE + "Interpreter",
        "layers of objects that call each other, awakeables that come back",
        restate.app([*layers, interpreter]),
        interprets,
    )
)
