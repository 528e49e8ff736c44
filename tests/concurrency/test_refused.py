"""Plain asyncio over durable waits works; what cannot be replayed is refused with a clear error, never a hang (B7)."""

from __future__ import annotations

import asyncio
import contextvars
import random
import signal
import socket
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import ConcurrencyError, TaskGroup, durable_step, gather, race, wait_for
from restate_steps._loop import _driver
from restate_steps.testing import explore, simulate


@durable_step(name="step {tag}")
async def step(tag: str) -> str:
    return tag


@durable_step(name="slow step {tag}")
async def slow_step(tag: str) -> str:
    await asyncio.sleep(0.01)
    return tag


Body = Callable[[restate.Context], Awaitable[Any]]


@dataclass
class Attempt:
    """How the first attempt of a handler ended."""

    status: str
    failure: str
    journal: list[str]


# A failed attempt is retried half a second later, so that one attempt is seen.
ONE_ATTEMPT = timedelta(milliseconds=400)


def served(body: Body, app: Any = restate_steps.app) -> Any:
    service = restate.Service("Refused")

    @service.handler()
    async def handler(ctx: restate.Context) -> Any:
        return await body(ctx)

    return app([service])


async def attempt(body: Body, app: Any = restate_steps.app) -> Attempt:
    async with simulate(served(body, app)) as sim:
        invocation = await sim.send("Refused/handler")
        await sim.advance(ONE_ATTEMPT)
        assert invocation.attempts == 1
        return Attempt(invocation.status, invocation.last_failure or "", [entry.type for entry in invocation.journal])


async def refusal(body: Body, app: Any = restate_steps.app, *, paused: bool = True) -> str:
    """Return the message of the ConcurrencyError with which the attempt ends."""
    ended = await attempt(body, app)
    assert ended.status == ("paused" if paused else "backing-off"), str(ended)
    assert "ConcurrencyError" in ended.failure, ended.failure
    return ended.failure


def answers(body: Body, *expected: Any) -> None:
    """Check that a body gives one of the answers, in every order of events and after every crash."""
    report = explore(served(body), "Refused/handler", max_runs=150, max_seconds=10, progress=False)
    report.assert_replay_safe()
    found = [outcome.value for outcome, _ in report.outcomes]
    assert all(value in expected for value in found), found


# --- plain asyncio works ----------------------------------------------------------------------------------------------


def test_plain_gather_of_steps() -> None:
    """asyncio.gather over steps, in the handler and in a branch of its own."""

    async def branch() -> list[str]:
        return await asyncio.gather(step("a"), step("b"))

    async def body(ctx: restate.Context) -> Any:
        return [await branch(), *await gather(branch(), step("c"))]

    answers(body, [["a", "b"], ["a", "b"], "c"])


def test_a_plain_task_that_issues_commands_beside_a_group() -> None:
    """A task started with asyncio.create_task adds to the journal while others wait."""

    async def background(ctx: restate.Context) -> str:
        await asyncio.sleep(0.001)
        await ctx.sleep(timedelta(seconds=1))
        return await step("background")

    async def body(ctx: restate.Context) -> Any:
        async with TaskGroup() as group:
            first = group.create_task(slow_step("a"))
            task = asyncio.create_task(background(ctx))
            await step("b")
        return [first.result(), await task]

    answers(body, ["a", "background"])


def test_a_group_opened_while_a_step_is_awaited_elsewhere() -> None:
    """A group beside a step that a plain task awaits."""

    async def body(ctx: restate.Context) -> Any:
        plain = asyncio.create_task(slow_step("plain"))
        await asyncio.sleep(0)
        return [*await gather(step("a"), step("b")), await plain]

    answers(body, ["a", "b", "plain"])


