"""An application that tests serve from processes that they signal."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import restate

import restate_steps

service = restate.Service("ServeApp")


def wait_for_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@service.handler()
async def pid(ctx: restate.Context) -> int:
    return os.getpid()


@service.handler()
async def waits(ctx: restate.Context, folder: str) -> None:
    """Leave a file `started`, and wait for what nothing sends."""
    await ctx.run_typed("start", Path(folder, "started").touch)
    _, promise = ctx.awakeable()
    await promise


@service.handler()
async def works(ctx: restate.Context, folder: str) -> list[int]:
    """Run two bodies, each of which writes that it starts, and both of which end when there is a file `go`."""
    started = Path(folder, "started")

    async def body() -> int:
        with started.open("a") as file:
            file.write(f"{os.getpid()}\n")
        await asyncio.to_thread(wait_for_file, Path(folder, "go"))
        return os.getpid()

    return [await ctx.run_typed(name, body) for name in ("first", "second")]


app = restate_steps.app([service])
plain = restate.app([service])
