"""What the type checker must refuse of the codec and of serdes."""

from __future__ import annotations

import restate

from restate_steps import serde, typed_handler
from restate_steps.codec import Codec


class NotACodec:
    def dump(self, value: object) -> bytes:
        return b""


codec: Codec = NotACodec()  # error: assignment

shop = restate.Service("Shop")


async def handler(ctx: restate.ObjectContext) -> None:
    ctx.set("names", ["a"], serde(list[int]))  # error: misc
    total = await ctx.get("total", serde(int))
    text: str | None = total  # error: assignment
    print(text)


typed_handler(shop, kind="main-ish")  # error: arg-type
typed_handler(shop, retention=1)  # error: call-arg


@typed_handler(shop)  # error: arg-type
def not_async(ctx: restate.Context) -> int:
    return 1
