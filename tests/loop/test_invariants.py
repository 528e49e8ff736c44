"""The invariants of the handler loop, each on its own, without the SDK and without a server.

An :class:`Execution` runs real coroutines over a port that is written here. Whether handlers survive is explored
elsewhere: here a failure names the invariant that no longer holds.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from restate import TerminalError
from restate.exceptions import SdkInternalException, SuspendedException

from restate_steps import ConcurrencyError
from restate_steps._loop import EXECUTION, Cancelled, Driver, Execution, HandlerTask, _driver, _ready
from restate_steps._loop._local import LocalContext
from restate_steps._loop._ready import KEEP, Handle
from restate_steps.context import StepInfo, running_step

CANCEL = "cancel"
"""An entry of the journal that tells of the invocation's cancellation."""


class Port:
    """The durable world: a journal of what completes, in that order.

    Args:
        journal: Names of what has completed by the time it is asked for; an exception is raised when its turn comes.
        later: What completes once the execution waits for the server, one each time.

    Attributes:
        asked: What was waited for, each time that the port was asked.
        sleeps: The sleeps that were begun, in seconds.
        failed: What failed the attempt.
    """

    def __init__(self, *journal: Any, later: Iterable[Any] = ()) -> None:
        self.journal = deque(journal)
        self.later = deque(later)
        self.asked: list[list[Any]] = []
        self.sleeps: list[float] = []
        self.failed: list[BaseException] = []
        self._waits: dict[Any, None] = {}
        self._interrupted = asyncio.Event()

    def add(self, wait: Any) -> None:
        self._waits[wait] = None

    def discard(self, wait: Any) -> None:
        self._waits.pop(wait, None)

    def __bool__(self) -> bool:
        return bool(self._waits)

    def waits(self) -> list[Any]:
        return list(self._waits)

    def ask(self) -> list[Any] | None:
        self.asked.append([wait.source for wait in self._waits])
        if not self.journal:
            return []
        entry = self.journal[0]
        if entry is CANCEL:
            self.journal.popleft()
            return None
        if isinstance(entry, BaseException):
            raise entry
        if done := [wait for wait in self._waits if wait.source == entry]:
            self.journal.popleft()
        return done

    def sleep(self, seconds: float) -> Any:
        self.sleeps.append(seconds)
        return f"sleep {len(self.sleeps)}"

    async def wait(self) -> None:
        await self.flush()
        if self.later:
            self.journal.append(self.later.popleft())
            return
        await asyncio.wait_for(self._interrupted.wait(), 1)

    async def flush(self) -> None:
        await asyncio.sleep(0)

    def interrupt(self) -> None:
        self._interrupted.set()

    def fail(self, error: BaseException, **options: Any) -> None:
        self.failed.append(error)


Code = Callable[[], Coroutine[Any, Any, Any]]


async def run(code: Code, port: Port | None = None) -> Any:
    """Run code as a handler."""
    return await Driver(Execution(Port() if port is None else port, asyncio.get_running_loop())).run(code())


def current() -> Execution:
    execution = EXECUTION.get()
    assert execution is not None
    return execution


async def durable(name: str) -> str:
    """Wait for something durable."""
    await current().wait(name)
    return name


def me() -> HandlerTask:
    task = asyncio.current_task()
    assert isinstance(task, HandlerTask)
    return task


# --- the ready queue ------------------------------------------------------------------------------------------------


async def test_new_turns_run_before_those_that_were_ready_earlier(log: list[Any]) -> None:
    """R1: a chain of callbacks keeps its place, however long it is."""

    async def code() -> None:
        loop = asyncio.get_running_loop()

        def chain(tag: str, hops: int) -> None:
            log.append(f"{tag}{hops}")
            if hops:
                loop.call_soon(chain, tag, hops - 1)

        for tag, hops in (("a", 2), ("b", 0), ("c", 1)):
            loop.call_soon(chain, tag, hops)

    await run(code)
    assert log == ["a2", "a1", "a0", "b0", "c1", "c0"]


async def test_one_turn_schedules_in_its_order(log: list[Any]) -> None:
    """R1: callbacks of one turn run in the order in which it scheduled them."""

    async def code() -> None:
        event = asyncio.Event()

        async def waits(tag: str) -> None:
            await event.wait()
            log.append(tag)

        tasks = [asyncio.create_task(waits(tag)) for tag in "abc"]
        await durable("x")
        event.set()
        await asyncio.gather(*tasks)

    await run(code, Port("x"))
    assert log == ["a", "b", "c"]


@pytest.mark.parametrize("yields", [0, 1, KEEP - 1])
async def test_a_task_keeps_its_turn_over_yields(log: list[Any], yields: int) -> None:
    """R2: others wait while it yields, so that the number of yields does not change the order."""
    await run(_beside_another(log, yields))
    assert log == ["a", "b"]


async def test_a_task_that_yields_too_often_lets_others_run(log: list[Any]) -> None:
    """R2: after KEEP yields everything else that is ready runs first."""
    await run(_beside_another(log, KEEP))
    assert log == ["b", "a"]


def _beside_another(log: list[Any], yields: int) -> Code:
    async def task(tag: str, yields: int) -> None:
        for _ in range(yields):
            await asyncio.sleep(0)
        log.append(tag)

    async def code() -> None:
        await asyncio.gather(task("a", yields), task("b", 0))

    return code


async def test_cancelled_tasks_run_in_the_order_of_their_numbers(log: list[Any]) -> None:
    """R3: whichever order one turn cancels them in; other callbacks of the turn keep their places."""

    async def code() -> None:
        async def waits(number: int) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                log.append(number)

        tasks = [asyncio.create_task(waits(number)) for number in range(9)]
        await durable("x")
        asyncio.get_running_loop().call_soon(log.append, "first")
        for task in random.sample(tasks, len(tasks)):
            task.cancel()
        asyncio.get_running_loop().call_soon(log.append, "last")
        await asyncio.wait(tasks)

    await run(code, Port("x"))
    assert log == ["first", *range(9), "last"]


