"""Handlers in plain asyncio and anyio over durable steps; explored, and run on the real server.

None of them uses the concurrency functions of ``restate_steps``: each is written as it would be without Restate. Bodies
of steps and local code between them take a random number of turns of the event loop, drawn from :data:`pace`. Whatever
the turns, the answer must be right and no replay may differ.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import itertools
import random
import sys
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import restate

import restate_steps as rs
from restate_steps import RetryPolicy, durable_step
from tests.support.exploration import Subject, explored

T = TypeVar("T")

MOMENT = 0.01
SOON = timedelta(milliseconds=10)
CANCELLED = 409


class Pace:
    """How long random local work takes."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.random = random.Random()

    async def wait(self) -> None:
        """Take time in the body of a step: milliseconds on a server, turns of the event loop when explored."""
        if self.milliseconds:
            await asyncio.sleep(self.random.random() * self.milliseconds / 1000)
        else:
            await self.hop()

    async def hop(self) -> None:
        """Yield up to three times, as code between steps does; a sleep there would be a durable timer."""
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    def block(self) -> str:
        """Take time in a thread."""
        time.sleep(self.random.random() * self.milliseconds / 1000)
        return "thread"

    def collect(self) -> None:
        """Collect garbage or not, as Python does at moments of its own."""
        if self.random.random() < 0.5:
            gc.collect(1)


pace = Pace()
hop = pace.hop
bodies: Counter[str] = Counter()
"""How often each body has run in this run of the exploration."""
process_cache: dict[str, Any] = {}
"""A cache that outlives an attempt, so that it is cold in one and warm in the next."""


def begin(seed: int) -> None:
    """Draw the same times again, so that a run can be repeated; a replay within it still takes other times."""
    pace.random.seed(seed)
    bodies.clear()
    process_cache.clear()


@durable_step(name="{tag}")
async def work(tag: str) -> str:
    bodies[tag] += 1
    await pace.wait()
    return tag


@durable_step(name="{tag}")
def sync_work(tag: str) -> str:
    pace.block()
    return tag


class Refused(Exception):
    pass


@durable_step(name="{tag}", raises=(Refused,))
async def refuse(tag: str) -> str:
    await pace.wait()
    raise Refused(tag)


# A crash counts as an attempt, as on a server; so there are more attempts than the body needs.
@durable_step(name="{tag}", retry=RetryPolicy(max_attempts=9, initial_retry_interval=SOON))
async def flaky(tag: str) -> str:
    bodies[tag] += 1
    if bodies[tag] < 3:
        raise ConnectionError(tag)
    return tag


def constant(value: T) -> Callable[[], Coroutine[Any, Any, T]]:
    """Make an action for ``ctx.run_typed``."""

    async def action() -> T:
        await pace.wait()
        return value

    return action


async def chain(tag: str, steps: int = 2) -> str:
    """Run several steps with local turns before, between and after."""
    await hop()
    for number in range(steps):
        await work(f"{tag}{number}")
        await hop()
    return tag


def unless_cancelled(found: Iterable[Any]) -> list[Any]:
    """Return what a gather returned with exceptions, but raise the invocation's own cancellation."""
    results = list(found)
    for each in results:
        if isinstance(each, restate.TerminalError) and each.status_code == CANCELLED:
            raise each
    return results


def orders(tags: str) -> list[list[str]]:
    """Return all orders of some letters."""
    return [list(order) for order in itertools.permutations(tags)]


def subsets(*tags: str) -> list[list[str]]:
    """Return all sublists."""
    return [list(each) for size in range(len(tags) + 1) for each in itertools.combinations(tags, size)]


service = restate.Service("Plain")
keyed = restate.VirtualObject("PlainObject")
SCENARIOS: dict[str, Subject] = {}
"""What is explored under each handler's name."""
FUNCTIONS: dict[str, Callable[[Any], Awaitable[Any]]] = {}
"""The handlers that need nothing of Restate, and also run outside of it."""


class _App:
    """The application, made when it is first used: the handlers below are added to the services one by one."""

    @functools.cached_property
    def app(self) -> Any:
        return rs.app([service, keyed])

    def __call__(self, *args: Any) -> Any:
        return self.app(*args)


APP = _App()


def scenario(
    *answers: Any, on: restate.Service | restate.VirtualObject = service, needs_ctx: bool = False, **options: Any
) -> Callable[[Any], Any]:
    """Add a handler that is explored, and say what it may answer."""

    def register(function: Any) -> Any:
        name = function.__name__
        given = {"crashes": 2, "runs": 92, **options}
        SCENARIOS[name] = explored(
            Subject(f"plain/{name}", APP, f"{on.name}/{name}", answers=list(answers), setup=begin, **given)
        )
        if not needs_ctx:
            FUNCTIONS[name] = function
        return on.handler()(function)

    return register


# --- gather ---------------------------------------------------------------------------------------------------------


@scenario(["a", "b", "c"])
async def gather_of_chains(ctx: restate.Context) -> list[str]:
    return await asyncio.gather(chain("a", 3), chain("b"), chain("c"))