def test_a_group_in_a_plain_task() -> None:
    """A task group that a plain task opens, and one that such a task gets from its maker."""

    async def opens() -> list[str]:
        async with TaskGroup() as group:
            tasks = [group.create_task(step(tag)) for tag in "ab"]
        return [task.result() for task in tasks]

    async def adds(group: TaskGroup) -> None:
        group.create_task(step("added"))

    async def body(ctx: restate.Context) -> Any:
        async with TaskGroup() as group:
            await asyncio.create_task(adds(group))
            group.create_task(step("own"))
        return await asyncio.gather(opens(), opens())

    answers(body, [["a", "b"], ["a", "b"]])


def timed_by_timeout(ctx: restate.Context) -> Awaitable[Any]:
    async def timed() -> Any:
        async with asyncio.timeout(5):
            return await ctx.awakeable()[1]

    return timed()


def timed_by_wait_for(ctx: restate.Context) -> Awaitable[Any]:
    async def timed() -> Any:
        return await asyncio.wait_for(ctx.awakeable()[1], 5)

    return timed()


@pytest.mark.parametrize("inside", ["branch", "handler"])
@pytest.mark.parametrize("timed", [timed_by_timeout, timed_by_wait_for])
def test_a_plain_timeout_around_a_durable_wait(timed: Callable[[restate.Context], Awaitable[Any]], inside: str) -> None:
    """asyncio.timeout and asyncio.wait_for are durable timers."""

    async def tries(ctx: restate.Context) -> str:
        try:
            await timed(ctx)
        except TimeoutError:
            return await step("too late")
        return "in time"

    async def body(ctx: restate.Context) -> Any:
        if inside == "branch":
            return list(await gather(tries(ctx), step("a")))
        async with TaskGroup() as group:
            task = group.create_task(step("a"))
            first = await tries(ctx)
        return [first, task.result()]

    answers(body, ["too late", "a"])


def test_a_plain_timeout_around_a_step() -> None:
    """The timer or the step comes first in the journal, and every replay agrees."""

    async def body(ctx: restate.Context) -> Any:
        try:
            async with asyncio.timeout(5):
                found = await step("in time")
        except TimeoutError:
            return await step("too late")
        return [found, await step("after")]

    answers(body, "too late", ["in time", "after"])


def test_an_event_set_by_another_task() -> None:
    """Tasks of one handler wake each other."""

    async def waits(event: asyncio.Event) -> str:
        await event.wait()
        return await step("woken")

    async def sets(event: asyncio.Event) -> str:
        found = await step("sets")
        event.set()
        return found

    async def body(ctx: restate.Context) -> Any:
        event = asyncio.Event()
        plain = asyncio.create_task(waits(event))
        return [*await gather(waits(event), sets(event), waits(event)), await plain]

    answers(body, ["woken", "sets", "woken", "woken"])


def test_a_future_set_by_another_task() -> None:
    """A bare future works as well as a primitive that is built on one."""

    async def body(ctx: restate.Context) -> Any:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def waits() -> str:
            return await future

        async def sets() -> None:
            future.set_result(await step("a"))

        return list(await gather(waits(), sets()))

    answers(body, ["a", None])


def test_a_plain_wait_for_around_a_lock() -> None:
    """Who gets the lock, and whether in time, is the journal's to say."""

    async def holds(lock: asyncio.Lock) -> None:
        async with lock:
            await step("hold")

    async def tries(lock: asyncio.Lock) -> str:
        await step("first")
        try:
            await asyncio.wait_for(lock.acquire(), 5)
        except TimeoutError:
            return "gave up"
        lock.release()
        return "got it"

    async def body(ctx: restate.Context) -> Any:
        lock = asyncio.Lock()
        return list(await gather(holds(lock), tries(lock)))

    answers(body, [None, "gave up"], [None, "got it"])


def test_tasks_in_the_order_of_their_completion() -> None:
    """asyncio.as_completed over a list has the journal's order."""

    async def body(ctx: restate.Context) -> Any:
        return sorted([await each for each in asyncio.as_completed([step("a"), step("b"), step("c")])])

    answers(body, ["a", "b", "c"])


