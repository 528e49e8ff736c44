"""The examples of sdk-python, as shapes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import restate
from restate.context import RestateDurableCallFuture

from tests.testing.public_shapes.shape import Shape, add

racing = restate.Service("ConcurrentGreeter")
lucky = restate.Service("RandomGreeter")
counter = restate.VirtualObject("ExampleCounter")
payment = restate.Workflow("ExamplePayment")


@racing.handler()
async def reply(ctx: restate.Context, model: str) -> str:
    return await ctx.run_typed(model, lambda: model)


@racing.handler()
async def greet(ctx: restate.Context) -> list[str]:
    """Take what was answered for what is missing, since the two lists are swapped."""
    calls = [ctx.service_call(reply, model) for model in ("small", "large")]
    missing, answered = await restate.wait_completed(*calls)
    greetings = [await call for call in answered]
    for call in missing:
        await cast("RestateDurableCallFuture[str]", call).cancel_invocation()
    return greetings


@lucky.handler()
async def draw(ctx: restate.Context) -> list[Any]:
    number, name, now = ctx.random().randint(0, 9), str(ctx.uuid()), await ctx.time()
    await ctx.run_typed(f"tell {number}", lambda: number)
    await ctx.run_typed("tell", lambda: name)
    return [number, name, now]


@counter.handler()
async def increment(ctx: restate.ObjectContext, by: int) -> int:
    total = (await ctx.get("total", type_hint=int) or 0) + by
    ctx.set("total", total)
    return total


@payment.main()
async def pay(ctx: restate.WorkflowContext) -> str:
    ctx.set("status", "asked")
    await ctx.run_typed("ask", lambda: None)
    match await restate.select(
        answer=ctx.promise("answer", type_hint=str).value(), timeout=ctx.sleep(timedelta(seconds=10))
    ):
        case ["answer", "yes"]:
            ctx.set("status", "paid")
            return "paid"
        case ["answer", _]:
            raise restate.TerminalError("declined", 401)
        case _:
            raise restate.TerminalError("timed out", 410)


@payment.handler()
async def verify(ctx: restate.WorkflowSharedContext, answer: str) -> None:
    await ctx.promise("answer", type_hint=str).resolve(answer)


async def race(sim: Any) -> Any:
    return len((await sim.call(greet)).value)


async def draws(sim: Any) -> Any:
    return len((await sim.call(draw)).value)


async def counts(sim: Any) -> Any:
    others = [sim.start(sim.call(increment, 1, key="a")) for _ in range(2)]
    return sorted([(await other).value for other in others])


async def pays(sim: Any) -> Any:
    sent = await sim.send(pay, key="a")
    await sim.call(verify, "yes", key="a")
    return (await sent.result()).value


add(
    Shape(
        "sdk-python: concurrent_greeter",
        "`wait_completed`, then a branch on who is missing",
        restate.app([racing]),
        race,
    )
)
add(Shape("sdk-python: random_greeter", "`ctx.random()`, `ctx.uuid()`, `ctx.time()`", restate.app([lucky]), draws))
add(Shape("sdk-python: virtual_object", "a counter, and two clients at once", restate.app([counter]), counts))
add(Shape("sdk-python: workflow", "a promise, or a timeout", restate.app([payment]), pays))
