"""What a library starts as plain asyncio tasks, run as branches; the invariants C1 to C4 are in ``_crew``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import restate

from restate_steps import TaskGroup, durable_step, gather, race, restate_context, run_step, step_info, wait_for
from restate_steps.concurrency._crew import Crew, join
from restate_steps.context import current_invocation
from restate_steps.testing import explore, simulate

service = restate.Service("Crews")


@durable_step(name="say {word}")
async def say(word: str) -> str:
    return word


@durable_step(name="key")
async def key_of_step() -> str:
    return step_info().idempotency_key.partition("/")[2]


class Library:
    """Starts everything at once in asyncio tasks, waits for all of it, and knows nothing of Restate."""

    def __init__(self, *, alone: bool = True) -> None:
        invocation = current_invocation()
        assert invocation is not None
        self.scheduler = invocation.scheduler()
        self.task = asyncio.current_task()
        self.alone = alone

    async def work(self, function: Callable[[], Any]) -> Any:
        return await join(self.scheduler, function, name="work", task=self.task, alone=self.alone)

    async def all(self, *functions: Callable[[], Any], delays: tuple[int, ...] = ()) -> list[Any]:
        async def one(index: int, function: Callable[[], Any]) -> Any:
            for _ in range(delays[index] if delays else 0):
                await asyncio.sleep(0)
            return await self.work(function)

        tasks = [asyncio.create_task(one(index, function)) for index, function in enumerate(functions)]
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return [task.result() for task in tasks]


async def chain(word: str) -> str:
    return await say(f"{word}1") + await say(f"{word}2")


# --- handlers -----------------------------------------------------------------------------------------------------


@service.handler()
async def chains(ctx: restate.Context) -> list[str]:
    return [*await Library().all(lambda: chain("a"), lambda: chain("b")), await say("end")]


@service.handler()
async def chains_in_branches(ctx: restate.Context) -> list[str]:
    async def both(word: str) -> str:
        return "".join(await Library().all(lambda: chain(word), lambda: chain(word.upper())))

    return await gather(both("a"), both("b"))


@service.handler()
async def nested(ctx: restate.Context) -> list[Any]:
    async def inner(word: str) -> str:
        return "".join(await Library().all(lambda: say(word), lambda: chain(word)))

    return await Library().all(lambda: inner("a"), lambda: inner("b"))


@service.handler()
async def late(ctx: restate.Context) -> list[str]:
    return await Library().all(lambda: chain("a"), lambda: chain("b"), lambda: chain("c"), delays=(0, 1, 40))


@service.handler()
async def raw(ctx: restate.Context) -> list[int]:
    async def sleeper(seconds: int) -> int:
        await restate_context().sleep(timedelta(seconds=seconds))
        await run_step(lambda: None, name=f"after {seconds}")
        return seconds

    return await Library().all(lambda: sleeper(2), lambda: sleeper(1))


@service.handler()
async def failing(ctx: restate.Context) -> str:
    async def fail(word: str) -> str:
        await say(word)
        raise restate.TerminalError(word)

    try:
        await Library().all(lambda: chain("a"), lambda: fail("first"), lambda: fail("second"))
    except restate.TerminalError as error:
        return f"{error.message} {await say('undone')}"
    return "nothing failed"


@service.handler()
async def given_up(ctx: restate.Context) -> list[str]:
    undone: list[str] = []

    async def patient(word: str) -> str:
        try:
            await restate_context().sleep(timedelta(days=1))
        except asyncio.CancelledError:
            undone.append(await say(word))
            raise
        return word

    with contextlib.suppress(TimeoutError):
        await wait_for(Library().all(lambda: patient("a"), lambda: patient("b")), 10)
    return [*undone, await say("end")]


@service.handler()
async def opener_is_interrupted(ctx: restate.Context) -> str:
    async def fail() -> None:
        await say("x")
        raise restate.TerminalError("x failed")

    async def forever() -> None:
        await restate_context().awakeable()[1]

    try:
        async with TaskGroup() as group:
            group.create_task(fail())
            await Library().all(forever, forever)
    except restate.TerminalError as error:
        return f"{error.message}; {await say('undone')}"
    return "nothing failed"


@service.handler()
async def raced(ctx: restate.Context) -> str:
    async def crew() -> str:
        return "".join(await Library().all(lambda: chain("a"), lambda: chain("b")))

    return await race(crew(), say("z"))


@service.handler()
async def taking_turns(ctx: restate.Context) -> list[str]:
    """The strand's own task does something durable whenever a branch calls for it."""
    library = Library(alone=False)
    inbox: asyncio.Queue[str] = asyncio.Queue()
    seen: list[str] = []

    def call(word: str) -> None:
        inbox.put_nowait(word)
        crew = library.scheduler.main.crew
        assert isinstance(crew, Crew)
        crew.call()

    async def talk(word: str) -> str:
        call(await say(f"{word}1"))
        call(await say(f"{word}2"))
        return word

    tasks = [asyncio.create_task(library.work(lambda word=word: talk(word))) for word in "ab"]
    while not all(task.done() for task in tasks) or not inbox.empty():
        getting = asyncio.create_task(inbox.get())
        await asyncio.wait([getting, *(task for task in tasks if not task.done())], return_when="FIRST_COMPLETED")
        if not getting.done():
            getting.cancel()
            for task in tasks:
                if task.done():
                    task.result()
            continue
        if (crew := library.scheduler.main.crew) is not None:
            await crew.turn()
        seen.append(await say(f"heard {getting.result()}"))
        if crew is not None:
            crew.rest()
    return seen


