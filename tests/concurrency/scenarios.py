"""Handlers that use concurrency in every way the documentation promises; explored, and run on the real server.

Each says what it may answer. The bodies of its steps and the local waits between them take a random time, drawn from
:data:`pace`: a few turns of the event loop when explored, some milliseconds on a server. Whatever the times, the answer
must be right and no replay may differ.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import restate

import restate_steps as rs
from restate_steps import TaskGroup, as_completed, durable_step, gather, race, wait_for
from tests.support.exploration import Subject, explored


class Pace:
    """How long random local work takes."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.random = random.Random()

    async def wait(self) -> None:
        if self.milliseconds:
            await rs.local(asyncio.sleep(self.random.random() * self.milliseconds / 1000))
        else:
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)


pace = Pace()
bodies: list[str] = []
"""The tag of every body that ran, in the order in which they began."""


def begin(seed: int) -> None:
    """Draw the same times again, so that a run can be repeated; a replay within it still takes other times."""
    pace.random.seed(seed)
    bodies.clear()


@durable_step(name="work {tag}")
async def work(tag: str) -> str:
    bodies.append(tag)
    await pace.wait()
    return tag


@durable_step
async def same_name(value: int) -> int:
    await pace.wait()
    return value


def constant(value: Any) -> Callable[[], Awaitable[Any]]:
    async def body() -> Any:
        return value

    return body


service = restate.Service("Scenarios")
SCENARIOS: dict[str, Subject] = {}
"""What was explored under each handler's name."""


class _App:
    """The application, made when it is first used: the handlers below are added to the service one by one."""

    @functools.cached_property
    def app(self) -> Any:
        return rs.app([service])

    def __call__(self, *args: Any) -> Any:
        return self.app(*args)


APP = _App()


def scenario(*answers: Any, **options: Any) -> Callable[[Any], Any]:
    """Add a handler that is explored, and say what it may answer."""

    def register(function: Any) -> Any:
        name = function.__name__
        SCENARIOS[name] = explored(
            Subject(name, APP, f"Scenarios/{name}", answers=list(answers), setup=begin, **options)
        )
        return service.handler()(function)

    return register


async def chain(tag: str, steps: int = 3) -> str:
    """Several steps with local waits before, between and after."""
    await pace.wait()
    for number in range(steps):
        await work(f"{tag}{number}")
        await pace.wait()
    return tag


# --- the eight ways in which a first scheduler went wrong ---------------------------------------------------------


@scenario(["a", "b", "c", "d"])
async def failure_1_local_waits_before_the_first_step(ctx: restate.Context) -> list[str]:
    return await gather(chain("a"), chain("b"), chain("c"), chain("d"))


@scenario(["compensated"])
async def failure_2_compensation_beside_siblings(ctx: restate.Context) -> list[str]:
    done: list[str] = []

    async def fails() -> None:
        await work("before")
        raise restate.TerminalError("no", 418)

    async def saga() -> None:
        try:
            await fails()
        except restate.TerminalError as error:
            if error.status_code != 418:
                raise
            await pace.wait()
            await work("compensation")
            done.append("compensated")

    await gather(saga(), chain("x"), chain("y"))
    return done


@scenario([["0", "0'", "0!"], ["1", "1'", "1!"]])
async def failure_3_local_waits_after_an_inner_gather(ctx: restate.Context) -> list[list[str]]:
    async def parent(tag: str) -> list[str]:
        inner = await gather(work(tag), work(f"{tag}'"))
        for _ in range(5):
            await asyncio.sleep(0)
        await pace.wait()
        return [*inner, await work(f"{tag}!")]

    return await gather(parent("0"), parent("1"))


@scenario([[0, 1, 2], "woken", [0, 1, 2, 3]])
async def failure_4_locks_events_and_queues(ctx: restate.Context) -> list[Any]:
    lock, event, queue = asyncio.Lock(), asyncio.Event(), asyncio.Queue[int | None](1)
    held: list[int] = []

    async def locked(number: int) -> None:
        await pace.wait()
        async with lock:
            held.append(number)
            await work(f"lock{number}")
            assert held[-1] == number
            await work(f"locked{number}")

    async def waits() -> str:
        await event.wait()
        await work("woken")
        return "woken"

    async def sets() -> None:
        await work("before set")
        event.set()
        await work("after set")

    async def produce() -> None:
        for number in range(4):
            await work(f"produce{number}")
            await queue.put(number)
        await queue.put(None)

    async def consume() -> list[int]:
        taken = []
        while (number := await queue.get()) is not None:
            await work(f"consume{number}")
            taken.append(number)
        return taken

    _, _, _, woken, _, _, taken = await gather(locked(0), locked(1), locked(2), waits(), sets(), produce(), consume())
    return [sorted(held), woken, taken]