@scenario(["a2", "b2"], needs_ctx=True)
async def gather_of_raw_chains(ctx: restate.Context) -> list[str]:
    async def raw_chain(tag: str) -> str:
        found = ""
        for number in range(3):
            found = await ctx.run_typed(f"{tag}{number}", constant(f"{tag}{number}"))
            await hop()
        return found

    return await asyncio.gather(raw_chain("a"), raw_chain("b"))


@scenario([["a", "b", "c"], ["c", "b", "a"]], needs_ctx=True)
async def gather_of_raw_futures_twice(ctx: restate.Context) -> list[list[str]]:
    futures = [ctx.run_typed(tag, constant(tag)) for tag in "abc"]
    first = await asyncio.gather(*futures)
    return [list(first), list(await asyncio.gather(*reversed(futures)))]


@scenario(["a", "b"], needs_ctx=True)
async def gather_of_started_steps(ctx: restate.Context) -> list[str]:
    futures = [work.start(tag) for tag in "ab"]
    await chain("between", 1)
    return await asyncio.gather(*futures)


@scenario(["a", "b", "c"])
async def random_hops_between_steps(ctx: restate.Context) -> list[str]:
    async def hops(tag: str) -> str:
        for number in range(2):
            for _ in range(3):
                await hop()
            await work(f"{tag}{number}")
        return tag

    return await asyncio.gather(hops("a"), hops("b"), hops("c"))


@scenario(["a", "no", "b"])
async def gather_that_returns_exceptions(ctx: restate.Context) -> list[str]:
    found = await asyncio.gather(chain("a"), refuse("no"), work("b"), return_exceptions=True)
    return [str(each) for each in unless_cancelled(found)]


@scenario(["no", "b", "after"])
async def gather_fails_and_its_sibling_goes_on(ctx: restate.Context) -> list[str]:
    sibling = asyncio.create_task(chain("b", 3))
    try:
        await asyncio.gather(refuse("no"), sibling)
    except Refused as error:
        after = await work("after")
        return [str(error), await sibling, after]
    return ["nothing failed"]


# Outside of Restate nothing retries the step.
@scenario(["a", "flaky"], needs_ctx=True)
async def a_step_that_is_retried_beside_another(ctx: restate.Context) -> list[str]:
    return await asyncio.gather(chain("a"), flaky("flaky"))


# --- task groups ----------------------------------------------------------------------------------------------------


@scenario(["no", "after"])
async def nested_task_groups_with_except_star(ctx: restate.Context) -> list[str]:
    found: list[str] = []

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse("no"))
            group.create_task(chain("inner", 3))

    async def cleans_up() -> None:
        try:
            await chain("outer", 3)
        finally:
            await work("clean up")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(inner())
            group.create_task(cleans_up())
    except* Refused as errors:
        nested = errors.exceptions[0]
        assert isinstance(nested, ExceptionGroup)
        found.append(str(nested.exceptions[0]))
    return [*found, await work("after")]


@scenario(["a", "b", "late"])
async def a_task_group_that_grows(ctx: restate.Context) -> list[str]:
    late: list[asyncio.Task[str]] = []

    async with asyncio.TaskGroup() as group:

        async def spawns() -> str:
            await work("spawn")
            late.append(group.create_task(chain("late")))
            return "a"

        first = group.create_task(spawns())
        second = await chain("b", 1)
    return [first.result(), second, late[0].result()]


@scenario(failures=[418])
async def a_group_of_terminal_errors_escapes(ctx: restate.Context) -> None:
    async def fails(tag: str) -> None:
        await work(tag)
        raise restate.TerminalError(tag, 418)

    async with asyncio.TaskGroup() as group:
        group.create_task(fails("a"))
        group.create_task(fails("b"))


# --- waiting for several --------------------------------------------------------------------------------------------


@scenario(*orders("abc"))
async def wait_for_the_first_in_a_loop(ctx: restate.Context) -> list[str]:
    pending = {asyncio.create_task(chain(tag)) for tag in "abc"}
    found: list[str] = []
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            found.append(task.result())
            await work(f"after {found[-1]}")
    return found


@scenario(*subsets("a", "b", "c"))
async def wait_for_all_with_a_timeout(ctx: restate.Context) -> list[str]:
    tasks = [asyncio.create_task(chain(tag, steps)) for tag, steps in (("a", 1), ("b", 2), ("c", 3))]
    done, pending = await asyncio.wait(tasks, timeout=MOMENT)
    for task in pending:
        task.cancel()
    unless_cancelled(await asyncio.gather(*pending, return_exceptions=True))
    return sorted(task.result() for task in done)


@scenario(*orders("abc"))
async def as_completed_of_a_list(ctx: restate.Context) -> list[str]:
    found: list[str] = []
    for result in asyncio.as_completed([chain(tag) for tag in "abc"]):
        found.append(await result)
        await work(f"after {found[-1]}")
    return found


@scenario([*subsets("a", "b", "c")[-1], "all"], *([*each, "late"] for each in subsets("a", "b", "c")))
async def as_completed_with_a_timeout(ctx: restate.Context) -> list[str]:
    found: list[str] = []
    tasks = [asyncio.create_task(chain(tag, 1)) for tag in "abc"]
    try:
        for result in asyncio.as_completed(tasks, timeout=MOMENT):
            found.append(await result)
    except TimeoutError:
        return [*sorted(found), "late"]
    return [*sorted(found), "all"]


