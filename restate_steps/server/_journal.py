"""Read the rows of ``sys_journal``.

The server describes an entry as JSON: ``{"Command": {KIND: BODY}}`` for what a handler asked for, and
``{"Notification": {"Completion": {KIND: BODY}}}`` or ``{"Notification": {"Signal": BODY}}`` for what came of it.
Completions are tied to their commands by number. Recorded bytes are lists of integers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

__all__ = ["JournalEntry", "JournalFailure", "decoded", "read_journal"]

_Body: TypeAlias = Mapping[str, Any]

# The completion that holds the result comes first: a call has another one, for the id of the invocation it made.
_TIES = ("completion_id", "result_completion_id", "invocation_id_completion_id")
# Where the kinds of entries keep what was recorded; all but the first hold it without a wrapping.
_VALUES = ("result", "value", "payload", "state_keys", "invocation_id")


@dataclass(frozen=True, slots=True)
class JournalFailure:
    """The terminal failure that a journal entry recorded.

    Attributes:
        code: The status code.
        message: What the code that failed said.
    """

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One entry of an invocation's journal.

    Attributes:
        index: Its place in the journal, from 0.
        type: What it is, as the server calls it, for example ``Command: Run`` or ``Notification: Run``.
        name: The name that the handler gave it, for example that of a step; a notification has the name of the
            command it completes. ``None`` if there is none.
        completed: Whether its result is in the journal. An entry that waits for none is completed.
        value: The recorded value, decoded from JSON, or as ``bytes`` if it is not JSON. A command shows the value
            of the notification that completed it. ``None`` if there is none, and for an empty one.
        failure: The terminal failure that was recorded instead of a value.
        completion_id: The number that ties a command to its notification.
    """

    index: int
    type: str
    name: str | None
    completed: bool
    value: Any
    failure: JournalFailure | None
    completion_id: int | None


def read_journal(rows: Sequence[Mapping[str, Any]]) -> list[JournalEntry]:
    """Turn rows of ``sys_journal`` into entries.

    Args:
        rows: The rows of one invocation in order, with ``index``, ``entry_type``, ``name`` and ``entry_json``.

    Returns:
        An entry for each row.

    Example:
        >>> body = '{"Command": {"Run": {"completion_id": 1, "name": "charge"}}}'
        >>> [entry] = read_journal([{"index": 1, "entry_type": "Command: Run", "name": "charge", "entry_json": body}])
        >>> entry.name, entry.completed
        ('charge', False)
    """
    bodies = [_body(row) for row in rows]
    commands: dict[int, str | None] = {}
    completions: dict[int, _Body] = {}
    for row, body in zip(rows, bodies, strict=True):
        if _is_command(row):
            commands.update((body[tie], row.get("name") or None) for tie in _TIES if tie in body)
        elif "completion_id" in body:
            completions[body["completion_id"]] = body
    return [_entry(row, body, commands, completions) for row, body in zip(rows, bodies, strict=True)]


def _entry(
    row: Mapping[str, Any], body: _Body, commands: Mapping[int, str | None], completions: Mapping[int, _Body]
) -> JournalEntry:
    tie: int | None = next((body[tie] for tie in _TIES if tie in body), None)
    name = row.get("name") or None
    completed, recorded = True, body
    if _is_command(row):
        if tie is not None:
            completed, recorded = tie in completions, completions.get(tie, {})
    elif tie is not None:
        name = commands.get(tie)
    value, failure = _outcome(recorded)
    return JournalEntry(
        index=row["index"],
        type=row["entry_type"],
        name=name,
        completed=completed,
        value=value,
        failure=failure,
        completion_id=tie,
    )


def _is_command(row: Mapping[str, Any]) -> bool:
    return str(row["entry_type"]).startswith("Command")


def _body(row: Mapping[str, Any]) -> _Body:
    """Take off the wrappings: each is an object with one key, and a body always has fields that are no objects."""
    entry: Any = json.loads(row.get("entry_json") or "{}")
    for wrapping in ("Command", "Notification", "Completion", "Signal", str(row["entry_type"]).rpartition(": ")[2]):
        if isinstance(entry, dict) and wrapping in entry:
            entry = cast("Any", entry[wrapping])
    return cast("_Body", entry) if isinstance(entry, dict) else {}


def _outcome(body: _Body) -> tuple[Any, JournalFailure | None]:
    recorded: Any = next((body[place] for place in _VALUES if place in body), None)
    if isinstance(recorded, dict):
        outcome = cast("dict[str, Any]", recorded)
        if failure := outcome.get("Failure"):
            return None, JournalFailure(code=failure["code"], message=failure["message"])
        recorded = outcome.get("Success")
    elif recorded == "Void":
        return None, None
    return _recorded(recorded), None


def _recorded(recorded: Any) -> Any:
    if not isinstance(recorded, list):
        return recorded
    items = cast("Sequence[Any]", recorded)
    if not all(isinstance(item, int) for item in items):
        return items
    return decoded(bytes(items))


def decoded(data: bytes) -> Any:
    """Return recorded bytes as a reader would see them: decoded from JSON, None if empty, as they are if not JSON."""
    if not data:
        return None
    try:
        return json.loads(data)
    except ValueError:
        return data
