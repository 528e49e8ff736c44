"""A checkout: branches with several steps, a durable timer, an approval from outside, and compensation."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable
from datetime import timedelta
from typing import Literal, TypeVar

import restate
from pydantic import BaseModel

from restate_steps import durable_step, gather, map, wait_for
from tests.chaos.event_log import begin, saw
from tests.chaos.payment_service import act

__all__ = ["APPROVED", "Order", "shop"]

APPROVED = "approved"


class Order(BaseModel):
    """An order.

    Attributes:
        id: A unique id.
        card: The card number; cards that start with 0 are declined.
        prices: The prices of the items, in cents.
        wait: The event that the order waits for before payment.
    """

    id: str
    card: str
    prices: list[int]
    wait: Literal["nothing", "timer", "approval"]


class Done(BaseModel):
    """The result of a step.

    Attributes:
        nonce: The nonce of the body that ran.
        value: The actual result.
    """

    nonce: str
    value: int | str


class CardDeclined(Exception):
    def __init__(self, nonce: str) -> None:
        super().__init__(nonce)
        self.nonce = nonce


D = TypeVar("D", bound=Done)


async def work() -> None:
    await asyncio.sleep(random.uniform(0.03, 0.25))


@durable_step
async def add_up(order: Order) -> Done:
    nonce = begin()
    await work()
    return Done(nonce=nonce, value=sum(order.prices))


@durable_step
async def reserve(order: Order) -> Done:
    nonce = begin()
    return Done(nonce=nonce, value=await act(f"reserve {order.id}"))


@durable_step
async def check_address(order: Order) -> Done:
    nonce = begin()
    await work()
    return Done(nonce=nonce, value="fine")


@durable_step
async def print_label(order: Order, address: Done) -> Done:
    nonce = begin()
    return Done(nonce=nonce, value=await act(f"label {order.id}"))


@durable_step
async def ask(order: Order, approval: str) -> Done:
    nonce = begin()
    return Done(nonce=nonce, value=await act(f"ask {order.id}", approval))


@durable_step(raises=(CardDeclined,))
async def charge(order: Order, total: int) -> Done:
    nonce = begin()
    if order.card.startswith("0"):
        await work()
        raise CardDeclined(nonce)
    return Done(nonce=nonce, value=await act(f"charge {order.id}", str(total)))


@durable_step
async def pick(price: int) -> Done:
    nonce = begin()
    await work()
    return Done(nonce=nonce, value=price)


@durable_step
def wrap(order: Order) -> Done:
    # A plain function runs in a thread.
    nonce = begin()
    time.sleep(random.uniform(0.03, 0.15))
    return Done(nonce=nonce, value="wrapped")


@durable_step
async def release(order: Order) -> Done:
    nonce = begin()
    return Done(nonce=nonce, value=await act(f"release {order.id}"))


class Checkout:
    """An attempt of a checkout that logs every result it sees."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.nonces: list[str] = []

    async def see(self, step: Awaitable[D]) -> D:
        done = await step
        self.note(done.nonce)
        return done

    def note(self, nonce: str) -> None:
        self.nonces.append(nonce)
        saw([nonce])

    async def prepare(self) -> str:
        address = await self.see(check_address(self.order))
        return str((await self.see(print_label(self.order, address))).value)

    async def wait(self, ctx: restate.Context) -> str:
        if self.order.wait == "timer":
            await ctx.sleep(timedelta(seconds=random.Random(self.order.id).uniform(0.2, 1.5)))
        if self.order.wait != "approval":
            return APPROVED
        approval, promise = ctx.awakeable(type_hint=str)
        await self.see(ask(self.order, approval))
        return await wait_for(promise, timedelta(hours=1))

    async def pick(self, price: int) -> int:
        return int((await self.see(pick(price))).value)

    async def run(self, ctx: restate.Context) -> dict[str, object]:
        order = self.order
        total, reserved, label = await gather(self.see(add_up(order)), self.see(reserve(order)), self.prepare())
        approved = await self.wait(ctx)
        try:
            payment = await self.see(charge(order, int(total.value)))
        except CardDeclined as declined:
            self.note(declined.nonce)
            await self.see(release(order))
            raise restate.TerminalError(f"declined: {order.id}", status_code=402) from declined
        picked, wrapped = await gather(map(self.pick, order.prices, limit=2), self.see(wrap(order)))
        value = [order.id, total.value, reserved.value, label, approved, payment.value, picked, wrapped.value]
        return {"value": value, "nonces": self.nonces}


shop = restate.Service("Shop")


@shop.handler()
async def checkout(ctx: restate.Context, order: Order) -> dict[str, object]:
    return await Checkout(order).run(ctx)
