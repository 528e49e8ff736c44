"""The examples and tours of restatedev/ai-examples, as shapes: the model is a step."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any, cast

import restate
from restate.context import RestateDurableCallFuture

from restate_steps.testing import Simulator
from tests.testing.public_shapes.shape import Shape, add

racers = restate.Service("RacingAgents")
tools = restate.Service("ParallelTools")
specialists = restate.Service("Specialists")
claims = restate.Service("Claims")
coder = restate.VirtualObject("CodingAgent")
tasks = restate.Service("CodingTask")
trips = restate.Service("BookingAgent")
sessions = restate.VirtualObject("AgentChat")
writer = restate.Service("CodeGenerator")
a2a = restate.VirtualObject("TaskObject")
notified = restate.Workflow("NotifiedAgent")


async def model(prompt: str) -> str:
    return f"answer to {prompt}"


# --- several agents and tools at once ------------------------------------------------------------------------------


@racers.handler()
async def think(ctx: restate.Context, how: str) -> str:
    return await ctx.run_typed(how, model, prompt=how)


@racers.handler()
async def race(ctx: restate.Context) -> str:
    calls = [ctx.service_call(think, arg=how) for how in ("long", "quickly")]
    done, pending = await restate.wait_completed(*calls)
    for call in pending:
        ctx.cancel_invocation(await cast("RestateDurableCallFuture[str]", call).invocation_id())
    return await done[0]


@tools.handler()
async def use_tools(ctx: restate.Context) -> list[str]:
    await ctx.run_typed("LLM call", model, prompt="which tools?")
    promises = {city: ctx.run_typed(f"weather {city}", model, prompt=city) for city in ("Rome", "Bern")}
    await restate.gather(*promises.values())
    return [await promise for promise in promises.values()]


@specialists.handler()
async def assess(ctx: restate.Context, what: str) -> str:
    return await ctx.run_typed(what, model, prompt=what)


@claims.handler()
async def decide(ctx: restate.Context) -> str:
    calls = [ctx.service_call(assess, arg=what) for what in ("eligibility", "fraud")]
    await restate.gather(*calls)
    return await ctx.run_typed("decision", model, prompt=str([await call for call in calls]))


@writer.handler()
async def improve(ctx: restate.Context) -> int:
    for attempt in range(3):
        code = await ctx.run_typed(f"generate {attempt}", model, prompt="code")
        review = await ctx.run_typed(f"evaluate {attempt}", model, prompt=f"{code} {attempt}")
        if review.endswith("1"):
            return attempt + 1
    return 0


@sessions.handler()
async def say(ctx: restate.ObjectContext, message: str) -> int:
    history = [*(await ctx.get("messages", type_hint=list[str]) or []), message]
    history.append(await ctx.run_typed("LLM call", model, prompt=message))
    ctx.set("messages", history)
    return len(history)


async def races(sim: Any) -> Any:
    return (await sim.call(race)).value.startswith("answer to ")


async def uses_tools(sim: Any) -> Any:
    return (await sim.call(use_tools)).value


async def decides(sim: Any) -> Any:
    return (await sim.call(decide)).value


async def improves(sim: Any) -> Any:
    return (await sim.call(improve)).value


async def says(sim: Any) -> Any:
    others = [sim.start(sim.call(say, message, key="ann")) for message in ("hello", "bye")]
    return sorted([(await other).value for other in others])


AI = "ai-examples: "
add(Shape(AI + "racing agents", "the first of two calls, and the other is cancelled", restate.app([racers]), races))
add(Shape(AI + "parallel tools", "tools as steps, and `gather`", restate.app([tools]), uses_tools))
add(
    Shape(
        AI + "parallel and remote agents, orchestrator",
        "calls of other agents, and `gather`",
        restate.app([claims, specialists]),
        decides,
    )
)
add(Shape(AI + "sequential, evaluator", "a loop of model calls", restate.app([writer]), improves))
add(Shape(AI + "chat, multi-agent", "a history in the state", restate.app([sessions]), says))


# --- people --------------------------------------------------------------------------------------------------------


requests: list[str] = []


async def request_review(approval_id: str) -> None:
    requests.append(approval_id)


@claims.handler()
async def review(ctx: restate.Context) -> str:
    approval_id, approved = ctx.awakeable(type_hint=str)
    await ctx.run_typed("request review", request_review, approval_id=approval_id)
    match await restate.select(approval=approved, timeout=ctx.sleep(timedelta(hours=3))):
        case ["approval", answer]:
            return str(answer)
        case _:
            return "timed out"


@claims.handler()
async def review_elsewhere(ctx: restate.Context) -> str:
    return await ctx.service_call(review, arg=None)


@notified.main()
async def answer(ctx: restate.WorkflowContext) -> str:
    found = await ctx.run_typed("LLM call", model, prompt="question")
    await ctx.promise("response", type_hint=str).resolve(found)
    return found


@notified.handler()
async def on_notify(ctx: restate.WorkflowSharedContext) -> str:
    found = await ctx.promise("response", type_hint=str).value()
    return await ctx.run_typed("mail", model, prompt=found)


async def reviews(sim: Any) -> Any:
    sent = await sim.send(review_elsewhere)
    await sim.until(lambda: requests or sent.status == "completed")
    for approval_id in requests[:1]:
        await sim.resolve_awakeable(approval_id, "approved")
    return (await sent.result()).value


async def notifies(sim: Any) -> Any:
    run = await sim.send(answer, key="a")
    mail = await sim.send(on_notify, key="a")
    with contextlib.suppress(restate.TerminalError):
        await run.result()
    return (await mail.result()).value


add(
    Shape(
        AI + "human approval, MCP approval, sub-workflow",
        "an awakeable in another handler, or a timeout",
        restate.app([claims, specialists]),
        reviews,
        setup=requests.clear,
    )
)
add(
    Shape(
        AI + "notify when ready",
        "a promise that only success resolves",
        restate.app([notified]),
        notifies,
        cancelled="stuck",
        runs=80,
    )
)


# --- interruptions, compensations, tasks ---------------------------------------------------------------------------


@tasks.handler()
async def work(ctx: restate.Context, agent: str) -> None:
    try:
        for step in ("plan", "draft"):
            await ctx.run_typed(step, model, prompt=step)
    except restate.TerminalError:
        ctx.object_send(finish, key=agent, arg="cleaned up")
        raise
    ctx.object_send(finish, key=agent, arg="done")


@coder.handler()
async def message(ctx: restate.ObjectContext, text: str) -> None:
    """Cancel the task that runs, wait for it, and start another."""
    ctx.set("messages", [*(await ctx.get("messages", type_hint=list[str]) or []), text])
    if (current := await ctx.get("task", type_hint=str)) is not None:
        ctx.cancel_invocation(current)
        ended = ctx.attach_invocation(current, type_hint=type(None))
        with contextlib.suppress(restate.TerminalError):
            await restate.select(ended=ended, timed_out=ctx.sleep(timedelta(seconds=30)))
    ctx.set("task", await ctx.service_send(work, arg=ctx.key()).invocation_id())


@coder.handler()
async def finish(ctx: restate.ObjectContext, text: str) -> None:
    """Forget the task that runs, which need not be the one that has ended."""
    ctx.set("messages", [*(await ctx.get("messages", type_hint=list[str]) or []), text])
    ctx.clear("task")


async def interrupts(sim: Any) -> Any:
    for text in ("build it", "otherwise"):
        await sim.call(message, text, key="a")
    await sim.until(lambda: len(sim.state("CodingAgent", "a")["messages"]) > 2)
    state = sim.state("CodingAgent", "a")
    # Two messages, and the end of one task: the other runs, and the next message has to find it.
    assert len(state["messages"]) > 3 or "task" in state, "a task runs that no message can interrupt"


log: list[str] = []


async def book(what: str) -> None:
    log.append(f"book {what}")
    if what == "flight":
        raise restate.TerminalError("no flights")


async def release(what: str) -> None:
    log.append(f"release {what}")


@trips.handler()
async def plan_trip(ctx: restate.Context) -> str:
    undo: list[str] = []
    try:
        for what in ("hotel", "flight"):
            await ctx.run_typed(f"LLM call {what}", model, prompt=what)
            undo.append(what)
            await ctx.run_typed(f"book {what}", book, what=what)
    except restate.TerminalError:
        for what in reversed(undo):
            await ctx.run_typed(f"release {what}", release, what=what)
        raise
    return "booked"


async def plans_trip(sim: Any) -> Any:
    with contextlib.suppress(restate.TerminalError):
        return (await sim.call(plan_trip)).value


def is_released(sim: Simulator) -> None:
    booked = {each.removeprefix("book ") for each in log if each.startswith("book")}
    assert booked <= {each.removeprefix("release ") for each in log if each.startswith("release")}, log


@a2a.handler()
async def handle(ctx: restate.ObjectContext, query: str) -> str:
    """Lock the task, and unlock it in all cases but one: a step outside of the try block."""
    if await ctx.get("invocation", type_hint=str) is not None:
        raise restate.TerminalError("how did we end up here?", 500)
    ctx.set("invocation", ctx.request().id)
    if await ctx.get("task", type_hint=str) is None:
        ctx.set("task", await ctx.run_typed("create task", lambda: f"submitted {datetime.now()}"))
    try:
        found = await ctx.run_typed("agent", model, prompt=query)
    except restate.TerminalError as error:
        ctx.clear("invocation")
        return error.message
    ctx.clear("invocation")
    return found


async def handles(sim: Any) -> Any:
    with contextlib.suppress(restate.TerminalError):
        await sim.call(handle, "first", key="t")
    return sim.state("TaskObject", "t").get("invocation")


def is_unlocked(sim: Simulator) -> None:
    assert "invocation" not in sim.state("TaskObject", "t"), "no message is answered any more"


add(
    Shape(
        AI + "interrupt and regenerate",
        "the end of an old task clears the id of the new one",
        restate.app([coder, tasks]),
        interrupts,
        problem="assertion",
    )
)
add(
    Shape(
        AI + "rollback",
        "tools that add their compensations to a list",
        restate.app([trips]),
        plans_trip,
        cancelled="assertion",
        setup=log.clear,
        check=is_released,
    )
)
add(
    Shape(
        AI + "a2a",
        "a lock in the state, taken outside of the try block",
        restate.app([a2a]),
        handles,
        cancelled="assertion",
        check=is_unlocked,
    )
)
