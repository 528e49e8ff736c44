"""The end-to-end applications of restatedev/examples, as shapes."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import restate

from tests.testing.public_shapes.shape import Shape, add

chat = restate.VirtualObject("ChatSession")
executor = restate.Service("TaskExecutor")
reminder = restate.Workflow("Reminder")
order = restate.Workflow("Order")
delivery = restate.VirtualObject("DeliveryManager")
matcher = restate.VirtualObject("DriverMatcher")
driver = restate.VirtualObject("DriverTwin")
status = restate.VirtualObject("OrderStatus")
phone = restate.VirtualObject("DriverApp")
documents = restate.Workflow("Pdf")
embeddings = restate.Service("Embeddings")


# --- chat-bot ------------------------------------------------------------------------------------------------------


@chat.handler()
async def ask(ctx: restate.ObjectContext, message: str) -> str:
    """Tell the model what time it is: only the step sees the prompt, so it may differ."""
    history = [*(await ctx.get("history", type_hint=list[str]) or []), message]
    prompt = f"{datetime.now().isoformat()}: {history}"
    answer = await ctx.run_typed("call GPT", lambda: f"{len(prompt)} characters")
    ctx.set("history", [*history, answer])
    return answer


@chat.handler()
async def route(ctx: restate.ObjectContext, task: str) -> None:
    """Turn errors into terminal ones, unless they are of a class that the SDK no longer has."""
    try:
        if await ctx.get(task, type_hint=bool):
            raise restate.TerminalError(f"{task} exists")
        ctx.set(task, value=True)
    except Exception as error:
        if not isinstance(error, getattr(restate, "SuspendedException")):  # noqa: B009 - the type checker knows as well
            raise restate.TerminalError(f"not understood: {error}") from error
        raise


@chat.handler()
async def start_task(ctx: restate.ObjectContext) -> str:
    task_id = str(ctx.uuid())
    ctx.service_send(execute, arg=[task_id, ctx.key()])
    ctx.set("task", task_id)
    return task_id


@chat.handler()
async def cancel_task(ctx: restate.ObjectContext) -> None:
    """Send to the workflow again, to learn its id."""
    task_id = await ctx.get("task", type_hint=str)
    if task_id is not None:
        handle = ctx.workflow_send(remind, key=task_id, arg=None)
        ctx.cancel_invocation(await handle.invocation_id())
        ctx.clear("task")


@chat.handler()
async def task_done(ctx: restate.ObjectContext, result: str) -> None:
    ctx.set("history", [*(await ctx.get("history", type_hint=list[str]) or []), result])


@executor.handler()
async def execute(ctx: restate.Context, task: list[str]) -> None:
    task_id, session = task
    try:
        result = (await ctx.generic_call("Reminder", "remind", b"null", key=task_id)).decode()
        assert await ctx.time() > 0
    except restate.TerminalError as error:
        result = f"failed: {error.message}"
    ctx.object_send(task_done, key=session, arg=result)


@reminder.main()
async def remind(ctx: restate.WorkflowContext) -> str:
    until = await ctx.time() + 60
    ctx.set("until", until)
    await ctx.sleep(timedelta(seconds=until - await ctx.time()))
    return "it is time"


async def asks(sim: Any) -> Any:
    return len([(await sim.call(ask, message, key="ann")).value for message in ("hello", "bye")])


async def routes_twice(sim: Any) -> Any:
    for _ in range(2):
        await sim.call(route, "task", key="ann")


async def starts_and_cancels(sim: Any) -> Any:
    await sim.call(start_task, key="ann")
    await sim.call(cancel_task, key="ann")
    await sim.until(lambda: "history" in sim.state("ChatSession", "ann"))
    return sim.state("ChatSession", "ann")


BOT = "examples applications: chat-bot"
CHAT = restate.app([chat, executor, reminder])
add(Shape(BOT, "the prompt has the time, and only a step reads it", CHAT, asks))
add(Shape(BOT, "a handler of errors that fails itself", CHAT, routes_twice, problem="paused"))
add(Shape(BOT, "a task is cancelled by the id that a second send returns", CHAT, starts_and_cancels))


# --- food-ordering -------------------------------------------------------------------------------------------------


@order.main()
async def run(ctx: restate.WorkflowContext) -> str:
    ctx.set("status", "created")
    token = str(ctx.uuid())
    await ctx.run_typed("payment", lambda: token)
    await ctx.sleep(timedelta(seconds=1))
    await ctx.run_typed("prepare", lambda: None)
    await ctx.promise("prepared", type_hint=bool).value()
    ctx.object_send(deliver, key=str(ctx.uuid()), arg=ctx.key())
    await ctx.promise("driver", type_hint=bool).value()
    ctx.set("status", "on its way")
    return "delivered"


@order.handler()
async def reach(ctx: restate.WorkflowSharedContext, what: str) -> None:
    await ctx.promise(what, type_hint=bool).resolve(True)


@order.handler()
async def state(ctx: restate.WorkflowSharedContext) -> str | None:
    return await ctx.get("status", type_hint=str)


@status.handler()
async def see(ctx: restate.ObjectContext) -> str | None:
    return await ctx.workflow_call(state, key=ctx.key(), arg=None)


@delivery.handler()
async def deliver(ctx: restate.ObjectContext, order_id: str) -> None:
    await ctx.run_typed("locations", lambda: [random.random(), random.random()])
    ctx.set("order", order_id)
    driver_id, found = ctx.awakeable(type_hint=str)
    ctx.object_send(request_driver, key="region", arg=driver_id)
    await ctx.object_call(assign, key=await found, arg=ctx.key())
    await ctx.workflow_call(reach, key=order_id, arg="driver")


@delivery.handler()
async def delivered(ctx: restate.ObjectContext) -> None:
    ctx.clear("order")


@delivery.handler()
async def locate(ctx: restate.ObjectContext, place: int) -> int:
    """Look at the delivery, which there may be no more."""
    found: Any = await ctx.get("order", type_hint=str)
    return len(found) + place


@matcher.handler()
async def offer_driver(ctx: restate.ObjectContext, name: str) -> None:
    pending = await ctx.get("pending", type_hint=list[str]) or []
    if pending:
        ctx.set("pending", pending[1:])
        ctx.resolve_awakeable(pending[0], name)
    else:
        ctx.set("drivers", [*(await ctx.get("drivers", type_hint=list[str]) or []), name])


@matcher.handler()
async def request_driver(ctx: restate.ObjectContext, awakeable_id: str) -> None:
    drivers = await ctx.get("drivers", type_hint=list[str]) or []
    if drivers:
        ctx.set("drivers", drivers[1:])
        ctx.resolve_awakeable(awakeable_id, drivers[0])
    else:
        ctx.set("pending", [*(await ctx.get("pending", type_hint=list[str]) or []), awakeable_id])


@driver.handler()
async def assign(ctx: restate.ObjectContext, delivery_id: str) -> None:
    ctx.set("delivery", delivery_id)
    ctx.object_send(locate, key=delivery_id, arg=1)


@phone.handler()
async def poll(ctx: restate.ObjectContext) -> None:
    """Look for work, and again, forever."""
    await ctx.run_typed("look", lambda: None)
    ctx.object_send(poll, key=ctx.key(), arg=None, send_delay=timedelta(seconds=1))


async def orders(sim: Any) -> Any:
    sent = await sim.send(run, key="o-1")
    await sim.call(offer_driver, "ann", key="region")
    await sim.call(reach, "prepared", key="o-1")
    assert (await sim.call(see, key="o-1")).value in (None, "created", "on its way")
    return (await sent.result()).value


async def locates_too_late(sim: Any) -> Any:
    await sim.call(delivered, key="d-1")
    return (await sim.call(locate, 1, key="d-1")).value


async def polls(sim: Any) -> Any:
    await sim.call(poll, key="ann")


FOOD = "examples applications: food-ordering"
ORDERS = restate.app([order, delivery, matcher, driver, status])
add(Shape(FOOD, "five services, promises and an awakeable", ORDERS, orders))
add(Shape(FOOD, "a location that arrives after the delivery", ORDERS, locates_too_late, problem="paused"))
add(Shape(FOOD, "a job that sends itself forever", restate.app([phone]), polls, on_server=False))


# --- rag-ingestion -------------------------------------------------------------------------------------------------

model: list[str] = []


def cached_model() -> str:
    if not model:
        model.append("client")
    return model[0]


@embeddings.handler()
async def embed(ctx: restate.Context, text: str) -> int:
    return len(text) + len(cached_model())


@documents.main()
async def ingest(ctx: restate.WorkflowContext) -> str:
    text = await ctx.run_typed("download", lambda: b"one two", restate.RunOptions(serde=restate.serde.BytesSerde()))
    futures = [ctx.service_call(embed, arg=part) for part in text.decode().split()]
    vectors = [await future for future in futures]
    await ctx.run_typed("add", lambda: vectors)
    return "ok"


async def ingests(sim: Any) -> Any:
    return (await sim.call(ingest, key="a")).value


add(
    Shape(
        "examples applications: rag-ingestion",
        "clients cached in a module, and calls awaited one by one",
        restate.app([documents, embeddings]),
        ingests,
        setup=model.clear,
    )
)
