"""The types of steps, of calling them and of running them together; checked by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Generic, TypeVar, assert_type

import restate
from pydantic_ai import Agent, RunContext

from restate_steps import (
    AsCompleted,
    DurableStep,
    RetryPolicy,
    StepInfo,
    Task,
    TaskGroup,
    as_completed,
    durable_step,
    gather,
    map,
    race,
    restate_context,
    run_step,
    step_info,
    wait_for,
)

T = TypeVar("T")
MYPY = False
"""What mypy takes for true, so that it skips what only pyright can tell."""


@dataclass(frozen=True)
class Order:
    id: str


@dataclass
class Receipt:
    total: Decimal


class Declined(Exception):
    pass


# --- decorating -------------------------------------------------------------------------------------------------


@durable_step
async def charge(order: Order, *, rush: bool = False) -> Receipt:
    return Receipt(Decimal(len(order.id)))


@durable_step(
    name="charge {order.id}",
    retry=RetryPolicy(max_attempts=3, initial_retry_interval=timedelta(seconds=1)),
    timeout=timedelta(seconds=30),
    raises=(Declined,),
    verify=True,
    retry_on=(ConnectionError, TimeoutError),
    no_retry_on=lambda error: "fatal" in str(error),
)
async def charge_carefully(order: Order) -> Receipt:
    return Receipt(Decimal(len(order.id)))


@durable_step
def count(order: Order) -> int:
    return len(order.id)


@durable_step()
def count_again(order: Order, /, *factors: int) -> list[int]:
    return [len(order.id), *factors]


@durable_step
async def first(items: list[T]) -> T:
    return items[0]


def name_of_sending(shop: Shop, order: Order) -> str:
    return f"send {order.id}"


class Shop:
    @durable_step
    async def pack(self, order: Order, weight: float = 1.0) -> Receipt:
        return Receipt(Decimal(weight))

    @durable_step(name=name_of_sending)
    def send(self, order: Order) -> str:
        return order.id

    @durable_step
    @classmethod
    async def open(cls, town: str) -> Shop:
        return cls()

    @durable_step
    @staticmethod
    async def close(town: str) -> None:
        return None


class Market(Shop):
    @durable_step
    @staticmethod
    def weigh(order: Order) -> int:
        return len(order.id)


class Counter:
    async def __call__(self, order: Order) -> int:
        return len(order.id)


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content

    @durable_step
    async def look(self) -> T:
        return self.content


async def calls(order: Order, shop: Shop) -> None:
    """A call has the parameters and the result of the function, awaited once."""
    assert_type(await charge(order), Receipt)
    assert_type(await charge(order, rush=True), Receipt)
    assert_type(await charge_carefully(order=order), Receipt)
    assert_type(await count(order), int)
    assert_type(await count_again(order, 1, 2), list[int])
    assert_type(await first([order]), Order)
    assert_type(await first(["a"]), str)


async def methods(order: Order, shop: Shop) -> None:
    """A step that is bound has lost the receiver, one that is taken from the class has not."""
    assert_type(await shop.pack(order), Receipt)
    assert_type(await shop.pack(order, weight=2.0), Receipt)
    assert_type(await Shop.pack(shop, order), Receipt)
    assert_type(await shop.send(order), str)
    assert_type(await shop.pack.with_options(name="pack", raises=Declined, timeout=1.5)(order), Receipt)
    assert_type(await shop.open("Lisbon"), Shop)
    assert_type(await Shop.close("Lisbon"), None)
    assert_type(await Market().pack(order), Receipt)
    assert_type(await Market.weigh(order), int)
    assert_type(await Box(order).look(), Order)
    if not MYPY:
        # Mypy takes the first overload of __get__ that fits, whatever the step's own parameters are.
        assert_type(await Shop.open("Lisbon"), Shop)
        assert_type(await Market.open("Lisbon"), Shop)
        assert_type(Shop.open.start("Lisbon"), restate.RestateDurableFuture[Shop])
        assert_type(await shop.close("Lisbon"), None)
        assert_type(await Market().weigh(order), int)


async def other_callables(order: Order) -> None:
    """Lambdas, partials and objects are steps with types of their own."""
    counted: DurableStep[[Order], int] = durable_step(Counter())
    assert_type(await counted(order), int)
    assert_type(await durable_step(functools.partial(charge_plainly, order))(), Receipt)
    assert_type(await durable_step(lambda: charge_plainly(order))(), Receipt)
    assert_type(await durable_step(Order)("o1"), Order)
    assert_type(await durable_step(Order, name="order {id}")("o1"), Order)
    assert_type(await durable_step(lambda: charge_plainly(order), name="charge")(), Receipt)


async def charge_plainly(order: Order) -> Receipt:
    return Receipt(Decimal(len(order.id)))


def steps(shop: Shop) -> None:
    """A step can be named as a type, and stands wherever its function stood."""
    step: DurableStep[[Order], Receipt] = charge_carefully
    counter: DurableStep[[Order], int] = count
    copy: DurableStep[[Order], Receipt] = charge_carefully.with_options(timeout=timedelta(seconds=1))
    made: DurableStep[[Order], Receipt] = durable_step(charge_plainly)
    named: DurableStep[[Order], Receipt] = durable_step(name="charge")(charge_plainly)
    threaded: DurableStep[[Order], int] = durable_step(name="count")(len_of)
    at_once: DurableStep[[Order], Receipt] = durable_step(charge_plainly, name="charge", raises=Declined, timeout=5)
    threaded_at_once: DurableStep[[Order], int] = durable_step(
        len_of, name="count", retry=RetryPolicy(max_duration=1.5)
    )
    bound: DurableStep[[Order], str] = shop.send
    function: Callable[[Order], Coroutine[Any, Any, Receipt]] = charge_carefully
    print(step, counter, copy, made, named, threaded, at_once, threaded_at_once, bound, function)


def len_of(order: Order) -> int:
    return len(order.id)


# --- starting, and running what is not decorated ----------------------------------------------------------------


async def starting(ctx: restate.Context, order: Order, shop: Shop) -> None:
    """`start` takes the same arguments and gives the SDK's durable future."""
    future = charge.start(order, rush=True)
    assert_type(future, restate.RestateDurableFuture[Receipt])
    assert_type(await future, Receipt)
    assert_type(shop.pack.start(order), restate.RestateDurableFuture[Receipt])
    assert_type(count.start(order), restate.RestateDurableFuture[int])
    await restate.select(receipt=future, late=ctx.sleep(timedelta(seconds=1)))


