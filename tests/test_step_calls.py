"""How a step is called, started, copied and named, and which calls are refused."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import restate
from restate.exceptions import RetryableError

import restate_steps
from restate_steps import ContextInStepError, StepDefinitionError, durable_step, gather, run_step
from tests.support.harness import Env, InvocationFailed, eventually

Serve = Callable[..., Env]


@dataclass(frozen=True)
class Order:
    id: str
    lines: tuple[str, ...] = ()


class Declined(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(f"declined: {code}")
        self.code = code


@durable_step
async def echo(value: str) -> str:
    return value


@durable_step
async def find(order_id: str) -> Order:
    return Order(order_id, ("tea",))


@durable_step(raises=(Declined,))
async def charge(order: Order) -> str:
    raise Declined(order.id)


def step_names(env: Env, invocation: str) -> list[str | None]:
    """The names of the steps in the journal, in order."""
    return [entry.name for entry in env.server.admin.journal(invocation) if entry.type == "Command: Run"]


def last_failure(env: Env, invocation: str) -> str:
    """Wait until an attempt has failed, and return what the operator sees: of a retry, or of a paused invocation."""

    def failure() -> Any:
        paused = f"SELECT event_json FROM sys_journal_events WHERE id = '{invocation}' AND event_type = 'Paused'"
        for row in env.server.admin.query(paused):
            return json.loads(row["event_json"])["last_failure"]["error_message"]
        return env.server.admin.invocation(invocation).get("last_failure")

    return str(eventually(failure))


def replayed(seen: list[Any], value: Any) -> Any:
    """Note a value, and ask for a replay the first time."""
    seen.append(value)
    if len(seen) == 1:
        raise RetryableError("once more, as a replay", retry_after=timedelta(milliseconds=1))
    return value


# --- names ------------------------------------------------------------------------------------------------------


class Shop:
    def __init__(self, town: str) -> None:
        self.town = town

    @durable_step(name="{self.town}: {order.id}")
    async def pack(self, order: Order) -> str:
        return order.id

    @durable_step(name=lambda self, order: f"{order.id} from {self.town}")
    async def send(self, order: Order) -> str:
        return order.id

    @durable_step(name="{cls.__name__} counts {n:03}")
    @classmethod
    async def count(cls, n: int = 7) -> int:
        return n

    @durable_step(name="weigh {order.lines[0]!r}")
    @staticmethod
    def weigh(order: Order) -> int:
        return 1


NAMED: dict[str, Callable[[], Awaitable[Any]]] = {
    "echo": lambda: echo("a"),
    "an echo": lambda: echo.with_options(name="an echo")("a"),
    "echo of a": lambda: echo.with_options(name="echo of {value}")("a"),
    "echo of b": lambda: echo.with_options(name="echo of {value}")(value="b"),
    "echo {value}": lambda: echo.with_options(name="echo {{value}}")("a"),
    "a!": lambda: echo.with_options(name=lambda value: value + "!")("a"),
    "Lisbon: o1": lambda: Shop("Lisbon").pack(Order("o1")),
    "Porto: o1": lambda: Shop.pack(Shop("Porto"), Order("o1")),
    "o1, again": lambda: Shop("Lisbon").pack.with_options(name="{order.id}, again")(Order("o1")),
    "o1 from Faro": lambda: Shop("Faro").send(order=Order("o1")),
    "Shop counts 007": lambda: Shop("Faro").count(),
    "weigh 'tea'": lambda: Shop.weigh(Order("o1", ("tea",))),
    "lambda": lambda: run_step(lambda: echo.__wrapped__("a")),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_step_has_its_name_in_the_journal(env_factory: Serve, name: str) -> None:
    """The function's name, a text, a template of the arguments, or what a function of them returns."""
    service = restate.Service("Names")

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await NAMED[name]()

    env = env_factory(service)
    invocation = env.send("Names", "run")
    env.attach(invocation)

    assert [name] == step_names(env, invocation)


