"""Handlers whose result depends on what a client does meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import restate

import restate_steps
from restate_steps import durable_step

__all__ = [
    "APP",
    "add",
    "answer",
    "approval",
    "approve",
    "approve_only",
    "cart",
    "chat",
    "decide",
    "decision",
    "pay",
    "shop",
    "timer_or_step",
    "waits_for_a_signal",
    "work",
]

shop = restate.Service("Shop")
cart = restate.VirtualObject("Cart")
approval = restate.Workflow("Approval")


@durable_step(name="{what}")
async def work(what: str) -> str:
    return what


@shop.handler()
async def timer_or_step(ctx: restate.Context) -> str:
    match await restate.select(timer=ctx.sleep(timedelta(0)), step=ctx.run_typed("step", lambda: None)):
        case [name, _]:
            return str(name)
    return "neither"


@shop.handler()
async def chat(ctx: restate.Context) -> list[str]:
    """Do three steps, unless it is interrupted before."""
    interrupted = ctx.signal("interrupt", type_hint=str)
    done: list[str] = []
    for name in ("one", "two", "three"):
        match await restate.select(signal=interrupted, step=work.start(name)):
            case ["signal", reason]:
                return [*done, str(reason)]
            case _:
                done.append(name)
    return done


@shop.handler()
async def pay(ctx: restate.Context) -> str:
    await work("reserve")
    _, answer = ctx.awakeable(type_hint=str)
    match await restate.select(answer=answer, timeout=ctx.sleep(timedelta(hours=1))):
        case ["answer", found]:
            return str(found)
        case _:
            return "too late"


@shop.handler()
async def waits_for_a_signal(ctx: restate.Context) -> Any:
    return await ctx.signal("go", type_hint=dict[str, str])


@cart.handler()
async def add(ctx: restate.ObjectContext, by: int) -> int:
    total = (await ctx.get("total", type_hint=int) or 0) + by
    await work(f"add {by}")
    ctx.set("total", total)
    return total


@approval.main()
async def approve(ctx: restate.WorkflowContext) -> str:
    match await restate.select(answer=ctx.promise("answer", type_hint=str).value(), step=work.start("look")):
        case ["answer", found]:
            return str(found)
        case _:
            return "looked"


decision = restate.Workflow("Decision")


@decision.main()
async def approve_only(ctx: restate.WorkflowContext) -> str:
    return await ctx.promise("answer", type_hint=str).value()


@decision.handler(name="answer")
async def decide(ctx: restate.WorkflowSharedContext, found: str) -> None:
    await ctx.promise("answer", type_hint=str).resolve(found)


@approval.handler()
async def answer(ctx: restate.WorkflowSharedContext, found: str) -> None:
    await ctx.promise("answer", type_hint=str).resolve(found)


APP = restate_steps.app([shop, cart, approval, decision])
