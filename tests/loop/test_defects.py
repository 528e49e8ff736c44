"""Known defects of a replay-safe event loop, put back on purpose: the exploration finds each of them.

A scenario that never failed proves nothing. Each defect here undoes in a few lines what the engine does against it (see
the invariants in ``restate_steps/_loop``). With the defect there is a finding, and its schedule reproduces it. Without
it the same exploration finds nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import anyio
import pytest
import restate

import restate_steps
from restate_steps import _sdk, durable_step
from restate_steps._loop import Cancelled, HandlerTask, _asyncgens, _cancellation, _driver, _local, _loop, _ready
from restate_steps._loop._asyncio import waiting_on
from restate_steps._loop._driver import Driver
from restate_steps._loop._execution import Execution
from restate_steps._loop._local import LocalOperations
from restate_steps._loop._ready import ReadyQueue, owner_of
from restate_steps._loop._timers import DurableTimer, Timers
from restate_steps.concurrency._scope import Scope
from restate_steps.testing import Report, Simulator, simulate
from tests.concurrency import scenarios
from tests.loop import plain_handlers
from tests.loop.plain_handlers import MOMENT, begin, chain, hop, pace, work
from tests.support.exploration import VARIANTS, Subject

Patch = pytest.MonkeyPatch
Defect = Callable[[Patch], None]

EXPLORED = VARIANTS[0]
RUNS = 80


@pytest.fixture(autouse=True)
def no_automatic_collection() -> Iterator[None]:
    """Let only handlers collect garbage, so that a schedule reproduces when they do."""
    gc.disable()
    yield
    gc.enable()


# --- handlers for defects that the plain handlers do not show ---------------------------------------------------------

service = restate.Service(
    "Defects",
    # Few attempts, because what fails in all of them is run often.
    invocation_retry_policy=restate.InvocationRetryPolicy(max_attempts=5, on_max_attempts="pause"),
)
SUBJECTS: dict[str, Subject] = {}


async def serve(*args: Any) -> Any:
    """The application, made when it is first called: the handlers below are added to the service one by one."""
    global _app
    _app = _app or restate_steps.app([service])
    return await _app(*args)


_app: Any = None

_kept: list[object] = []


def jumble(make: Callable[[], object]) -> None:
    """Free memory blocks in a random order, so that what is made next lies at random addresses."""
    made = [make() for _ in range(64)]
    random.shuffle(made)
    _kept.extend(made[:32])


def begin_jumbled(seed: int) -> None:
    """Begin as the plain handlers do, with the memory that was kept."""
    _kept.clear()
    begin(seed)


def scenario(*answers: Any, **options: Any) -> Callable[[Any], Any]:
    """Add a handler to explore, and say what it may answer."""

    def register(function: Any) -> Any:
        name = function.__name__
        given = {"crashes": 2, **options}
        SUBJECTS[name] = Subject(name, serve, f"Defects/{name}", answers=list(answers), setup=begin_jumbled, **given)
        return service.handler()(function)

    return register


@durable_step(name="{tag}")
async def slow_work(tag: str) -> str:
    await asyncio.sleep(MOMENT)
    return tag


async def nothing() -> None:
    """Do nothing."""


@scenario(["a", "b", "c"])
async def helper_tasks_at_random(ctx: restate.Context) -> list[str]:
    """Code that needs a helper task or not, as a cache is cold or warm; each helper takes a turn of the loop."""

    async def uses(tag: str) -> str:
        for number in range(2):
            for _ in range(pace.random.randrange(4)):
                await asyncio.create_task(nothing())
            await work(f"{tag}{number}")
        return tag

    return await asyncio.gather(uses("a"), uses("b"), uses("c"))


@scenario(list("abcdefgh"))
async def a_set_of_many_tasks(ctx: restate.Context) -> list[str]:
    jumble(lambda: asyncio.get_running_loop().create_future())
    tasks = {asyncio.create_task(chain(tag, 1)) for tag in "abcdefgh"}
    found: list[str] = []
    for task in tasks:
        found.append(await task)
        await work(f"after {found[-1]}")
    return sorted(found)


@scenario(list("abcdefgh"))
async def as_completed_of_many(ctx: restate.Context) -> list[str]:
    def unused() -> object:
        coro = chain("", 1)
        coro.close()
        return coro

    coros = []
    for tag in "abcdefgh":
        jumble(unused)
        coros.append(chain(tag, 1))
    return sorted([await result for result in asyncio.as_completed(coros)])


@scenario("undone abcdef")
async def scopes_in_a_cancelled_scope(ctx: restate.Context) -> str:
    undone: list[str] = []

    async def books(tag: str) -> None:
        jumble(anyio.CancelScope)
        with anyio.CancelScope():
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                undone.append(tag)
                with anyio.CancelScope(shield=True):
                    await work(f"undo {tag}")

    async with anyio.create_task_group() as group:
        for tag in "abcdef":
            group.start_soon(books, tag)
        await work("enough")
        group.cancel_scope.cancel()
    return f"undone {''.join(sorted(undone))}"


@scenario("a")
async def a_spin_until_a_task_is_done(ctx: restate.Context) -> str:
    task = asyncio.create_task(chain("a"))
    while not task.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    return task.result()


@scenario("undone")
async def a_scope_that_cancels_again(ctx: restate.Context) -> str:
    """The second wait is cancelled because anyio delivers the cancellation until the task has left the scope."""
    undone: list[str] = []

    async def books() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                undone.append(await work("undone"))
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(books)
        await work("enough")
        group.cancel_scope.cancel()
    return undone[0]


@scenario(["a", "b"])
async def local_operations_that_wait_for_one_step(ctx: restate.Context) -> list[str]:
    """One completion lets two local operations go on, so that both are in flight at once."""
    shared = ctx.run_typed("shared", plain_handlers.constant("shared"))

    async def reads(tag: str) -> str:
        await restate.select(shared=shared)
        await pace.wait()
        return tag

    async def uses(tag: str) -> str:
        return await work(await restate_steps.local(reads(tag)))

    return await asyncio.gather(uses("a"), uses("b"))


@scenario("a", "b")
async def a_body_that_wakes_a_task(ctx: restate.Context) -> str:
    event = asyncio.Event()

    @durable_step
    async def body() -> None:
        event.set()
        await pace.wait()

    async def waits() -> str:
        await event.wait()
        return await work("a")

    async def sets() -> str:
        await body()
        found = await work("b")
        event.set()
        return found

    await asyncio.gather(waits(), sets())
    return "a"


@scenario(["a", "b"])
async def sleeps_of_random_lengths(ctx: restate.Context) -> list[str]:
    """A retry with jitter: each attempt draws other delays."""

    async def retries(tag: str) -> str:
        await asyncio.sleep(MOMENT * (1 + pace.random.random()))
        return await work(tag)

    return await asyncio.gather(retries("a"), retries("b"))


@scenario(["a", "b"])
async def a_timeout_around_what_may_be_there(ctx: restate.Context) -> list[str]:
    """A timeout around something that a cache has or has not."""

    async def uses(tag: str) -> str:
        if pace.random.random() < 0.5:
            async with asyncio.timeout(MOMENT):
                await hop()
        return await work(tag)

    return await asyncio.gather(uses("a"), uses("b"))


@scenario("finished", "undone", ends_cancelled=False)
async def a_group_whose_tasks_undo(ctx: restate.Context) -> str:
    """The first task to have undone fails its group, which cancels the others."""
    told: list[str] = []
    undone: list[str] = []

    async def books(tag: str, steps: int) -> None:
        try:
            await chain(tag)
        except restate.TerminalError:
            told.append(tag)
            await chain(f"undo {tag}", steps)
            undone.append(tag)
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(books("a", 1))
            group.create_task(books("b", 3))
    except* restate.TerminalError:
        pass
    else:
        return "finished"
    return "undone" if sorted(told) == sorted(undone) else f"{told} were told, and {undone} have undone what they did"


@scenario("a")
async def a_failure_beside_a_task(ctx: restate.Context) -> str:
    """The first attempt fails, and leaves a task that cleans up."""

    async def cleans_up() -> None:
        try:
            await chain("b", 4)
        finally:
            await work("clean up")

    task = asyncio.create_task(cleans_up())
    found = await work("a")
    plain_handlers.process_cache["attempts"] = plain_handlers.process_cache.get("attempts", 0) + 1
    if plain_handlers.process_cache["attempts"] == 1:
        raise ConnectionError("try again")
    await task
    return found


_locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()


def lock_of_the_process() -> asyncio.Lock:
    """Return a lock that all invocations share, as a module's lock is; after a crash there is a new one."""
    return _locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