@pytest.mark.parametrize("answer", [None, "", 5], ids=repr)
def test_a_name_function_that_returns_no_name_is_refused(env_factory: Serve, answer: Any) -> None:
    """Without a name nothing is run, and the error says which function is wrong."""
    service = restate.Service("NoNames")
    ran: list[str] = []

    @durable_step(name=lambda: answer)
    async def body() -> None:
        ran.append("body")

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        try:
            await body()
        except StepDefinitionError as error:
            raise restate.TerminalError(str(error)) from error

    with pytest.raises(InvocationFailed, match=f"name function of step 'body' returned {answer!r}. It must return"):
        env_factory(service).call("NoNames", "run")
    assert [] == ran


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("find {order.idd}", "AttributeError: 'Order' object has no attribute 'idd'"),
        ("find {order.lines[3]}", "IndexError: tuple index out of range"),
        ("find {order:03}", "TypeError: unsupported format string passed to Order.__format__"),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_refused(env_factory: Serve, template: str, message: str) -> None:
    """What only the arguments show is found before the body runs, and the error names the step and its template."""
    service = restate.Service("Unfilled")
    ran: list[str] = []

    @durable_step(name=template)
    async def look(order: Order) -> None:
        ran.append("look")

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        try:
            await look(Order("o1"))
        except StepDefinitionError as error:
            raise restate.TerminalError(str(error)) from error

    with pytest.raises(InvocationFailed) as caught:
        env_factory(service).call("Unfilled", "run")
    assert f"name {template!r} of step 'look' cannot be filled in: {message}." in caught.value.message
    assert [] == ran


# --- with_options and run_step ----------------------------------------------------------------------------------


def test_with_options_changes_a_copy(env_factory: Serve) -> None:
    """The options of one call site are those of the step, but for the ones that are given."""
    service = restate.Service("Copies")
    other = charge.with_options(name="charge again")

    @service.handler()
    async def run(ctx: restate.Context) -> list[str]:
        seen: list[str] = []
        for step in (charge, other, charge):
            try:
                await step(Order("o1"))
            except Declined as error:
                seen.append(error.code)
        return seen

    env = env_factory(service)
    invocation = env.send("Copies", "run")

    assert ["o1", "o1", "o1"] == env.attach(invocation)
    assert ["charge", "charge again", "charge"] == step_names(env, invocation)
    assert other is not charge


def test_an_option_can_be_taken_back(env_factory: Serve) -> None:
    """Giving None for the result's type means the annotation again, which may name a local class."""
    service = restate.Service("TakenBack")

    @dataclass
    class Local:
        n: int

    @durable_step(returns=dict[str, int])
    async def make() -> Local:
        return Local(1)

    @service.handler()
    async def run(ctx: restate.Context) -> bool:
        return Local(1) == await make.with_options(returns=None)()

    assert True is env_factory(service).call("TakenBack", "run")


def test_run_step_takes_the_options_of_a_step(env_factory: Serve) -> None:
    """What is not decorated can be a step with any option, with the type of its annotation."""
    service = restate.Service("RunStep")
    seen: list[Any] = []

    async def fetch(order_id: str) -> Order:
        return Order(order_id, ("tea",))

    @service.handler()
    async def run(ctx: restate.Context) -> bool:
        replayed(seen, await run_step(fetch, "o1", name="fetch {order_id}"))
        return all(Order("o1", ("tea",)) == value for value in seen)

    env = env_factory(service)
    invocation = env.send("RunStep", "run")

    assert True is env.attach(invocation)
    assert ["fetch o1"] == step_names(env, invocation)


# --- start ------------------------------------------------------------------------------------------------------


def test_a_started_step_can_be_selected(env_factory: Serve) -> None:
    """`start` gives the SDK's durable future; what comes out of `restate.select` is typed, on every attempt."""
    service = restate.Service("Selected")
    seen: list[Any] = []

    @service.handler()
    async def run(ctx: restate.Context) -> bool:
        match await restate.select(found=find.start("o1"), late=ctx.sleep(timedelta(hours=1))):
            case ["found", order]:
                replayed(seen, order)
        return all(Order("o1", ("tea",)) == value for value in seen)

    assert True is env_factory(service).call("Selected", "run")
    assert len(seen) >= 2


