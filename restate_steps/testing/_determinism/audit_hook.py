"""Detect when a handler uses files, connections, programs or threads outside of a step.

Python reports these to audit hooks. A hook cannot be removed, so there is a single one, which ignores everything unless
an attempt is watched. It misses what raises no audit event: checking a file without opening it, and using a connection
that is already open.
"""

from __future__ import annotations

import contextvars
import os
import sys
from types import FrameType
from typing import Any, Final, cast

from restate_steps._user_code import is_user_code, module_of
from restate_steps.testing._determinism.user_code import caller, place_of
from restate_steps.testing._determinism.watch import watching

__all__ = ["listen"]

_EVENTS: Final = {
    "open": "open",
    "os.exec": "os.exec",
    "os.listdir": "os.listdir",
    "os.mkdir": "os.mkdir",
    "os.posix_spawn": "os.posix_spawn",
    "os.remove": "os.remove",
    "os.rename": "os.rename",
    "os.rmdir": "os.rmdir",
    "os.scandir": "os.scandir",
    "os.spawn": "os.spawn",
    "os.system": "os.system",
    "os.truncate": "os.truncate",
    "socket.connect": "a connection",
    "socket.getaddrinfo": "a look-up of the name",
    "socket.sendto": "a datagram",
    "sqlite3.connect": "sqlite3.connect",
    "subprocess.Popen": "a program",
    "_thread.start_new_thread": "a thread",
    "_thread.start_joinable_thread": "a thread",
}
_IN_MEMORY: Final = ":memory:"
_TIME_ZONES: Final = "zoneinfo"

# Modules that open files for other purposes: to import, to log, to print tracebacks, to read time zones.
_INNOCENT: Final = frozenset(
    {
        "_frozen_importlib",
        "_frozen_importlib_external",
        "certifi",
        "encodings",
        "gettext",
        "importlib",
        "importlib_metadata",
        "inspect",
        "linecache",
        "locale",
        "logging",
        "mimetypes",
        "pkgutil",
        "restate",
        "ssl",
        "tokenize",
        "traceback",
        "tzdata",
        "warnings",
        "zipimport",
        "zoneinfo",
    }
)

_telling: contextvars.ContextVar[bool] = contextvars.ContextVar("telling", default=False)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    watch = watching.get()
    if watch is None or not watch.idle or _telling.get():
        return
    token = _telling.set(True)
    try:
        found = _who(caller())
        if found is not None and not _is_innocent(event, arguments):
            watch.accesses_outside(_what(event, arguments), place_of(found))
    finally:
        _telling.reset(token)


def _is_innocent(event: str, arguments: tuple[Any, ...]) -> bool:
    subject: Any = arguments[0] if arguments else None
    if event == "open":
        # A number is the descriptor of an open file.
        return isinstance(subject, int) or _TIME_ZONES in os.fsdecode(subject)
    return event == "sqlite3.connect" and bool(subject == _IN_MEMORY)


def _who(frame: FrameType | None) -> FrameType | None:
    """Return the frame to blame; None if there is none."""
    innermost = None
    while frame is not None and frame.f_globals.get("__name__") != "asyncio.events":
        if is_user_code(frame.f_code.co_filename):
            return frame
        if module_of(frame) in _INNOCENT:
            return None
        innermost = innermost or frame
        frame = frame.f_back
    return innermost


def _what(event: str, arguments: tuple[Any, ...]) -> str:
    name = _EVENTS[event]
    if event.startswith("_thread.") or not arguments:
        return name
    if event == "socket.connect":
        address: Any = arguments[-1]
        # An internet socket has a host and a port; others have a path.
        shown = f"{address[0]}:{address[1]}" if type(address) is tuple else address
        return f"{name} to {shown}"
    subject: Any = arguments[0]
    if isinstance(subject, bytes | os.PathLike):
        subject = os.fsdecode(cast("bytes | os.PathLike[str]", subject))
    return f"{name}({subject!r})" if "." in name or name == "open" else f"{name} {subject!r}"


_listening = False


def listen() -> None:
    """Install the audit hook, once; it reports to attempts that are watched."""
    global _listening
    if not _listening:
        _listening = True
        sys.addaudithook(_hook)