@scenario(["a", "b", "c"])
async def a_set_of_tasks(ctx: restate.Context) -> list[str]:
    tasks = {asyncio.create_task(chain(tag, 1)) for tag in "abc"}
    found: list[str] = []
    for task in tasks:
        found.append(await task)
        await work(f"after {found[-1]}")
    return sorted(found)


# --- tasks ----------------------------------------------------------------------------------------------------------


@scenario(["a", "b", "main"])
async def tasks_that_are_joined(ctx: restate.Context) -> list[str]:
    first, second = asyncio.create_task(chain("a")), asyncio.create_task(chain("b"))
    main = await work("main")
    return [await first, await second, main]


@scenario("main")
async def a_forgotten_task(ctx: restate.Context) -> str:
    asyncio.create_task(chain("forgotten", 4))  # noqa: RUF006
    return await chain("main")


@scenario(["a", "b", "c"])
async def background_tasks_that_discard_themselves(ctx: restate.Context) -> list[str]:
    background: set[asyncio.Task[str]] = set()
    found: list[str] = []
    for tag in "abc":
        task = asyncio.create_task(chain(tag))
        background.add(task)
        task.add_done_callback(background.discard)
        await work(f"started {tag}")
        if task.done():
            found.append(task.result())
        else:
            task.add_done_callback(lambda task: found.append(task.result()))
    while background:
        done, _ = await asyncio.wait(background, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    return sorted(found)


@scenario(["a", "b", "a", "fetched"])
async def a_cache_of_tasks_in_flight(ctx: restate.Context) -> list[str]:
    in_flight: dict[str, asyncio.Task[str]] = {}

    async def cached(key: str) -> str:
        await hop()
        if key not in in_flight:
            in_flight[key] = asyncio.create_task(chain(key))
        return await asyncio.shield(in_flight[key])

    found = await asyncio.gather(cached("a"), cached("b"), cached("a"))
    assert len(in_flight) == 2
    return [*found, await work("fetched")]


@scenario(["undo a", "undo b", "undo c"], needs_ctx=True)
async def cancelled_tasks_that_compensate(ctx: restate.Context) -> list[str]:
    undone: list[str] = []

    async def books(tag: str) -> None:
        try:
            await work(tag)
            await ctx.awakeable(type_hint=str)[1]
        except asyncio.CancelledError:
            await hop()
            undone.append(await work(f"undo {tag}"))
            raise

    tasks = [asyncio.create_task(books(tag)) for tag in "abc"]
    await work("change of mind")
    for task in tasks:
        task.cancel()
    found = unless_cancelled(await asyncio.gather(*tasks, return_exceptions=True))
    assert all(isinstance(each, asyncio.CancelledError) for each in found)
    return sorted(undone)


@scenario(["went on", 0, False], needs_ctx=True)
async def a_task_that_takes_its_cancellation_back(ctx: restate.Context) -> list[Any]:
    async def stubborn() -> str:
        try:
            await ctx.awakeable(type_hint=str)[1]
        except asyncio.CancelledError:
            current = asyncio.current_task()
            assert current is not None
            current.uncancel()
            await hop()
            return await work("went on")
        return "resolved"

    task = asyncio.create_task(stubborn())
    await chain("main", 1)
    task.cancel()
    return [await task, task.cancelling(), task.cancelled()]


@scenario("ended", *("cancelled " + "".join(each) for each in subsets("a", "b")))
async def a_cancelled_task_cancels_its_gather(ctx: restate.Context) -> str:
    undone: list[str] = []

    async def leaf(tag: str) -> str:
        try:
            return await chain(tag, 3)
        except asyncio.CancelledError:
            # Before the step: the gather ends with the first leaf, and the handler may end before the second.
            undone.append(tag)
            await work(f"undo {tag}")
            raise

    async def parent() -> list[str]:
        return await asyncio.gather(leaf("a"), leaf("b"))

    task = asyncio.create_task(parent())
    await work("enough")
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return f"cancelled {''.join(undone)}"
    return "ended"


# --- asyncio's primitives -------------------------------------------------------------------------------------------


@scenario([["0", "1", "2", "3"], 0])
async def a_queue_with_two_workers(ctx: restate.Context) -> list[Any]:
    queue = asyncio.Queue[str](maxsize=2)
    got: list[str] = []

    async def worker(name: str) -> None:
        while True:
            item = await queue.get()
            try:
                await work(f"{name} got {item}")
                got.append(item)
            finally:
                queue.task_done()

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(worker(name)) for name in ("first", "second")]
        for number in range(4):
            await queue.put((await work(f"item {number}"))[-1])
        await queue.join()
        for each in workers:
            each.cancel()
    return [sorted(got), queue.qsize()]


@scenario(["urgent", "later"], needs_ctx=True)
async def a_priority_queue(ctx: restate.Context) -> list[str]:
    queue = asyncio.PriorityQueue[tuple[int, str]]()
    name, filled = ctx.awakeable(type_hint=str)

    async def produce() -> None:
        for priority, tag in ((2, "later"), (1, "urgent")):
            queue.put_nowait((priority, await work(tag)))
        ctx.resolve_awakeable(name, "filled")

    async def consume() -> list[str]:
        await filled
        return [(await queue.get())[1], (await queue.get())[1]]

    return (await asyncio.gather(consume(), produce()))[0]


