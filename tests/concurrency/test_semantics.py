"""Names and meanings are asyncio's: the same code gives the same answer in a handler and outside one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
import restate_steps as rs
from restate_steps import TaskGroup, as_completed, durable_step, gather, race, step_info, wait_for
from restate_steps.testing import Simulator, explore, simulate

Body = Callable[[], Awaitable[Any]]


async def inside(body: Body) -> Any:
    """Run ``body`` in a handler."""
    service = restate.Service("Semantics")

    @service.handler()
    async def handler(ctx: restate.Context) -> Any:
        return await body()

    async with simulate(restate_steps.app([service])) as sim:
        return (await sim.call(handler)).value


async def outside(body: Body) -> Any:
    """Run ``body`` as plain asyncio code."""
    return json.loads(json.dumps(await body()))


async def in_a_step(body: Body) -> Any:
    """Run ``body`` inside a step of a handler, where nothing else is journaled."""
    return await inside(durable_step(body))


@pytest.fixture(params=[inside, outside, in_a_step])
def run(request: pytest.FixtureRequest) -> Callable[[Body], Awaitable[Any]]:
    return request.param  # type: ignore[no-any-return]


@durable_step
async def step(value: Any) -> Any:
    for _ in range(3):
        await asyncio.sleep(0)
    return value


async def fail(message: str) -> None:
    await step("before")
    raise ValueError(message)


async def test_gather_returns_results_in_the_order_given(run: Any) -> None:
    """Whichever ends first, and for none at all."""

    async def body() -> Any:
        return [await gather(step(1), step(2), step(3)), await gather()]

    assert await run(body) == [[1, 2, 3], []]


async def test_gather_raises_the_users_own_exception(run: Any) -> None:
    """Not an ExceptionGroup; siblings have been cancelled, and have ended."""

    async def body() -> Any:
        ended = []

        async def sibling() -> None:
            try:
                while True:
                    await step("on")
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        try:
            await gather(sibling(), fail("mine"))
        except ValueError as error:
            return [str(error), ended]

    assert await run(body) == ["mine", ["cancelled"]]


async def test_gather_tells_of_further_failures(run: Any) -> None:
    """What else went wrong is a note on the exception that is raised."""

    async def body() -> Any:
        async def sibling() -> None:
            try:
                while True:
                    await step("on")
            except asyncio.CancelledError:
                raise KeyError("while cleaning up") from None

        try:
            await gather(sibling(), fail("first"))
        except ValueError as error:
            return error.__notes__

    assert await run(body) == ["another task failed as well: KeyError('while cleaning up')"]


async def test_gather_can_return_exceptions(run: Any) -> None:
    """With return_exceptions the others finish, and a cancelled branch counts as an exception."""

    async def body() -> Any:
        async def cancelled() -> None:
            await step("x")
            raise asyncio.CancelledError

        found = await gather(fail("a"), step("b"), cancelled(), return_exceptions=True)
        return [repr(result) for result in found]

    assert await run(body) == ["ValueError('a')", "'b'", "CancelledError()"]


async def test_race_raises_what_the_first_raised(run: Any) -> None:
    """A failure counts as finishing."""

    async def body() -> Any:
        async def slow() -> None:
            for _ in range(9):
                await step("slow")

        try:
            await race(slow(), fail("first"))
        except ValueError as error:
            return str(error)

    assert await run(body) == "first"


async def test_wait_for_gives_the_result_or_raises(run: Any) -> None:
    """In time the result or the exception; without a limit as well."""

    async def body() -> Any:
        try:
            await wait_for(fail("mine"), 30)
        except ValueError as error:
            return [await wait_for(step("x"), timedelta(seconds=30)), await wait_for(step("y"), None), str(error)]

    assert await run(body) == ["x", "y", "mine"]


async def test_wait_for_times_out(run: Any) -> None:
    """A TimeoutError, after the awaitable has been cancelled and has ended."""

    async def body() -> Any:
        ended = []

        async def forever() -> None:
            try:
                while True:
                    await step("tick")
                    if step_info_is_out_of_reach():
                        await asyncio.sleep(0.0001)
            finally:
                ended.append(True)

        try:
            await wait_for(forever(), 0.001)
        except TimeoutError as error:
            return [str(error), ended]

    assert await run(body) == ["not finished within 0.001 s", [True]]


def step_info_is_out_of_reach() -> bool:
    try:
        step_info()
    except RuntimeError:
        return True
    return True


async def test_task_group_hands_out_tasks(run: Any) -> None:
    """Tasks have asyncio's methods, and can be awaited inside the block."""

    async def body() -> Any:
        async with TaskGroup() as group:
            one = group.create_task(step(1), name="one")
            two = group.create_task(step(2))
            early = one.done()
            with pytest.raises(asyncio.InvalidStateError):
                one.result()
            first = await one
        return [early, first, two.result(), one.get_name(), two.exception(), two.cancelled(), two.cancel()]

    assert await run(body) == [False, 1, 2, "one", None, False, False]