def test_a_typed_failure_comes_out_of_select(env_factory: Serve) -> None:
    """A declared exception is raised as itself by `restate.select` as well, on every attempt."""
    service = restate.Service("SelectedFailure")
    seen: list[Any] = []

    @service.handler()
    async def run(ctx: restate.Context) -> list[str]:
        try:
            await restate.select(paid=charge.start(Order("o1")), late=ctx.sleep(timedelta(hours=1)))
        except Declined as error:
            replayed(seen, error.code)
        return seen

    assert {"o1"} == set(env_factory(service).call("SelectedFailure", "run"))


def test_started_steps_run_at_the_same_time(env_factory: Serve) -> None:
    """Bodies of steps that were started together meet each other."""
    service = restate.Service("Started")
    barriers: dict[str, asyncio.Barrier] = {}

    @durable_step
    async def meet(invocation: str, n: int) -> int:
        await barriers.setdefault(invocation, asyncio.Barrier(2)).wait()
        return n

    @service.handler()
    async def run(ctx: restate.Context) -> list[int]:
        futures = [meet.start(ctx.request().id, n) for n in range(2)]
        await restate.gather(*futures)
        return [await future for future in futures]

    assert [0, 1] == env_factory(service).call("Started", "run")


async def test_start_needs_a_handler() -> None:
    """There is no durable future outside a handler, and the error says so."""
    with pytest.raises(RuntimeError, match=r"echo\.start\(\) was called while no Restate handler is running"):
        echo.start("a")


def test_start_inside_a_step_is_refused(env_factory: Serve) -> None:
    """A step is one journal entry, so no other can be started in it."""
    service = restate.Service("StartInside")

    @durable_step(raises=(ContextInStepError,))
    async def outer() -> None:
        echo.start("a")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        try:
            await outer()
        except ContextInStepError as error:
            return str(error)
        return ""

    assert (
        env_factory(service)
        .call("StartInside", "run")
        .startswith("echo.start() was called inside the body of step 'outer'. A step is one journal entry")
    )


# --- steps in steps ---------------------------------------------------------------------------------------------


def test_a_step_in_a_step_is_part_of_it(env_factory: Serve) -> None:
    """Only the outer step is in the journal; its body gets the inner one's value as it is, and may gather them."""
    service = restate.Service("Nested")
    inner_saw: list[Any] = []

    @durable_step
    async def untyped(order: Order) -> Any:
        return order

    @durable_step
    async def outer() -> tuple[str, int]:
        order = await untyped(Order("o1"))
        inner_saw.append(order)
        return order.id, len(await gather(echo("a"), echo("b")))

    @durable_step
    def plain_outer() -> Awaitable[str]:
        return echo("c")

    @service.handler()
    async def run(ctx: restate.Context) -> list[Any]:
        return [*await outer(), await plain_outer()]

    env = env_factory(service)
    invocation = env.send("Nested", "run")

    assert ["o1", 2, "c"] == env.attach(invocation)
    assert ["outer", "plain_outer"] == step_names(env, invocation)
    assert [Order("o1")] == inner_saw


def test_options_of_an_inner_step_do_not_apply(env_factory: Serve) -> None:
    """The inner step's exception reaches the outer body as it was raised, and the outer step decides about it."""
    service = restate.Service("NestedFailure")
    ran: list[str] = []

    @durable_step
    async def outer() -> str:
        ran.append("outer")
        try:
            return await charge(Order("o1"))
        except Declined as error:
            return f"caught {error.code}, cause {error.__cause__!r}"

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return await outer()

    assert "caught o1, cause None" == env_factory(service).call("NestedFailure", "run")
    assert ["outer"] == ran


@pytest.mark.parametrize("before", [0, 1], ids=["as the first of the invocation", "after another"])
def test_a_step_in_the_body_of_a_run_is_part_of_it(env_factory: Serve, before: int) -> None:
    """What the SDK's own ``ctx.run`` calls belongs to that entry, as it does within a step."""
    service = restate.Service("InRun")

    async def body() -> str:
        return await echo("a")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        for _ in range(before):
            await echo("before")
        return await ctx.run_typed("by hand", body)

    env = env_factory(service)
    invocation = env.send("InRun", "run")

    assert "a" == env.attach(invocation)
    assert [*["echo"] * before, "by hand"] == step_names(env, invocation)