@scenario(["a", "b", "c", "d"])
async def a_semaphore_that_bounds(ctx: restate.Context) -> list[str]:
    semaphore, running = asyncio.Semaphore(2), 0

    async def bounded(tag: str) -> str:
        nonlocal running
        async with semaphore:
            running += 1
            assert running <= 2
            try:
                return await chain(tag, 1)
            finally:
                running -= 1

    return await asyncio.gather(*(bounded(tag) for tag in "abcd"))


@scenario(*orders("abc"))
async def a_lock_between_tasks(ctx: restate.Context) -> list[str]:
    lock, held = asyncio.Lock(), list[str]()

    async def locked(tag: str) -> None:
        await chain(tag, 1)
        async with lock:
            held.append(tag)
            await work(f"locked {tag}")
            assert held[-1] == tag
            await hop()

    await asyncio.gather(locked("a"), locked("b"), locked("c"))
    return held


@scenario(["a", "b", "ready"])
async def a_condition_that_notifies_all(ctx: restate.Context) -> list[str]:
    condition, is_ready = asyncio.Condition(), False

    async def waits(tag: str) -> str:
        async with condition:
            await condition.wait_for(lambda: is_ready)
            await work(f"{tag} holds it")
        return await work(tag)

    async def notifies() -> str:
        nonlocal is_ready
        await chain("prepare", 1)
        async with condition:
            is_ready = True
            condition.notify_all()
        return await work("ready")

    return await asyncio.gather(waits("a"), waits("b"), notifies())


@scenario(["a", "b", "set"])
async def an_event_between_tasks(ctx: restate.Context) -> list[str]:
    event = asyncio.Event()

    async def waits(tag: str) -> str:
        await work(f"before {tag}")
        await event.wait()
        return await work(tag)

    async def sets() -> str:
        await chain("prepare", 1)
        event.set()
        return await work("set")

    return await asyncio.gather(waits("a"), waits("b"), sets())


@scenario(["a", "b", "c"])
async def a_barrier_between_tasks(ctx: restate.Context) -> list[str]:
    barrier, arrived = asyncio.Barrier(3), list[str]()

    async def meets(tag: str) -> str:
        await chain(tag, 1)
        arrived.append(tag)
        await barrier.wait()
        assert sorted(arrived) == ["a", "b", "c"]
        await work(f"after {tag}")
        return tag

    return await asyncio.gather(*(meets(tag) for tag in "abc"))


# --- timeouts and timers --------------------------------------------------------------------------------------------


@scenario("a", "late")
async def a_timeout_around_a_step(ctx: restate.Context) -> str:
    try:
        async with asyncio.timeout(MOMENT):
            return await work("a")
    except TimeoutError:
        return await work("late")


@scenario("in time", "late and clean")
async def a_timeout_around_a_chain(ctx: restate.Context) -> str:
    cleaned: list[str] = []
    try:
        async with asyncio.timeout(MOMENT):
            try:
                await chain("a", 3)
            except asyncio.CancelledError:
                cleaned.append(await work("clean"))
                raise
    except TimeoutError:
        return f"late and {cleaned[0]}"
    return "in time"


@scenario([], ["inner"], ["inner", "outer"], ["outer"])
async def nested_timeouts(ctx: restate.Context) -> list[str]:
    late: list[str] = []
    try:
        async with asyncio.timeout(2 * MOMENT):
            try:
                async with asyncio.timeout(MOMENT):
                    await chain("a")
            except TimeoutError:
                late.append("inner")
            await chain("b", 1)
    except TimeoutError:
        late.append("outer")
    return late


@scenario("ab", "late")
async def a_timeout_that_is_rescheduled(ctx: restate.Context) -> str:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(MOMENT) as limit:
            found = await work("a")
            limit.reschedule(loop.time() + 5)
            return found + await work("b")
    except TimeoutError:
        return "late"


@scenario(*(["yes", reminders] for reminders in range(4)), needs_ctx=True)
async def wait_for_an_awakeable_in_a_loop(ctx: restate.Context) -> list[Any]:
    name, approval = ctx.awakeable(type_hint=str)

    async def approves() -> None:
        await chain("think")
        ctx.resolve_awakeable(name, "yes")

    task = asyncio.create_task(approves())
    reminders = 0
    while reminders < 3:
        try:
            answer = await asyncio.wait_for(approval, MOMENT)
            break
        except TimeoutError:
            reminders += 1
            await work(f"reminder {reminders}")
    else:
        answer = await approval
    await task
    return [answer, reminders]


@scenario(["a", "b"], ["late"])
async def wait_for_beside_a_plain_sibling(ctx: restate.Context) -> list[str]:
    try:
        return await asyncio.gather(asyncio.wait_for(work("a"), 5), work("b"))
    except TimeoutError:
        return ["late"]