async def test_task_group_task_can_be_cancelled(run: Any) -> None:
    """A cancelled task is no failure of the group."""

    async def body() -> Any:
        async def forever() -> None:
            while True:
                await step("on")

        async with TaskGroup() as group:
            task = group.create_task(forever())
            await step("a little later")
            task.cancel()
        return [task.cancelled(), task.done()]

    assert await run(body) == [True, True]


async def test_task_group_raises_the_failure_of_its_body(run: Any) -> None:
    """The tasks are cancelled and waited for."""

    async def body() -> Any:
        ended = []

        async def sibling() -> None:
            try:
                while True:
                    await step("on")
            finally:
                ended.append(1)

        try:
            async with TaskGroup() as group:
                group.create_task(sibling())
                await step("x")
                raise KeyError("body")
        except KeyError as error:
            return [repr(error), ended]

    assert await run(body) == ["KeyError('body')", [1]]


async def test_task_group_takes_no_task_when_it_is_over(run: Any) -> None:
    """As asyncio's; the coroutine is closed, so Python does not complain about it."""

    async def body() -> Any:
        group = TaskGroup()
        with pytest.raises(RuntimeError, match="has not been entered"):
            group.create_task(step(1))
        async with group:
            pass
        with pytest.raises(RuntimeError, match="is ending"):
            group.create_task(step(1))
        with pytest.raises(RuntimeError, match="has already been entered"):
            await group.__aenter__()
        return "refused"

    assert await run(body) == "refused"


async def test_as_completed_times_out(run: Any) -> None:
    """What is finished in time is handed out, the rest is cancelled."""

    async def body() -> Any:
        found = []

        async def forever() -> None:
            while True:
                await step("on")
                await asyncio.sleep(0.001)

        try:
            async for task in as_completed([step("quick"), forever()], timeout=0.02):
                found.append(await task)
        except TimeoutError:
            found.append("late")
        return found

    assert await run(body) in (["quick", "late"], ["late"])


