"""A forgotten ``await``: the error names the step, wherever its coroutine ends up, and a redeploy can fix it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import restate
from pydantic import BaseModel, ValidationError
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

import restate_steps
from restate_steps import (
    DEFAULT_CODEC,
    PLAIN_JSON,
    NotAwaitedError,
    StepDefinitionError,
    StepsError,
    durable_step,
    serde,
    typed_handler,
)
from restate_steps._not_awaited import forgotten_await
from restate_steps.agents import RestateAgent
from restate_steps.testing import simulate
from tests.support.harness import Env, eventually

pytestmark = [
    pytest.mark.usefixtures("collected"),
    # An error names one coroutine; Python warns about the others.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

MISSING = "step 'quote' was not awaited, so its result is missing"
WRITE = "Write await quote(...)."


class Receipt(BaseModel):
    total: Decimal


class Declined(Exception):
    """A failure of the domain."""


class StandardJson:
    """A codec of the standard library."""

    def dump(self, type: Any, value: Any) -> bytes:
        return json.dumps(value).encode()

    def load(self, type: Any, data: bytes) -> Any:
        return json.loads(data)


@durable_step
async def quote(order: str) -> Decimal:
    return Decimal("9.50")


@durable_step
async def returns_it(order: str) -> Decimal:
    return quote(order)  # type: ignore[return-value]


@durable_step
async def puts_it_in_a_dict(order: str) -> dict[str, Any]:
    return {"price": [quote(order)]}


@durable_step(codec=StandardJson())
async def encodes_it(order: str) -> Any:
    return [quote(order)]


@durable_step(raises=(Declined, TypeError, ValueError))
async def fails_with_it(order: str) -> None:
    raise Declined(quote(order))


@durable_step(raises=(AttributeError, ValidationError, TypeError), no_retry_on=Exception)
async def uses_it(order: str, price: Any) -> Any:
    return price.quantize(Decimal("0.1"))


@durable_step(raises=ValueError, no_retry_on=Exception)
async def validates_it(order: str, price: Any) -> Receipt:
    return Receipt(total=price)


@durable_step(name="named {order} {price.currency}")
async def named(order: str, price: Any) -> None: ...


@durable_step(name="named {order} {price}")
async def named_whole(order: str, price: Any) -> None: ...


service = restate.VirtualObject("NotAwaited")
expected: dict[str, str] = {}


def case(error: str) -> Callable[[Callable[..., Any]], None]:
    """Register a handler, and the error of its attempts."""

    def register(function: Callable[..., Any]) -> None:
        service.handler(name=function.__name__)(function)
        expected[function.__name__] = error

    return register


@case(f"{MISSING}. {WRITE}")
async def result(ctx: restate.ObjectContext) -> Any:
    return quote("a")


@case(f"{MISSING}. {WRITE}")
async def in_a_result(ctx: restate.ObjectContext) -> Any:
    return {"prices": [quote("a")]}


@case(f"{MISSING}. {WRITE}")
async def state(ctx: restate.ObjectContext) -> None:
    ctx.set("price", quote("a"))


@case(f"{MISSING} at $. {WRITE}")
async def typed_state(ctx: restate.ObjectContext) -> None:
    ctx.set("price", quote("a"), serde=serde(Decimal))  # type: ignore[arg-type]


@case(f"{MISSING}. {WRITE}")
async def attribute(ctx: restate.ObjectContext) -> Any:
    return quote("a").quantize(Decimal("0.1"))  # type: ignore[attr-defined]


@case(f"{MISSING}. {WRITE}")
async def arithmetic(ctx: restate.ObjectContext) -> Any:
    prices: list[Any] = [quote(order) for order in "ab"]
    return sum(prices)


@case(f"{MISSING}. {WRITE}")
async def model(ctx: restate.ObjectContext) -> Any:
    return Receipt(total=quote("a"))  # type: ignore[arg-type]


@case(f"{MISSING} at $. {WRITE}")
async def step_result(ctx: restate.ObjectContext) -> Any:
    return await returns_it("a")


@case(f"{MISSING} at $.price[0]. {WRITE}")
async def in_a_step_result(ctx: restate.ObjectContext) -> Any:
    return await puts_it_in_a_dict("a")


@case(f"{MISSING}. {WRITE}")
async def result_with_another_codec(ctx: restate.ObjectContext) -> Any:
    return await encodes_it("a")


@case(f"{MISSING} at $. {WRITE}")
async def declared_exception(ctx: restate.ObjectContext) -> Any:
    return await fails_with_it("a")


@case(f"{MISSING}. {WRITE}")
async def step_argument(ctx: restate.ObjectContext) -> Any:
    return await uses_it("a", quote("a"))


@case(f"{MISSING}. {WRITE}")
async def validated_argument(ctx: restate.ObjectContext) -> Any:
    return await validates_it("a", quote("a"))


@case(f"{MISSING}. {WRITE}")
async def name_field(ctx: restate.ObjectContext) -> Any:
    return await named("a", quote("a"))


@case(f"{MISSING}. {WRITE}")
async def name_text(ctx: restate.ObjectContext) -> Any:
    return await named_whole("a", quote("a"))


@case("gather() was not awaited, so its result is missing. Write await gather(...).")
async def gathered(ctx: restate.ObjectContext) -> Any:
    return restate_steps.gather(quote("a"), quote("b"))


@case("an object of type _GatheringFuture was not awaited, so its result is missing. Await it first.")
async def gathered_by_asyncio(ctx: restate.ObjectContext) -> Any:
    return asyncio.gather(quote("a"), quote("b"))


@case("an object of type ServerDurableFuture was not awaited, so its result is missing. Await it first.")
async def started(ctx: restate.ObjectContext) -> Any:
    return [quote.start("a")]


@typed_handler(service)
async def typed_result(ctx: restate.ObjectContext) -> list[Decimal]:
    return [quote("a")]  # type: ignore[list-item]


expected["typed_result"] = f"{MISSING} at $[0]. {WRITE}"


def agent_with(tool: Callable[..., Any], **options: Any) -> Agent[None, str]:
    agent = Agent(TestModel(), name="shop")
    agent.tool_plain(**options)(tool)
    return agent


async def price_of(order: str) -> Any:
    """Look the price up."""
    return {"prices": [quote(order)]}


@case(f"{MISSING} at $.result.prices[0]. {WRITE}")
async def tool_result(ctx: restate.ObjectContext) -> str:
    return (await RestateAgent(agent_with(price_of)).run("go")).output


@case(f"{MISSING}. {WRITE}")
async def result_of_a_tool_in_the_handler(ctx: restate.ObjectContext) -> str:
    return (await RestateAgent(agent_with(price_of, metadata={"restate": False})).run("go")).output


def test_the_attempt_fails_with_the_step_that_was_not_awaited(env_factory: Callable[..., Env]) -> None:
    """Wherever the coroutine ends up. Restate retries, so fixed code continues the invocation."""
    env = env_factory(service)
    invocations = {name: env.send("NotAwaited", name, key=name) for name in expected}

    def failures() -> dict[str, str]:
        rows = {name: env.server.admin.invocation(invocation) for name, invocation in invocations.items()}
        assert {"completed"}.isdisjoint(row["status"] for row in rows.values())
        return {name: row.get("last_failure") or "" for name, row in rows.items()}

    eventually(lambda: all(failures().values()))
    found = failures()
    assert {} == {name: found[name] for name, error in expected.items() if error not in found[name]}


def test_fixed_code_continues_the_invocation(env_factory: Callable[..., Env]) -> None:
    """The step's result is not lost, and the body that forgot an await runs again."""
    fixed: list[bool] = []
    fixable = restate.Service("FixedLater")

    @durable_step
    async def total(order: str) -> Decimal:
        price: Any = quote(order)
        return await price if fixed else price

    @fixable.handler()
    async def run(ctx: restate.Context) -> str:
        return str(await total("a"))

    env = env_factory(fixable)
    invocation = env.send("FixedLater", "run")
    eventually(lambda: env.server.admin.invocation(invocation).get("last_failure"))
    fixed.append(True)

    assert "9.50" == env.attach(invocation)