@scenario(*(list(each) for each in itertools.product(("a", "a late"), ("b", "b late"), ("c", "c late"))))
async def several_wait_fors(ctx: restate.Context) -> list[str]:
    async def limited(tag: str, seconds: float) -> str:
        try:
            return await asyncio.wait_for(chain(tag), seconds)
        except TimeoutError:
            return await work(f"{tag} late")

    return await asyncio.gather(limited("a", MOMENT / 2), limited("b", MOMENT), limited("c", 5))


@scenario(["slept", "a", "b"])
async def plain_sleep_beside_steps(ctx: restate.Context) -> list[str]:
    async def sleeps_between() -> str:
        await work("b0")
        await asyncio.sleep(MOMENT / 2)
        await work("b1")
        return "b"

    return await asyncio.gather(asyncio.sleep(MOMENT, "slept"), chain("a"), sleeps_between())


@scenario("a", "late a")
async def a_shielded_task_that_is_awaited_later(ctx: restate.Context) -> str:
    task = asyncio.create_task(chain("a", 3))
    try:
        return await asyncio.wait_for(asyncio.shield(task), MOMENT)
    except TimeoutError:
        await work("reminder")
        return f"late {await task}"


@scenario(["soon", "later", "a", "x"])
async def callbacks_that_set_futures(ctx: restate.Context) -> list[str]:
    loop = asyncio.get_running_loop()
    soon, later, by_task = loop.create_future(), loop.create_future(), loop.create_future()

    def end(future: asyncio.Future[str], value: str) -> None:
        if not future.done():
            future.set_result(value)

    loop.call_soon(end, soon, "soon")
    loop.call_later(MOMENT, end, later, "later")
    never = loop.call_later(2 * MOMENT, end, later, "never")
    task = asyncio.create_task(chain("x"))
    task.add_done_callback(lambda task: by_task.cancel() if task.cancelled() else _copy(task, by_task))
    found = await asyncio.gather(soon, later, chain("a"), by_task)
    never.cancel()
    return found