async def test_as_completed_numbers_its_tasks_by_position(log: list[Any]) -> None:
    """R3: asyncio makes the tasks in the order of a set."""

    async def code() -> None:
        async def task(position: int) -> None:
            log.append((position, me().number))

        for result in asyncio.as_completed([task(position) for position in range(20)]):
            await result
        assert me().number == 1

    await run(code)
    assert log == [(position, position + 2) for position in range(20)]


async def test_a_task_that_spins_lets_the_vm_be_asked() -> None:
    """R4: it is parked when nothing else can happen, and resumed when something has."""
    port = Port("x", "y")

    async def code() -> int:
        task = asyncio.create_task(_both("x", "y"))
        spins = 0
        while not task.done():
            spins += 1
            await asyncio.sleep(0)
        return spins

    assert await run(code, port) < 10 * _ready.SPIN
    assert port.asked == [["x", "sleep 1"], ["sleep 1", "y"]]


async def test_code_that_polls_gets_another_chance_after_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """T4: what it waits for may need this very code, so it goes on although nothing else happens."""
    monkeypatch.setattr(_ready, "SPIN", 2 * KEEP)

    async def code() -> tuple[str, float]:
        answer = asyncio.create_task(durable("answer"))
        for _ in range(9 * KEEP):
            await asyncio.sleep(0)
        await durable("question")
        return await answer, asyncio.get_running_loop().time()

    port = Port("sleep 1", "sleep 2", "sleep 3", "question", "answer")
    assert await run(code, port) == ("answer", 0.01 + 0.02 + 0.04)
    assert port.sleeps == pytest.approx([0.01, 0.02, 0.04])


async def test_a_sleep_is_made_for_code_that_polls_before_the_vm_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """T4: another attempt finds the answer in the journal at once, and issues the same commands."""
    monkeypatch.setattr(_ready, "SPIN", 2 * KEEP)

    async def code() -> None:
        answer = asyncio.create_task(durable("answer"))
        for _ in range(5 * KEEP):
            await asyncio.sleep(0)
        await answer

    port = Port("answer")
    await run(code, port)
    assert port.sleeps == [0.01]


async def test_code_that_polls_the_clock_ends() -> None:
    """T4: the sleeps move the clock."""

    async def code() -> float:
        loop = asyncio.get_running_loop()
        while loop.time() < 0.02:  # noqa: ASYNC110 - what this is about
            await asyncio.sleep(0)
        return loop.time()

    assert await run(code, Port(later=["sleep 1", "sleep 2"])) == pytest.approx(0.03)


async def test_local_work_of_many_turns_costs_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """T4: nothing durable is waited for, so nothing could come in between."""
    monkeypatch.setattr(_ready, "BUDGET", 1000)
    monkeypatch.setattr(_ready, "SLICE", 100)

    async def code() -> int:
        return sum(await asyncio.gather(*[yields(90) for _ in range(50)]))

    async def yields(times: int) -> int:
        for _ in range(times):
            await asyncio.sleep(0)
        return times

    port = Port()
    assert await run(code, port) == 4500
    assert port.sleeps == []


async def _both(*names: str) -> None:
    for name in names:
        await durable(name)


async def test_a_callback_that_repeats_itself_lets_the_vm_be_asked(log: list[Any]) -> None:
    """R4: as anyio does to deliver a cancellation until it is received."""

    async def code() -> None:
        loop = asyncio.get_running_loop()
        ended = False

        def again() -> None:
            log.append(ended)
            if not ended:
                loop.call_soon(again)

        again()
        await _both("x", "y")
        ended = True
        await durable("z")

    port = Port("x", "y", "z")
    await run(code, port)
    assert log[-1] is True
    # SPIN repetitions before it is parked, three times; the first call, by code(), and the last are not repetitions.
    assert len(log) == 3 * _ready.SPIN + 2
    assert port.sleeps == [0.01]


async def test_a_repeated_cancellation_of_anyio_costs_no_sleep() -> None:
    """R4: anyio repeats it until the task has ended, so it is parked at once, and does not poll."""

    async def code() -> str:
        with anyio.CancelScope() as scope:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await durable("x")
            async with anyio.create_task_group() as group:
                group.start_soon(durable, "never")
        return await durable("y")

    port = Port("x", "y")
    assert await run(code, port) == "y"
    assert port.sleeps == []


