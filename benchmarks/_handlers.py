"""The measured handlers: with durable steps, and by hand with the SDK alone.

The handlers written by hand pass an explicit serde, because without one the SDK inspects the signature on every call.
The serde does the same work as a step's codec, from the declared type to JSON and back. One handler records bytes
without encoding them, which is the least that the SDK can do.

Every handler runs ``count`` steps and returns the time they took in seconds, from the first to the last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, Generic, TypeVar

import restate
from pydantic import BaseModel, TypeAdapter
from restate import RunOptions
from restate.serde import BytesSerde, Serde

import restate_steps
from restate_steps import DurableStep, durable_step, gather

__all__ = ["SERVICE", "application"]

SERVICE = "Bench"
PAUSE = 0.005

T = TypeVar("T")


class Quote(BaseModel):
    sku: str
    quantity: int
    price: Decimal
    tags: list[str]


class AdapterSerde(Serde[T], Generic[T]):
    def __init__(self, result_type: type[T]) -> None:
        self._adapter = TypeAdapter(result_type)

    def serialize(self, obj: T | None) -> bytes:
        return self._adapter.dump_json(obj)  # type: ignore[arg-type]

    def deserialize(self, buf: bytes) -> T | None:
        return self._adapter.validate_json(buf)


async def number(at: int) -> int:
    return at


async def encoded(at: int) -> bytes:
    return b"1"


async def quote(at: int) -> Quote:
    return Quote(sku="sku", quantity=at, price=Decimal("9.90"), tags=["a", "b"])


async def pause(at: int) -> int:
    await asyncio.sleep(PAUSE)
    return at


BYTES: RunOptions[bytes] = RunOptions(serde=BytesSerde())
NUMBER: RunOptions[int] = RunOptions(serde=AdapterSerde(int))
QUOTE: RunOptions[Quote] = RunOptions(serde=AdapterSerde(Quote))

step_number = durable_step(number)
step_quote = durable_step(quote)
step_pause = durable_step(pause)

Handler = Callable[[restate.Context, int], Awaitable[float]]


def by_hand(function: Callable[[int], Awaitable[Any]], options: RunOptions[Any]) -> Handler:
    name = function.__name__

    async def handler(ctx: restate.Context, count: int) -> float:
        start = time.perf_counter()
        for at in range(count):
            await ctx.run_typed(name, function, options, at)
        return time.perf_counter() - start

    return handler


def by_steps(step: DurableStep[[int], Any]) -> Handler:
    async def handler(ctx: restate.Context, count: int) -> float:
        start = time.perf_counter()
        for at in range(count):
            await step(at)
        return time.perf_counter() - start

    return handler


def together_by_hand(function: Callable[[int], Awaitable[Any]], options: RunOptions[Any]) -> Handler:
    name = function.__name__

    async def handler(ctx: restate.Context, count: int) -> float:
        start = time.perf_counter()
        futures = [ctx.run_typed(name, function, options, at) for at in range(count)]
        await restate.gather(*futures)
        results = [await future for future in futures]
        assert results == list(range(count))
        return time.perf_counter() - start

    return handler


def together_by_steps(step: DurableStep[[int], Any]) -> Handler:
    async def handler(ctx: restate.Context, count: int) -> float:
        start = time.perf_counter()
        results = await gather(*(step(at) for at in range(count)))
        assert list(results) == list(range(count))
        return time.perf_counter() - start

    return handler


HANDLERS: dict[str, Handler] = {
    "bytes_by_hand": by_hand(encoded, BYTES),
    "int_by_hand": by_hand(number, NUMBER),
    "int_steps": by_steps(step_number),
    "int_unverified": by_steps(step_number.with_options(verify=False)),
    "model_by_hand": by_hand(quote, QUOTE),
    "model_steps": by_steps(step_quote),
    "model_unverified": by_steps(step_quote.with_options(verify=False)),
    "pause_by_hand": by_hand(pause, NUMBER),
    "gather_by_hand": together_by_hand(number, NUMBER),
    "gather_steps": together_by_steps(step_number),
    "gather_pause_by_hand": together_by_hand(pause, NUMBER),
    "gather_pause_steps": together_by_steps(step_pause),
}


def application() -> Any:
    """Return an ASGI application with a single service that has all handlers."""
    service = restate.Service(SERVICE)
    for name, handler in HANDLERS.items():
        service.handler(name)(handler)
    return restate_steps.app([service])