def _copy(task: asyncio.Task[str], future: asyncio.Future[str]) -> None:
    if (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


# --- local work -----------------------------------------------------------------------------------------------------


# It spins ten thousand times at each idle moment, so fewer runs take as long.
@scenario("a", runs=12)
async def a_spin_until_a_task_is_done(ctx: restate.Context) -> str:
    task = asyncio.create_task(chain("a"))
    while not task.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    return task.result()


@scenario(["a", "b"])
async def a_poll_with_sleeps(ctx: restate.Context) -> list[str]:
    task = asyncio.create_task(chain("a"))
    for _ in range(3):
        if task.done():
            break
        await asyncio.sleep(MOMENT)
    return [await task, await work("b")]


@scenario(["a", "b"])
async def a_yield_after_create_task(ctx: restate.Context) -> list[str]:
    task = asyncio.create_task(chain("a"))
    await asyncio.sleep(0)
    found = await work("b")
    return [await task, found]


@scenario(["spun", "a"])
async def a_thousand_yields_beside_a_step(ctx: restate.Context) -> list[str]:
    async def spins() -> str:
        for _ in range(1000):
            await asyncio.sleep(0)
        return "spun"

    return await asyncio.gather(spins(), chain("a"))


@scenario(["thread", "thread", "a"])
async def threads_outside_of_steps(ctx: restate.Context) -> list[str]:
    async def calls(tag: str) -> str:
        await work(f"before {tag}")
        found = await asyncio.to_thread(pace.block)
        await work(f"after {tag}")
        return found

    return await asyncio.gather(calls("x"), calls("y"), chain("a"))


@scenario([["thread", "thread"], "a"])
async def anyio_threads_outside_of_steps(ctx: restate.Context) -> list[Any]:
    found: list[str] = []

    async def calls(tag: str) -> None:
        found.append(await anyio.to_thread.run_sync(pace.block))
        await work(f"after {tag}")

    async with anyio.create_task_group() as group:
        group.start_soon(calls, "x")
        group.start_soon(calls, "y")
        last = await chain("a")
    return [found, last]


@scenario(["read", "read", "a"])
async def local_operations_beside_steps(ctx: restate.Context) -> list[str]:
    async def reads() -> str:
        # On the server's loop, where a sleep is not a durable timer.
        await pace.wait()
        return "read"

    async def uses(tag: str) -> str:
        await work(f"before {tag}")
        found = await rs.local(reads())
        await work(f"after {tag}")
        return found

    return await asyncio.gather(uses("x"), uses("y"), chain("a"))


@scenario(["settings", "settings", "a"])
async def a_cache_of_the_process(ctx: restate.Context) -> list[str]:
    async def settings() -> str:
        if "settings" not in process_cache:
            await hop()
            await asyncio.to_thread(pace.block)
            process_cache["settings"] = "settings"
        return str(process_cache["settings"])

    async def uses(tag: str) -> str:
        await work(f"before {tag}")
        found = await settings()
        await work(f"after {tag}")
        return found

    return await asyncio.gather(uses("x"), uses("y"), chain("a"))


@scenario(["a", "b", "c"])
async def sync_steps_in_tasks(ctx: restate.Context) -> list[str]:
    async def sync_chain(tag: str) -> str:
        await sync_work(f"{tag}0")
        await hop()
        await sync_work(f"{tag}1")
        return tag

    return await asyncio.gather(sync_chain("a"), sync_chain("b"), chain("c"))


variable: contextvars.ContextVar[str] = contextvars.ContextVar("plain_variable", default="unset")


@durable_step
async def read_variable() -> str:
    await pace.wait()
    return variable.get()


@scenario(["a", "b", "outer"])
async def context_variables_of_tasks(ctx: restate.Context) -> list[str]:
    async def sets(value: str) -> str:
        variable.set(value)
        await chain(value, 1)
        assert variable.get() == value
        return await read_variable()

    variable.set("outer")
    tasks = [asyncio.create_task(sets(value)) for value in "ab"]
    return [*await asyncio.gather(*tasks), variable.get()]


@scenario(["a", "b", "c"])
async def eager_tasks(ctx: restate.Context) -> list[str]:
    if sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    first = asyncio.create_task(chain("a"))
    found = await asyncio.gather(work("b"), chain("c"))
    return [await first, *found]


# --- generators and garbage -----------------------------------------------------------------------------------------


async def pages(tag: str) -> AsyncIterator[str]:
    """Yield a page a step, and close with a step."""
    try:
        for number in range(3):
            yield await work(f"{tag}{number}")
            await hop()
    finally:
        await hop()
        await work(f"close {tag}")


@scenario([["a0", "a1", "a2"], "b0", "c"])
async def async_generators_one_of_them_dropped(ctx: restate.Context) -> list[Any]:
    async def all_of(tag: str) -> list[str]:
        return [page async for page in pages(tag)]

    async def first_of(tag: str) -> str:
        async for page in pages(tag):
            return page
        return "empty"

    found = await asyncio.gather(all_of("a"), first_of("b"), chain("c"))
    return list(found)


class Holder:
    """Holds a generator that holds it: only the garbage collector frees the two."""

    generator: AsyncIterator[str]


async def drop_in_a_cycle(make: Callable[[Holder], AsyncIterator[str]]) -> str:
    """Return the first value of a generator, and leave it suspended in a reference cycle."""
    holder = Holder()
    holder.generator = make(holder)
    return await anext(holder.generator)


@scenario(["x0", "a", "b"])
async def a_generator_collected_at_random(ctx: restate.Context) -> list[str]:
    async def numbers(holder: Holder) -> AsyncIterator[str]:
        try:
            yield await work("x0")
            yield await work("x1")
        finally:
            await hop()
            del holder

    first = await drop_in_a_cycle(numbers)

    async def collects(tag: str) -> str:
        for number in range(2):
            pace.collect()
            await work(f"{tag}{number}")
        return tag

    return [first, *await asyncio.gather(collects("a"), collects("b"))]


@scenario(["x0", "a", "b"])
async def a_generator_collected_at_random_that_closes_with_a_step(ctx: restate.Context) -> list[str]:
    async def numbers(holder: Holder) -> AsyncIterator[str]:
        try:
            yield await work("x0")
            yield await work("x1")
        finally:
            await work("close x")
            del holder

    first = await drop_in_a_cycle(numbers)

    async def collects(tag: str) -> str:
        for number in range(2):
            await work(f"{tag}{number}")
            pace.collect()
        return tag

    return [first, *await asyncio.gather(collects("a"), collects("b"))]


class Resource:
    """Something that is finalized."""

    peer: Resource | None = None


@scenario(["released", "a"])
async def objects_with_finalizers(ctx: restate.Context) -> list[str]:
    released, cache = asyncio.Event(), weakref.WeakValueDictionary[str, Resource]()
    collected: list[str] = []

    async def uses() -> str:
        resource = Resource()
        cache["used"] = resource
        # Reference counting ends it at the same place in every attempt.
        weakref.finalize(resource, released.set)
        await work("use")
        del resource
        assert "used" not in cache
        # The garbage collector ends these two at a random moment, on which nothing may depend.
        first, second = Resource(), Resource()
        first.peer, second.peer = second, first
        weakref.finalize(first, collected.append, "first")
        del first, second
        pace.collect()
        return await work("used")

    async def waits() -> str:
        await released.wait()
        await work("was released")
        pace.collect()
        return "released"

    _, found, last = await asyncio.gather(uses(), waits(), chain("a"))
    return [found, last]


# --- anyio ----------------------------------------------------------------------------------------------------------


@scenario(["a", "b", "c", "main"])
async def an_anyio_task_group(ctx: restate.Context) -> list[str]:
    found: list[str] = []

    async def adds(tag: str) -> None:
        found.append(await chain(tag))

    async with anyio.create_task_group() as group:
        for tag in "abc":
            group.start_soon(adds, tag)
        main = await work("main")
    return [*sorted(found), main]


@scenario(["a", "after"], ["moved on", "after"])
async def anyio_move_on_after(ctx: restate.Context) -> list[str]:
    found = ""
    with anyio.move_on_after(MOMENT) as scope:
        found = await chain("a")
    return ["moved on" if scope.cancelled_caught else found, await work("after")]


@scenario("in time", "late, undone")
async def anyio_fail_after_with_a_shielded_undo(ctx: restate.Context) -> str:
    undone: list[str] = []
    try:
        with anyio.fail_after(MOMENT):
            try:
                await chain("a")
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await hop()
                    undone.append(await work("undone"))
                raise
    except TimeoutError:
        return f"late, {undone[0]}"
    return "in time"


@scenario(*([*each, "a after", "b after"] for each in subsets("a", "b")))
async def anyio_nested_scopes(ctx: restate.Context) -> list[str]:
    scopes: list[anyio.CancelScope] = []
    ended: list[str] = []
    after: list[str] = []

    async def inner(tag: str) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            try:
                ended.append(await chain(tag, 3))
            finally:
                with anyio.CancelScope(shield=True):
                    await work(f"clean {tag}")
        after.append(await work(f"{tag} after"))

    async def cancels() -> None:
        await chain("enough", 1)
        for scope in scopes:
            scope.cancel()

    with anyio.CancelScope():
        async with anyio.create_task_group() as group:
            group.start_soon(inner, "a")
            group.start_soon(inner, "b")
            group.start_soon(cancels)
    return [*sorted(ended), *sorted(after)]


@scenario(*([*each, "after"] for each in subsets("a", "b", "c")))
async def an_anyio_group_that_is_cancelled(ctx: restate.Context) -> list[str]:
    ended: list[str] = []

    async def inner(tag: str) -> None:
        # A group inside makes scopes that the cancellation reaches through their parents.
        async with anyio.create_task_group() as inside:
            inside.start_soon(chain, f"{tag}'", 2)
            await chain(tag)
        ended.append(tag)

    async with anyio.create_task_group() as group:
        for tag in "abc":
            group.start_soon(inner, tag)
        await work("enough")
        group.cancel_scope.cancel()
    return [*sorted(ended), await work("after")]


@scenario(["0", "1", "2", "3"])
async def anyio_memory_streams(ctx: restate.Context) -> list[str]:
    send, receive = anyio.create_memory_object_stream[str](1)
    got: list[str] = []

    async def produce() -> None:
        with send:
            for number in range(4):
                await send.send(await work(f"{number}"))

    async def consume(name: str) -> None:
        async for item in receive:
            await work(f"{name} got {item}")
            got.append(item)

    with send, receive:
        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            group.start_soon(consume, "first")
            group.start_soon(consume, "second")
    return sorted(got)


@scenario(["a", "b", "c"])
async def an_anyio_capacity_limiter(ctx: restate.Context) -> list[str]:
    limiter, running, found = anyio.CapacityLimiter(2), 0, list[str]()

    async def bounded(tag: str) -> None:
        nonlocal running
        async with limiter:
            running += 1
            assert running <= 2
            try:
                found.append(await chain(tag, 1))
            finally:
                running -= 1

    async with anyio.create_task_group() as group:
        for tag in "abc":
            group.start_soon(bounded, tag)
    return sorted(found)


@scenario(*orders("ab"))
async def an_anyio_event_and_lock(ctx: restate.Context) -> list[str]:
    event, lock, held = anyio.Event(), anyio.Lock(), list[str]()

    async def locked(tag: str) -> None:
        await work(f"before {tag}")
        await event.wait()
        async with lock:
            held.append(tag)
            await work(f"locked {tag}")
            assert held[-1] == tag

    async with anyio.create_task_group() as group:
        group.start_soon(locked, "a")
        group.start_soon(locked, "b")
        await chain("prepare", 1)
        event.set()
    return held


@scenario(["listening", "answered", "served"])
async def an_anyio_task_that_says_it_has_started(ctx: restate.Context) -> list[str]:
    served: list[str] = []

    async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        task_status.started(await work("listening"))
        served.append(await chain("served"))

    async with anyio.create_task_group() as group:
        address = await group.start(serve)
        answer = await work("answered")
    return [address, answer, *served]


# --- what the SDK gives -----------------------------------------------------------------------------------------------


@scenario(*([*each, "c"] for each in itertools.product(("a", "late"), ("b", "late"))), needs_ctx=True)
async def select_in_tasks(ctx: restate.Context) -> list[str]:
    async def selects(tag: str) -> str:
        match await restate.select(step=ctx.run_typed(tag, constant(tag)), late=ctx.sleep(SOON)):
            case ["step", found]:
                return str(found)
            case _:
                return await work(f"{tag} was late") and "late"

    return await asyncio.gather(selects("a"), selects("b"), chain("c"))


@scenario([["a0", "a1"], ["b0", "b1"], "c"], needs_ctx=True)
async def sdk_gather_in_tasks(ctx: restate.Context) -> list[Any]:
    async def gathers(tag: str) -> list[str]:
        futures = [ctx.run_typed(f"{tag}{number}", constant(f"{tag}{number}")) for number in range(2)]
        await restate.gather(*futures)
        await hop()
        return [await future for future in futures]

    found = await asyncio.gather(gathers("a"), gathers("b"), chain("c"))
    return list(found)


@service.handler()
async def echo(ctx: restate.Context, text: str) -> str:
    return await work(text)


@scenario(["x", "yy", "a"], needs_ctx=True)
async def calls_beside_steps(ctx: restate.Context) -> list[str]:
    async def calls(text: str) -> str:
        first = await ctx.service_call(echo, arg=text)
        return first + await ctx.service_call(echo, arg=text)

    return await asyncio.gather(ctx.service_call(echo, arg="x"), calls("y"), chain("a"))


@scenario(["a", "b", "tags"], on=keyed, needs_ctx=True, key="k")
async def state_in_tasks(ctx: restate.ObjectContext) -> list[str]:
    async def adds(tag: str) -> None:
        found = await ctx.get("tags", type_hint=list[str]) or []
        ctx.set("tags", [*found, tag])
        await work(tag)
        ctx.set(tag, await ctx.get("tags", type_hint=list[str]))

    await asyncio.gather(adds("a"), adds("b"))
    return sorted(await ctx.state_keys())


@scenario(["shared a", "shared b", "shared"], needs_ctx=True)
async def two_tasks_await_one_durable_future(ctx: restate.Context) -> list[str]:
    future = ctx.run_typed("shared", constant("shared"))

    async def uses(tag: str) -> str:
        await hop()
        return f"{await future} {await work(tag)}"

    return [*await asyncio.gather(uses("a"), uses("b")), await future]


async def await_after_a_cancelled_task(future: Awaitable[str]) -> list[str]:
    """Await something in a task, cancel the task, and await the same again."""

    async def awaits() -> str:
        return await future

    first = asyncio.create_task(awaits())
    await work("a")
    first.cancel()
    unless_cancelled(await asyncio.gather(first, return_exceptions=True))
    return [await work("b"), await future]


@scenario(["b", "answer"], needs_ctx=True)
async def a_durable_future_awaited_again(ctx: restate.Context) -> list[str]:
    return await await_after_a_cancelled_task(ctx.run_typed("answer", constant("answer")))


@scenario(["b", "answer"], needs_ctx=True)
async def a_started_step_awaited_again(ctx: restate.Context) -> list[str]:
    return await await_after_a_cancelled_task(work.start("answer"))


# --- the cancellation of the invocation -----------------------------------------------------------------------------


@scenario("finished", "undone", ends_cancelled=False)
async def a_saga_of_tasks(ctx: restate.Context) -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(chain("a"))
            group.create_task(chain("b"))
    except* restate.TerminalError:
        await asyncio.gather(work("undo a"), work("undo b"))
    else:
        return "finished"
    await work("report")
    return "undone"


@scenario("finished", "undone", ends_cancelled=False)
async def a_saga_of_anyio(ctx: restate.Context) -> str:
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(chain, "a")
            group.start_soon(chain, "b")
    except* restate.TerminalError:
        async with anyio.create_task_group() as group:
            group.start_soon(work, "undo a")
            group.start_soon(work, "undo b")
    else:
        return "finished"
    await asyncio.gather(work("report a"), work("report b"))
    return "undone"


@scenario("finished", "undone", ends_cancelled=False)
async def a_saga_of_groups_in_groups(ctx: restate.Context) -> str:
    async def books(tag: str) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(chain(f"{tag}1"))
                group.create_task(chain(f"{tag}2"))
        except* restate.TerminalError:
            await work(f"undo {tag}")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(books("a"))
            group.create_task(books("b"))
    except* restate.TerminalError:
        await work("undo all")
    else:
        return "finished"
    await work("report")
    return "undone"


@scenario("finished", "undone abc", ends_cancelled=False, needs_ctx=True)
async def tasks_that_share_a_future_undo(ctx: restate.Context) -> str:
    shared = work.start("shared")
    undone: list[str] = []

    async def uses(tag: str) -> None:
        try:
            await shared
        except restate.TerminalError:
            for number in range(2):
                await work(f"undo {tag}{number}")
            undone.append(tag)
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for tag in "abc":
                group.create_task(uses(tag))
    except* restate.TerminalError:
        pass
    return f"undone {''.join(sorted(undone))}" if undone else "finished"


@scenario("finished", "cancelled", ends_cancelled=False)
async def workers_of_a_queue_that_is_joined(ctx: restate.Context) -> str:
    queue: asyncio.Queue[str] = asyncio.Queue()
    for tag in "abc":
        queue.put_nowait(tag)

    async def works() -> None:
        while True:
            await work(await queue.get())
            queue.task_done()

    workers = [asyncio.create_task(works()) for _ in range(2)]
    try:
        await queue.join()
    except restate.TerminalError:
        return await work("cancelled")
    for worker in workers:
        worker.cancel()
    return "finished"


@scenario("finished", *("undone " + "".join(each) for each in subsets("a", "b")), ends_cancelled=False, needs_ctx=True)
async def every_task_undoes(ctx: restate.Context) -> str:
    undone: list[str] = []

    async def books(tag: str) -> None:
        try:
            await work(tag)
            await ctx.sleep(SOON)
        except restate.TerminalError:
            await asyncio.gather(work(f"undo {tag}"), hop())
            undone.append(tag)
            raise

    found = await asyncio.gather(books("a"), books("b"), return_exceptions=True)
    if any(isinstance(each, restate.TerminalError) for each in found):
        return f"undone {''.join(sorted(undone))}"
    return "finished"
