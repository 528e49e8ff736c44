"""Serdes on a real server, in both modes: input, output, state, awakeables, promises, calls and ctx.run."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
import restate
from pydantic import BaseModel, Field, computed_field
from typing_extensions import TypedDict

from restate_steps import publish_schemas, serde, typed_handler
from tests.support.harness import Env, InvocationFailed, eventually


class Line(BaseModel):
    sku: str
    blob: bytes = b""
    weight: float = 0.0

    @computed_field
    def heavy(self) -> bool:
        return self.weight > 10


class Card(BaseModel):
    kind: Literal["card"] = "card"
    number: str = Field(alias="cardNumber")


class Cash(BaseModel):
    kind: Literal["cash"] = "cash"
    notes: set[int]


Payment = Card | Cash


class Window(TypedDict):
    start: datetime
    end: datetime | None


class Derived(Line):
    extra: int = 0


shop = restate.Service("SerdeShop")
cart = restate.VirtualObject("SerdeCart")
delivery = restate.Workflow("SerdeDelivery")
ran: dict[str, int] = {}
awakeables: dict[str, str] = {}


@typed_handler(shop)
async def plan(ctx: restate.Context, lines: list[Line]) -> dict[str, Line | None]:
    assert all(type(line) is Line for line in lines)
    return {**{line.sku: line for line in lines}, "none": None}


@typed_handler(shop)
async def window(ctx: restate.Context, asked: Window | None) -> Window | None:
    if asked is None:
        return None
    await ctx.sleep(timedelta(milliseconds=1))
    return {"start": asked["start"] + timedelta(hours=1), "end": asked["end"]}


@typed_handler(shop)
async def pay(ctx: restate.Context, payment: Payment) -> Payment:
    return payment


@typed_handler(shop)
async def chain(ctx: restate.Context, sku: str) -> list[Any]:
    planned = await ctx.service_call(plan, [Line(sku=sku, blob=b"\xff", weight=math.nan)])
    paid = await ctx.service_call(pay, Cash(notes={5, 100, 20}))
    nothing = await ctx.service_call(window, None)
    assert type(planned[sku]) is Line
    assert type(paid) is Cash
    return [planned[sku], paid, nothing, await ctx.service_call(tags, {"b", "a", "c"})]


@typed_handler(shop)
async def tags(ctx: restate.Context, names: set[str]) -> set[str]:
    return names


@typed_handler(shop)
async def wait(ctx: restate.Context, name: str) -> list[Line]:
    awakeable_id, answer = ctx.awakeable(serde(list[Line]))
    awakeables[name] = awakeable_id
    return await answer


@typed_handler(shop)
async def read_twice(ctx: restate.Context, name: str) -> list[Line]:
    options = restate.RunOptions(serde=serde(list[Line]))
    lines = await ctx.run_typed("read", lambda: [Line(sku=name, blob=b"\xfe", weight=math.inf)], options)
    await ctx.sleep(timedelta(milliseconds=1))
    assert type(lines[0]) is Line
    return lines


@typed_handler(shop)
async def lose(ctx: restate.Context, name: str) -> None:
    def body() -> Line:
        ran[name] = ran.get(name, 0) + 1
        return Derived(sku=name, extra=1)

    await ctx.run_typed("lose", body, restate.RunOptions(serde=serde(Line, verify=True)))


@typed_handler(shop)
async def answer_badly(ctx: restate.Context, name: str) -> Line:
    def body() -> str:
        ran[name] = ran.get(name, 0) + 1
        return name

    sku = await ctx.run_typed("body", body, restate.RunOptions(serde=serde(str)))
    attempts[name] = attempts.get(name, 0) + 1
    # The first deployment is wrong; the "redeployed" one answers what it declares.
    return Line(sku=sku) if attempts[name] > 2 else "no line"  # type: ignore[return-value]


attempts: dict[str, int] = {}


@typed_handler(cart)
async def add(ctx: restate.ObjectContext, line: Line) -> None:
    lines = await ctx.get("lines", serde(list[Line])) or []
    ctx.set("lines", [*lines, line], serde(list[Line]))
    ctx.set("skus", {line.sku for line in lines} | {line.sku}, serde(set[str]))
    ctx.set("last", None, serde(Line | None))
    await ctx.sleep(timedelta(milliseconds=1))
    again = await ctx.get("lines", serde(list[Line]))
    assert again is not None
    assert all(type(found) is Line for found in again)
    assert await ctx.get("last", serde(Line | None)) is None


@typed_handler(cart, kind="shared")
async def show(ctx: restate.ObjectSharedContext) -> tuple[list[Line], set[str]]:
    lines = await ctx.get("lines", serde(list[Line]))
    return lines or [], await ctx.get("skus", serde(set[str])) or set()


@typed_handler(cart)
async def read_as_numbers(ctx: restate.ObjectContext) -> list[int]:
    attempts["numbers"] = attempts.get("numbers", 0) + 1
    type_: Any = list[int] if attempts["numbers"] < 3 else list[dict[str, Any]]
    return list(range(len(await ctx.get("lines", serde(type_)) or [])))


@typed_handler(delivery, kind="main")
async def deliver(ctx: restate.WorkflowContext, line: Line) -> Window:
    at = await ctx.promise("at", serde(datetime)).value()
    return {"start": at, "end": None}


@typed_handler(delivery)
async def schedule(ctx: restate.WorkflowSharedContext, at: datetime) -> None:
    await ctx.promise("at", serde(datetime)).resolve(at)


@shop.handler(input_serde=serde(list[Line]), output_serde=serde(Line))
async def heaviest(ctx: restate.Context, lines: list[Line]) -> Line:
    return max(lines, key=lambda line: line.weight)


publish_schemas(shop)


@pytest.fixture
def env(env_factory: Any) -> Env:
    return env_factory(shop, cart, delivery)


def test_input_and_output_are_what_the_annotations_say(env: Env) -> None:
    """Lists of models, unions and TypedDicts arrive as such, and are answered as their schema says."""
    line = {"sku": "a", "blob": "_w==", "weight": 11.0, "heavy": True}

    assert env.call("SerdeShop", "plan", [{"sku": "a", "blob": "_w==", "weight": 11}]) == {"a": line, "none": None}
    assert env.call("SerdeShop", "pay", {"kind": "card", "cardNumber": "1"}) == {"kind": "card", "cardNumber": "1"}
    asked = {"start": "2020-01-01T00:00:00+01:00", "end": None}
    assert env.call("SerdeShop", "window", asked) == {"start": "2020-01-01T01:00:00+01:00", "end": None}


def test_none_is_null_and_no_body_is_none(env: Env) -> None:
    """An Optional is symmetric, whichever way a client says nothing."""
    assert env.call_raw("SerdeShop", "window", b"null") == b"null"
    assert env.call_raw("SerdeShop", "window", b"") == b"null"


def test_bad_input_is_answered_with_400(env: Env) -> None:
    """The client learns which fields do not fit."""
    with pytest.raises(InvocationFailed) as caught:
        env.call("SerdeShop", "plan", [{"blob": 1}])
    assert caught.value.status == 400
    assert caught.value.message.startswith(
        "the input does not fit list[Line]: at $[0].sku: Field required; at $[0].blob"
    )

    with pytest.raises(InvocationFailed, match="the body is empty") as caught:
        env.call_raw("SerdeShop", "plan", b"")
    assert caught.value.status == 400

    with pytest.raises(InvocationFailed, match=r"list\[Line\]") as caught:
        env.call("SerdeShop", "heaviest", [{}])
    assert caught.value.status == 400


def test_the_server_knows_the_schemas(env: Env) -> None:
    """Its OpenAPI document has the schema of a list of models."""
    handlers = {row["name"]: row for row in _handlers(env, "SerdeShop")}

    assert handlers["plan"]["input_json_schema"]["items"] == {"$ref": "#/$defs/Line"}
    assert "heavy" in handlers["heaviest"]["output_json_schema"]["required"]


def _handlers(env: Env, service: str) -> list[dict[str, Any]]:
    import httpx

    answer = httpx.get(f"{env.server.admin_url}/services/{service}", trust_env=False)
    return list(answer.raise_for_status().json()["handlers"])


def test_calls_between_handlers_keep_types(env: Env) -> None:
    """The argument and the result of a call are what the callee declares, also in a replay."""
    line, paid, nothing, names = json.loads(env.call_raw("SerdeShop", "chain", b'"a"'))

    assert (line["sku"], line["blob"]) == ("a", "_w==")
    assert math.isnan(line["weight"])
    assert sorted(paid["notes"]) == [5, 20, 100]
    assert nothing is None
    assert sorted(names) == ["a", "b", "c"]


def test_state_keeps_types(env: Env) -> None:
    """What ctx.set wrote, ctx.get reads, models, sets and None alike."""
    for sku in ("b", "a"):
        env.call("SerdeCart", "add", {"sku": sku, "blob": "_w=="}, key="state")

    lines, skus = env.call("SerdeCart", "show", key="state")

    assert [line["sku"] for line in lines] == ["b", "a"]
    assert skus == ["a", "b"]


def test_state_that_no_longer_fits_is_retried_until_it_does(env: Env) -> None:
    """A value an older deployment wrote does not end the invocation: a newer one goes on."""
    attempts["numbers"] = 0
    env.call("SerdeCart", "add", {"sku": "a"}, key="old")

    assert env.call("SerdeCart", "read_as_numbers", key="old") == [0]
    assert attempts["numbers"] >= 3


def test_an_awakeable_has_a_type(env: Env) -> None:
    """It is resolved from outside with JSON, and awaited as models."""
    awakeables.clear()
    invocation = env.send("SerdeShop", "wait", "outside")
    awakeable = eventually(lambda: awakeables.get("outside"))

    env.resolve_awakeable(awakeable, [{"sku": "a", "weight": 2}])

    assert env.attach(invocation) == [{"sku": "a", "blob": "", "weight": 2.0, "heavy": False}]


def test_a_promise_has_a_type(env: Env) -> None:
    """A datetime stays one."""
    invocation = env.send("SerdeDelivery", "deliver", {"sku": "a"}, key=f"promise-{env.deployment_id}")
    env.call(
        "SerdeDelivery", "schedule", datetime(2020, 1, 1, tzinfo=UTC).isoformat(), key=f"promise-{env.deployment_id}"
    )

    assert env.attach(invocation) == {"start": "2020-01-01T00:00:00Z", "end": None}


def test_a_run_has_a_type(env: Env) -> None:
    """Its result is the same on the first run and in a replay."""
    (line,) = json.loads(env.call_raw("SerdeShop", "read_twice", b'"a"'))

    assert line == {"sku": "a", "blob": "_g==", "weight": math.inf, "heavy": True}


def test_a_run_whose_result_would_lose_something_ends_at_once(env: Env) -> None:
    """The error is terminal and tells the loss, and the body is not run again for it."""
    ran.clear()

    with pytest.raises(InvocationFailed, match="the value is a Derived, but it comes back as a Line") as caught:
        env.call("SerdeShop", "lose", "loser")

    assert caught.value.status == 500
    assert ran == {"loser": 1}


def test_an_answer_that_cannot_be_encoded_is_retried_without_repeating_steps(env: Env) -> None:
    """Nothing is lost by waiting for a better deployment."""
    ran.clear()
    attempts.clear()

    assert env.call("SerdeShop", "answer_badly", "a")["sku"] == "a"
    assert attempts["a"] == 3
    assert ran == {"a": 1}
