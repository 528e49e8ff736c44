"""Journals in readable form, and how rows of ``sys_journal`` become one.

The server represents an entry as JSON. A handler's command is ``{"Command": {KIND: BODY}}``. Its outcome is
``{"Notification": {"Completion": {KIND: BODY}}}`` or ``{"Notification": {"Signal": BODY}}``. A completion id links a
command to its completion. Recorded bytes are lists of integers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

__all__ = ["JournalEntry", "JournalFailure", "Message", "body_of", "decoded", "linked", "read_journal"]

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
        name: The name that the handler gave the command, for example a step's name, or the name of a signal. A
            notification has the name of the command it completes. ``None`` without a name.
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


class Message(NamedTuple):
    """A command or a notification that is not linked with others yet.

    Attributes:
        type: The type, as the server names it.
        name: Its own name, if any.
        ids: The completion ids of a command, first that of the result; or of a notification.
        value: Its own value.
        failure: Its own failure.
    """

    type: str
    name: str | None
    ids: Sequence[int]
    value: Any
    failure: JournalFailure | None


def linked(messages: Sequence[Message]) -> list[JournalEntry]:
    """Return the entries of a journal: commands with their results, and notifications with their names.

    Args:
        messages: All messages of the journal, in order.
    """
    names: dict[int, str | None] = {}
    results: dict[int, Message] = {}
    for message in messages:
        if _is_command(message.type):
            names.update(dict.fromkeys(message.ids, message.name))
        else:
            results.update(dict.fromkeys(message.ids, message))
    return [_entry(index, message, names, results) for index, message in enumerate(messages)]


def _entry(
    index: int, message: Message, names: Mapping[int, str | None], results: Mapping[int, Message]
) -> JournalEntry:
    tie = next(iter(message.ids), None)
    name = message.name
    result: Message | None = message
    if tie is not None and _is_command(message.type):
        result = results.get(tie)
    elif tie is not None:
        name = names.get(tie)
    return JournalEntry(
        index=index,
        type=message.type,
        name=name,
        completed=result is not None,
        value=None if result is None else result.value,
        failure=None if result is None else result.failure,
        completion_id=tie,
    )


def _is_command(entry_type: str) -> bool:
    return entry_type.startswith("Command")


def read_journal(rows: Sequence[Mapping[str, Any]]) -> list[JournalEntry]:
    """Convert rows of ``sys_journal`` to entries.

    Args:
        rows: All rows of one invocation, in order, with ``entry_type``, ``name`` and ``entry_json``.

    Returns:
        An entry for each row.

    Example:
        >>> body = '{"Command": {"Run": {"completion_id": 1, "name": "charge"}}}'
        >>> [entry] = read_journal([{"entry_type": "Command: Run", "name": "charge", "entry_json": body}])
        >>> entry.name, entry.completed
        ('charge', False)
    """
    return linked([_message(row) for row in rows])


def _message(row: Mapping[str, Any]) -> Message:
    body = body_of(row)
    ids = [body[tie] for tie in _TIES if tie in body]
    return Message(str(row["entry_type"]), row.get("name") or _signal_name(body), ids, *_outcome(body))


def _signal_name(body: _Body) -> str | None:
    signal: Any = body.get("signal_id", body.get("id"))
    return cast("Mapping[str, Any]", signal).get("Name") if isinstance(signal, dict) else None


def body_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body of an entry, without its wrappers. Each wrapper is an object with a single key."""
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
