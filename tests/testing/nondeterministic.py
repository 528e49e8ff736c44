"""Handlers that do otherwise with the same journal, each for one reason; the line to blame ends with `# culprit`.

They are plain handlers of the SDK, but for the last ones.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from time import monotonic as now_of_a_clock
from typing import Any, TypeVar

import restate

from restate_steps import durable_step, gather, local

T = TypeVar("T")

faulty = restate.Service("Faulty")
keyed = restate.VirtualObject("FaultyObject")
other = restate.Service("Other")


async def step(ctx: restate.Context, name: str) -> str:
    return await ctx.run_typed(name, lambda: name)


@other.handler()
async def echo(ctx: restate.Context, text: str) -> str:
    return text


# --- clocks -----------------------------------------------------------------------------------------------------


@faulty.handler()
async def branches_on_time(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    if time.time() % 60 < 30:  # culprit
        await step(ctx, "charge")
    else:
        await step(ctx, "refuse")


@faulty.handler()
async def branches_on_the_hour(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    if datetime.now(UTC).hour < 12:  # culprit
        await step(ctx, "charge")


@faulty.handler()
async def names_a_step_by_the_day(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    today = date.today()  # culprit
    await step(ctx, f"report of {today}")


@faulty.handler()
async def answers_with_the_time(ctx: restate.Context) -> str:
    await step(ctx, "quote")
    return datetime.today().isoformat()  # culprit


@faulty.handler()
async def measures_with_an_imported_name(ctx: restate.Context) -> None:
    begin = now_of_a_clock()  # culprit
    await step(ctx, "quote")
    if now_of_a_clock() - begin > 60:  # culprit
        await step(ctx, "too late")


@faulty.handler()
async def formats_the_time(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, time.strftime("at %H:%M:%S"))  # culprit


@keyed.handler()
async def keeps_the_time(ctx: restate.ObjectContext) -> None:
    await ctx.run_typed("quote", lambda: 1)
    ctx.set("seen", time.time())  # culprit


@faulty.handler()
async def polls_until_a_deadline(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    deadline = time.monotonic() + 100  # culprit
    while time.monotonic() < deadline:  # culprit
        await ctx.sleep(timedelta(seconds=30))


# --- random numbers ---------------------------------------------------------------------------------------------


@faulty.handler()
async def asserts_its_own_draw(ctx: restate.Context) -> None:
    """Fail in every attempt but the one that drew."""
    await step(ctx, "quote")
    drawn = random.random()  # culprit
    if drawn != await ctx.run_typed("draw", lambda: drawn):
        raise ValueError("another number")


@faulty.handler()
async def tosses_a_coin(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    if random.random() < 0.5:  # culprit
        await step(ctx, "heads")


@faulty.handler()
async def chooses(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, random.choice(["north", "east", "south", "west"]))  # culprit


@faulty.handler()
async def shuffles(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    names = [f"part {number}" for number in range(6)]
    random.shuffle(names)  # culprit
    await step(ctx, ", ".join(names))


@faulty.handler()
async def draws_from_its_own_generator(ctx: restate.Context) -> int:
    await step(ctx, "quote")
    return random.Random().randrange(10**9)  # culprit


@faulty.handler()
async def calls_with_a_new_id(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    order = uuid.uuid4().hex  # culprit
    await ctx.service_call(echo, arg=order)


@faulty.handler()
async def sends_with_a_random_key(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    ctx.service_send(echo, arg="hello", idempotency_key=os.urandom(8).hex())  # culprit


@faulty.handler()
async def answers_with_a_secret(ctx: restate.Context) -> str:
    await step(ctx, "quote")
    return secrets.token_hex(8)  # culprit


# --- order ------------------------------------------------------------------------------------------------------


@faulty.handler()
async def walks_through_a_set(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    for name in {f"part {number}" for number in range(12)}:
        await step(ctx, name)  # culprit


@faulty.handler()  # culprit
async def answers_with_a_set(ctx: restate.Context) -> list[str]:
    await step(ctx, "quote")
    return list({"apples", "pears", "plums", "cherries", "figs"})


@faulty.handler()
async def sorts_by_address(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    things = [object() for _ in range(4)]
    for thing in sorted(things, key=lambda each: id(each)):  # culprit
        await step(ctx, f"part {things.index(thing)}")


# --- memory -----------------------------------------------------------------------------------------------------

numbers = itertools.count()
prices: dict[str, str] = {}
only_here: list[str] = []


@faulty.handler()
async def counts(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    number = next(numbers)
    await step(ctx, f"order {number}")  # culprit


@faulty.handler()
async def caches(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    if "tea" not in prices:
        prices["tea"] = await step(ctx, "price")
    await step(ctx, "charge")  # culprit


@faulty.handler()
async def knows_what_a_new_process_does_not(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    if only_here:
        await step(ctx, "charge")
    await step(ctx, "end")  # culprit


@faulty.handler()
async def leaves_something_behind(ctx: restate.Context) -> None:
    only_here.append("x")


@faulty.handler()
async def counts_before_it_waits(ctx: restate.Context) -> None:
    await step(ctx, f"order {next(numbers)}")  # culprit
    _, approved = ctx.awakeable(type_hint=str)
    await approved


# --- the process ------------------------------------------------------------------------------------------------


@faulty.handler()
async def asks_for_a_variable(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    if os.environ.get("FAULTY_MODE"):  # culprit
        await step(ctx, "charge")


@faulty.handler()
async def asks_where_it_is(ctx: restate.Context) -> None:
    await step(ctx, "quote")
    await step(ctx, f"on {socket.gethostname()}")  # culprit


# --- the world outside ------------------------------------------------------------------------------------------

changing = itertools.count()


@faulty.handler()
async def reads_a_file(ctx: restate.Context, path: str) -> str:
    await step(ctx, "quote")
    return Path(path).read_text()  # culprit


@faulty.handler()
async def appends_to_a_file_and_reads_it(ctx: restate.Context, path: str) -> None:
    await step(ctx, "quote")
    with open(path, "a+") as file:  # culprit
        file.write("x")
        length = file.tell()
    await step(ctx, f"at {length}")


@faulty.handler()
async def asks_a_database(ctx: restate.Context, path: str) -> int:
    await step(ctx, "quote")
    connection = sqlite3.connect(path)  # culprit
    try:
        return int(connection.execute("select 1").fetchone()[0])
    finally:
        connection.close()


@faulty.handler()
async def asks_over_http(ctx: restate.Context, port: int) -> str:
    async def ask() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)  # culprit
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer.decode().splitlines()[0]

    await step(ctx, "quote")
    return await local(ask())


@faulty.handler()
async def asks_over_http_without_asyncio(ctx: restate.Context, port: int) -> str:
    await step(ctx, "quote")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:  # noqa: ASYNC210  # culprit
        return str(answer.status)


@faulty.handler()
async def starts_a_program(ctx: restate.Context) -> int:
    await step(ctx, "quote")
    return subprocess.run([sys.executable, "-c", ""], check=True).returncode  # noqa: ASYNC221  # culprit


@faulty.handler()
async def works_in_a_thread(ctx: restate.Context) -> int:
    await step(ctx, "quote")
    return await asyncio.to_thread(lambda: 1)  # culprit


# --- with restate_steps -----------------------------------------------------------------------------------------


@durable_step
async def quote(item: str) -> int:
    return random.randrange(100)


@durable_step(name="charge {item}")
async def charge(item: str) -> int:
    return random.randrange(100)


@faulty.handler()
async def gathers_a_set(ctx: restate.Context) -> None:
    await quote("all")
    parts = {f"part {number}" for number in range(12)}
    await gather(*map(charge, parts))  # culprit


@faulty.handler()
async def branches_on_time_in_a_branch(ctx: restate.Context) -> None:
    async def buy(item: str) -> None:
        await quote(item)
        if item == "pears" and time.time() % 60 < 30:  # culprit
            await charge(item)

    await gather(buy("apples"), buy("pears"))


def culprits(handler: Callable[..., Any]) -> list[int]:
    """The lines of a handler that are to blame, from 1."""
    lines, first = inspect.getsourcelines(inspect.unwrap(handler))
    return [number for number, line in enumerate(lines, first) if line.endswith("# culprit\n")]
