"""Parse the rows of ``sys_journal``.

The server represents an entry as JSON. A handler's command is ``{"Command": {KIND: BODY}}``. Its outcome is
``{"Notification": {"Completion": {KIND: BODY}}}`` or ``{"Notification": {"Signal": BODY}}``. A completion id links a
command to its completion. Recorded bytes are lists of integers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

__all__ = ["JournalEntry", "JournalFailure", "decoded", "read_journal"]

_Body: TypeAlias = Mapping[str, Any]

# A call has two completions. The one with the result comes first; the other has the id of the invocation it started.
_TIES = ("completion_id", "result_completion_id", "invocation_id_completion_id")
# The fields that hold the recorded value, depending on the kind of entry. Only "result" wraps the value.
_VALUES = ("result", "value", "payload", "state_keys", "invocation_id")


@dataclass(frozen=True, slots=True)
class JournalFailure:
    """The terminal failure that a journal entry recorded.

    Attributes:
        code: The status code.
        message: The error message.
    """

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One entry of an invocation's journal.

    Attributes:
        index: The position in the journal, from 0.
        type: The type, as the server names it, for example ``Command: Run`` or ``Notification: Run``.
        name: The name that the handler gave the command, for example a step's name. A notification has the name of the
            command it completes. ``None`` without a name.
        completed: Whether the journal has the result. True for an entry that does not wait for a result.
        value: The recorded value, decoded from JSON, or ``bytes`` if it is not JSON. A command has the value of the
            notification that completed it. ``None`` if no value was recorded, or an empty one.
        failure: The terminal failure that was recorded instead of a value.
        completion_id: The number that links a command to its notification.
    """

    index: int
    type: str
    name: str | None
    completed: bool
    value: Any
    failure: JournalFailure | None
    completion_id: int | None


def read_journal(rows: Sequence[Mapping[str, Any]]) -> list[JournalEntry]:
    """Convert rows of ``sys_journal`` to entries.

    Args:
        rows: The rows of one invocation, in order, with ``index``, ``entry_type``, ``name`` and ``entry_json``.

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
    """Remove the wrappers around an entry's body. Each wrapper is an object with a single key."""
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
    """Decode recorded bytes for display: None if they are empty, the bytes themselves if they are not JSON."""
    if not data:
        return None
    try:
        return json.loads(data)
    except ValueError:
        return data
