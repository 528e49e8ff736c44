"""A small shop of plain Restate handlers, for the tests of the simulator."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import restate
from restate import ObjectContext, ObjectSharedContext, WorkflowContext, WorkflowSharedContext

shop = restate.Service("Shop")
cart = restate.VirtualObject("Cart")
lazy = restate.VirtualObject("Lazy", enable_lazy_state=True)
approval = restate.Workflow("Approval")
flaky = restate.Service(
    "Flaky",
    invocation_retry_policy=restate.InvocationRetryPolicy(
        initial_interval=timedelta(seconds=1), exponentiation_factor=2, max_attempts=3, on_max_attempts="pause"
    ),
)
doomed = restate.Service(
    "Doomed", invocation_retry_policy=restate.InvocationRetryPolicy(max_attempts=2, on_max_attempts="kill")
)

failing: dict[str, int] = {}
"""How many more times something fails, by its name."""


def fails(name: str) -> bool:
    left = failing.get(name, 0)
    failing[name] = left - 1
    return left > 0


@shop.handler()
async def checkout(ctx: restate.Context, item: str) -> str:
    price = await ctx.run_typed("quote", lambda: 3)
    await ctx.sleep(timedelta(days=30))
    return await ctx.run_typed("charge", lambda: f"{item} for {price}")


@shop.handler()
async def nothing(ctx: restate.Context) -> None:
    return None


@shop.handler()
async def both(ctx: restate.Context, item: str) -> list[str]:
    one = ctx.run_typed("one", lambda: f"{item} 1")
    two = ctx.run_typed("two", lambda: f"{item} 2")
    await restate.gather(one, two)
    return [await one, await two]


@shop.handler()
async def first(ctx: restate.Context, item: str) -> str:
    result: Any = await restate.select(
        step=ctx.run_typed("step", lambda: item), patience=ctx.sleep(timedelta(seconds=1))
    )
    return str(result[0])


@shop.handler()
async def ask(ctx: restate.Context, question: str) -> str:
    awakeable_id, answer = ctx.awakeable(type_hint=str)
    await ctx.run_typed("mail", lambda: awakeable_id)
    return f"{question} {await answer}"


@shop.handler()
async def listen(ctx: restate.Context) -> str:
    return str(await ctx.signal("go", type_hint=str))


@shop.handler()
async def cancellable(ctx: restate.Context) -> str:
    try:
        await ctx.sleep(timedelta(hours=1))
    except restate.TerminalError as error:
        undone = await ctx.run_typed("undo", lambda: "undone")
        return f"{error.status_code} {undone}"
    return "not cancelled"


@shop.handler()
async def order(ctx: restate.Context, key: str) -> int:
    await ctx.object_call(add, key, 2)
    ctx.object_send(add, key, 3)
    return await ctx.object_call(add, key, 5)


@shop.handler()
async def later(ctx: restate.Context, key: str) -> None:
    ctx.object_send(add, key, 1, send_delay=timedelta(hours=2))


@shop.handler()
async def refuses(ctx: restate.Context) -> None:
    raise restate.TerminalError("sold out", 410)


@shop.handler()
async def retried_step(ctx: restate.Context) -> int:
    async def charge() -> int:
        if fails("charge"):
            raise ConnectionError("no answer")
        return 7

    options = restate.RunOptions[int](max_attempts=4, initial_retry_interval=timedelta(seconds=5), type_hint=int)
    return await ctx.run_typed("charge", charge, options)


@shop.handler()
async def draws(ctx: restate.Context) -> list[str]:
    return [str(ctx.uuid()), str(ctx.random().random())]


@flaky.handler()
async def wobble(ctx: restate.Context) -> str:
    await ctx.run_typed("before", lambda: 1)
    if fails("wobble"):
        raise ValueError("wobbles")
    return "stands"


@doomed.handler()
async def fall(ctx: restate.Context) -> None:
    raise ValueError("falls")


@cart.handler()
async def add(ctx: ObjectContext, count: int) -> int:
    total = (await ctx.get("count", type_hint=int) or 0) + count
    await ctx.sleep(timedelta(seconds=1))
    ctx.set("count", total)
    return total


@cart.handler(kind="shared")
async def look(ctx: ObjectSharedContext) -> int:
    return await ctx.get("count", type_hint=int) or 0


@cart.handler()
async def empty(ctx: ObjectContext) -> list[str]:
    keys = list(await ctx.state_keys())
    ctx.clear("count")
    ctx.clear_all()
    return keys


@lazy.handler()
async def touch(ctx: ObjectContext, name: str) -> list[str]:
    ctx.set(name, (await ctx.get(name, type_hint=int) or 0) + 1)
    return sorted(await ctx.state_keys())


@approval.main()
async def run(ctx: WorkflowContext, what: str) -> str:
    await ctx.run_typed("ask", lambda: what)
    return f"{what}: {await ctx.promise('answer', type_hint=str).value()}"


@approval.handler()
async def answer(ctx: WorkflowSharedContext, verdict: str) -> None:
    await ctx.promise("answer", type_hint=str).resolve(verdict)


@approval.handler()
async def peek(ctx: WorkflowSharedContext) -> str | None:
    found: str | None = await ctx.promise("answer", type_hint=str).peek()
    return found


app = restate.app([shop, cart, lazy, approval, flaky, doomed])
