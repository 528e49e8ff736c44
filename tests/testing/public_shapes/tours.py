"""The tours of orchestration and of workflows of restatedev/examples, as shapes."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any

import restate

from restate_steps.testing import Simulator
from tests.testing.public_shapes.shape import Shape, add

tickets = restate.Service("ConcertTickets")
parallel = restate.Service("ParallelSubscriptions")
payments = restate.Service("TourPayments")
lists = restate.VirtualObject("UserSubscriptions")
saga = restate.Service("SubscriptionSaga")
users = restate.Service("UserService")
activities = restate.Workflow("SignupWithActivities")
events = restate.Workflow("SignupWithEvents")
retries = restate.Workflow("SignupWithRetries")
sagas = restate.Workflow("SignupWithSagas")
timers = restate.Workflow("SignupWithTimers")

log: list[str] = []


# --- orchestration -------------------------------------------------------------------------------------------------


@tickets.handler()
async def charge(ctx: restate.Context, ticket: str) -> str:
    return f"{ctx.uuid()} for {ticket}"


@tickets.handler()
async def mail(ctx: restate.Context, ticket: str) -> None:
    return


@tickets.handler()
async def buy(ctx: restate.Context, day: str) -> str:
    """Send a reminder on the day before, by a clock outside of steps: only the recorded delay counts."""
    await ctx.service_call(charge, arg=day)
    ctx.service_send(mail, arg=day)
    delay = datetime.fromisoformat(day) - timedelta(days=1) - datetime.now()
    ctx.service_send(mail, arg=day, send_delay=max(delay, timedelta(0)))
    return "bought"


def create(subscription: str) -> None:
    log.append(f"create {subscription}")
    if subscription == "Disney":
        raise restate.TerminalError("not in this region")


def remove(subscription: str) -> None:
    log.append(f"remove {subscription}")


@parallel.handler()
async def subscribe(ctx: restate.Context, wanted: list[str]) -> bool:
    await restate.gather(*[ctx.run_typed(f"add-{each}", create, subscription=each) for each in wanted])
    return True


@payments.handler()
async def process(ctx: restate.Context) -> str:
    confirmation_id, confirmed = ctx.awakeable(type_hint=str)
    await ctx.run_typed("pay", lambda: confirmation_id)
    match await restate.select(confirmation=confirmed, timeout=ctx.sleep(timedelta(seconds=30))):
        case ["confirmation", result]:
            return str(result)
        case _:
            await ctx.run_typed("cancel-payment", lambda: None)
            return "timeout"


@payments.handler()
async def confirm(ctx: restate.Context, confirmation: list[str]) -> None:
    ctx.resolve_awakeable(confirmation[0], confirmation[1])


@lists.handler("add")
async def add_to_list(ctx: restate.ObjectContext, subscription: str) -> None:
    found = await ctx.get("subscriptions", type_hint=list[str]) or []
    ctx.set("subscriptions", [*found, subscription])
    ctx.set("lastUpdated", datetime.now().isoformat())


@saga.handler("add")
async def add_all(ctx: restate.Context, wanted: list[str]) -> None:
    """Do and undo in threads, which cannot be stopped."""
    done: list[str] = []
    try:
        for each in wanted:
            done.append(each)
            await ctx.run_typed(f"add-{each}", create, subscription=each)
    except restate.TerminalError:
        for each in reversed(done):
            await ctx.run_typed(f"undo-{each}", remove, subscription=each)
        raise


async def buys(sim: Any) -> Any:
    return (await sim.call(buy, "2999-12-31")).value


async def subscribes(sim: Any) -> Any:
    return (await sim.call(subscribe, ["Netflix", "Disney"])).value


async def confirms(sim: Any) -> Any:
    sent = await sim.send(process)
    await sim.call(confirm, [await sim.awakeable(sent), "paid"])
    return (await sent.result()).value


async def adds_to_list(sim: Any) -> Any:
    await sim.call(add_to_list, "Netflix", key="ann")
    return sim.state("UserSubscriptions", "ann")["subscriptions"]


async def adds_all(sim: Any) -> Any:
    with contextlib.suppress(restate.TerminalError):
        return (await sim.call(add_all, ["Netflix", "Disney"])).value


def is_removed(sim: Simulator) -> None:
    """All that was created was removed after that."""
    last = {entry.split()[1]: entry.split()[0] for entry in log}
    assert set(last.values()) <= {"remove"}, f"a subscription is left: {log}"


TOUR = "examples tour of orchestration: "
add(Shape(TOUR + "getstarted, communication", "a delay computed from the clock", restate.app([tickets]), buys))
add(
    Shape(
        TOUR + "concurrenttasks",
        "`gather`, and the results are never read",
        restate.app([parallel]),
        subscribes,
        unread=("add-Disney",),
        setup=log.clear,
    )
)
add(Shape(TOUR + "events, timers", "an awakeable, or a timeout", restate.app([payments]), confirms))
add(
    Shape(
        TOUR + "objects",
        "`datetime.now()` becomes state",
        restate.app([lists]),
        adds_to_list,
        problem="mismatch",
        kinds=("clock",),
    )
)
add(
    Shape(
        TOUR + "sagas",
        "compensations of steps that run in threads",
        restate.app([saga]),
        adds_all,
        cancelled="assertion",
        setup=log.clear,
        check=is_removed,
    )
)


# --- workflows -----------------------------------------------------------------------------------------------------


@users.handler()
async def create_user(ctx: restate.Context, name: str) -> bool:
    return await ctx.run_typed("create user", lambda: True)


@activities.main()
async def with_activities(ctx: restate.WorkflowContext) -> bool:
    ctx.set("user", ctx.key())
    if not await ctx.service_call(create_user, arg=ctx.key()):
        return False
    await ctx.run_typed("activate", lambda: None)
    ctx.set("status", "created")
    return True


@activities.handler()
async def status(ctx: restate.WorkflowSharedContext) -> list[str | None]:
    return [await ctx.get("status", type_hint=str), await ctx.get("user", type_hint=str)]


@events.main()
async def with_events(ctx: restate.WorkflowContext) -> bool:
    if not await ctx.run_typed("create", lambda: True):
        await ctx.promise("created", type_hint=str).reject("creation failed")
        return False
    await ctx.promise("created", type_hint=str).resolve("created")
    await ctx.run_typed("activate", lambda: None)
    return True


@events.handler()
async def wait_for_creation(ctx: restate.WorkflowSharedContext) -> str:
    return await ctx.promise("created", type_hint=str).value()


def no_mail() -> None:
    raise ConnectionError("no mail today")


@retries.main()
async def with_retries(ctx: restate.WorkflowContext) -> bool:
    await ctx.run_typed("create", lambda: None)
    with contextlib.suppress(restate.TerminalError):
        await ctx.run_typed("welcome", no_mail, restate.RunOptions(max_attempts=3))
    return True


@sagas.main()
async def with_sagas(ctx: restate.WorkflowContext) -> bool:
    undo: list[str] = []
    try:
        for step in ("user", "account", "plan"):
            undo.append(step)
            await ctx.run_typed(step, subscribe_to, what=step)
    except restate.TerminalError:
        for step in reversed(undo):
            await ctx.run_typed(f"undo {step}", unsubscribe_from, what=step)
        return False
    return True


async def subscribe_to(what: str) -> None:
    log.append(f"create {what}")
    if what == "plan":
        raise restate.TerminalError("not in this country")


async def unsubscribe_from(what: str) -> None:
    log.append(f"remove {what}")


@timers.main()
async def with_timers(ctx: restate.WorkflowContext) -> str:
    clicked = ctx.promise("clicked", type_hint=str)
    timeout = ctx.sleep(timedelta(minutes=1))
    while True:
        match await restate.select(clicked=clicked.value(), reminder=ctx.sleep(timedelta(seconds=15)), timeout=timeout):
            case ["clicked", found]:
                return str(found)
            case ["reminder", _]:
                await ctx.run_typed("remind", lambda: None)
            case _:
                raise restate.TerminalError("timed out")


@timers.handler()
async def click(ctx: restate.WorkflowSharedContext, secret: str) -> None:
    await ctx.promise("clicked", type_hint=str).resolve(secret)


async def signs_up(sim: Any) -> Any:
    sent = await sim.send(with_activities, key="ann")
    seen = (await sim.call(status, key="ann")).value
    assert seen in ([None, None], [None, "ann"], ["created", "ann"])
    return (await sent.result()).value


async def waits_for_creation(sim: Any) -> Any:
    run = await sim.send(with_events, key="ann")
    waiting = await sim.send(wait_for_creation, key="ann")
    with contextlib.suppress(restate.TerminalError):
        await run.result()
    return (await waiting.result()).value


async def retried(sim: Any) -> Any:
    return (await sim.call(with_retries, key="ann")).value


async def compensated(sim: Any) -> Any:
    with contextlib.suppress(restate.TerminalError):
        return (await sim.call(with_sagas, key="ann")).value


async def clicks(sim: Any) -> Any:
    sent = await sim.send(with_timers, key="ann")
    await sim.call(click, "secret", key="ann")
    return (await sent.result()).value


TOUR = "examples tour of workflows: "
add(
    Shape(
        TOUR + "activities, queries, signup",
        "calls and steps, and a query at any time",
        restate.app([activities, users]),
        signs_up,
    )
)
add(
    Shape(
        TOUR + "events",
        "a promise that no failure rejects",
        restate.app([events]),
        waits_for_creation,
        cancelled="stuck",
        runs=80,
    )
)
add(Shape(TOUR + "retries", "a step that fails in the end, and is ignored", restate.app([retries]), retried))
add(
    Shape(
        TOUR + "sagas",
        "compensations, and then an answer",
        restate.app([sagas]),
        compensated,
        cancelled="assertion",
        setup=log.clear,
        check=is_removed,
    )
)
add(
    Shape(
        TOUR + "signals, timers",
        "a loop of reminders until a promise or a timeout",
        restate.app([timers]),
        clicks,
    )
)
