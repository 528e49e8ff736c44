"""The things that an invocation waits for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from restate_steps._ids import FIRST_AWAKEABLE, awakeable_id, raw_id
from restate_steps.server import _sql
from restate_steps.server._admin import AdminClient
from restate_steps.server._journal import JournalEntry

__all__ = ["Wait", "awakeables_of", "target_of", "time_of", "waits_of"]


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that an invocation waits for.

    Attributes:
        type: ``awakeable``, ``signal``, ``promise``, ``call``, ``sleep``, ``step``, ``command``, ``retry``, ``resume``,
            ``start``, ``key`` or ``capacity``.
        text: A description of it.
        id: The id of the awakeable, or of the invocation that was called or has the key.
        until: The time at which the wait ends by itself, in ISO format.
    """

    type: str
    text: str
    id: str | None = None
    until: str | None = None


def awakeables_of(row: Mapping[str, Any]) -> list[str]:
    """Return the ids of the awakeables that a suspended invocation waits for, the oldest first.

    Args:
        row: Its row in ``sys_invocation``.
    """
    raw = raw_id(row["id"])
    numbers: Sequence[int] = row.get("suspended_waiting_for_signals") or ()
    return [awakeable_id(raw, number) for number in sorted(numbers) if number >= FIRST_AWAKEABLE]


def waits_of(
    admin: AdminClient, row: Mapping[str, Any], entries: Sequence[JournalEntry], bodies: Sequence[Mapping[str, Any]]
) -> list[Wait]:
    """Return what an invocation waits for, in the order of its journal.

    The server learns of awakeables when a handler is suspended, so those of a running handler are unknown.

    Args:
        admin: A client for the server.
        row: Its row in ``sys_invocation``.
        entries: Its journal.
        bodies: The bodies of the entries.

    Raises:
        ServerError: If the server cannot be reached.
    """
    match row["status"]:
        case "completed":
            return []
        case "scheduled":
            return [Wait("start", "its start", until=row.get("scheduled_start_at"))]
        case "pending":
            return [_key_of(admin, row)]
        case "ready":
            return [Wait("capacity", "a free place on the server")]
        case "paused":
            return [Wait("resume", "restate-steps invocations resume")]
        case "backing-off":
            return [Wait("retry", "its next attempt", until=row.get("next_retry_at"))]
        case _:
            return [*_commands(row, entries, bodies), *_signals(row)]


def _key_of(admin: AdminClient, row: Mapping[str, Any]) -> Wait:
    service, key = row["target_service_name"], row.get("target_service_key", "")
    holder = next((str(each["invocation_id"]) for each in admin.query(_sql.holder_of(service, key))), None)
    return Wait("key", f"the key {key!r} of {service}, which has another invocation", id=holder)


def _commands(
    row: Mapping[str, Any], entries: Sequence[JournalEntry], bodies: Sequence[Mapping[str, Any]]
) -> Iterator[Wait]:
    awaited: Sequence[int] | None = row.get("suspended_waiting_for_completions")
    for entry, body in zip(entries, bodies, strict=True):
        command, _, kind = entry.type.partition(": ")
        is_awaited = awaited is None or entry.completion_id in awaited or _other_id(body) in awaited
        if command != "Command" or entry.completed or not is_awaited:
            continue
        match kind:
            case "Run":
                yield Wait("step", f"step {entry.name!r}")
            case "Sleep":
                name = f" {entry.name!r}" if entry.name else ""
                yield Wait("sleep", f"sleep{name}", until=time_of(body["wake_up_time"]))
            case "Call":
                request = cast("Mapping[str, Any]", body["request"])
                yield Wait("call", f"call of {target_of(request)}", id=request["invocation_id"])
            case "GetPromise":
                yield Wait("promise", f"promise {body['key']!r}")
            case "OneWayCall":
                continue
            case _:
                yield Wait("command", kind)


def _signals(row: Mapping[str, Any]) -> Iterator[Wait]:
    for each in awakeables_of(row):
        yield Wait("awakeable", "awakeable", id=each)
    for name in _named_signals(json.loads(row.get("suspended_waiting_future_json") or "null")):
        yield Wait("signal", f"signal {name!r}")


def _named_signals(found: object) -> Iterator[str]:
    """Find the names of signals in a tree of futures: objects with one key, and lists."""
    if isinstance(found, dict):
        for key, value in cast("dict[str, object]", found).items():
            if key == "SignalName":
                yield str(value)
            else:
                yield from _named_signals(value)
    elif isinstance(found, list):
        for each in cast("list[object]", found):
            yield from _named_signals(each)


def _other_id(body: Mapping[str, Any]) -> int | None:
    return body.get("invocation_id_completion_id")


def target_of(request: Mapping[str, Any]) -> str:
    """Return the target of a call, as the server writes it in ``sys_invocation``."""
    [target] = cast("Mapping[str, Mapping[str, Any]]", request["invocation_target"]).values()
    return "/".join(str(target[part]) for part in ("name", "key", "handler") if target.get(part) is not None)


def time_of(milliseconds: int) -> str:
    """Return a time as the server writes it, given the milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
