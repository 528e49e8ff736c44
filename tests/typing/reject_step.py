"""Wrong uses of steps, each with the error that mypy must report on its line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from restate_steps import (
    DurableStep,
    RetryPolicy,
    TaskGroup,
    as_completed,
    durable_step,
    gather,
    map,
    race,
    run_step,
    step_info,
    wait_for,
)


@dataclass(frozen=True)
class Order:
    id: str


@durable_step
async def charge(order: Order, *, rush: bool = False) -> int:
    return len(order.id)


@durable_step
def count(order: Order) -> int:
    return len(order.id)


class Shop:
    @durable_step
    async def pack(self, order: Order) -> str:
        return order.id


async def plain(order: Order) -> int:
    return len(order.id)


async def arguments(order: Order, shop: Shop) -> None:
    """A step takes the arguments of its function, and no others."""
    await charge()  # error: call-arg
    await charge("o1")  # error: arg-type
    await charge(order, True)  # error: call-arg
    await charge(order, hurry=True)  # error: call-arg
    await charge.with_options(name="x")("o1")  # error: arg-type
    await charge.start("o1")  # error: arg-type
    await shop.pack(shop, order)  # error: call-arg, arg-type
    await shop.pack("o1")  # error: arg-type


async def results(order: Order) -> None:
    """A step gives the result of its function, when it is awaited."""
    wrong: str = await charge(order)  # error: assignment
    missing: int = charge(order)  # error: assignment
    threaded: int = count(order)  # error: assignment
    started: int = charge.start(order)  # error: assignment
    print(wrong, missing, threaded, started)
    charge(order)  # error: unused-coroutine


def types() -> None:
    """A step of one function is none of another."""
    wrong: DurableStep[[str], int] = charge  # error: assignment
    result: DurableStep[[Order], str] = count  # error: assignment
    print(wrong, result)


def options() -> None:
    """Options have names and types."""
    durable_step(names="charge")  # error: call-overload
    durable_step(timeout="30 s")  # error: call-overload
    durable_step(raises=[ValueError])  # error: call-overload
    durable_step(raises=KeyboardInterrupt)  # error: arg-type
    durable_step(raises=(KeyboardInterrupt,))  # error: arg-type
    durable_step(codec=object())  # error: call-overload
    durable_step(plain, names="plain")  # error: call-overload
    named: DurableStep[[str], int] = durable_step(plain, name="plain")  # error: arg-type
    durable_step("charge")  # error: call-overload
    charge.with_options(retry=3)  # error: arg-type
    charge.with_options(names="charge")  # error: call-arg
    RetryPolicy(max_attempts="3")  # error: arg-type
    RetryPolicy(max_duration="5 s")  # error: arg-type
    RetryPolicy(3)  # error: call-arg
    print(named)


async def undecorated(order: Order) -> None:
    """`run_step` checks the arguments against the function, and the options."""
    await run_step(plain, "o1")  # error: arg-type
    await run_step(plain)  # error: arg-type
    await run_step(plain, order, names="x")  # error: call-arg
    await run_step(len, order)  # error: arg-type


def info() -> None:
    """What a body knows cannot be changed."""
    step_info().name = "other"  # error: misc
    step_info("charge")  # error: call-arg


async def concurrency(order: Order) -> None:
    """Groups take awaitables, and know what comes of them."""
    await gather(charge, charge)  # error: call-overload
    a, b, c = await gather(charge(order), charge(order))  # error: misc
    await gather(charge(order), 1)  # error: call-overload
    await race(plain)  # error: arg-type
    await wait_for(charge(order))  # error: call-arg
    await wait_for(charge(order), "1 s")  # error: arg-type
    await map(charge, ["o1"])  # error: arg-type
    await map(len, [order])  # error: arg-type
    await map(charge, [order], 10)  # error: call-arg
    as_completed(charge(order))  # error: arg-type
    async with TaskGroup() as group:
        group.create_task(charge)  # error: arg-type
        task = group.create_task(charge(order))
    assert_type(task.result(), str)  # error: assert-type
    print(a, b, c, timedelta(0))
