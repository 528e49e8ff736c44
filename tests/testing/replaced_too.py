"""Another module with a service of the same name."""

from __future__ import annotations

import restate

same_name = restate.Service("SameName")


@same_name.handler("run")
async def run_there(ctx: restate.Context) -> None:
    await ctx.run_typed("there", lambda: 1)