app = restate.app([service])

ANSWERS: dict[str, list[Any]] = {
    "chains": [["a1a2", "b1b2", "end"]],
    "chains_in_branches": [["a1a2A1A2", "b1b2B1B2"]],
    "nested": [["aa1a2", "bb1b2"]],
    "late": [["a1a2", "b1b2", "c1c2"]],
    "raw": [[2, 1]],
    "failing": ["first undone"],
    "given_up": [["a", "b", "end"], ["b", "a", "end"]],
    "opener_is_interrupted": ["x failed; undone"],
    "raced": ["z", "a1a2b1b2"],
}


@pytest.mark.parametrize("mode", ["bidirectional", "request_response"])
@pytest.mark.parametrize("name", list(ANSWERS))
def test_every_order_and_every_crash(name: str, mode: Any) -> None:
    """Whatever is completed first, and wherever the process dies, the answer is one of the right ones."""

    async def scenario(simulator: Any) -> Any:
        answer = (await simulator.call(f"Crews/{name}")).value
        assert answer in ANSWERS[name]
        return answer

    explore(app, scenario=scenario, mode=mode, max_runs=150, max_seconds=20, progress=False).assert_replay_safe()


@pytest.mark.parametrize("name", ["chains", "given_up", "nested", "opener_is_interrupted"])
def test_every_cancellation(name: str) -> None:
    """Wherever the invocation is cancelled, it ends, and a replay takes the same path."""

    async def scenario(simulator: Any) -> Any:
        return (await simulator.call(f"Crews/{name}")).value

    explore(app, scenario=scenario, cancel=True, max_runs=200, max_seconds=20, progress=False).assert_replay_safe()


def test_turns_are_taken_in_the_order_of_the_journal() -> None:
    """C2: what the strand's own task does while its crew is at work is ordered like everything else."""

    async def scenario(simulator: Any) -> Any:
        answer = (await simulator.call("Crews/taking_turns")).value
        assert sorted(answer) == ["heard a1", "heard a2", "heard b1", "heard b2"]
        return None

    explore(app, scenario=scenario, max_runs=300, max_seconds=30, progress=False).assert_replay_safe()


# --- invariants -----------------------------------------------------------------------------------------------------

inspected = restate.Service("Inspected")
events: list[str] = []


@inspected.handler()
async def together(ctx: restate.Context) -> None:
    async def noted(word: str, steps: int) -> None:
        for _ in range(steps):
            await say(word)
        events.append(f"{word} ended")

    library = Library()

    async def one(word: str, steps: int) -> None:
        await library.work(lambda: noted(word, steps))
        events.append(f"{word} returned")

    await asyncio.wait([asyncio.create_task(one(word, steps)) for word, steps in (("a", 1), ("b", 3))])


@inspected.handler()
async def alone(ctx: restate.Context) -> list[str]:
    return [await key_of_step(), *await Library().all(key_of_step), await key_of_step()]


@inspected.handler()
async def not_alone(ctx: restate.Context) -> list[str]:
    return [*await Library(alone=False).all(key_of_step), await key_of_step()]


@inspected.handler()
async def late_joiner(ctx: restate.Context) -> list[str]:
    return await Library().all(key_of_step, key_of_step, key_of_step, delays=(0, 0, 40))


async def call(name: str) -> Any:
    async with simulate(restate.app([inspected])) as simulator:
        return (await simulator.call(f"Inspected/{name}")).value


async def test_nobody_returns_before_the_last_has_ended() -> None:
    """C3: the tasks go on together, in the order in which they joined."""
    events.clear()
    await call("together")
    assert ["a ended", "b ended", "a returned", "b returned"] == events


async def test_who_is_alone_works_as_part_of_the_strand() -> None:
    """C4: the step of a task that nobody joins is one of the strand's own, in its place among them."""
    assert ["0", "1", "2"] == await call("alone")


async def test_a_branch_may_be_asked_for() -> None:
    """C4: it may have to have one, if the strand's own task has something to do meanwhile."""
    assert ["0:0", "0"] == await call("not_alone")


async def test_who_comes_late_is_in_the_next_crew() -> None:
    """C1: the one who came when the others were at work is alone then, and works as part of the strand."""
    assert ["0:0", "1:0", "0"] == await call("late_joiner")
