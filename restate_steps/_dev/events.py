"""The events of ``dev``: those of the application's process, and those of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias

from restate_steps.server._attempts import AttemptEnd

__all__ = [
    "AppEvent",
    "AppExited",
    "EndedElsewhere",
    "Event",
    "FilesChanged",
    "FromApp",
    "LoadFailed",
    "Loaded",
    "Looked",
    "dump",
    "load",
]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The application accepts requests.

    Attributes:
        name: Its name as ``module:app``.
    """

    name: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The application cannot be served.

    Attributes:
        message: The reason.
        is_usage_error: Whether the name on the command line is wrong, rather than the code.
    """

    message: str
    is_usage_error: bool


@dataclass(frozen=True, slots=True)
class AppExited:
    """The application's process ended.

    Attributes:
        code: Its exit code; the negative number of a signal.
    """

    code: int


@dataclass(frozen=True, slots=True)
class FilesChanged:
    """Files were saved, added or removed.

    Attributes:
        paths: The files.
    """

    paths: Sequence[str]


@dataclass(frozen=True, slots=True)
class EndedElsewhere:
    """The server's answer about invocations in flight.

    Attributes:
        ends: How those ended that have ended without an attempt, by id.
    """

    ends: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Looked:
    """Lines that took a question to the server, and are ready to print.

    Attributes:
        lines: The lines.
    """

    lines: Sequence[str]


AppEvent: TypeAlias = Loaded | LoadFailed | AttemptEnd
"""An event that the application's process reports."""


@dataclass(frozen=True, slots=True)
class FromApp:
    """An event of the application's process.

    Attributes:
        generation: The number of the process, from 1.
        event: The event.
    """

    generation: int
    event: AppEvent | AppExited


Event: TypeAlias = FromApp | FilesChanged | EndedElsewhere | Looked

_KINDS: Final = {kind.__name__: kind for kind in (Loaded, LoadFailed, AttemptEnd)}


def dump(event: AppEvent) -> bytes:
    """Return an event as a line of JSON."""
    return json.dumps({"kind": type(event).__name__, **asdict(event)}).encode() + b"\n"


def load(line: bytes) -> AppEvent:
    """Return the event of a line from :func:`dump`.

    Example:
        >>> load(dump(Loaded("main:app")))
        Loaded(name='main:app')
    """
    fields = json.loads(line)
    return _KINDS[fields.pop("kind")](**fields)