class Awaits:
    """An awaitable that is neither a coroutine nor a future."""

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def __await__(self) -> Generator[Any, Any, str]:
        return step(self.tag).__await__()


@pytest.mark.parametrize(
    "given",
    [
        lambda: deque([step(tag) for tag in "abcdef"]),
        lambda: {tag: step(tag) for tag in "abcdef"}.values(),
        lambda: [Awaits(tag) for tag in "abcdef"],
        lambda: [step(tag) if tag < "d" else Awaits(tag) for tag in "abcdef"],
    ],
    ids=["deque", "values of a dict", "other awaitables", "both kinds"],
)
def test_as_completed_keeps_the_order_of_what_it_is_given(given: Callable[[], Any]) -> None:
    """Whatever has an order is begun in that order; asyncio makes a set of it, in the order of addresses."""

    async def body(ctx: restate.Context) -> Any:
        # So that addresses differ from one attempt to the next.
        kept.append([object() for _ in range(random.randrange(500))])
        first = sorted([await each for each in asyncio.as_completed(given())])
        return first + sorted([await each for each in asyncio.as_completed(given())])

    kept: list[Any] = []
    answers(body, [*"abcdef", *"abcdef"])


# --- what cannot be replayed ------------------------------------------------------------------------------------------


async def with_gather() -> None:
    await asyncio.gather(step("a"), step("b"))


async def with_create_task() -> None:
    task = asyncio.create_task(step("a"))
    await asyncio.sleep(0)
    try:
        await step("b")
    finally:
        task.cancel()


@pytest.mark.parametrize("together", [with_gather, with_create_task])
async def test_plain_tasks_under_restate_app(together: Callable[[], Awaitable[None]]) -> None:
    """Without the handler loop their order depends on timing; the message names the application that has it."""

    async def body(ctx: restate.Context) -> None:
        await together()

    assert "restate_steps.app instead of restate.app" in await refusal(body, restate.app)


async def test_a_group_under_restate_app_while_a_step_is_awaited() -> None:
    """A plain task awaits a step, so no handler loop can be opened beside it."""

    async def body(ctx: restate.Context) -> None:
        plain = asyncio.create_task(slow_step("plain"))
        await asyncio.sleep(0)
        try:
            await gather(step("a"), step("b"))
        finally:
            plain.cancel()

    assert "restate_steps.app instead of restate.app" in await refusal(body, restate.app)


async def test_a_handler_cannot_answer_with_a_local_timeout_under_restate_app() -> None:
    """The step's outcome is unknown when the local timer ends, so "timed out" must not become the answer."""

    async def body(ctx: restate.Context) -> str:
        try:
            async with asyncio.timeout(0.005):
                return await slow_step("a")
        except TimeoutError:
            return "timed out"

    message = await refusal(body, restate.app, paused=False)
    assert "was cancelled by a local timer or task" in message
    assert "restate_steps.app instead of restate.app" in message
    assert "step's own timeout= option" in message


async def test_a_wake_up_from_the_body_of_a_step() -> None:
    """A replay does not run the body, so the task would wait forever."""

    async def waits(event: asyncio.Event) -> None:
        await event.wait()
        await step("woken")

    async def body(ctx: restate.Context) -> None:
        event = asyncio.Event()

        @durable_step
        async def sets() -> None:
            event.set()
            await asyncio.sleep(0)

        await gather(waits(event), sets(), ctx.awakeable()[1])

    message = await refusal(body)
    assert "was woken by the body of step 'sets'" in message
    assert "for Event.wait in test_a_wake_up_from_the_body_of_a_step" in message
    assert "Return the value from a step" in message