@pytest.mark.parametrize("options", [{"raises": ValueError}, {"no_retry_on": ValueError}], ids=str)
async def test_an_error_of_the_user_stays(options: dict[str, Any]) -> None:
    """It is recorded as the step says, whatever its text, and although a coroutine waits in the same frame."""
    runs: list[str] = []
    kept: list[Any] = []
    svc = restate.Service("Expected")

    @durable_step(**options)
    async def check() -> None:
        runs.append("check")
        waiting = quote("a")
        kept.append(waiting)
        raise ValueError("source has a coroutine that was never awaited")

    @svc.handler()
    async def run(ctx: restate.Context) -> str:
        try:
            await check()
        except (ValueError, restate.TerminalError) as error:
            return type(error).__name__
        return "nothing"

    async with simulate(restate_steps.app([svc])) as sim:
        answer = await sim.call(run)

    assert answer.value == ("ValueError" if "raises" in options else "TerminalError")
    assert ["check"] == runs
    for each in kept:
        each.close()


async def test_the_codec_says_what_was_not_awaited_and_where() -> None:
    """Any coroutine is named, with its place in the value."""

    async def fetch() -> None: ...

    for type_ in (PLAIN_JSON, dict[str, list[Decimal]]):
        with pytest.raises(NotAwaitedError) as caught:
            DEFAULT_CODEC.dump(type_, {"prices": [quote("a")]})
        assert ("step 'quote'", WRITE, "$.prices[0]") == (caught.value.what, caught.value.fix, caught.value.path)
    with pytest.raises(NotAwaitedError, match=r"fetch\(\) was not awaited, .* at \$\. Write await fetch\(\.\.\.\)"):
        DEFAULT_CODEC.dump(PLAIN_JSON, fetch())
    with pytest.raises(NotAwaitedError, match="an object of type Future was not awaited"):
        DEFAULT_CODEC.dump(int, asyncio.get_running_loop().create_future())