async def test_nothing_waits_in_the_queue_forever(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """R5: after STREAK turns that descend from one another, new ones go to the end."""
    monkeypatch.setattr(_ready, "STREAK", 10)

    async def code() -> None:
        loop = asyncio.get_running_loop()

        def chain(number: int) -> None:
            log.append(number)
            if "other" not in log:
                loop.call_soon(chain, number + 1)

        loop.call_soon(chain, 0)
        loop.call_soon(log.append, "other")

    await asyncio.wait_for(run(code), 5)
    assert 10 <= log.index("other") < 20


# --- tasks ----------------------------------------------------------------------------------------------------------


async def test_sets_of_tasks_are_in_one_order() -> None:
    """R3: a task's hash is its number."""

    async def code() -> None:
        async def nothing() -> None:
            pass

        tasks = [asyncio.create_task(nothing()) for _ in range(6)]
        numbers = [hash(task) for task in tasks]
        assert numbers == [2, 3, 4, 5, 6, 7]
        assert [hash(task) for task in set(random.sample(tasks, 6))] == numbers

    await run(code)


async def test_a_task_finishes_its_undoing_before_it_is_cancelled(log: list[Any]) -> None:
    """E2: the cancellation is deferred, counts, and comes through at its next wait."""

    async def code() -> None:
        async def undoes() -> None:
            try:
                await durable("x")
            except TerminalError:
                log.append(await durable("undo"))
            await durable("never")

        task = asyncio.create_task(undoes())
        await _ignoring_cancellation("y")
        assert isinstance(task, HandlerTask)
        assert task.cancel("enough")
        assert task.cancelling() == 1
        assert task.deferred == ["enough"]
        await asyncio.wait([task])
        log.append(task.cancelled())

    await run(code, Port(CANCEL, "undo"))
    assert log == ["undo", True]


async def _ignoring_cancellation(name: str) -> None:
    with suppress(Cancelled):
        await durable(name)


async def test_a_deferred_cancellation_can_be_taken_back(log: list[Any]) -> None:
    """E2: a timeout that ends while its task undoes something takes its cancellation back."""

    async def code() -> None:
        async def undoes() -> None:
            try:
                await durable("x")
            except TerminalError:
                await durable("undo")
            log.append(await durable("after"))

        task = asyncio.create_task(undoes())
        await _ignoring_cancellation("y")
        task.cancel()
        assert task.uncancel() == 0
        await task

    await run(code, Port(CANCEL, "undo", "after"))
    assert log == ["after"]


async def test_a_task_that_undoes_nothing_durable_is_cancelled_after_all() -> None:
    """E2: a deferred cancellation is delivered when nothing else can happen."""

    async def code() -> bool:
        async def undoes() -> None:
            try:
                await durable("x")
            except TerminalError:
                await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(undoes())
        await _ignoring_cancellation("y")
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert await run(code, Port(CANCEL))


async def test_a_task_is_cancelled_after_all_when_those_below_it_have_ended() -> None:
    """E2: a deferred cancellation is delivered, although another task still undoes things."""

    async def code() -> bool:
        async def undoes(*names: str) -> None:
            for name in names:
                await _ignoring_cancellation(name)

        async def waits() -> None:
            await asyncio.create_task(undoes("x"))
            await asyncio.get_running_loop().create_future()

        waiting = asyncio.create_task(waits())
        undoing = asyncio.create_task(undoes("y", "undo"))
        await _ignoring_cancellation("z")
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not undoing.done()
        await undoing
        return waiting.cancelled()

    assert await run(code, Port(CANCEL, "undo"))


async def test_a_task_that_goes_on_to_something_else_can_be_cancelled() -> None:
    """E2: it has handled the cancellation, and waits for something local while another still undoes things."""

    async def code() -> bool:
        async def works() -> None:
            await _ignoring_cancellation("x")
            await asyncio.get_running_loop().create_future()

        async def undoes() -> None:
            await _ignoring_cancellation("y")
            await durable("undo")

        working, undoing = asyncio.create_task(works()), asyncio.create_task(undoes())
        await _ignoring_cancellation("z")
        working.cancel()
        await asyncio.wait([working])
        assert not undoing.done()
        await undoing
        return working.cancelled()

    assert await run(code, Port(CANCEL, "undo"))


async def test_a_task_that_hears_of_the_cancellation_by_another_is_not_interrupted(log: list[Any]) -> None:
    """E2: a group cancels it because of another failure, which must not keep it from undoing things."""

    async def code() -> None:
        async def books() -> None:
            try:
                await asyncio.create_task(durable("x"))
            except Cancelled:
                log.append(await durable("undo"))
                raise

        async def fails() -> None:
            await durable("y")

        async with asyncio.TaskGroup() as group:
            group.create_task(books())
            group.create_task(fails())

    with pytest.raises(ExceptionGroup):
        await run(code, Port(CANCEL, "undo"))
    assert log == ["undo"]


async def test_the_tasks_of_others_are_not_listed() -> None:
    """Handlers share a loop, and ``asyncio.all_tasks`` goes by the loop."""

    async def code() -> bool:
        await durable("x")
        return asyncio.all_tasks() == {me()}

    assert await asyncio.gather(run(code, Port(later="x")), run(code, Port(later="x"))) == [True, True]


# --- timers ---------------------------------------------------------------------------------------------------------


async def test_a_timer_that_is_cancelled_before_a_rest_costs_nothing() -> None:
    """T1: it becomes a sleep when the handler comes to rest with it."""
    port = Port("x")

    async def code() -> None:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        await durable("x")

    await run(code, port)
    assert port.sleeps == []


async def test_timers_become_durable_in_the_order_in_which_they_were_made() -> None:
    """T1: not in that of their ends, which random delays would change; and each only once."""
    port = Port("x", "sleep 2", "sleep 1")

    async def code() -> list[float]:
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(asyncio.sleep(3, 3.0))
        second = asyncio.create_task(asyncio.sleep(1, 1.0))
        await durable("x")
        done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [1.0]
        before = loop.time()
        await first
        return [before, loop.time()]

    assert await run(code, port) == [1.0, 3.0]
    assert port.sleeps == [3, 1]


async def test_time_is_that_of_the_latest_timer() -> None:
    """T2: it begins at zero, steps do not move it, and it never goes back."""
    port = Port("x", "sleep 2", "sleep 1", "sleep 3")

    async def code() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        await durable("x")
        times.append(loop.time())
        # The shorter one ends last, as it may if the server is late.
        tasks = [asyncio.create_task(asyncio.sleep(seconds)) for seconds in (1, 2)]
        await asyncio.wait(tasks)
        times.append(loop.time())
        await asyncio.sleep(0.5)
        return [*times, loop.time()]

    assert await run(code, port) == [0, 0, 2, 2.5]
    assert port.sleeps == [1, 2, 0.5]


async def test_a_timer_that_is_due_takes_no_sleep(log: list[Any]) -> None:
    """T2: its time has come already; one at infinity is never made."""
    port = Port("x")

    async def code() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0, log.append, "due")
        loop.call_at(float("inf"), log.append, "never")
        log.append(await durable("x"))

    await run(code, port)
    assert log == ["due", "x"]
    assert port.sleeps == []


async def test_a_timer_without_a_time_is_refused() -> None:
    """T1: where it is made, and not by the driver."""

    async def code() -> None:
        # asyncio.sleep itself refuses it since Python 3.13.
        with pytest.raises(ValueError, match="must be a number, got nan"):
            asyncio.get_running_loop().call_later(float("nan"), print)

    await run(code)


