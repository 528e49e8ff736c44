"""A ledger of what really ran: each body of a step adds a line when it starts.

It is kept only where the environment variable ``RESTATE_STEPS_LEDGER`` names a file, and shows what Restate did: a step
that was recorded has one line, however often its handler was replayed.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from restate_steps import step_info


@dataclass(frozen=True)
class Started:
    """The body of a step was started.

    Attributes:
        invocation: The invocation's id.
        step: The step's name.
        key: The step's idempotency key: the same for every attempt, and another one for every other step.
        pid: The process it ran in.
    """

    invocation: str
    step: str
    key: str
    pid: int


def note() -> None:
    """Add a line for the step whose body calls this; do nothing outside a handler, and where no ledger is kept."""
    path = os.environ.get("RESTATE_STEPS_LEDGER")
    if not path:
        return
    try:
        info = step_info()
    except RuntimeError:
        return
    if not info.invocation_id:
        return
    started = Started(info.invocation_id, info.name, info.idempotency_key, os.getpid())
    append(Path(path), json.dumps(asdict(started)))


def append(path: Path, line: str) -> None:
    """Add a line to a file, so that it is there even if the process is killed right after."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # One write, in the mode for appending: lines of several writers do not mix.
        os.write(file, f"{line}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[Started]:
    """Return what a ledger holds, oldest first; nothing if the file does not exist yet."""
    if not path.exists():
        return []
    # What comes after the last end of a line is still being written.
    whole, _, _ = path.read_text().rpartition("\n")
    return [Started(**json.loads(line)) for line in whole.splitlines()]


async def pretend_to_work(share: float = 1.0) -> None:
    """Take a while, as a real service would: a share of ``RESTATE_STEPS_PACE``, which is 0.2 seconds if not set."""
    await asyncio.sleep(share * float(os.environ.get("RESTATE_STEPS_PACE", "0.2")))