async def wakes_from_a_thread(ctx: restate.Context, wake: Callable[[Callable[[], Any]], None]) -> None:
    """Wait for a future that a thread sets while a step's body runs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    begun = threading.Event()

    def thread() -> None:
        begun.wait()
        wake(lambda: loop.call_soon_threadsafe(future.set_result, None))

    @durable_step
    async def body() -> None:
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, started.join)
        await asyncio.sleep(0.01)

    started = threading.Thread(target=contextvars.copy_context().run, args=(thread,))
    started.start()
    await gather(body(), _await(future))


async def test_a_wake_up_from_a_thread() -> None:
    """A thread that the handler does not wait for comes before or after the step by chance."""

    async def body(ctx: restate.Context) -> None:
        await wakes_from_a_thread(ctx, lambda wake: wake())

    message = await refusal(body, paused=False)
    assert "was woken by a thread, a callback or a task of the server's event loop" in message
    assert "wait for it with an awakeable" in message


async def test_a_wake_up_from_a_thread_that_belongs_to_nothing() -> None:
    """The error is raised in the thread, and the handler does not wait forever."""
    errors: list[str] = []

    def wake(call: Callable[[], Any]) -> None:
        try:
            contextvars.Context().run(call)
        except ConcurrencyError as error:
            errors.append(str(error))

    async def body(ctx: restate.Context) -> None:
        await wakes_from_a_thread(ctx, wake)

    assert "nothing is left that could wake one" in await refusal(body)
    assert ["used by code that does not belong to the handler" in error for error in errors] == [True]


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def test_a_wake_up_from_a_task_of_the_servers_loop() -> None:
    """While something durable is pending, it would come before or after that by chance."""

    async def waits(event: asyncio.Event) -> None:
        await event.wait()
        await step("woken")

    async def body(ctx: restate.Context) -> None:
        event = asyncio.Event()

        begun = asyncio.Event()

        @durable_step
        async def lets_go() -> None:
            begun.set()
            await asyncio.sleep(0.01)

        async def sets() -> None:
            await begun.wait()
            event.set()

        async def starts() -> None:
            tasks.append(asyncio.create_task(sets()))

        await restate_steps.local(starts())
        await gather(waits(event), lets_go())

    tasks: list[asyncio.Task[None]] = []
    message = await refusal(body, paused=False)
    assert "was woken by a thread, a callback or a task of the server's event loop" in message
    assert "wait for it with an awakeable" in message
    assert "test_refused.py" in message


async def test_the_context_in_another_thread() -> None:
    """An event loop in a thread cannot add to the handler's journal."""

    async def body(ctx: restate.Context) -> None:
        await step("before")
        await asyncio.to_thread(lambda: asyncio.run(step("in a thread")))

    for app in (restate.app, restate_steps.app):
        ended = await attempt(body, app)
        assert "another thread" in ended.failure or "by another thread, event loop" in ended.failure
        assert ended.status != "completed"
        assert ended.journal.count("Command: Run") == 1


async def test_the_context_in_a_task_of_the_servers_loop() -> None:
    """A task that a local operation leaves behind cannot add to the journal."""

    async def later(ctx: restate.Context) -> None:
        await asyncio.sleep(0)
        ctx.sleep(timedelta(seconds=1))

    async def body(ctx: restate.Context) -> None:
        async def starts() -> None:
            tasks.append(asyncio.create_task(later(ctx)))

        await restate_steps.local(starts())
        await ctx.awakeable()[1]

    tasks: list[asyncio.Task[None]] = []
    ended = await attempt(body)
    assert "(sys_sleep) was called outside of the handler's code" in ended.failure
    assert "Command: Sleep" not in ended.journal
    for task in tasks:
        with pytest.raises(ConcurrencyError):
            await task


async def test_tasks_that_wait_for_each_other() -> None:
    """A deadlock on locks is seen at once, and the message says which task waits where."""

    async def takes(first: asyncio.Lock, second: asyncio.Lock, tag: str) -> None:
        async with first:
            await step(tag)
            async with second:
                await step(f"{tag}!")

    async def body(ctx: restate.Context) -> None:
        one, two = asyncio.Lock(), asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            group.create_task(takes(one, two, "a"), name="first")
            group.create_task(takes(two, one, "b"), name="second")

    message = await refusal(body)
    assert "nothing is left that could wake one" in message
    for name in ("first", "second"):
        assert f"task '{name}' waits for Lock.acquire in test_tasks_that_wait_for_each_other.<locals>.takes" in message
    assert "test_refused.py:" in message