async def test_a_timeout_around_a_local_operation_goes_by_the_clock() -> None:
    """T3: so that a timeout of a client library works, although nothing of the journal is delivered meanwhile."""
    port = Port()
    log: list[str] = []

    async def operation() -> None:
        await asyncio.sleep(5)
        log.append("ended")

    async def code() -> None:
        try:
            async with asyncio.timeout(0.01):
                await current().local.run(operation())
        except TimeoutError:
            log.append("late")

    await run(code, port)
    assert log == ["late"]
    assert port.sleeps == []


async def test_only_timers_around_the_operation_go_by_the_clock() -> None:
    """T3: those of its task and of tasks above; a sibling's waits for the journal."""
    found: list[Any] = []

    async def code() -> None:
        loop, timers = asyncio.get_running_loop(), current().timers

        async def child() -> None:
            inner = loop.call_later(2, print)
            found.append(_handle(timers.next_around(me())) is inner)
            inner.cancel()
            found.append(_handle(timers.next_around(me())) is outer)

        async def sibling() -> None:
            loop.call_later(1, print)

        await asyncio.create_task(sibling())
        outer = loop.call_later(3, print)
        await asyncio.create_task(child())
        outer.cancel()
        found.append(timers.next_around(me()))
        timers.clear()

    await run(code)
    assert found == [True, True, None]


def _handle(around: Any) -> Any:
    return around[1]


# --- generators -----------------------------------------------------------------------------------------------------


async def test_a_dropped_generator_is_closed_where_it_is_dropped(log: list[Any]) -> None:
    """Every attempt repeats that place, and closing may wait for something durable."""

    async def code() -> None:
        async for page in _pages("a", log):
            log.append(page)
            break
        await durable("x")
        log.append("after")

    await run(code, Port("close a", "x"))
    assert log == ["a", "closed a", "after"]


async def test_a_generator_that_the_collector_finds_is_closed_at_the_end(log: list[Any]) -> None:
    """The collector comes at moments of its own, so nothing may enter the journal then."""

    async def code() -> None:
        cycle: list[Any] = []
        cycle += [_pages("a", log), cycle]
        await anext(cycle[0])
        del cycle
        gc.collect()
        log.append(await durable("x"))

    await run(code, Port("x", "close a"))
    assert log == ["x", "closed a"]


async def test_open_generators_are_closed_in_the_order_in_which_they_began(log: list[Any]) -> None:
    """E3: when the handler has ended."""
    held: list[Any] = []

    async def code() -> None:
        held.extend(_pages(tag, log) for tag in "abc")
        for index in (2, 0, 1):
            await anext(held[index])

    await run(code, Port("close c", "close a", "close b"))
    assert log == ["closed c", "closed a", "closed b"]


async def _pages(tag: str, log: list[Any]) -> AsyncIterator[str]:
    try:
        yield tag
        yield tag
    finally:
        await durable(f"close {tag}")
        log.append(f"closed {tag}")


# --- local operations -----------------------------------------------------------------------------------------------


async def test_an_operation_holds_the_turn(log: list[Any]) -> None:
    """O1: no other code runs while it is in flight, and the VM is not asked."""
    port = Port("x")

    async def code() -> None:
        async def reads() -> None:
            log.append("begins")
            await asyncio.sleep(0.01)
            log.append(f"asked {len(port.asked)} times")

        async def other() -> None:
            log.append(await durable("x"))

        await asyncio.gather(current().local.run(reads()), other())

    await run(code, port)
    assert log == ["begins", "asked 0 times", "x"]


async def test_operations_are_delivered_in_the_order_in_which_they_began(log: list[Any]) -> None:
    """O2: although the second ends first."""
    second_has_ended = threading.Event()

    def slow() -> str:
        assert second_has_ended.wait(5)
        time.sleep(0.01)
        return "slow"

    def quick() -> str:
        second_has_ended.set()
        return "quick"

    async def code() -> None:
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(None, function) for function in (slow, quick)]
        for future in futures:
            future.add_done_callback(lambda future: log.append(future.result()))
        await asyncio.gather(*futures)

    await run(code)
    assert log == ["slow", "quick"]


async def test_an_operation_that_waits_for_something_durable_lets_others_run(log: list[Any]) -> None:
    """O3: it is not in flight meanwhile, and is again afterwards."""
    port = Port("y", "x", later="z")

    async def code() -> None:
        async def reads() -> None:
            log.append(await durable("x"))
            await asyncio.sleep(0.01)
            log.append("read")

        async def other() -> None:
            log.append(await durable("y"))
            log.append(await durable("z"))

        await asyncio.gather(current().local.run(reads()), other())

    await run(code, port)
    assert log == ["y", "x", "read", "z"]


async def test_a_cancelled_operation_is_waited_for(log: list[Any]) -> None:
    """O4: what it does about the cancellation belongs to the same turn."""

    async def code() -> None:
        async def reads() -> None:
            try:
                await asyncio.sleep(5)
            finally:
                await asyncio.sleep(0.01)
                log.append("cleaned up")

        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await current().local.run(reads())
        log.append("after")

    await run(code)
    assert log == ["cleaned up", "after"]


async def test_a_manager_whose_entering_is_cancelled_cleans_up(log: list[Any]) -> None:
    """O4: it is entered in a task that nothing would end."""

    @asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        log.append("opens")
        try:
            await asyncio.sleep(10)
            yield
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    async def code() -> None:
        try:
            async with asyncio.timeout(0.01), LocalContext(current(), connection()):
                log.append("entered")
        except TimeoutError:
            log.append("went on")

    await run(code)
    assert log == ["opens", "closed", "went on"]


async def test_a_cancelled_thread_is_not_waited_for(log: list[Any]) -> None:
    """O4: a thread cannot be cancelled."""
    release = threading.Event()

    async def code() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().run_in_executor(None, release.wait, 5)
        log.append("after")

    await run(code)
    assert log == ["after"]
    release.set()


# --- the driver -----------------------------------------------------------------------------------------------------


