"""The patterns and use cases of restatedev/examples, as shapes."""

from __future__ import annotations

import contextlib
import random
from datetime import timedelta
from typing import Any

import restate

from restate_steps.testing import Simulator
from tests.testing.public_shapes.shape import Shape, add

product = restate.VirtualObject("Product")
tracker = restate.VirtualObject("PackageTracker")
feed = restate.VirtualObject("UserFeed")
worker = restate.Service("FanOutWorker")
queue = restate.Service("TaskWorker")
trips = restate.Service("Booking")
invoices = restate.VirtualObject("PaymentTracker")
payments = restate.Service("StripePayments")
machines = restate.VirtualObject("MachineOperator")
money = restate.VirtualObject("Account")
transfers = restate.VirtualObject("PaymentProcessor")
uploads = restate.Workflow("DataUpload")


# --- durable RPC, enrichment, transactions, fan-out, queues --------------------------------------------------------


@product.handler()
async def reserve(ctx: restate.ObjectContext) -> bool:
    if await ctx.get("reserved", type_hint=bool):
        return False
    ctx.set("reserved", value=True)
    return True


@tracker.handler()
async def locate(ctx: restate.ObjectContext, place: str) -> None:
    ctx.set("places", [*(await ctx.get("places", type_hint=list[str]) or []), place])


@tracker.handler(kind="shared")
async def places(ctx: restate.ObjectSharedContext) -> list[str]:
    found = await ctx.get("places", type_hint=list[str])
    if not found:
        raise restate.TerminalError("not found", 404)
    return found


@feed.handler()
async def post(ctx: restate.ObjectContext) -> str:
    """Poll until a moderator, who is a coin here, is content."""
    name = await ctx.run_typed("create", lambda: f"post {random.random()}")
    while await ctx.run_typed("status", lambda: "pending" if random.random() < 0.5 else "done") == "pending":
        await ctx.sleep(timedelta(seconds=5))
    await ctx.run_typed("update feed", lambda: name)
    return "posted"


@worker.handler()
async def split_and_gather(ctx: restate.Context, task: str) -> str:
    parts = await ctx.run_typed("split", lambda: task.split(","))
    futures = [ctx.run_typed(f"execute {part}", lambda part=part: part.upper()) for part in parts]
    return ",".join([await future for future in await restate.gather(*futures)])


@queue.handler()
async def work(ctx: restate.Context, name: str) -> str:
    return f"finished {name}"


async def reserves(sim: Any) -> Any:
    first = [sim.start(sim.call(reserve, key="a", idempotency_key="one")) for _ in range(2)]
    answers = [(await each).value for each in first]
    return [*answers, (await sim.call(reserve, key="a", idempotency_key="two")).value]


async def locates(sim: Any) -> Any:
    for place in ("Rome", "Bern"):
        await sim.call(locate, place, key="a")
    return (await sim.call(places, key="a")).value


async def posts(sim: Any) -> Any:
    return (await sim.call(post, key="ann")).value


async def splits(sim: Any) -> Any:
    return (await sim.call(split_and_gather, "a,b,c")).value


async def queues(sim: Any) -> Any:
    await sim.send(work, "x", idempotency_key="x")
    return (await sim.call(work, "x", idempotency_key="x")).value


EXAMPLE = "examples patterns: "
add(Shape(EXAMPLE + "durablerpc", "reserve once, with idempotency keys", restate.app([product]), reserves))
add(Shape(EXAMPLE + "eventenrichment", "state that grows, read by a shared handler", restate.app([tracker]), locates))
add(
    Shape(
        EXAMPLE + "eventtransactions", "a loop of random steps and sleeps", restate.app([feed]), posts, on_server=False
    )
)
add(Shape(EXAMPLE + "parallelizework", "steps started in a loop, and `gather`", restate.app([worker]), splits))
add(Shape(EXAMPLE + "queueing", "a task sent, and attached to, by key", restate.app([queue]), queues))


# --- sagas, reminders, webhooks ------------------------------------------------------------------------------------

log: list[str] = []


async def book(what: str) -> None:
    log.append(f"book {what}")
    if what == "hotel":
        raise restate.TerminalError("fully booked")


async def release(what: str) -> None:
    log.append(f"release {what}")


@trips.handler()
async def travel(ctx: restate.Context) -> None:
    undo: list[str] = []
    try:
        for what in ("flight", "car", "hotel"):
            undo.append(what)
            await ctx.run_typed(f"book {what}", book, what=what)
    except restate.TerminalError:
        for what in reversed(undo):
            await ctx.run_typed(f"release {what}", release, what=what)
        raise


@invoices.handler()
async def paid(ctx: restate.ObjectContext) -> None:
    ctx.set("paid", value=True)


@invoices.handler()
async def failed(ctx: restate.ObjectContext) -> None:
    if await ctx.get("paid", type_hint=bool):
        return
    reminders = await ctx.get("reminders", type_hint=int) or 0
    if reminders < 2:
        ctx.set("reminders", reminders + 1)
        await ctx.run_typed("remind", lambda: None)
        ctx.object_send(failed, key=ctx.key(), arg=None, send_delay=timedelta(days=1))
    else:
        await ctx.run_typed("escalate", lambda: None)


