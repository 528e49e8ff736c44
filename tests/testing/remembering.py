"""Handlers that read a clock or draw a random number, and remember it: the line to blame ends with `# NAME`."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import random
import secrets
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import restate

remembering = restate.Service("Remembering")


async def step(ctx: restate.Context, name: str) -> str:
    return await ctx.run_typed(name, lambda: name)


# --- when the handler runs for the first time -------------------------------------------------------------------

started: float | None = None


@remembering.handler()
async def sets_a_variable(ctx: restate.Context) -> None:
    global started
    await step(ctx, "quote")
    if started is None:
        started = time.time()  # sets_a_variable
    await step(ctx, f"at {started}")


ids: dict[str, str] = {}


@remembering.handler()
async def fills_a_dict(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    if "id" not in ids:
        ids["id"] = uuid.uuid4().hex  # fills_a_dict
    await step(ctx, ids["id"])


@functools.cache
def now() -> datetime:
    return datetime.now(UTC)  # caches_the_time


@remembering.handler()
async def caches_the_time(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, str(now()))


@functools.lru_cache
def token() -> str:
    return secrets.token_hex(4)  # caches_a_secret


@remembering.handler()
async def caches_a_secret(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, token())


class Lazy:
    value: str | None = None

    @classmethod
    def get(cls) -> str:
        if cls.value is None:
            cls.value = os.urandom(4).hex()  # sets_an_attribute
        return cls.value


@remembering.handler()
async def sets_an_attribute(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, Lazy.get())


# --- when the module is imported --------------------------------------------------------------------------------

imported = time.time()  # tells_when_it_was_imported
process = uuid.uuid4().hex  # tells_which_process_it_is


@remembering.handler()
async def tells_when_it_was_imported(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"at {imported}")


@remembering.handler()
async def tells_which_process_it_is(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, process)


class Settings:
    seed = random.random()  # has_a_setting
    at = time.monotonic()


@remembering.handler()
async def has_a_setting(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"seed {Settings.seed}")


def wait_until(at: float = time.time() + 10) -> str:  # has_a_default
    return f"wait until {at}"


@remembering.handler()
async def has_a_default(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, wait_until())


class Client:
    def __init__(self) -> None:
        self.id = uuid.uuid4()  # has_an_object

    @functools.cached_property
    def jitter(self) -> float:
        return random.random()  # has_a_cached_property


client = Client()


@remembering.handler()
async def has_an_object(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"as {client.id}")


@remembering.handler()
async def has_a_cached_property(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"after {client.jitter} s")


# --- a clock and memory -----------------------------------------------------------------------------------------

prices: dict[str, tuple[float, str]] = {}


@remembering.handler()
async def caches_for_a_minute(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    at, price = prices.get("tea", (0.0, ""))
    if time.time() - at > 60:  # caches_for_a_minute
        price = await step(ctx, "price")
        prices["tea"] = (time.time(), price)
    await step(ctx, "charge")


numbers = itertools.count()


@remembering.handler()
async def counts_and_tells_the_time(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"order {next(numbers)} at {time.time()}")  # counts_and_tells_the_time


generator = random.Random()


@remembering.handler()
async def draws_from_a_generator(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"wait {generator.random()} s")  # draws_from_a_generator


# --- what an earlier run has left behind ------------------------------------------------------------------------

is_open = False


class Counter:
    def __init__(self) -> None:
        self.number = 0

    def count(self) -> None:
        self.number += 1


counter = Counter()


@remembering.handler()
async def leaves_something_behind(ctx: restate.Context) -> None:
    global is_open
    is_open = True
    counter.count()


@remembering.handler()
async def knows_whether_it_is_open(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"open: {is_open}")


@remembering.handler()
async def knows_the_number(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"number {counter.number}")


# --- a clock that does not matter -------------------------------------------------------------------------------

log: list[float] = []
last: dict[str, float] = {}


@remembering.handler()
async def counts_its_log(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    log.append(time.time())
    await step(ctx, f"entry {len(log)}")


@functools.cache
def begin() -> float:
    return time.perf_counter()


@remembering.handler()
async def measures(ctx: restate.Context) -> None:
    begin()
    await step(ctx, "quote")
    last["measured"] = time.time()
    logging.getLogger(__name__).info("took %s s", time.perf_counter() - begin())


def line_of(name: str) -> int:
    """Return the number of the line that is marked with a name."""
    lines = Path(__file__).read_text().splitlines()
    [found] = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {name}")]
    return found