async def test_the_vm_is_asked_for_all_that_is_waited_for(log: list[Any]) -> None:
    """E1: and one completion is delivered at a time: what it makes ready runs before the VM is asked again."""
    port = Port("b", "a", "a2")

    async def code() -> None:
        async def first() -> None:
            log.append(await durable("a"))
            log.append(await durable("a2"))

        async def second() -> None:
            log.append(await durable("b"))
            await asyncio.sleep(0)
            log.append("b continues")

        await asyncio.gather(first(), second())

    await run(code, port)
    assert port.asked == [["a", "b"], ["a"], ["a2"]]
    assert log == ["b", "b continues", "a", "a2"]


async def test_the_cancellation_is_told_once_to_all_that_wait(log: list[Any]) -> None:
    """E2: in the order in which they began to wait; what they do about it may wait again."""

    async def code() -> None:
        async def waits(tag: str, wait: Callable[[], Coroutine[Any, Any, Any]]) -> None:
            try:
                await wait()
            except TerminalError as error:
                log.append(f"{tag} {error.status_code}")
                log.append(await durable(f"undo {tag}"))

        await asyncio.gather(
            waits("b", lambda: durable("b")), waits("a", lambda: durable("a")), waits("s", lambda: asyncio.sleep(5))
        )

    await run(code, Port(CANCEL, "undo a", "undo b", "undo s"))
    assert log == ["b 409", "a 409", "s 409", "undo a", "undo b", "undo s"]


async def test_a_local_wait_is_told_when_nothing_durable_is_left(log: list[Any]) -> None:
    """E2: the handler waits for a queue whose workers end with the cancellation."""

    async def code() -> None:
        queue: asyncio.Queue[str] = asyncio.Queue()
        for name in "abc":
            queue.put_nowait(name)

        async def works() -> None:
            while True:
                name = await queue.get()
                try:
                    await durable(name)
                finally:
                    log.append(await durable(f"undo {name}"))
                queue.task_done()

        workers = [asyncio.create_task(works()) for _ in range(2)]
        try:
            await queue.join()
        except Cancelled:
            log.append([worker.done() for worker in workers])
            raise

    with pytest.raises(Cancelled):
        await run(code, Port(CANCEL, "undo a", "undo b"))
    assert log == ["undo a", "undo b", [True, True]]


async def test_a_local_wait_that_began_later_is_not_told() -> None:
    """E2: whoever has handled the cancellation does not hear of it again."""
    end: list[asyncio.Future[None]] = []

    async def code() -> str:
        await _ignoring_cancellation("x")
        end.append(asyncio.get_running_loop().create_future())
        await end[0]
        return "went on"

    async def other() -> None:
        await current().local.run(_until(lambda: bool(end)))
        end[0].set_result(None)

    beside = asyncio.create_task(run(other))
    # A task, so that the other one begins first: since Python 3.12, wait_for makes none.
    assert await asyncio.wait_for(asyncio.create_task(run(code, Port(CANCEL))), 5) == "went on"
    await beside


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


async def test_tasks_that_the_handler_left_may_clean_up(log: list[Any]) -> None:
    """E3: a handler that returns has ended when its tasks have."""

    async def code() -> str:
        asyncio.create_task(_cleans_up(log)).add_done_callback(log.append)
        await durable("x")
        return "answer"

    assert await run(code, Port("x", "clean up")) == "answer"
    assert log[0] == "clean up"
    assert log[1].cancelled()


async def test_nothing_cleans_up_after_a_retryable_failure(log: list[Any]) -> None:
    """E3: the next attempt may take another way, so no command is taken any more."""
    port = Port("x", "clean up")

    async def code() -> None:
        asyncio.create_task(_cleans_up(log)).add_done_callback(lambda task: log.append("ended"))
        await durable("x")
        raise ValueError("try again")

    with pytest.raises(ValueError, match="try again"):
        await run(code, port)
    assert log == ["ended"]
    assert ["clean up"] not in port.asked


async def test_tasks_may_clean_up_after_a_terminal_failure(log: list[Any]) -> None:
    """E3: it ends the invocation."""

    async def code() -> None:
        asyncio.create_task(_cleans_up(log)).add_done_callback(lambda task: log.append("ended"))
        await durable("x")
        raise TerminalError("no")

    with pytest.raises(TerminalError):
        await run(code, Port("x", "clean up"))
    assert log == ["clean up", "ended"]


async def _cleans_up(log: list[Any]) -> None:
    try:
        await durable("never")
    finally:
        log.append(await durable("clean up"))


@pytest.mark.parametrize("end", [SuspendedException(), SdkInternalException()], ids=lambda end: type(end).__name__)
async def test_an_attempt_that_is_over_raises_whatever_the_code_catches(end: BaseException, log: list[Any]) -> None:
    """E4: the driver raises, and no command is taken any more."""

    async def code() -> str:
        try:
            await durable("x")
        except BaseException as error:
            log.append(error)
        try:
            await durable("y")
        except BaseException as error:
            log.append(error)
        return "answer"

    port = Port(end)
    with pytest.raises(type(end)) as caught:
        await run(code, port)
    assert caught.value is end
    assert [type(error) for error in log] == [type(end)] * 2
    assert port.asked == [["x"]]


async def test_the_end_of_an_attempt_is_a_new_exception_in_each_place(log: list[Any]) -> None:
    """E4: one exception raised in several places has a context that leads back to itself, and exit stacks never end."""

    async def code() -> None:
        async with AsyncExitStack() as stack:
            for name in ("one", "two"):
                stack.push_async_callback(durable, name)
            try:
                await durable("step")
            except BaseException as error:
                log.append(error)
                try:
                    await durable("another")
                except BaseException as again:
                    log.append(again)
                    raise again from error

    with pytest.raises(SuspendedException):
        await run(code, Port(SuspendedException()))
    first, second = log
    assert type(first) is type(second) is SuspendedException
    assert first is not second


async def test_a_coroutine_that_is_driven_by_hand_is_refused() -> None:
    """E1: on replay, a recorded result would be there without a wait, and the coroutines would take another order."""

    async def code() -> None:
        first, second = durable("a"), durable("b")
        first.send(None)
        await second

    with pytest.raises(ConcurrencyError, match=r"task 'handler' calls send\(\) on a coroutine"):
        await run(code, Port(later=["b"]))