@payments.handler()
async def charge(ctx: restate.Context, webhook_says: str) -> str:
    key = str(ctx.uuid())
    webhook_id, webhook = ctx.awakeable(type_hint=str)
    await ctx.run_typed("charge", lambda: [key, webhook_id])
    status = await webhook
    if status == "succeeded":
        return "paid"
    if status == "canceled":
        raise restate.TerminalError("declined")
    # No attempt ends otherwise: the status is in the journal.
    raise ValueError(f"what is {status}?")


@payments.handler()
async def webhook(ctx: restate.Context, event: list[str]) -> None:
    ctx.resolve_awakeable(event[0], event[1])


async def travels(sim: Any) -> Any:
    try:
        await sim.call(travel)
    except restate.TerminalError as error:
        return error.message


def is_released(sim: Simulator) -> None:
    booked = {each.removeprefix("book ") for each in log if each.startswith("book")}
    assert booked <= {each.removeprefix("release ") for each in log if each.startswith("release")}, log


async def reminds(sim: Any) -> Any:
    await sim.call(failed, key="a")
    await sim.advance(timedelta(hours=30))
    await sim.call(paid, key="a")
    await sim.advance(timedelta(days=3))
    return sim.state("PaymentTracker", "a")


async def charges(sim: Any, status: str = "succeeded") -> Any:
    sent = await sim.send(charge, "")
    await sim.call(webhook, [await sim.awakeable(sent), status])
    return (await sent.result()).value


async def charges_with_an_unknown_status(sim: Any) -> Any:
    return await charges(sim, "requires_action")


add(
    Shape(
        EXAMPLE + "sagas",
        "compensations in reverse, each added before its step",
        restate.app([trips]),
        travels,
        cancelled="assertion",
        setup=log.clear,
        check=is_released,
    )
)
add(
    Shape(
        EXAMPLE + "schedulingtasks",
        "an object that sends itself a reminder",
        restate.app([invoices]),
        reminds,
        on_server=False,
    )
)
add(Shape(EXAMPLE + "signalspayments", "a webhook resolves an awakeable", restate.app([payments]), charges))
add(
    Shape(
        EXAMPLE + "signalspayments",
        "a status that is not known raises what is retried",
        restate.app([payments]),
        charges_with_an_unknown_status,
        problem="paused",
    )
)


# --- actors, state machines, waiting for a result elsewhere --------------------------------------------------------


@machines.handler()
async def set_up(ctx: restate.ObjectContext) -> str:
    if await ctx.get("status", type_hint=str) == "up":
        return "already up"
    if random.random() < 0.4:
        raise ConnectionError("not yet")
    await ctx.sleep(timedelta(seconds=5))
    ctx.set("status", "up")
    return "up"


@money.handler()
async def withdraw(ctx: restate.ObjectContext, amount: int) -> int:
    """Draw what an account begins with outside of a step, and also for one that is empty."""
    balance = await ctx.get("balance", type_hint=int) or random.randint(1000, 2000)
    ctx.set("balance", balance - amount)
    return amount


@transfers.handler()
async def transfer(ctx: restate.ObjectContext, amount: int) -> str:
    if await ctx.get("status", type_hint=str):
        return "done before"
    await ctx.object_call(withdraw, key="account", arg=amount)
    ctx.set("status", "completed")
    ctx.object_send(expire, key=ctx.key(), arg=None, send_delay=timedelta(days=1))
    return "done"


@transfers.handler()
async def expire(ctx: restate.ObjectContext) -> None:
    ctx.clear_all()


@uploads.main()
async def upload(ctx: restate.WorkflowContext) -> str:
    url = await ctx.run_typed("create bucket", lambda: f"bucket {random.random()}")
    await ctx.run_typed("upload", lambda: None)
    await ctx.promise("url", type_hint=str).resolve(url)
    return "uploaded"


@uploads.handler()
async def mail_result(ctx: restate.WorkflowSharedContext) -> str:
    await ctx.promise("url", type_hint=str).value()
    await ctx.run_typed("mail", lambda: None)
    return "mailed"


async def sets_up(sim: Any) -> Any:
    return (await sim.call(set_up, key="a")).value


async def transfers_money(sim: Any) -> Any:
    return (await sim.call(transfer, 10, key="a")).value


async def uploads_and_mails(sim: Any) -> Any:
    run = await sim.send(upload, key="a")
    mail = await sim.send(mail_result, key="a")
    with contextlib.suppress(restate.TerminalError):
        await run.result()
    return (await mail.result()).value


add(
    Shape(
        EXAMPLE + "statefulactors",
        "an object that fails by chance, outside of a step, and is tried again",
        restate.app([machines]),
        sets_up,
        on_server=False,
    )
)
add(
    Shape(
        EXAMPLE + "statemachinepayments",
        "a random balance becomes state",
        restate.app([transfers, money]),
        transfers_money,
        problem="mismatch",
        kinds=("randomness",),
    )
)
add(
    Shape(
        EXAMPLE + "syncasync",
        "a promise that only success resolves",
        restate.app([uploads]),
        uploads_and_mails,
        cancelled="stuck",
        runs=80,
    )
)
