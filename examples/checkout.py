"""A checkout in five steps, two of them concurrent. If the card is declined, it releases the reservation."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import restate
from pydantic import AwareDatetime, BaseModel

from examples import payments
from examples.ledger import note, pretend_to_work
from examples.payments import CardDeclined
from restate_steps import RetryPolicy, durable_step, step_info


class Order(BaseModel):
    """An order, as the customer sends it."""

    id: str
    card: str
    prices: list[Decimal]
    placed_at: AwareDatetime


class Reservation(BaseModel):
    """Goods that are set aside in the warehouse."""

    order_id: str
    shelf: str
    until: AwareDatetime


class Receipt(BaseModel):
    """The receipt that the customer gets."""

    order_id: str
    payment_id: str
    total: Decimal
    delivered_on: AwareDatetime


@durable_step
async def add_up(order: Order) -> Decimal:
    note()
    await pretend_to_work()
    return sum(order.prices, Decimal(0))


@durable_step
async def reserve(order: Order) -> Reservation:
    note()
    await pretend_to_work()
    return Reservation(order_id=order.id, shelf="B12", until=datetime.now(UTC) + timedelta(days=2))


@durable_step(
    name="charge {order.id}",
    raises=CardDeclined,
    retry=RetryPolicy(max_attempts=5),
    timeout=30,
)
async def charge(order: Order, total: Decimal) -> str:
    note()
    # The key is the same on every attempt, so the payment service charges once, even if a crash repeats the request.
    return await payments.charge(order.card, total, idempotency_key=step_info().idempotency_key)


@durable_step
async def ship(order: Order, reservation: Reservation) -> datetime:
    note()
    await pretend_to_work()
    return order.placed_at + timedelta(days=3)


@durable_step
def send_receipt(receipt: Receipt) -> None:
    # A plain function runs in a thread.
    note()


@durable_step
async def release(reservation: Reservation) -> None:
    note()


shop = restate.Service("Shop")


@shop.handler()
async def checkout(ctx: restate.Context, order: Order) -> Receipt:
    total, reservation = await asyncio.gather(add_up(order), reserve(order))
    try:
        payment = await charge(order, total)
    except CardDeclined as declined:
        await release(reservation)
        raise restate.TerminalError(str(declined), status_code=402) from declined
    delivered_on = await ship(order, reservation)
    receipt = Receipt(order_id=order.id, payment_id=payment, total=total, delivered_on=delivered_on)
    await send_receipt(receipt)
    return receipt