async def test_local_waits_are_cancelled_when_the_attempt_is_over(log: list[Any]) -> None:
    """E4: so that a lock or a semaphore is released, which only CancelledError makes asyncio's do."""
    semaphore = asyncio.Semaphore(1)
    lock = asyncio.Lock()

    async def code() -> None:
        async def locked(tag: str) -> None:
            try:
                async with semaphore, lock:
                    await durable(tag)
            except BaseException as error:
                log.append(type(error))
                raise

        async def waits() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except BaseException as error:
                log.append(type(error))
                raise

        await asyncio.gather(locked("a"), locked("b"), waits())

    with pytest.raises(SuspendedException):
        await run(code, Port(SuspendedException()))
    assert log[0] is SuspendedException
    assert log[-1] is asyncio.CancelledError
    assert len(log) == 3
    assert not semaphore.locked()
    assert not lock.locked()


async def test_a_lock_is_passed_on_to_another_handler(log: list[Any]) -> None:
    """E4, E5: one whose attempt is over leaves a lock to a handler that waits for nothing durable."""
    lock = asyncio.Lock()

    async def holds() -> None:
        async def locked(tag: str) -> None:
            async with lock:
                await durable(tag)

        await asyncio.gather(locked("a"), locked("b"))

    async def waits() -> None:
        async with lock:
            log.append("locked")

    port = Port()
    holder = asyncio.create_task(run(holds, port))
    await asyncio.sleep(0.01)
    waiter = asyncio.create_task(run(waits))
    await asyncio.sleep(0.01)
    assert log == []
    port.journal.append(SuspendedException())
    port.interrupt()
    with pytest.raises(SuspendedException):
        await holder
    await asyncio.wait_for(waiter, 5)
    assert log == ["locked"]


async def test_a_wake_up_from_the_server_is_refused_while_something_durable_is_waited_for() -> None:
    """E5: when it comes is not in the journal."""
    port = Port()
    events: list[asyncio.Event] = []

    async def code() -> None:
        events.append(asyncio.Event())
        await asyncio.gather(events[0].wait(), durable("x"))

    handler = asyncio.create_task(run(code, port))
    await asyncio.sleep(0.01)
    events[0].set()
    with pytest.raises(ConcurrencyError, match="woken by a thread, a callback or a task of the server's event loop"):
        await handler
    assert len(port.failed) == 1


async def test_a_call_from_a_thread_reaches_the_handler_that_waits_for_the_thread(log: list[Any]) -> None:
    """L2: and not the one that is driven at that moment."""
    called, driven = threading.Event(), threading.Event()

    async def waits() -> None:
        loop = asyncio.get_running_loop()

        def thread() -> None:
            driven.wait(5)
            loop.call_soon_threadsafe(log.append, "called")
            called.set()

        await loop.run_in_executor(None, thread)

    async def is_driven() -> None:
        await durable("x")
        driven.set()
        called.wait(5)
        await durable("y")

    await asyncio.gather(run(waits), run(is_driven, Port(later=["x", "y"])))
    assert log == ["called"]


async def test_a_wake_up_from_a_body_is_refused() -> None:
    """E5: even where another's would be accepted."""

    async def code() -> None:
        event = asyncio.Event()

        async def body() -> None:
            running_step.set(StepInfo("charge", "inv", "key"))
            event.set()

        await asyncio.gather(event.wait(), current().local.run(body()))

    with pytest.raises(ConcurrencyError, match="woken by the body of step 'charge'"):
        await run(code)


async def test_a_wake_up_during_a_local_operation_is_accepted(log: list[Any]) -> None:
    """E5: nothing of the journal could come before or after it."""

    async def code() -> None:
        event = asyncio.Event()

        async def reads() -> None:
            await asyncio.sleep(0)
            event.set()

        async def waits() -> None:
            await event.wait()
            log.append("woken")

        await asyncio.gather(waits(), current().local.run(reads()))

    await run(code)
    assert log == ["woken"]


async def test_a_deadlock_is_reported() -> None:
    """E6: with what waits for what."""
    port = Port()

    async def code() -> None:
        lock = asyncio.Lock()
        async with lock, lock:
            pass

    with pytest.raises(
        ConcurrencyError, match=r"no task of the handler can continue.*'handler' waits for Lock\.acquire"
    ):
        await run(code, port)
    assert len(port.failed) == 1


async def test_a_handler_that_waits_for_another_in_vain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """E6: when the others have ended without waking it."""
    monkeypatch.setattr(_driver, "STALL_LIMIT_SECONDS", 0.02)

    async def other() -> None:
        await current().local.run(asyncio.sleep(0.03))

    async def code() -> None:
        await asyncio.get_running_loop().create_future()

    beside = asyncio.create_task(run(other))
    await asyncio.sleep(0)
    with pytest.raises(ConcurrencyError, match="no task of the handler can continue"):
        await run(code)
    assert beside.done()


async def test_a_handler_waits_for_another_that_may_still_wake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """E6: however long the other takes."""
    monkeypatch.setattr(_driver, "STALL_LIMIT_SECONDS", 0.01)
    lock = asyncio.Lock()
    port = Port()

    async def holds() -> None:
        async with lock:
            await durable("x")

    async def waits() -> str:
        async with lock:
            return "locked"

    holder = asyncio.create_task(run(holds, port))
    await asyncio.sleep(0)
    waiter = asyncio.create_task(run(waits))
    await asyncio.sleep(0.05)
    assert not waiter.done()
    port.journal.append("x")
    port.interrupt()
    assert await asyncio.wait_for(waiter, 5) == "locked"
    await holder


async def test_handlers_that_wait_for_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """E6: each holds the lock that the other one waits for."""
    monkeypatch.setattr(_driver, "STALL_LIMIT_SECONDS", 0.02)
    locks = [asyncio.Lock(), asyncio.Lock()]

    async def code(first: asyncio.Lock, second: asyncio.Lock) -> str:
        async with first:
            await current().local.run(_until(second.locked))
            async with second:
                return "locked"

    handlers = [run(lambda: code(*locks)), run(lambda: code(*reversed(locks)))]
    found = await asyncio.wait_for(asyncio.gather(*handlers, return_exceptions=True), 5)
    assert isinstance(found[0], ConcurrencyError)
    assert found[1] == "locked"


