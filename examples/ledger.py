"""A ledger of the step bodies that ran: each body adds a line when it starts.

The ledger is written only if the environment variable ``RESTATE_STEPS_LEDGER`` names a file. It shows what Restate did:
a recorded step has one line, no matter how often its handler was replayed.
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
    """A line of the ledger: a step's body started.

    Attributes:
        invocation: The invocation's id.
        step: The step's name.
        key: The step's idempotency key, which is the same on every attempt, and different for every step.
        pid: The id of the process that ran the body.
    """

    invocation: str
    step: str
    key: str
    pid: int


def note() -> None:
    """Add a line for the running step; do nothing outside a handler, or without a ledger."""
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
    """Add a line to a file, durably: it survives even if the process is killed immediately after."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # A single write in append mode, so that the lines of several writers do not mix.
        os.write(file, f"{line}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[Started]:
    """Return the lines of a ledger, oldest first; an empty list if the file does not exist yet."""
    if not path.exists():
        return []
    # Ignore a last line without a newline: it is still being written.
    whole, _, _ = path.read_text().rpartition("\n")
    return [Started(**json.loads(line)) for line in whole.splitlines()]


async def pretend_to_work(share: float = 1.0) -> None:
    """Sleep for a multiple of ``RESTATE_STEPS_PACE`` seconds (default 0.2), as a real service would take time."""
    await asyncio.sleep(share * float(os.environ.get("RESTATE_STEPS_PACE", "0.2")))
