"""A shop whose tests replace something: its client, a function, a setting."""

from __future__ import annotations

import contextvars
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import restate

shop = restate.Service("ReplacedShop")

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


class Bank:
    """What talks to the bank; the tests have another one."""

    def __init__(self, url: str) -> None:
        self.url = url

    def account(self) -> str:
        return f"account at {self.url}"


bank = Bank("bank.example")
rate = 1
prices = {"tea": 3}


def new_id() -> str:
    return uuid.uuid4().hex


def discount() -> int:
    return 0


async def step(ctx: restate.Context, name: str) -> str:
    return await ctx.run_typed(name, lambda: name)


@shop.handler()
async def asks_the_bank(ctx: restate.Context) -> None:
    await step(ctx, bank.account())


@shop.handler()
async def calls_a_function(ctx: restate.Context) -> None:
    await step(ctx, f"discount {discount()}")


@shop.handler()
async def has_a_setting(ctx: restate.Context) -> None:
    await step(ctx, f"rate {rate}")


@shop.handler()
async def looks_up(ctx: restate.Context) -> None:
    await step(ctx, f"price {prices['tea']}")


@shop.handler()
async def makes_an_id(ctx: restate.Context) -> None:
    await step(ctx, new_id())


@shop.handler()
async def knows_the_tenant(ctx: restate.Context) -> None:
    await step(ctx, f"for {tenant.get()}")


@shop.handler()
async def knows_the_environment(ctx: restate.Context) -> None:
    # Not read in the user's code, so the reading is not played back.
    await step(ctx, f"home {os.path.expanduser('~')} in {Path.cwd().name}")


def make(rate: int) -> tuple[restate.Service, Callable[..., Any]]:
    """Make a service whose handler depends on an argument."""
    service = restate.Service("Made")

    @service.handler()
    async def made(ctx: restate.Context) -> None:
        await step(ctx, f"rate {rate}")

    return service, made


made_service, made_handler = make(rate=1)

same_name = restate.Service("SameName")


@same_name.handler("run")
async def run_here(ctx: restate.Context) -> None:
    await step(ctx, "here")