async def test_a_long_wait_for_another_handler_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """E6: once, with what waits for what."""
    monkeypatch.setattr(_driver, "STALL_LIMIT_SECONDS", 0.01)
    lock = asyncio.Lock()
    port = Port()

    async def code(name: str) -> None:
        async with lock:
            await durable(name)

    holder = asyncio.create_task(run(lambda: code("x"), port))
    await asyncio.sleep(0)
    waiter = asyncio.create_task(run(lambda: code("y"), Port("y")))
    await asyncio.sleep(0.05)
    port.journal.append("x")
    port.interrupt()
    await asyncio.wait_for(asyncio.gather(holder, waiter), 5)
    [record] = [each for each in caplog.records if each.name == "restate_steps"]
    assert "for another invocation of this process: task 'handler' waits for Lock.acquire" in record.getMessage()


async def test_a_cancellation_that_finds_nothing_waiting_is_told_to_what_waits_next() -> None:
    """E2: while code polls, only the timer of T4 is waited for."""
    seen: list[bool] = []

    async def code() -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < 0.01:  # noqa: ASYNC110 - what this is about
            await asyncio.sleep(0)
        seen.append(True)
        await durable("x")

    with pytest.raises(Cancelled):
        await run(code, Port(CANCEL, "sleep 1"))
    assert seen == [True]


async def test_a_cancellation_reaches_what_waits_beside_code_that_polls() -> None:
    """E2, R6: it runs at once although the turns were used up, and not only after the next sleep of T4."""

    async def code() -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < 0.01:  # noqa: ASYNC110 - what this is about
            await asyncio.sleep(0)
        step = asyncio.create_task(durable("x"))
        await _pass_turns_until(step)
        await step

    with pytest.raises(Cancelled):
        await run(code, Port(CANCEL, "sleep 1"))


async def _pass_turns_until(task: asyncio.Task[Any]) -> int:
    """Let two tasks wake each other until another has ended; return how often they did."""
    ping, pong = asyncio.Event(), asyncio.Event()

    async def answers() -> None:
        while True:
            await ping.wait()
            ping.clear()
            pong.set()

    rounds = 0
    answering = asyncio.create_task(answers())
    while not task.done():
        ping.set()
        await pong.wait()
        pong.clear()
        rounds += 1
    answering.cancel()
    return rounds


async def test_local_waits_are_told_when_only_limits_are_left(log: list[Any]) -> None:
    """E2: a timeout around a local wait is no reason for it to wait on."""

    async def code() -> None:
        async def works() -> None:
            try:
                async with asyncio.timeout(60):
                    await asyncio.get_running_loop().create_future()
            except Cancelled:
                log.append("told")

        worker = asyncio.create_task(works())
        await _ignoring_cancellation("x")
        await worker

    await run(code, Port(CANCEL))
    assert log == ["told"]


@pytest.mark.parametrize(
    "kind", [asyncio.Lock, anyio.Lock, lambda: anyio.Semaphore(1)], ids=["asyncio", "anyio", "anyio_semaphore"]
)
async def test_a_lock_is_passed_on_past_a_task_that_was_told(kind: Callable[[], Any], log: list[Any]) -> None:
    """E2: the task that was told leaves the queue of the lock, and whoever comes after it gets it."""

    async def code() -> None:
        lock = kind()
        event = asyncio.Event()

        async def holds() -> None:
            async with lock:
                await event.wait()
            log.append("released")

        async def waits() -> None:
            try:
                async with lock:
                    log.append("locked")
            except Cancelled:
                log.append("told")
                await durable("undo")
                event.set()
                raise

        holder = asyncio.create_task(holds())
        waiter = asyncio.create_task(waits())
        await _ignoring_cancellation("x")
        await asyncio.wait([waiter])
        with suppress(Cancelled):
            await holder
        async with lock:
            log.append("free")

    await run(code, Port(CANCEL, "undo"))
    assert "told" in log
    assert log[-1] == "free"


async def test_a_condition_holds_its_lock_after_the_cancellation(log: list[Any]) -> None:
    """E2: a task that takes the lock of a condition back is not told before it has it."""

    async def code() -> None:
        condition = asyncio.Condition()

        async def waits() -> None:
            async with condition:
                await condition.wait()
                log.append(condition.locked())

        async def holds() -> None:
            async with condition:
                condition.notify()
                try:
                    await durable("x")
                except Cancelled:
                    log.append(condition.locked())
                    await durable("undo")
                    log.append(condition.locked())

        waiter = asyncio.create_task(waits())
        await asyncio.sleep(0)
        holder = asyncio.create_task(holds())
        await asyncio.gather(waiter, holder, return_exceptions=True)

    await run(code, Port(CANCEL, "undo"))
    assert log == [True, True, True]


async def test_undo_code_that_waits_for_something_local_is_not_interrupted(log: list[Any]) -> None:
    """E2: what could wake it is told before anything that was deferred is delivered."""

    async def code() -> None:
        event = asyncio.Event()

        async def undoes() -> None:
            try:
                await durable("x")
            except Cancelled:
                await event.wait()
                log.append("undone")
                raise

        async def waits() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except Cancelled:
                event.set()

        undoing = asyncio.create_task(undoes())
        waiting = asyncio.create_task(waits())
        await _ignoring_cancellation("y")
        undoing.cancel()
        await asyncio.wait([undoing, waiting])

    await run(code, Port(CANCEL))
    assert log == ["undone"]


async def test_a_task_that_holds_what_those_below_it_need_is_told(log: list[Any]) -> None:
    """E2: it would hear of the cancellation by its child, which waits for the lock that it holds."""

    async def code() -> None:
        lock = asyncio.Lock()

        async def works() -> None:
            try:
                await durable("x")
            except Cancelled:
                async with lock:
                    log.append("undone")
                raise

        worker = asyncio.create_task(works())
        try:
            async with lock:
                await asyncio.get_running_loop().create_future()
        except Cancelled:
            log.append("told")
            await asyncio.wait([worker])

    await run(code, Port(CANCEL))
    assert log == ["told", "undone"]


