"""The log of events in the processes that the campaigns kill, in the order in which they happened.

1. When a step's body starts, it writes a line with a new nonce. The step's result contains the nonce.
2. When a handler has seen a result, it writes a line with the result's nonces. A handler only sees results from the
   journal, so from then on the result is known to be recorded.
3. A line is a single ``write`` to a file opened for appending. Lines of different processes do not interleave, and a
   kill does not undo a write. The order of the lines is the order of the writes.

So two results of one step appear as two nonces. A body that runs although its result was recorded appears as a line
after the line of the handler that saw the result.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from restate_steps import step_info

__all__ = ["EVENT_LOG", "Entry", "begin", "nonces_in", "read", "saw"]

EVENT_LOG = "CHAOS_EVENT_LOG"
"""The environment variable that names the file."""

_NONCE = re.compile(r"n-[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """A line of the event log.

    Attributes:
        pid: The id of the process that wrote it.
        nonces: The nonce of the body that started, or the nonces that a handler saw.
        invocation: The invocation of the body that started; empty if a handler wrote the line.
        step: The step's name.
        key: The step's idempotency key, which is the same on every attempt.
    """

    pid: int
    nonces: tuple[str, ...]
    invocation: str = ""
    step: str = ""
    key: str = ""


def begin() -> str:
    """Log the start of a step's body, and return the nonce for its result."""
    info = step_info()
    nonce = f"n-{uuid.uuid4().hex}"
    _append(Entry(os.getpid(), (nonce,), info.invocation_id, info.name, info.idempotency_key))
    return nonce


def saw(nonces: Iterable[str]) -> None:
    """Log the results that a handler has seen."""
    _append(Entry(os.getpid(), tuple(nonces)))


def nonces_in(text: str) -> list[str]:
    """Find the nonces in a text, in order and without duplicates."""
    return list(dict.fromkeys(_NONCE.findall(text)))


def read(path: Path) -> list[Entry]:
    """Return the entries of an event log, oldest first; an empty list if the file does not exist yet."""
    if not path.exists():
        return []
    # An incomplete last line is still being written.
    whole, _, _ = path.read_text().rpartition("\n")
    return [Entry(pid, tuple(nonces), *where) for pid, nonces, *where in map(json.loads, whole.splitlines())]


def _append(entry: Entry) -> None:
    path = os.environ.get(EVENT_LOG)
    if not path:
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{json.dumps(astuple(entry))}\n".encode())
    finally:
        os.close(file)