@scenario("finished", "compensated and cleaned", ends_cancelled=False)
async def failure_5_steps_after_a_cancellation(ctx: restate.Context) -> str:
    try:
        await gather(chain("a"), chain("b"))
    except restate.TerminalError as error:
        if error.status_code != 409:
            raise
        await work("compensate")
        await gather(work("clean1"), work("clean2"))
        return "compensated and cleaned"
    return "finished"


@scenario(["late", "cleaned"], ["in time"])
async def failure_6_a_time_out_while_a_step_runs(ctx: restate.Context) -> list[str]:
    cleaned: list[str] = []

    async def slow() -> None:
        try:
            await chain("slow", 4)
        except asyncio.CancelledError:
            await work("clean up")
            cleaned.append("cleaned")
            raise

    async def timed() -> list[str]:
        try:
            await wait_for(slow(), timedelta(milliseconds=15))
        except TimeoutError:
            return ["late", *cleaned]
        return ["in time"]

    answer, _ = await gather(timed(), chain("beside"))
    return answer


@scenario(["ab", "cd", "e"])
async def failure_7_a_parent_goes_on_while_siblings_run(ctx: restate.Context) -> list[str]:
    async def parent(first: str, second: str) -> str:
        both = await gather(chain(first, 2), chain(second, 1))
        await work(f"then {first}")
        return "".join(both)

    return await gather(parent("a", "b"), parent("c", "d"), chain("e", 4))


@scenario("failed, then after")
async def failure_8_siblings_of_a_failing_branch_end(ctx: restate.Context) -> str:
    ended: list[str] = []

    async def sibling(tag: str) -> None:
        try:
            await chain(tag, 30)
        finally:
            ended.append(tag)

    async def fails() -> None:
        await work("fails")
        raise ValueError("failed")

    try:
        await gather(sibling("a"), fails(), sibling("b"))
    except ValueError as error:
        assert sorted(ended) == ["a", "b"]
        started = len(bodies)
        after = await work("after")
        assert [tag for tag in bodies[started:] if tag[0] in "ab" and tag != "after"] == []
        return f"{error}, then {after}"
    return "nothing failed"


# --- the functions -------------------------------------------------------------------------------------------------


@scenario(["fast", "cleaned"], ["slow", "cleaned"], ["fast"])
async def race_cancels_the_losers(ctx: restate.Context) -> list[str]:
    cleaned: list[str] = []

    async def slow() -> str:
        try:
            await chain("slow", 30)
        finally:
            await work("clean up")
            cleaned.append("cleaned")
        return "slow"

    async def fast() -> str:
        await work("fast")
        return "fast"

    return [await race(slow(), fast()), *cleaned]


@scenario(["0a", "1a", "2a", "3a"])
async def as_completed_with_async_for(ctx: restate.Context) -> list[str]:
    async def branch(number: int) -> str:
        await work(str(number))
        return await work(f"{number}a")

    found = []
    async for task in as_completed([branch(number) for number in range(4)]):
        found.append(await task)
        await work("in the loop")
        await pace.wait()
    return sorted(found)


@scenario(["0", "1", "2"])
async def as_completed_with_for(ctx: restate.Context) -> list[str]:
    return sorted([await result for result in as_completed([work(str(number)) for number in range(3)])])


@scenario([number * 2 for number in range(10)])
async def map_with_a_limit(ctx: restate.Context) -> list[int]:
    running = 0

    async def double(number: int) -> int:
        nonlocal running
        running += 1
        assert running <= 3
        await chain(str(number), 2)
        running -= 1
        return number * 2

    return await rs.map(double, range(10), limit=3)


@scenario(["body", "a", "b", "late"])
async def task_group_beside_the_handler(ctx: restate.Context) -> list[str]:
    async with TaskGroup() as group:
        first = group.create_task(work("a"))
        second = group.create_task(chain("b"))
        body = await work("body")
        await ctx.sleep(timedelta(milliseconds=5))
        late = group.create_task(work("late"))
        found = await first
    return [body, found, second.result(), late.result()]