@service.handler()
async def hold_lock(ctx: restate.Context) -> list[str]:
    async def locked(tag: str) -> str:
        async with lock_of_the_process():
            return await slow_work(tag)

    return await asyncio.gather(locked("a"), locked("b"))


@service.handler()
async def await_lock(ctx: restate.Context) -> str:
    async with lock_of_the_process():
        return "locked"


async def contend(simulator: Simulator) -> list[Any]:
    first, second = await simulator.send(hold_lock), await simulator.send(await_lock)
    return [(await first.result()).value, (await second.result()).value]


def is_quick(simulator: Simulator) -> bool:
    """Return whether it ended before the engine refuses an attempt that waits for a minute."""
    return simulator.now < timedelta(seconds=30)


SUBJECTS["a_lock_of_the_process"] = Subject(
    "a_lock_of_the_process",
    serve,
    scenario=contend,
    answers=[[["a", "b"], "locked"]],
    setup=begin,
    check=is_quick,
    cancellable=False,
)


# --- the defects -----------------------------------------------------------------------------------


def turns_are_not_kept(patch: Patch) -> None:
    """R2: a task that yields gives its turn away, so that the number of yields decides the order."""
    patch.setattr(_ready, "KEEP", 1)


def the_queue_is_first_in_first_out(patch: Patch) -> None:
    """R1: new turns go behind everything that is ready, so that each hop costs a place."""

    def end_turn(self: Any) -> None:
        self._queue.extend(self.turn)
        self.turn = []

    patch.setattr(ReadyQueue, "_end_turn", end_turn)