# --- concurrency ------------------------------------------------------------------------------------------------


def test_concurrent_steps_with_one_name_have_that_name_in_the_journal(env_factory: Serve) -> None:
    """A step's name does not depend on which task calls it, alone or beside others."""
    service = restate.Service("SameNames")

    async def branch() -> list[str]:
        return [await echo("a"), await echo("a")]

    @service.handler()
    async def run(ctx: restate.Context) -> list[list[str]]:
        await echo("a")
        together = await gather(branch(), branch(), gather(echo("a"), echo("a")))
        await echo("a")
        return [list(part) for part in together]

    env = env_factory(service)
    invocation = env.send("SameNames", "run")

    assert [["a", "a"]] * 3 == env.attach(invocation)
    assert ["echo"] * 8 == step_names(env, invocation)


async def with_gather() -> list[str]:
    return await asyncio.gather(echo("a"), echo("b"))


async def with_create_task() -> list[str]:
    task = asyncio.create_task(echo("a"))
    await asyncio.sleep(0)
    second = await echo("b")
    return [await task, second]


async def with_task_group() -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(echo("a")), group.create_task(echo("b"))]
    return [task.result() for task in tasks]


PLAIN_TASKS = [with_gather, with_create_task, with_task_group]


@pytest.mark.parametrize("together", PLAIN_TASKS)
def test_steps_in_plain_asyncio_tasks_run_at_the_same_time(
    env_factory: Serve, together: Callable[[], Awaitable[list[str]]]
) -> None:
    """Their order comes from the journal, so a replay repeats it."""
    service = restate.Service("PlainTasks")
    seen: list[Any] = []

    @service.handler()
    async def run(ctx: restate.Context) -> list[str]:
        replayed(seen, await together())
        return await together()

    env = env_factory(service)
    invocation = env.send("PlainTasks", "run")

    assert ["a", "b"] == env.attach(invocation)
    assert [["a", "b"]] * len(seen) == seen
    assert ["echo"] * 4 == step_names(env, invocation)


@pytest.mark.parametrize("together", PLAIN_TASKS)
def test_steps_in_plain_asyncio_tasks_are_refused_under_restate_app(
    env_factory: Serve, together: Callable[[], Awaitable[list[str]]]
) -> None:
    """Their order would depend on timing, so the attempt fails at once and names the application to use instead."""
    service = restate.Service("RefusedPlainTasks")

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await together()

    env = env_factory(service, app=restate.app)
    invocation = env.send("RefusedPlainTasks", "run")
    failure = last_failure(env, invocation)

    assert "is already being awaited by another asyncio task of this handler" in failure
    assert "Serve the handler with restate_steps.app instead of restate.app" in failure
    assert "paused" == env.server.admin.invocation(invocation)["status"]


# Not longer: a server that always replays sends nothing before the body has ended.
@durable_step
async def slow() -> str:
    await asyncio.sleep(0.3)
    return "slow"


async def with_timeout(step: Awaitable[str]) -> None:
    async with asyncio.timeout(0.01):
        await step


async def with_wait_for(step: Awaitable[str]) -> None:
    await asyncio.wait_for(step, 0.01)


LIMITED = [with_timeout, with_wait_for]


@pytest.mark.parametrize("limited", LIMITED)
def test_a_plain_timeout_around_a_step(
    env_factory: Serve, limited: Callable[[Awaitable[str]], Awaitable[None]]
) -> None:
    """It is a durable timer: it fires once, and a replay takes the same path."""
    service = restate.Service("PlainTimeout")
    seen: list[Any] = []

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        try:
            await limited(slow())
        except TimeoutError:
            return replayed(seen, await echo("too late"))  # type: ignore[no-any-return]
        return "unexpected"

    env = env_factory(service)
    invocation = env.send("PlainTimeout", "run")

    assert "too late" == env.attach(invocation)
    assert {"Command: Sleep": 1, "Command: Run": 2} == {
        kind: [entry.type for entry in env.server.admin.journal(invocation)].count(kind)
        for kind in ("Command: Sleep", "Command: Run")
    }