@scenario(["main", "task"])
async def handler_waits_for_an_event_of_a_branch(ctx: restate.Context) -> list[str]:
    event = asyncio.Event()

    async def sets() -> str:
        await work("before")
        event.set()
        await work("after")
        await work("last")
        return "task"

    async with TaskGroup() as group:
        task = group.create_task(sets())
        group.create_task(chain("beside", 4))
        await event.wait()
        await work("main")
        found = await task
    return ["main", found]


@scenario(["got 1", "got 2"])
async def handler_feeds_a_queue_of_a_branch(ctx: restate.Context) -> list[str]:
    queue = asyncio.Queue[int | None]()
    got: list[str] = []

    async def consume() -> None:
        while (item := await queue.get()) is not None:
            await work(f"consume {item}")
            got.append(f"got {item}")

    async with TaskGroup() as group:
        group.create_task(consume())
        for item in (1, 2):
            await work(f"produce {item}")
            await queue.put(item)
            await pace.wait()
        await queue.put(None)
    return got


@scenario("task failed; body was cancelled")
async def task_group_interrupts_its_body(ctx: restate.Context) -> str:
    seen: list[str] = []

    async def fails() -> None:
        await work("fails")
        raise ValueError("task failed")

    try:
        async with TaskGroup() as group:
            group.create_task(fails())
            try:
                await chain("body", 50)
            except asyncio.CancelledError:
                seen.append("body was cancelled")
                raise
    except ValueError as error:
        await work("after")
        return f"{error}; {seen[0]}"
    return "nothing failed"


@scenario([0, 1, 2, 3])
async def concurrent_steps_of_one_name(ctx: restate.Context) -> list[int]:
    return await gather(*(same_name(value) for value in range(4)))


@scenario(["deep", [["0.0", "0.1"], ["1.0", "1.1"]]])
async def nested_groups(ctx: restate.Context) -> list[Any]:
    async def leaf(tag: str) -> str:
        await chain(tag, 2)
        return tag

    async def inner(tag: str) -> list[str]:
        async with TaskGroup() as group:
            tasks = [group.create_task(leaf(f"{tag}.{number}")) for number in range(2)]
        return [task.result() for task in tasks]

    async def deep() -> str:
        await race(chain("r1", 2), chain("r2", 3))
        return "deep"

    first, second = await gather(deep(), gather(inner("0"), inner("1")))
    return [first, second]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@durable_step
async def read_variable() -> str:
    await pace.wait()
    return variable.get()


@scenario(["a", "b", "outer"])
async def context_variables(ctx: restate.Context) -> list[str]:
    async def branch(value: str) -> str:
        variable.set(value)
        await pace.wait()
        await work(value)
        assert variable.get() == value
        return await read_variable()

    variable.set("outer")
    first, second = await gather(branch("a"), branch("b"))
    return [first, second, variable.get()]


# --- raw awaits of the SDK -----------------------------------------------------------------------------------------


@scenario(["raw", "x", [0, 1, 2]], ["raw", "y", [0, 1, 2]])
async def raw_sdk_awaits_in_branches(ctx: restate.Context) -> list[Any]:
    async def sleeps() -> Any:
        await ctx.sleep(timedelta(milliseconds=5))
        raw = await ctx.run_typed("raw", constant("raw"))
        await work("after raw")
        return raw

    async def selects() -> Any:
        x = ctx.run_typed("x", constant("x"))
        y = ctx.sleep(timedelta(milliseconds=200))
        name, _ = await restate.select(x=x, y=y)
        await work("after select")
        return name

    async def gathers() -> Any:
        futures = [ctx.run_typed(f"g{number}", constant(number)) for number in range(3)]
        await restate.gather(*futures)
        return [await future for future in futures]

    return list(await gather(sleeps(), selects(), gathers()))


@scenario(["c", ["shared1", "shared2"], "shared"], ["shared1", ["shared1", "shared2"], "shared"])
async def a_durable_future_shared_by_branches(ctx: restate.Context) -> list[Any]:
    future = work.start("shared")

    async def uses(tag: str) -> str:
        return await future + await work(tag)

    async def quick() -> str:
        await work("quick")
        return "c"

    first = await race(quick(), uses("1"))
    return [first, await gather(uses("1"), uses("2")), await future]