def tasks_are_hashed_by_identity(patch: Patch) -> None:
    """R3: sets of tasks are in the order of addresses."""
    patch.setattr(HandlerTask, "__hash__", object.__hash__)


def cancellations_are_unordered(patch: Patch) -> None:
    """R3: tasks that anyio cancels in the order of a set continue in that order, which another attempt reverses."""
    attempts: dict[Any, bool] = {}

    def in_the_order_of_the_attempt(turn: list[asyncio.Handle]) -> list[asyncio.Handle]:
        [execution] = {owner.execution for owner in map(owner_of, turn) if isinstance(owner, HandlerTask)}
        places = [at for at, handle in enumerate(turn) if getattr(handle, "order", None) is not None]
        handles = [turn[at] for at in places]
        if attempts.setdefault(execution, len(attempts) % 2 == 1):
            handles.reverse()
        for at, handle in zip(places, handles, strict=True):
            turn[at] = handle
        return turn

    patch.setattr(_ready, "_sorted", in_the_order_of_the_attempt)


def as_completed_is_unordered(patch: Patch) -> None:
    """R3: tasks that asyncio makes in the order of a set have numbers, and begin, in that order."""
    patch.setattr(_loop, "_position_in_as_completed", lambda coro: None)


def spinning_code_is_never_parked(patch: Patch) -> None:
    """R4: code that only reschedules itself is always ready, so that the VM is never asked.

    Control would never return to the exploration, so the defect gives up after many turns.
    """

    def put_off(self: Any, handle: Any, spins: int, *, alone: bool) -> None:
        self._queue.append(handle)
        self.times_put_off = getattr(self, "times_put_off", 0) + 1
        if self.times_put_off > GIVE_UP:
            raise RuntimeError("the handler never comes to rest")

    patch.setattr(ReadyQueue, "_put_off", put_off)