async def undecorated(order: Order, shop: Shop) -> None:
    """`run_step` takes a function, its arguments, and the options of a step."""
    assert_type(await run_step(charge_plainly, order), Receipt)
    assert_type(await run_step(charge_plainly, order, name="charge", raises=(Declined,)), Receipt)
    assert_type(await run_step(charge_plainly, order, raises=Declined, timeout=5), Receipt)
    assert_type(await run_step(lambda: charge_plainly(order), returns=Receipt), Receipt)


# --- inside a body, and in a handler ----------------------------------------------------------------------------


def inside() -> None:
    """What a body may ask for."""
    info = step_info()
    assert_type(info, StepInfo)
    assert_type(info.name, str)
    assert_type(info.invocation_id, str)
    assert_type(info.idempotency_key, str)


def handler() -> None:
    """The ambient context can be taken for the kind that the service has."""
    context: restate.WorkflowContext = restate_context()
    other: restate.ObjectContext = restate_context()
    print(context, other)


# --- concurrency ------------------------------------------------------------------------------------------------


async def gathering(ctx: restate.Context, order: Order) -> None:
    """Up to six awaitables keep their types; more of one type give a list."""
    assert_type(await gather(count(order)), tuple[int])
    assert_type(await gather(charge(order), count(order)), tuple[Receipt, int])
    receipt, number = await gather(charge(order), count(order))
    assert_type(receipt, Receipt)
    assert_type(number, int)
    assert_type(
        await gather(charge(order), count(order), charge.start(order), ctx.sleep(timedelta(seconds=1))),
        tuple[Receipt, int, Receipt, None],
    )
    one = count(order)
    assert_type(await gather(one, one, one, charge(order), one), tuple[int, int, int, Receipt, int])
    assert_type(await gather(one, one, one, one, one, charge(order)), tuple[int, int, int, int, int, Receipt])
    assert_type(await gather(*[count(order) for _ in range(10)]), list[int])
    assert_type(await gather(*[count(order)], return_exceptions=False), list[int])
    assert_type(await gather(one, one, return_exceptions=True), list[int | BaseException])
    assert_type(await gather(*[count(order)], return_exceptions=True), list[int | BaseException])


async def waiting(order: Order) -> None:
    """The first of several, and one within a time."""
    assert_type(await race(charge(order), charge_carefully(order)), Receipt)
    assert_type(await wait_for(charge(order), timedelta(days=1)), Receipt)
    assert_type(await wait_for(charge(order), 1.5), Receipt)
    assert_type(await wait_for(charge(order), None), Receipt)


async def grouping(order: Order) -> None:
    """A task knows the type of its result."""
    async with TaskGroup() as group:
        assert_type(group, TaskGroup)
        task = group.create_task(charge(order), name="charge")
        number = group.create_task(count(order))
    assert_type(task, Task[Receipt])
    assert_type(task.result(), Receipt)
    assert_type(await number, int)
    assert_type(task.exception(), BaseException | None)
    assert_type(task.cancel(), bool)
    assert_type(task.done(), bool)
    assert_type(task.get_name(), str)


async def completing(order: Order) -> None:
    """`for` gives awaitables, `async for` gives tasks."""
    assert_type(as_completed([count(order)]), AsCompleted[int])
    for following in as_completed([count(order)], timeout=timedelta(seconds=1)):
        assert_type(await following, int)
    async for task in as_completed([count(order)], timeout=1):
        assert_type(task, Task[int])
        assert_type(await task, int)


async def orders() -> AsyncIterator[Order]:
    yield Order("o1")


async def mapping() -> None:
    """Items may come from anything that can be iterated over."""
    assert_type(await map(charge, [Order("o1")]), list[Receipt])
    assert_type(await map(count, {Order("o1")}, limit=10), list[int])
    assert_type(await map(count, orders(), limit=None), list[int])


# --- agents -----------------------------------------------------------------------------------------------------


@durable_step
async def greet(ctx: RunContext[str], name: str) -> str:
    """Greet somebody."""
    return f"{ctx.deps} {name}"


agent = Agent(deps_type=str, tools=[charge, count, greet])
decorated = Agent(deps_type=str)
decorated.tool(greet)
decorated.tool_plain(charge_carefully)


@decorated.tool
@durable_step(name="greet {name}")
async def greet_again(ctx: RunContext[str], name: str) -> str:
    """Greet somebody again."""
    return f"{ctx.deps} {name}"


async def plain_asyncio(order: Order) -> None:
    """What a step returns is a coroutine, which asyncio takes outside a handler."""
    assert_type(await asyncio.wait_for(charge(order), 1), Receipt)
