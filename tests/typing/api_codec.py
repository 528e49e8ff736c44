"""What the type checkers must make of the codec and of serdes. Checked, never run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypedDict, assert_type

import restate
from pydantic import BaseModel
from restate.serde import Serde

from restate_steps import TypedSerde, publish_schemas, serde, typed_handler
from restate_steps.codec import DEFAULT_CODEC, PLAIN_JSON, Codec, JsonCodec, type_name, verify


class Order(BaseModel):
    id: str


class Options(TypedDict):
    urgent: bool


class Own:
    def dump(self, type: Any, value: Any) -> bytes:
        return b"x"

    def load(self, type: Any, data: bytes) -> Any:
        return None


codec: Codec = JsonCodec()
own: Codec = Own()
assert_type(DEFAULT_CODEC.dump(list[Order], [Order(id="a")]), bytes)
assert_type(type_name(Order | None), str)
verify(codec, Order, Order(id="a"), b"{}")

assert_type(serde(Order), TypedSerde[Order])
assert_type(serde(list[Order]), TypedSerde[list[Order]])
assert_type(serde(Order | None), TypedSerde[Order | None])
assert_type(serde(int | str), TypedSerde[int | str])
assert_type(serde(dict[str, Options]), TypedSerde[dict[str, Options]])
assert_type(serde(Order, codec=own, terminal=False, verify=True), TypedSerde[Order])
assert_type(serde(PLAIN_JSON), TypedSerde[Any])
as_the_sdk_takes_it: Serde[list[Order]] = serde(list[Order])

shop = restate.Service("Shop")
cart = restate.VirtualObject("Cart")
delivery = restate.Workflow("Delivery")


@typed_handler(shop, ingress_private=True)
async def orders(ctx: restate.Context, names: list[str]) -> list[Order]:
    return [Order(id=name) for name in names]


@typed_handler(cart, "total", kind="shared")
async def total(ctx: restate.ObjectSharedContext) -> int:
    found = await ctx.get("orders", serde(list[Order]))
    assert_type(found, list[Order] | None)
    return len(found or [])


@typed_handler(delivery, kind="main")
async def deliver(ctx: restate.WorkflowContext, order: Order | None) -> None:
    ctx.set("order", order, serde(Order | None))
    _, answer = ctx.awakeable(serde(list[Order]))
    assert_type(await answer, list[Order])
    assert_type(await ctx.promise("done", serde(dict[str, int])).value(), dict[str, int])
    assert_type(await ctx.service_call(orders, ["a"]), list[Order])
    options = restate.RunOptions(serde=serde(list[Order | None]))
    assert_type(await ctx.run_typed("read it", lambda: [order], options), list[Order | None])


as_written: Callable[[restate.Context, list[str]], Coroutine[Any, Any, list[Order]]] = orders
publish_schemas(shop, cart, delivery)