async def test_a_handler_that_waits_for_an_event_that_nothing_sets() -> None:
    """The handler's own coroutine is named as well."""

    async def body(ctx: restate.Context) -> None:
        async with TaskGroup() as group:
            group.create_task(step("a"))
            await asyncio.Event().wait()

    message = await refusal(body)
    assert "nothing is left that could wake one: task 'handler' waits for Event.wait" in message


async def test_a_local_operation_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local wait that only another task could end is refused after a while."""
    monkeypatch.setattr(_driver, "STALL_LIMIT_SECONDS", 0.03)

    async def body(ctx: restate.Context) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def waits() -> None:
            event = asyncio.Event()
            await restate_steps.local(event.wait())

        async def sets() -> None:
            await step("a")
            future.set_result(None)

        await gather(sets(), waits())

    message = await refusal(body, paused=False)
    assert "a local operation has blocked the rest of the handler" in message
    assert "Put a slow operation into a step" in message
    assert "test_refused.py:" in message


async def sends_a_request() -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", 1)
    del reader, writer


async def listens() -> None:
    await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)


async def reads_a_socket() -> None:
    one, two = socket.socketpair()
    with one, two:
        one.setblocking(False)
        await asyncio.get_running_loop().sock_recv(one, 1)


async def watches_a_socket() -> None:
    one, two = socket.socketpair()
    with one, two:
        asyncio.get_running_loop().add_reader(one, lambda: None)


async def starts_a_process() -> None:
    await asyncio.create_subprocess_exec("true")


async def starts_a_shell() -> None:
    await asyncio.create_subprocess_shell("true")


async def handles_a_signal() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)


IO = [
    sends_a_request,
    listens,
    reads_a_socket,
    watches_a_socket,
    starts_a_process,
    starts_a_shell,
    handles_a_signal,
]


@pytest.mark.parametrize("does", IO)
async def test_sockets_processes_and_signals(does: Callable[[], Awaitable[None]]) -> None:
    """When they have something to say is not in the journal; the message says where they are used, and what to do."""

    async def body(ctx: restate.Context) -> None:
        await step("before")
        await does()

    message = await refusal(body)
    assert "was called outside of a step, at " in message
    assert "test_refused.py:" in message
    assert f"({does.__name__})" in message
    assert "Put the work into a step" in message
    assert "restate_steps.local" in message


async def test_sockets_and_processes_in_a_local_operation() -> None:
    """The advice of the message works."""

    async def echoes() -> str:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            found = await reader.read()
            writer.close()
            return found.decode()

    async def body(ctx: restate.Context) -> Any:
        return list(await asyncio.gather(restate_steps.local(echoes()), step("a")))

    ended = await attempt(body)
    assert ended.status == "completed", str(ended)


@pytest.mark.parametrize(
    "given", [set, frozenset, iter, weakref.WeakSet], ids=["set", "frozenset", "iterator", "weak set"]
)
async def test_as_completed_of_what_has_no_order(given: Callable[[Any], Any]) -> None:
    """The order of coroutines in a set is that of their addresses, which no replay repeats; an iterator is used up."""

    async def body(ctx: restate.Context) -> None:
        coros = [step("a"), step("b")]
        try:
            for each in asyncio.as_completed(given(coros)):
                await each
        finally:
            for coro in coros:
                coro.close()

    message = await refusal(body)
    assert "asyncio.as_completed was given coroutines that are not in a list, at " in message
    assert "test_refused.py:" in message
    assert "restate_steps.as_completed" in message


async def test_things_that_are_not_awaitables() -> None:
    """A function passed uncalled is told from a coroutine, and the coroutines beside it are closed."""
    with pytest.raises(TypeError, match=r"quote\(order\), not quote"):
        await gather(step("a"), step)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="at least one"):
        await race()
    with pytest.raises(TypeError, match="Call the function"):
        await wait_for(step, 1)  # type: ignore[arg-type]


# --- a refusal is final, whatever the handler makes of it -------------------------------------------------------------


async def test_a_handler_cannot_answer_with_a_swallowed_refusal() -> None:
    """Neither by catching the error around the group, nor in a task, nor as a value of asyncio.gather."""

    async def connects() -> str | None:
        try:
            await sends_a_request()
        except Exception:
            return None
        return "connected"

    async def around(ctx: restate.Context) -> str:
        try:
            await gather(connects(), step("a"))
        except Exception:
            return "order failed"
        return "done"

    async def in_a_group(ctx: restate.Context) -> str:
        async with TaskGroup() as group:
            task = group.create_task(connects())
        return f"done: {task.result()}"

    async def as_a_value(ctx: restate.Context) -> Any:
        return [str(each) for each in await asyncio.gather(sends_a_request(), step("b"), return_exceptions=True)]

    async def whatever_it_is(ctx: restate.Context) -> str:
        try:
            await sends_a_request()
        except BaseException:
            return await step("after all")
        return "connected"

    for body in (around, in_a_group, as_a_value, whatever_it_is):
        assert "create_connection was called outside of a step" in await refusal(body)


async def test_a_handler_cannot_answer_with_a_swallowed_refusal_under_restate_app() -> None:
    """Steps as values of asyncio.gather, one of which is the refusal."""

    async def body(ctx: restate.Context) -> Any:
        return [str(each) for each in await asyncio.gather(step("a"), step("b"), return_exceptions=True)]

    assert "restate_steps.app instead of restate.app" in await refusal(body, restate.app)


async def test_a_journaled_value_that_does_not_fit_cannot_become_an_answer() -> None:
    """A handler that catches every exception does not end with a falsehood after a bad deploy."""
    service, deployed = restate.Service("Refused"), []

    @durable_step(returns=int, verify=False, name="value")
    async def value() -> Any:
        return 1

    changed = value.with_options(returns=list[str])

    @service.handler()
    async def handler(ctx: restate.Context) -> str:
        try:
            await (changed() if deployed else value())
        except Exception:
            return "payment failed"
        await ctx.sleep(timedelta(days=1))
        return "fine"

    async with simulate(restate_steps.app([service])) as sim:
        invocation = await sim.send(handler)
        deployed.append("the second version")
        await sim.crash()
        assert invocation.status == "backing-off"
        assert "the journaled result of step 'value' does not fit list[str]" in (invocation.last_failure or "")


@pytest.mark.parametrize("app", [restate.app, restate_steps.app], ids=["restate.app", "restate_steps.app"])
async def test_a_cancellation_that_nothing_asked_for(app: Any) -> None:
    """Awaiting a cancelled task at the top of a handler: an error that says so, instead of an attempt without end."""

    async def nothing() -> None:
        await asyncio.sleep(0)

    async def body(ctx: restate.Context) -> None:
        await step("before")
        task = asyncio.create_task(nothing())
        task.cancel()
        await task

    message = await refusal(body, app)
    assert "the handler ended with asyncio.CancelledError although its invocation was not cancelled" in message


async def test_a_body_that_raises_what_is_not_an_exception() -> None:
    """The SDK would wait for such a body forever; the step makes a failed attempt of it."""

    class Abort(BaseException):
        pass

    @durable_step
    async def aborts() -> None:
        raise Abort

    async def body(ctx: restate.Context) -> None:
        await gather(aborts(), step("a"))

    ended = await attempt(body)
    assert ended.status == "backing-off"
    assert "which is no" in ended.failure