GIVE_UP = 50


def spinning_code_is_never_resumed(patch: Patch) -> None:
    """R4: code that only reschedules itself is dropped instead of parked."""
    original = ReadyQueue._put_off

    def put_off(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self._parked.clear()

    patch.setattr(ReadyQueue, "_put_off", put_off)


def local_operations_do_not_hold_the_turn(patch: Patch) -> None:
    """O1, E1: other tasks go on and the VM is asked while an operation is in flight."""
    drive = Driver._drive

    def deliver_and_drive(self: Any, condition: Any) -> bool:
        execution = self._execution
        with execution.driving:
            execution.local.deliver()
        return drive(self, condition)

    add, hold = LocalOperations.add, LocalOperations.hold

    def add_and_go_on(self: Any, operation: Any) -> None:
        add(self, operation)
        self._execution.ready.held = False

    def go_on(self: Any) -> None:
        hold(self)
        self._execution.ready.held = False

    patch.setattr(Driver, "_drive", deliver_and_drive)
    patch.setattr(LocalOperations, "hold", go_on)
    patch.setattr(LocalOperations, "add", add_and_go_on)


def local_results_come_in_order_of_completion(patch: Patch) -> None:
    """O2: the operation that ends first is delivered first."""
    in_flight, original = LocalOperations.in_flight, _local.LocalOperation._ended
    order: dict[Any, None] = {}

    def note(self: Any, outer: Any) -> None:
        order[self] = None
        original(self, outer)

    def first(self: Any) -> Any:
        return next((each for each in order if each in self._operations), None) or in_flight.fget(self)

    patch.setattr(_local.LocalOperation, "_ended", note)
    patch.setattr(LocalOperations, "in_flight", property(first))


def bodies_wake_tasks(patch: Patch) -> None:
    """E5: a wake-up from a step's body is accepted, which does not happen again on replay."""

    def accept(self: Any, handle: Any) -> None:
        self.ready.append(handle)
        self.signal()
        self.port.interrupt()

    patch.setattr(Execution, "wake_from_outside", accept)


def timers_are_local(patch: Patch) -> None:
    """T1: a timer goes by the server's clock, and starts from scratch in every attempt."""

    def make_local(self: Any) -> None:
        execution = self._execution
        for timer in [timer for timer in self._live if timer not in self._durable]:
            self._durable[timer] = DurableTimer(self, timer, None)
            execution.server_loop.call_later(timer.when() - self.now, end, self, timer)

    def end(self: Any, timer: Any) -> None:
        if timer in self._live:
            with self._execution.driving:
                self.end(timer)
            self._execution.signal()
            self._execution.port.interrupt()

    patch.setattr(Timers, "make_durable", make_local)


def timers_are_durable_at_once(patch: Patch) -> None:
    """T1: a timer enters the journal when it is made, although it may be cancelled before the handler rests."""
    original = Timers.add

    def add(self: Any, timer: Any) -> None:
        original(self, timer)
        self.make_durable()

    patch.setattr(Timers, "add", add)


def timers_are_made_in_the_order_of_their_ends(patch: Patch) -> None:
    """T1: the order of the sleeps in the journal depends on how long they are."""
    original = Timers.make_durable

    def make_durable(self: Any) -> None:
        self._live = dict(sorted(self._live.items(), key=lambda item: item[0].when()))
        original(self)

    patch.setattr(Timers, "make_durable", make_durable)


def the_cancellation_sticks(patch: Patch) -> None:
    """E2: after the cancellation every later wait fails with it, so that nothing can be undone."""
    told: set[Any] = set()
    tell, wait = _driver.deliver_cancellation, Execution.wait

    def tell_and_note(execution: Any) -> None:
        told.add(execution)
        tell(execution)

    async def wait_unless_told(self: Any, source: Any) -> None:
        if self in told:
            raise Cancelled
        await wait(self, source)

    patch.setattr(_driver, "deliver_cancellation", tell_and_note)
    patch.setattr(Execution, "wait", wait_unless_told)


def undoing_is_interrupted(patch: Patch) -> None:
    """E2: a task that undoes something is cancelled by a sibling that has finished doing so."""
    patch.setattr(_cancellation, "begin_undoing", lambda task: None)


def tasks_clean_up_after_a_retryable_failure(patch: Patch) -> None:
    """E3: steps of a clean-up enter the journal, and the next attempt may take another way."""
    patch.setattr(_driver, "ends_the_invocation", lambda error: True)


def local_waits_receive_the_exception_of_the_sdk(patch: Patch) -> None:
    """E4: a task that waits for a lock does not pass it on, because asyncio does so only for CancelledError."""
    tear_down = Driver._tear_down

    def tell_and_tear_down(self: Any, error: BaseException) -> Any:
        execution = self._execution
        if isinstance(error, restate.SdkInternalBaseException):
            with execution.driving:
                for wait in execution.port.waits():
                    execution.port.discard(wait)
                    wait.end(error)
                for task in execution.live_tasks():
                    future = waiting_on(task)
                    if future is not None and not isinstance(future, asyncio.Task) and not future.done():
                        future.set_exception(error)
        return tear_down(self, error)

    patch.setattr(Driver, "_tear_down", tell_and_tear_down)


def generators_are_closed_when_collected(patch: Patch) -> None:
    """A generator is closed when the garbage collector finds it."""

    class Never:
        now = property(lambda self: False, lambda self, value: None)

    patch.setattr(_asyncgens, "_collecting", Never())


def bodies_run_in_the_context_of_the_poller(patch: Patch) -> None:
    """Context variables of the task that called a step are not seen in its body."""
    start = _sdk.SdkPort._start_body

    def start_body(self: Any, handle: int) -> None:
        for wait in self._by_handle[handle]:
            wait.context = contextvars.copy_context()
        start(self, handle)

    patch.setattr(_sdk.SdkPort, "_start_body", start_body)


def completions_are_delivered_at_once(patch: Patch) -> None:
    """E1: everything that the server has sent is delivered before any task continues."""
    ask = _sdk.SdkPort.ask

    def ask_for_all(self: Any) -> Any:
        all_done: list[Any] = []
        while self:
            done = ask(self)
            if done is None and not all_done:
                return None
            if not done:
                break
            for wait in done:
                self.discard(wait)
            all_done += done
        return all_done

    patch.setattr(_sdk.SdkPort, "ask", ask_for_all)


def siblings_go_on(patch: Patch) -> None:
    """A group of restate_steps that fails neither cancels its other tasks nor waits for them."""

    async def abort(self: Any) -> None:
        return

    patch.setattr(Scope, "abort", abort)
    patch.setattr(Scope, "cancel", lambda self: None)


DEFECTS: list[tuple[Defect, str, set[str]]] = [
    (turns_are_not_kept, "random_hops_between_steps", {"mismatch"}),
    (the_queue_is_first_in_first_out, "helper_tasks_at_random", {"mismatch"}),
    (tasks_are_hashed_by_identity, "a_set_of_many_tasks", {"mismatch"}),
    (cancellations_are_unordered, "scopes_in_a_cancelled_scope", {"mismatch"}),
    (as_completed_is_unordered, "as_completed_of_many", {"mismatch"}),
    (spinning_code_is_never_parked, "a_spin_until_a_task_is_done", {"paused"}),
    (spinning_code_is_never_parked, "a_scope_that_cancels_again", {"paused"}),
    (spinning_code_is_never_resumed, "a_spin_until_a_task_is_done", {"paused", "stuck"}),
    (spinning_code_is_never_resumed, "a_scope_that_cancels_again", {"paused"}),
    (local_operations_do_not_hold_the_turn, "local_operations_beside_steps", {"mismatch"}),
    (local_results_come_in_order_of_completion, "local_operations_that_wait_for_one_step", {"mismatch"}),
    (timers_are_local, "a_timeout_around_a_chain", {"mismatch"}),
    (timers_are_durable_at_once, "a_timeout_around_what_may_be_there", {"mismatch"}),
    (timers_are_made_in_the_order_of_their_ends, "sleeps_of_random_lengths", {"mismatch"}),
    (the_cancellation_sticks, "a_saga_of_tasks", {"assertion"}),
    (undoing_is_interrupted, "a_group_whose_tasks_undo", {"assertion", "paused"}),
    (tasks_clean_up_after_a_retryable_failure, "a_failure_beside_a_task", {"mismatch"}),
    (local_waits_receive_the_exception_of_the_sdk, "a_lock_of_the_process", {"assertion"}),
    (generators_are_closed_when_collected, "a_generator_collected_at_random_that_closes_with_a_step", {"mismatch"}),
    (bodies_run_in_the_context_of_the_poller, "context_variables_of_tasks", {"assertion", "paused"}),
    (completions_are_delivered_at_once, "wait_for_the_first_in_a_loop", {"mismatch"}),
    (siblings_go_on, "failure_8_siblings_of_a_failing_branch_end", {"paused"}),
]


def subject_of(name: str) -> Subject:
    return SUBJECTS.get(name) or plain_handlers.SCENARIOS.get(name) or scenarios.SCENARIOS[name]


def explored(name: str) -> Report:
    return subject_of(name).explore(EXPLORED, max_runs=RUNS)


@pytest.mark.parametrize(("defect", "name", "problems"), DEFECTS)
def test_the_defect_is_found(defect: Defect, name: str, problems: set[str], monkeypatch: Patch) -> None:
    """With the defect there is a finding, and its schedule reproduces it; without it there is none."""
    with monkeypatch.context() as patch:
        defect(patch)
        report = explored(name)
        [finding] = report.findings
        assert finding.problem in problems, finding
        again = subject_of(name).explore(EXPLORED, schedule=finding.schedule)
        assert [found.problem for found in again.findings] == [finding.problem]
    explored(name).assert_replay_safe()


def test_a_wake_up_from_a_body_is_found(monkeypatch: Patch) -> None:
    """Accepted (E5), it is missing from a replay; without the defect the same exploration finds a refusal."""
    with monkeypatch.context() as patch:
        bodies_wake_tasks(patch)
        [finding] = explored("a_body_that_wakes_a_task").findings
        assert finding.problem == "mismatch"
        again = subject_of("a_body_that_wakes_a_task").explore(EXPLORED, schedule=finding.schedule)
        assert [found.problem for found in again.findings] == ["mismatch"]
    [finding] = explored("a_body_that_wakes_a_task").findings
    assert finding.problem == "paused"
    assert "was woken by the body of step 'body'" in finding.why


async def test_a_result_that_is_kept_back_is_found(monkeypatch: Patch) -> None:
    """A body's result leaves when the body ends; sent with the next poll, a sibling's sleep would hold it up."""
    service = restate.Service("Flushed")

    @durable_step
    async def quick() -> None:
        await asyncio.sleep(1)

    @service.handler()
    async def handler(ctx: restate.Context) -> None:
        await asyncio.gather(quick(), asyncio.sleep(30))

    async def is_recorded_after_two_seconds() -> bool:
        async with simulate(restate_steps.app([service])) as sim:
            invocation = await sim.send(handler)
            await sim.advance(timedelta(seconds=2))
            return "Notification: Run" in [entry.type for entry in invocation.journal]

    assert await is_recorded_after_two_seconds()

    async def run_body(self: Any, run: Callable[[], Any]) -> None:
        await run()

    monkeypatch.setattr(_sdk.SdkPort, "_run_body", run_body)
    assert not await is_recorded_after_two_seconds()