async def test_map_keeps_order_and_limit(run: Any) -> None:
    """Results come in the order of the items, from plain and async iterables."""

    async def body() -> Any:
        running = most = 0

        async def double(number: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await step(number)
            running -= 1
            return number * 2

        async def numbers() -> Any:
            for number in range(3):
                yield number

        return [await rs.map(double, range(7), limit=2), most, await rs.map(double, numbers())]

    assert await run(body) == [[0, 2, 4, 6, 8, 10, 12], 2, [0, 2, 4]]


async def test_map_refuses_a_limit_below_one(run: Any) -> None:
    """The limit is a positive number, or None."""
    with pytest.raises(ValueError, match="limit must be at least 1"):
        await rs.map(step, [1], limit=0)


async def test_terminal_error_in_a_group_stays_visible_to_the_sdk() -> None:
    """Uncaught, it ends the invocation with its own code instead of being retried."""
    service = restate.Service("Terminal")

    async def fails() -> None:
        await step("x")
        raise restate.TerminalError("no", 418)

    @service.handler()
    async def handler(ctx: restate.Context) -> None:
        async with TaskGroup() as group:
            group.create_task(fails())
            group.create_task(step("y"))

    async with simulate(restate_steps.app([service])) as sim:
        with pytest.raises(restate.TerminalError, match="no") as failed:
            await sim.call(handler)
    assert failed.value.status_code == 418


async def test_nothing_is_left_running_when_an_attempt_ends() -> None:
    """Suspended or failed, an attempt leaves no task behind, and every branch has run its finally blocks (B6)."""
    service, ended = restate.Service("Ends"), []

    async def branch(tag: str) -> None:
        try:
            await gather(step(tag), inner(tag))
        finally:
            ended.append(tag)

    async def inner(tag: str) -> None:
        try:
            await restate_awakeable()
        finally:
            ended.append(f"inner {tag}")

    async def restate_awakeable() -> None:
        await rs.restate_context().awakeable()[1]

    @service.handler()
    async def handler(ctx: restate.Context) -> None:
        await gather(branch("a"), branch("b"))

    before = asyncio.all_tasks()
    async with simulate(restate_steps.app([service]), always_replay=True) as sim:
        invocation = await sim.send(handler)
        assert invocation.status == "suspended"
        assert Counter(ended) == dict.fromkeys(["a", "b", "inner a", "inner b"], invocation.attempts)
        process = sim.driver._process
        assert process is not None
        assert process.loop.open_tasks() == []
    assert asyncio.all_tasks() == before


async def test_branches_left_by_the_handler_end_with_it() -> None:
    """Leaving as_completed early is allowed; what is left is cancelled and issues no further command."""
    service, ended = restate.Service("Left"), []

    async def slow() -> str:
        try:
            while True:
                await step("slow")
        finally:
            ended.append("slow")

    @service.handler()
    async def handler(ctx: restate.Context) -> Any:
        async for task in as_completed([slow(), step("quick")]):
            return await task

    async with simulate(restate_steps.app([service])) as sim:
        assert (await sim.call(handler)).value == "quick"
        await sim.settle()
        assert ended == ["slow"]


async def test_an_awaitable_given_twice_runs_once(run: Any) -> None:
    """As in asyncio: both places get its result."""

    async def body() -> Any:
        once = step("once")
        return await gather(once, step("other"), once)

    assert await run(body) == ["once", "other", "once"]


async def test_wait_for_keeps_a_result_that_comes_during_cancellation(run: Any) -> None:
    """What was done is done: the caller is told, as by asyncio."""

    async def body() -> Any:
        async def charges() -> str:
            try:
                while True:
                    await step("wait")
                    await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                return str(await step("charged all the same"))

        return await wait_for(charges(), 0.002)

    assert await run(body) == "charged all the same"


async def test_a_group_that_is_ending_takes_no_task_from_its_tasks(run: Any) -> None:
    """A task that cleans up cannot start what nobody would cancel."""

    async def body() -> Any:
        said = []

        async def child(group: TaskGroup) -> None:
            try:
                while True:
                    await step("on")
            finally:
                try:
                    group.create_task(step("late"))
                except RuntimeError as error:
                    said.append(str(error))

        try:
            async with TaskGroup() as group:
                group.create_task(child(group))
                await step("x")
                raise KeyError("body")
        except KeyError:
            return said

    assert await run(body) == ["this TaskGroup is ending, so it cannot start a task."]


async def test_a_step_in_the_body_of_a_raw_run_is_part_of_it() -> None:
    """It adds nothing to the journal, and sees a key that is the run's."""
    service, keys = restate.Service("Raw"), []

    @durable_step
    async def charge() -> str:
        keys.append(step_info().idempotency_key)
        return "charged"

    async def raw() -> str:
        return await charge()

    @service.handler()
    async def handler(ctx: restate.Context) -> list[str]:
        return [await ctx.run_typed("first", raw), await ctx.run_typed("second", raw), await charge()]

    report = explore(restate_steps.app([service]), handler)
    report.assert_replay_safe()
    assert report.complete
    assert report.prefixes > 5
    assert len(set(keys)) == 3
    assert all(keys)


async def test_keys_go_on_in_the_context_managers_of_a_handler() -> None:
    """Steps on entering, in the handler and on leaving have keys of their own."""
    keys = []

    @durable_step
    async def note() -> None:
        keys.append(step_info().idempotency_key)

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        await note()
        yield
        await gather(note(), note())
        await note()

    service = restate.Service("Managed", invocation_context_managers=[manager])

    @service.handler()
    async def handler(ctx: restate.Context) -> None:
        await gather(note(), note())
        async for _ in as_completed([note(), rs.restate_context().awakeable()[1]]):
            break

    async with simulate(restate_steps.app([service])) as sim:
        await sim.call(handler)
    assert len(keys) == 7
    assert len(set(keys)) == 7


async def test_gather_does_not_return_the_cancellation_of_the_invocation() -> None:
    """With return_exceptions it is raised all the same: Restate tells it once."""
    service = restate.Service("Returned")

    @service.handler()
    async def handler(ctx: restate.Context) -> list[str]:
        results = await gather(ctx.sleep(timedelta(hours=1)), ctx.sleep(timedelta(hours=2)), return_exceptions=True)
        return [repr(result) for result in results]

    async with simulate(restate_steps.app([service])) as sim:
        invocation = await sim.send(handler)
        await invocation.cancel()
        with pytest.raises(restate.TerminalError) as failed:
            await invocation.result()
    assert failed.value.status_code == 409


if sys.version_info >= (3, 12):

    async def test_an_eager_task_factory_changes_nothing() -> None:
        """Tasks that begin at once do not run before their turn."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def body() -> Any:
            return await gather(gather(step(1), step(2)), race(step(3), step(3)), step(4))

        assert await inside(body) == [[1, 2], 3, 4]


async def test_every_level_can_compensate_when_the_invocation_is_cancelled() -> None:
    """Children, the branches that gathered them, and the handler all hear of it as a TerminalError, and undo."""
    service, undone = restate.Service("Levels"), []

    @durable_step(name="{what}")
    async def note(what: str) -> str:
        return what

    async def undo(what: str, steps: int) -> None:
        for number in range(steps):
            await note(f"undo {what} {number}")
        undone.append(what)

    async def child(tag: str, steps: int) -> None:
        try:
            await rs.restate_context().awakeable()[1]
        except restate.TerminalError:
            await undo(tag, steps)
            raise

    async def parent(tag: str) -> None:
        try:
            await gather(child(f"{tag}1", 1), child(f"{tag}2", 4))
        except restate.TerminalError:
            await gather(undo(f"{tag}!", 2), undo(f"{tag}?", 1))
            raise

    @service.handler()
    async def handler(ctx: restate.Context) -> None:
        try:
            await gather(parent("a"), parent("b"))
        except restate.TerminalError:
            await undo("all", 2)
            raise

    async def cancelled(sim: Simulator) -> None:
        invocation = await sim.send(handler)
        await invocation.cancel()
        await invocation.result()

    def all_is_undone(sim: Simulator) -> None:
        # An attempt after a crash replays what was undone before.
        found = undone if sim.invocations[0].attempts == 1 else set(undone)
        assert sorted(found) == ["a!", "a1", "a2", "a?", "all", "b!", "b1", "b2", "b?"]

    report = explore(
        restate_steps.app([service]), scenario=cancelled, before_each=undone.clear, check=all_is_undone, max_runs=250
    )
    report.assert_replay_safe()
    assert [str(outcome) for outcome, _ in report.outcomes] == ["TerminalError 409: cancelled"]
    assert report.schedules > 20
    assert report.prefixes > 20
