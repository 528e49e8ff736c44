"""The basics and the templates of restatedev/examples, as shapes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import restate

from tests.testing.public_shapes.shape import Shape, add

subscriptions = restate.Service("BasicSubscriptions")
blocks = restate.Service("BuildingBlocks")
account = restate.VirtualObject("BasicAccount")
signup = restate.Workflow("BasicSignup")
greeter = restate.Service("TemplateGreeter")


@subscriptions.handler()
async def subscribe(ctx: restate.Context, wanted: list[str]) -> str:
    payment_id = str(ctx.uuid())
    reference = await ctx.run_typed("payment", lambda: f"reference of {payment_id}")
    for _ in wanted:
        # All have one name, which is fine.
        await ctx.run_typed("subscription", lambda: "done")
    return reference


@account.handler()
async def create(ctx: restate.ObjectContext, request: str) -> str:
    return request


@account.handler()
async def close(ctx: restate.ObjectContext) -> None:
    return


@blocks.handler()
async def use(ctx: restate.Context) -> str:
    """Show all building blocks, one after another, an awakeable before what resolves it."""
    await ctx.object_call(create, key="a", arg="request")
    awakeable_id, resolved = ctx.awakeable(type_hint=str)
    greeting = await resolved
    ctx.resolve_awakeable(awakeable_id, "hello")
    await ctx.sleep(timedelta(seconds=5))
    ctx.object_send(close, key="a", arg=None, send_delay=timedelta(days=1))
    return greeting


@signup.main()
async def sign_up(ctx: restate.WorkflowContext) -> bool:
    await ctx.run_typed("create", lambda: None)
    secret = str(ctx.uuid())
    await ctx.run_typed("mail", lambda: secrets.append(secret))
    return await ctx.promise("clicked", type_hint=str).value() == secret


@signup.handler()
async def click(ctx: restate.WorkflowSharedContext, secret: str) -> None:
    await ctx.promise("clicked", type_hint=str).resolve(secret)


@greeter.handler()
async def greet(ctx: restate.Context, name: str) -> str:
    greeting_id = str(ctx.uuid())
    await ctx.run_typed("notification", lambda: greeting_id)
    await ctx.sleep(timedelta(seconds=1))
    await ctx.run_typed("reminder", lambda: greeting_id)
    return f"hello {name}"


secrets: list[str] = []


async def subscribes(sim: Any) -> Any:
    return len((await sim.call(subscribe, ["one", "two"])).value)


async def uses(sim: Any) -> Any:
    return (await sim.call(use)).value


async def clicks(sim: Any) -> Any:
    sent = await sim.send(sign_up, key="ann")
    await sim.until(lambda: secrets or sent.status == "completed")
    if secrets:
        await sim.call(click, secrets[-1], key="ann")
    return (await sent.result()).value


async def greets(sim: Any) -> Any:
    return (await sim.call(greet, "Ann")).value


add(
    Shape(
        "examples basics: durable execution",
        "a payment, then a loop of steps",
        restate.app([subscriptions]),
        subscribes,
    )
)
add(
    Shape(
        "examples basics: building blocks",
        "it awaits an awakeable, and resolves it after that",
        restate.app([blocks, account]),
        uses,
        problem="stuck",
    )
)
add(
    Shape(
        "examples basics: workflows",
        "a mail with a secret, a promise for the click",
        restate.app([signup]),
        clicks,
        setup=secrets.clear,
    )
)
add(Shape("examples templates: python, lambda", "step, sleep, step", restate.app([greeter]), greets))
