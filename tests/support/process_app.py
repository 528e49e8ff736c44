"""An application that tests serve from a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import restate

service = restate.Service("ProcessApp")


@service.handler()
async def pid(ctx: restate.Context) -> int:
    return os.getpid()


@service.handler()
async def two_steps(ctx: restate.Context, folder: str) -> list[str]:
    """Writes down each step it runs, and waits in the second until there is a file `go`."""
    ran = Path(folder, "ran")

    def first() -> str:
        with ran.open("a") as file:
            file.write(f"first in {os.getpid()}\n")
        return "1"

    def second() -> str:
        with ran.open("a") as file:
            file.write(f"second in {os.getpid()}\n")
        while not Path(folder, "go").exists():
            time.sleep(0.01)
        return "2"

    return [await ctx.run_typed("first", first), await ctx.run_typed("second", second)]


app = restate.app([service])