async def test_the_fast_path_does_not_pass_by_a_deferred_cancellation() -> None:
    """E2: another attempt, which comes to rest there, delivers it."""

    class QuickPort(Port):
        def ask_for(self, handle: int) -> bool:
            return True

    async def code() -> list[bool]:
        execution = current()
        await durable("x")
        found = [execution.has(1)]
        execution.deferring[me()] = None
        found.append(execution.has(1))
        execution.deferring.clear()
        return found

    assert await run(code, QuickPort("x")) == [True, False]


async def test_a_timer_that_ended_by_the_clock_does_not_end_again(log: list[Any]) -> None:
    """T3: its sleep in the journal completes later, and is not waited for any more."""

    async def code() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, log.append, "timer")
        await durable("x")
        await current().local.run(asyncio.sleep(0.03))
        await durable("y")

    port = Port("x", later=["y"])
    await run(code, port)
    assert port.sleeps == [0.01]
    assert port.asked[-1] == ["y"]
    assert log == ["timer"]


async def test_polling_goes_by_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """T4: the sleep of code that polls is made once, however long local work beside it takes."""
    monkeypatch.setattr(_ready, "SPIN", 2 * KEEP)

    async def code() -> None:
        task = asyncio.create_task(_both("x", "y"))
        for _ in range(5 * KEEP):
            await asyncio.sleep(0)
        await current().local.run(asyncio.sleep(0.03))
        for _ in range(5 * KEEP):
            await asyncio.sleep(0)
        await task

    port = Port("x", "y")
    await run(code, port)
    assert port.sleeps == [0.01]


# --- the loop -------------------------------------------------------------------------------------------------------


async def test_handlers_of_one_server_share_a_loop() -> None:
    """A lock of the process works across invocations, and the server's loop runs again afterwards."""
    server_loop = asyncio.get_running_loop()

    async def code() -> asyncio.AbstractEventLoop:
        assert asyncio.get_running_loop() is not server_loop
        return asyncio.get_running_loop()

    assert await run(code) is await run(code)
    assert asyncio.get_running_loop() is server_loop


async def test_handler_code_runs_only_while_it_is_driven(log: list[Any]) -> None:
    """L1: other handlers and the server run between its turns, and none in the middle of one."""
    server_loop = asyncio.get_running_loop()

    async def code() -> None:
        for name in ("x", "y"):
            assert asyncio.get_running_loop() is current().loop
            assert current().loop.driving is current()
            server_loop.call_soon(lambda: log.append((asyncio.get_running_loop(), handler_loop.driving)))
            log.append(name)
            await asyncio.sleep(0)
            log.append(name)
            await durable(name)

    handler_loop = Execution(Port(), server_loop).loop
    await asyncio.gather(run(code, Port(later="xy")), run(code, Port(later="xy")))
    between = (server_loop, None)
    assert [entry for entry in log if entry != between] == ["x", "x", "x", "x", "y", "y", "y", "y"]
    assert log.count(between) == 4


async def test_a_callback_of_an_ended_handler_is_ignored(log: list[Any]) -> None:
    """L2: what comes from outside is for the execution to decide about."""
    executions: list[Execution] = []

    async def code() -> None:
        executions.append(current())

    await run(code)
    [execution] = executions
    context = execution.own_context()
    execution.wake_from_outside(Handle(log.append, ("late",), execution.loop, context))
    execution.loop.call_soon(log.append, "later", context=context)
    await asyncio.sleep(0)
    assert log == []


@pytest.mark.parametrize("operation", ["add_reader", "add_signal_handler", "create_connection", "subprocess_exec"])
async def test_sockets_signals_and_subprocesses_are_refused(operation: str) -> None:
    """L3: when they have something to say is not in the journal."""
    port = Port()

    async def code() -> None:
        called = getattr(asyncio.get_running_loop(), operation)(0, None)
        if asyncio.iscoroutine(called):
            await called

    with pytest.raises(ConcurrencyError, match=operation):
        await run(code, port)
    assert len(port.failed) == 1


# --- what fresh eyes found ----------------------------------------------------------------------------------------


async def test_tasks_that_wake_each_other_let_the_vm_be_asked() -> None:
    """R6: code that polls with two tasks comes to rest, and neither hangs nor keeps the server's loop."""

    async def code() -> int:
        return await _pass_turns_until(asyncio.create_task(durable("step")))

    assert await run(code, Port(later=["step"])) > 1000


async def test_a_task_that_tries_again_and_again_does_not_block_the_end_of_an_attempt() -> None:
    """E4: a wait gives its turn away before it raises that the attempt is over."""

    async def code() -> None:
        while True:
            try:
                await durable("step")
            except BaseException:
                continue

    with pytest.raises(SuspendedException):
        await run(code, Port(SuspendedException()))


async def test_every_cancellation_of_a_task_that_undoes_something_counts() -> None:
    """E2: a timeout takes back its own cancellation, and the other one still comes through."""
    cancelled: list[bool] = []

    async def code() -> None:
        async def undoes() -> None:
            try:
                await durable("x")
            except TerminalError:
                await durable("undo")
            await durable("never")

        task = asyncio.create_task(undoes())
        await _ignoring_cancellation("y")
        assert isinstance(task, HandlerTask)
        task.cancel("by a timeout")
        task.cancel("by a group")
        assert task.cancelling() == 2
        assert task.uncancel() == 1
        await asyncio.wait([task])
        cancelled.append(task.cancelled())

    await run(code, Port(CANCEL, "undo"))
    assert cancelled == [True]


async def test_an_error_that_is_its_own_cause_leaves_the_handler() -> None:
    """A chain of causes that leads back to itself is cut, as the SDK follows it without end."""

    async def code() -> None:
        error = ValueError("x")
        raise error from error

    with pytest.raises(ValueError, match="x") as caught:
        await run(code)
    assert caught.value.__cause__ is None
