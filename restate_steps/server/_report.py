"""Everything that the server knows about an invocation, for people to read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from restate_steps._ids import FIRST_AWAKEABLE, awakeable_id, raw_id
from restate_steps.server import _sql
from restate_steps.server._admin import AdminClient
from restate_steps.server._failures import Failure, described
from restate_steps.server._journal import JournalEntry, JournalFailure, body_of, read_journal
from restate_steps.server._waits import Wait, target_of, time_of, waits_of

__all__ = ["EntryReport", "InvocationReport", "failure_in", "report_on"]

_FAILURE: Final = re.compile(
    r"\[(?P<code>\d+)[^]]*\] (?P<message>.*?)(?:\n(?P<traceback>Traceback \(most recent call last\):\n.*))?", re.DOTALL
)
_CANCELLATION: Final = 1


@dataclass(frozen=True, slots=True)
class EntryReport:
    """An entry of a journal: a command with its result, or a signal.

    Attributes:
        index: The position in the journal, from 0.
        type: The server's word for the command, for example ``Run``; or ``Signal``.
        name: The name of the step, the key of the state, the target of the call, the promise or the signal.
        completed: Whether the journal has its result.
        value: The recorded value, decoded from JSON, or ``bytes`` if it is not JSON.
        failure: The terminal failure that was recorded instead.
        invocation: The id of the invocation that was called.
        until: The time at which a sleep ends, in ISO format.
    """

    index: int
    type: str
    name: str | None
    completed: bool
    value: Any
    failure: JournalFailure | None
    invocation: str | None
    until: str | None


@dataclass(frozen=True, slots=True)
class InvocationReport:
    """An invocation, its journal, and what it waits for.

    Attributes:
        row: Its row in ``sys_invocation``.
        endpoint: The address of the deployment of its last attempt; None if there is none.
        journal: Its journal, without the notifications, whose values the commands have.
        waits: What it waits for.
        failure: The failure of its last attempt, or its terminal failure; None if it has none.
        code: The status code of the failure.
    """

    row: Mapping[str, Any]
    endpoint: str | None
    journal: Sequence[EntryReport]
    waits: Sequence[Wait]
    failure: Failure | None
    code: int | None

    @property
    def deployment(self) -> str | None:
        """The id of the deployment of the last attempt."""
        return self.row.get("pinned_deployment_id") or self.row.get("last_attempt_deployment_id")


def report_on(admin: AdminClient, invocation_id: str) -> InvocationReport:
    """Return everything that the server knows about an invocation.

    Args:
        admin: A client for the server.
        invocation_id: The invocation's id.

    Raises:
        ServerError: If the server cannot be reached or does not know the invocation.
    """
    row = admin.invocation(invocation_id)
    rows = admin.query(_sql.entries_of(invocation_id))
    entries, bodies = read_journal(rows), [body_of(each) for each in rows]
    deployment = row.get("pinned_deployment_id") or row.get("last_attempt_deployment_id")
    endpoints = admin.query(_sql.endpoint_of(deployment)) if deployment else []
    code, failure = failure_in(row)
    return InvocationReport(
        row=row,
        endpoint=next((each["endpoint"] for each in endpoints), None),
        journal=[_entry(row, *each) for each in zip(entries, bodies, strict=True) if _is_shown(each[0])],
        waits=waits_of(admin, row, entries, bodies),
        failure=failure,
        code=code,
    )


def failure_in(row: Mapping[str, Any]) -> tuple[int | None, Failure | None]:
    """Return the status code and the description of the failure in a row of ``sys_invocation``."""
    text = row.get("completion_failure") or row.get("last_failure")
    if not text:
        return None, None
    step = row.get("last_failure_related_command_name") or ""
    found = _FAILURE.fullmatch(text)
    if found is None:
        return None, described(text, "", step)
    return int(found["code"]), described(found["message"], found["traceback"] or "", step)


def _is_shown(entry: JournalEntry) -> bool:
    return entry.type.startswith("Command") or entry.type == "Notification: Signal"


def _entry(row: Mapping[str, Any], entry: JournalEntry, body: Mapping[str, Any]) -> EntryReport:
    request: Mapping[str, Any] = body.get("request") or {}
    attached: Any = body.get("target")
    invocation = request.get("invocation_id") or body.get("target_invocation_id")
    if isinstance(attached, dict):
        invocation = cast("dict[str, Any]", attached).get("InvocationId")
    until = body.get("wake_up_time") or body.get("invoke_time")
    kind = entry.type.partition(": ")[2]
    return EntryReport(
        index=entry.index,
        type=kind,
        name=_signal(row["id"], entry, body) if kind == "Signal" else _name(entry, body, request),
        completed=entry.completed,
        # The value of a one-way call is the id of its invocation.
        value=None if kind == "OneWayCall" else entry.value,
        failure=entry.failure,
        invocation=invocation,
        until=time_of(until) if until else None,
    )


def _name(entry: JournalEntry, body: Mapping[str, Any], request: Mapping[str, Any]) -> str | None:
    if request:
        return target_of(request)
    found = entry.name or body.get("key") or body.get("id")
    return found if isinstance(found, str) else None


def _signal(invocation_id: str, entry: JournalEntry, body: Mapping[str, Any]) -> str | None:
    index: Any = body.get("id", {}).get("Index")
    if index is None:
        return entry.name
    if index == _CANCELLATION:
        return "cancel"
    return awakeable_id(raw_id(invocation_id), index) if index >= FIRST_AWAKEABLE else str(index)