class Unprintable(TypeError):
    """An error whose text is an error."""

    def __str__(self) -> str:
        raise ValueError


class Hostile:
    """An object that nobody may look at."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError


def raised(error: Exception) -> Exception:
    """Raise an error in a frame that has a coroutine that was not awaited."""
    endless: list[Any] = []
    endless.append(endless)
    waiting = {"prices": (Hostile(), quote("a"))}
    try:
        raise error
    except Exception as caught:
        return caught
    finally:
        assert waiting != endless


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(TypeError("expected str"), id="unrelated"),
        pytest.param(StepDefinitionError("got a coroutine"), id="ours"),
        pytest.param(restate.TerminalError("'coroutine' is not allowed"), id="terminal"),
        pytest.param(Unprintable(), id="unprintable"),
        pytest.param(ValueError("source has a 'coroutine' that was never awaited"), id="of the user"),
        pytest.param(LookupError("no 'coroutine' runner"), id="of the user too"),
    ],
)
def test_other_errors_stay(error: Exception) -> None:
    """A coroutine that waits for its turn is not the cause of every error."""
    assert forgotten_await(raised(error)) is None
    assert isinstance(forgotten_await(raised(TypeError("'coroutine' object is not iterable"))), NotAwaitedError)


def test_a_coroutine_that_runs_was_awaited() -> None:
    """The coroutines of a traceback are running, and not to blame."""

    async def fails() -> None:
        raise TypeError("'coroutine' object is not iterable")

    running = fails()
    with pytest.raises(TypeError) as caught:
        running.send(None)

    assert forgotten_await(caught.value) is None


async def test_python_warns_about_a_call_that_is_dropped_by_the_name_of_the_step() -> None:
    """As about any async function: nothing of ours sees a coroutine that is thrown away."""

    class Shop:
        @durable_step
        async def pack(self, order: str) -> None: ...

    shop = Shop()
    for call, name in ((lambda: quote("a"), "quote"), (lambda: shop.pack("a"), r"\S+Shop\.pack")):
        with pytest.warns(RuntimeWarning, match=rf"coroutine '{name}' was never awaited"):
            call()
    assert inspect.iscoroutinefunction(quote.__call__)
    assert inspect.iscoroutinefunction(type(quote).__call__)


def test_it_is_retryable() -> None:
    """Only code can fix it, so it must not end the invocation."""
    assert issubclass(NotAwaitedError, StepsError)
    assert not issubclass(NotAwaitedError, restate.TerminalError)