@scenario(["timed out", "answered"], ["answered in time"])
async def a_durable_future_outlives_its_time_out(ctx: restate.Context) -> list[str]:
    future = work.start("answer")
    try:
        await wait_for(future, timedelta(milliseconds=2))
    except TimeoutError:
        await future
        return ["timed out", "answered"]
    return ["answered in time"]


@scenario(["a", "b"])
async def locks_survive_a_cancelled_waiter(ctx: restate.Context) -> list[str]:
    lock = asyncio.Lock()

    async def holds() -> str:
        async with lock:
            await chain("hold", 2)
        return "a"

    async def waits() -> None:
        async with lock:
            await work("never")

    async def second() -> str:
        async with TaskGroup() as group:
            waiter = group.create_task(waits())
            await work("b")
            waiter.cancel()
        return "b"

    found = await gather(holds(), second())
    async with lock:
        return list(found)


@scenario(["deadline", "deadline"], ["w", "w"], ["w", "deadline"], ["deadline", "w"])
async def a_deadline_shared_by_selects(ctx: restate.Context) -> list[str]:
    deadline = ctx.sleep(timedelta(milliseconds=5))

    async def until(tag: str) -> str:
        name, _ = await restate.select(w=work.start(tag), deadline=deadline)
        await work(f"after {tag}")
        return str(name)

    return list(await gather(until("a"), until("b")))


@scenario(["f", ["f", "g"], "f"])
async def a_durable_future_awaited_in_several_forms(ctx: restate.Context) -> list[Any]:
    f, g = work.start("f"), work.start("g")

    async def alone() -> str:
        found = await f
        await work("after alone")
        return found

    async def together() -> list[str]:
        await restate.gather(f, g)
        return [await f, await g]

    async def either() -> str:
        _, found = await restate.select(f=f, never=ctx.awakeable()[1])
        return str(found)

    return list(await gather(alone(), together(), either()))


@scenario(["b", "a"])
async def waking_and_yielding_at_once(ctx: restate.Context) -> list[str]:
    event, lock, ended = asyncio.Event(), anyio.Lock(), list[str]()

    async def waits() -> None:
        await event.wait()
        async with lock:
            await work("a")
        ended.append("a")

    async def sets() -> None:
        await work("b")
        async with lock:
            event.set()
            await asyncio.sleep(0)
            await anyio.lowlevel.checkpoint()
            await work("b!")
            ended.append("b")

    await gather(waits(), sets())
    return ended


# --- cancellation of the invocation ----------------------------------------------------------------------------------


@scenario("woken", "late")
async def cancelled_while_a_time_out_guards_a_primitive(ctx: restate.Context) -> str:
    event = asyncio.Event()

    async def sets() -> None:
        await work("before")
        event.set()

    async def waits() -> str:
        try:
            await wait_for(event.wait(), timedelta(hours=1))
        except TimeoutError:
            return "late"
        return "woken"

    async with TaskGroup() as group:
        group.create_task(sets())
        task = group.create_task(waits())
    return task.result()


@scenario("worked")
async def cancelled_while_a_poller_goes_on(ctx: restate.Context) -> str:
    async def poll() -> str:
        while True:
            try:
                await work("poll")
            except restate.TerminalError:
                await pace.wait()

    async def works() -> str:
        await chain("work", 2)
        return "worked"

    return await race(poll(), works())


@scenario(["charged", "charged"])
async def cancelled_while_two_wait_for_one_charge(ctx: restate.Context) -> list[str]:
    charge = work.start("charged")

    async def careful() -> str:
        try:
            await ctx.sleep(timedelta(milliseconds=1))
        except restate.TerminalError:
            await work(f"refund {await charge}")
            raise
        return await charge

    async def waits() -> str:
        return await charge

    return list(await gather(careful(), waits()))


@scenario("inner failed; used")
async def an_interrupted_handler_leaves_a_shared_future_alone(ctx: restate.Context) -> str:
    future = work.start("shared")

    async def uses() -> str:
        await future
        await work("used")
        return "used"

    async def fails() -> None:
        await work("fails")
        raise ValueError("inner failed")

    async with TaskGroup() as outer:
        task = outer.create_task(uses())
        try:
            async with TaskGroup() as inner:
                inner.create_task(fails())
                await future
                await chain("on", 20)
        except ValueError as error:
            message = str(error)
    return f"{message}; {task.result()}"
