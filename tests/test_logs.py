"""Logs of handlers: what an earlier attempt has logged is not logged again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import restate

import restate_steps
from restate_steps import ReplayFilter, durable_step, get_logger
from restate_steps.testing import simulate

log = logging.getLogger("tests.logs")
svc = restate.Service("Logs")


@durable_step
async def body(name: str) -> str:
    log.warning("in %s", name)
    return name


@svc.handler()
async def sequence(ctx: restate.Context) -> None:
    log.warning("start")
    await body("first")
    log.warning("between")
    await ctx.sleep(timedelta(seconds=60))
    log.warning("after the wait")
    await body("second")
    log.warning("end")


@svc.handler()
async def tasks(ctx: restate.Context) -> None:
    async def branch(name: str) -> None:
        log.warning("%s starts", name)
        await asyncio.sleep(1)
        await body(name)
        log.warning("%s ends", name)

    async with asyncio.TaskGroup() as group:
        for name in ("one", "two"):
            group.create_task(branch(name))
    log.warning("joined")
    await ctx.sleep(timedelta(seconds=60))


@svc.handler()
async def external(ctx: restate.Context) -> None:
    _, promise = ctx.awakeable()
    await body("first")
    log.warning("before the wait")
    await promise


@pytest.fixture
def records() -> Iterator[list[str]]:
    """The messages that pass a filter on a handler, as applications set it up."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Keep()
    handler.addFilter(ReplayFilter())
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)


@pytest.mark.parametrize("app_of", [restate_steps.app, restate.app], ids=["restate_steps.app", "restate.app"])
async def test_each_line_is_logged_once(app_of: Callable[[list[restate.Service]], object], records: list[str]) -> None:
    """Whatever runs again is silent: code before the wait is replayed, and the body is not run again."""
    async with simulate(app_of([svc])) as sim:
        invocation = await sim.send(sequence)
        await sim.crash()
        await invocation.result()

    assert ["start", "in first", "between", "after the wait", "in second", "end"] == records


async def test_tasks_log_once_too(records: list[str]) -> None:
    """After a crash, a task that waits for new work of other tasks is no longer replaying.

    The filter of the SDK takes it for replaying, and loses the line.
    """
    async with simulate(restate_steps.app([svc])) as sim:
        invocation = await sim.send(tasks)
        await sim.crash()
        await sim.advance(2)
        await sim.crash()
        await invocation.result()

    expected = ["in one", "in two", "joined", "one ends", "one starts", "two ends", "two starts"]
    assert expected == sorted(records)


async def test_no_line_is_lost(records: list[str]) -> None:
    """A wait for something external makes no entry, so the attempt may have crashed before it: the line is repeated."""
    async with simulate(restate_steps.app([svc])) as sim:
        invocation = await sim.send(external)
        await sim.crash()
        await sim.resolve_awakeable(await sim.awakeable(invocation))
        await invocation.result()

    assert ["in first", "before the wait", "before the wait"] == records


def test_a_logger_has_the_filter_once() -> None:
    """`get_logger` is `logging.getLogger` with a filter."""
    logger = get_logger("tests.logs.filtered")

    assert logger is get_logger("tests.logs.filtered") is logging.getLogger("tests.logs.filtered")
    assert [ReplayFilter] == [type(each) for each in logger.filters]


def test_code_outside_handlers_is_logged(records: list[str]) -> None:
    """There is nothing to replay."""
    log.warning("at import")

    assert ["at import"] == records
