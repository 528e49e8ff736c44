"""A diary of what happened in the processes that are killed, in the order in which it happened.

1. The body of a step writes a line when it starts, with a nonce that it has just made. Its result carries the nonce.
2. The handler writes a line when it has seen a result: its nonces. What a handler sees came out of the journal, so from
   then on that result is known to be recorded.
3. A line is one ``write`` to a file that is open for appending: lines of several processes do not mix, and what is
   written stays written when the writer is killed. The order of the lines is the order of the writes.

Two results of one step therefore show as two nonces, and a body that runs although its result was recorded shows as a
line after the one that says that the result was seen.
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

__all__ = ["DIARY", "Entry", "begin", "nonces_in", "read", "saw"]

DIARY = "CHAOS_DIARY"
"""The environment variable that names the file."""

_NONCE = re.compile(r"n-[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """A line of the diary.

    Attributes:
        pid: The process that wrote it.
        nonces: The nonce of the body that started, or those that a handler saw.
        invocation: The invocation of the body that started; empty in a line about what was seen.
        step: The name of its step.
        key: The idempotency key of its step, which is the same on every attempt.
    """

    pid: int
    nonces: tuple[str, ...]
    invocation: str = ""
    step: str = ""
    key: str = ""


def begin() -> str:
    """Note that the body of a step starts, and return the nonce for its result."""
    info = step_info()
    nonce = f"n-{uuid.uuid4().hex}"
    _append(Entry(os.getpid(), (nonce,), info.invocation_id, info.name, info.idempotency_key))
    return nonce


def saw(nonces: Iterable[str]) -> None:
    """Note which results a handler has got."""
    _append(Entry(os.getpid(), tuple(nonces)))


def nonces_in(text: str) -> list[str]:
    """Find the nonces in a text, each once, in order."""
    return list(dict.fromkeys(_NONCE.findall(text)))


def read(path: Path) -> list[Entry]:
    """Return what a diary holds, oldest first; nothing if there is no such file yet."""
    if not path.exists():
        return []
    # What comes after the last end of a line is still being written.
    whole, _, _ = path.read_text().rpartition("\n")
    return [Entry(pid, tuple(nonces), *where) for pid, nonces, *where in map(json.loads, whole.splitlines())]


def _append(entry: Entry) -> None:
    path = os.environ.get(DIARY)
    if not path:
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{json.dumps(astuple(entry))}\n".encode())
    finally:
        os.close(file)