@pytest.mark.parametrize("limited", LIMITED)
def test_a_plain_timeout_around_a_step_is_refused_under_restate_app(
    env_factory: Serve, limited: Callable[[Awaitable[str]], Awaitable[None]]
) -> None:
    """When it fires depends on the clock, so the step after it is refused, with the ways to have a time limit."""
    service = restate.Service("LocalTimeout")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        try:
            await limited(slow())
        except TimeoutError:
            return await echo("too late")
        return "unexpected"

    env = env_factory(service, app=restate.app)
    failure = last_failure(env, env.send("LocalTimeout", "run"))

    assert "step 'slow' was cancelled by a local timer or task" in failure
    assert "Serve the handler with restate_steps.app instead of restate.app" in failure
    assert "use restate_steps.wait_for for a timeout, or use the step's own timeout= option" in failure


@pytest.mark.parametrize("app", [restate.app, restate_steps.app], ids=["restate.app", "restate_steps.app"])
def test_the_concurrency_functions_work_in_both_applications(env_factory: Serve, app: Any) -> None:
    """Those that end what they start open a handler loop for their own duration where there is none."""
    service = restate.Service("BothApps")
    seen: list[Any] = []

    @service.handler()
    async def run(ctx: restate.Context) -> list[Any]:
        first = await echo("first")
        found = [
            first,
            list(await gather(echo("a"), echo("b"))),
            await restate_steps.map(echo, ["c", "d"], limit=1),
            await restate_steps.race(echo("e"), slow()),
            await restate_steps.wait_for(echo("f"), timedelta(hours=1)),
        ]
        await echo("last")
        return replayed(seen, found)  # type: ignore[no-any-return]

    expected = ["first", ["a", "b"], ["c", "d"], "e", "f"]

    assert expected == env_factory(service, app=app).call("BothApps", "run")
    assert [expected] * len(seen) == seen


async def in_a_group(coro: Coroutine[Any, Any, str]) -> None:
    try:
        async with restate_steps.TaskGroup() as group:
            group.create_task(coro)
    finally:
        coro.close()


async def as_completed(coro: Coroutine[Any, Any, str]) -> None:
    restate_steps.as_completed([coro])


@pytest.mark.parametrize(
    ("function", "name"),
    [(in_a_group, "restate_steps.TaskGroup"), (as_completed, "restate_steps.as_completed")],
    ids=["TaskGroup", "as_completed"],
)
def test_tasks_that_outlive_the_call_are_refused_under_restate_app(
    env_factory: Serve, function: Callable[[Coroutine[Any, Any, str]], Awaitable[None]], name: str
) -> None:
    """They need a handler loop for longer than a call, so the error names the application that has one."""
    service = restate.Service("Outlive")
    given: list[Coroutine[Any, Any, str]] = []

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        given.append(echo("a"))
        await function(given[-1])

    env = env_factory(service, app=restate.app)
    failure = last_failure(env, env.send("Outlive", "run"))
    states = [inspect.getcoroutinestate(coro) for coro in given]
    for coro in given:
        coro.close()

    assert f"{name} was used in a handler outside the handler loop" in failure
    assert "Serve the handler with restate_steps.app instead of restate.app" in failure
    assert {inspect.CORO_CLOSED} == set(states)


def test_request_response_mode(env_factory: Serve) -> None:
    """Steps, groups of them and typed failures work over HTTP/1.1 too, where each wait ends the request."""
    service = restate.Service("Http1")

    @service.handler()
    async def run(ctx: restate.Context) -> list[str]:
        order = await find("o1")
        together = await gather(echo("a"), echo("b"), echo("c"))
        try:
            await charge(order)
        except Declined as error:
            return [error.code, *together]
        return []

    assert ["o1", "a", "b", "c"] == env_factory(service, http1=True).call("Http1", "run")
