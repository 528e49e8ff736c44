"""What agents wait for people to decide, found in the journals of a server, and answered through its ingress.

An agent that waits (see ``restate_steps.agents``) has recorded a step named ``AGENT__external_event.WAIT.ask`` whose
result says what is asked: ``{"token": …, "answer": …, "calls": [{"id", "tool", "kind", "args"}]}``. The token is the id
of an awakeable. The wait is over when the awakeable's signal is in the journal, or the timer that follows has fired.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from restate_steps.errors import ServerError
from restate_steps.server._admin import AdminClient
from restate_steps.server._extra import missing_extra
from restate_steps.server._journal import JournalEntry

__all__ = ["PendingCall", "PendingRequest", "approve_pending", "deny_pending", "find_pending", "pending_named"]

_MARK: Final = "__external_event."
_ASKED: Final = re.compile(rf"(?P<agent>.*){re.escape(_MARK)}(?P<wait>.*)\.ask(?P<place> \[[\d.]*\])?")
_APPROVAL: Final = "approval"
_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A tool call that waits for a decision.

    Attributes:
        id: Its id, which the decision names.
        tool: The name of the tool.
        kind: ``approval`` if it waits to be approved, ``call`` if it waits for a result from outside.
        args: The arguments.
    """

    id: str
    tool: str
    kind: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """Something that an agent waits for people to decide.

    Attributes:
        token: What an answer is sent to.
        invocation: The id of the invocation that waits.
        target: Its service and handler.
        agent: The name of the agent.
        name: The name of the wait.
        calls: The tool calls to decide about.
        asked: When it was asked, as the server writes it.
    """

    token: str
    invocation: str
    target: str
    agent: str
    name: str
    calls: Sequence[PendingCall]
    asked: str


def find_pending(admin_url: str) -> list[PendingRequest]:
    """List what agents wait for.

    Args:
        admin_url: The URL of the server's admin API.

    Returns:
        The requests, the oldest first.

    Raises:
        ServerError: If the server cannot be reached.
    """
    admin = AdminClient(admin_url)
    rows = admin.query(
        "SELECT DISTINCT i.id, i.target, i.created_at FROM sys_invocation i JOIN sys_journal j ON j.id = i.id "
        f"WHERE i.status != 'completed' AND strpos(j.name, '{_MARK}') > 0 ORDER BY i.created_at"
    )
    return [found for row in rows for found in _pending_in(admin, row)]


def pending_named(admin_url: str, name: str) -> PendingRequest:
    """Return one of the requests.

    Args:
        admin_url: The URL of the server's admin API.
        name: Its token, or the id of the invocation that waits, if that waits for one thing only.

    Raises:
        ServerError: There is no such request, or more than one; or the server cannot be reached.
    """
    found = [each for each in find_pending(admin_url) if name in (each.token, each.invocation)]
    if len(found) == 1:
        return found[0]
    if found:
        tokens = ", ".join(each.token for each in found)
        raise ServerError(f"{name} waits for {len(found)} answers. Name one of the tokens: {tokens}.")
    raise ServerError(f"nothing waits for an answer by the name of {name}. Perhaps it has one; see: approvals list")


def approve_pending(
    ingress_url: str, request: PendingRequest, *, calls: Sequence[str] = (), args: Mapping[str, Any] | None = None
) -> None:
    """Approve what an agent waits for.

    Args:
        ingress_url: The URL of the server's ingress.
        request: What :func:`find_pending` has found.
        calls: The ids of the calls to approve, the others are denied; none for all of them.
        args: Arguments for the call to run with, in place of the model's; for one call only.

    Raises:
        ServerError: The server cannot be reached or refuses, or the request is not one to be answered so.
    """
    _check_answerable(ingress_url, request)
    known = [each.id for each in request.calls]
    for call in calls:
        if call not in known:
            raise ServerError(f"the request has no call {call!r}; it has: {', '.join(map(repr, known))}.")
    approved = list(calls) or known
    if args is not None and len(approved) != 1:
        raise ServerError(f"--args are for one call, and {len(approved)} would be approved: name it with --call.")
    yes = {"kind": "tool-approved", "override_args": args}
    no = {"kind": "tool-denied", "message": "Only another call was approved."}
    _resolve(ingress_url, request.token, {"approvals": {call: yes if call in approved else no for call in known}})


def deny_pending(ingress_url: str, request: PendingRequest, *, message: str) -> None:
    """Deny all that an agent waits for.

    Args:
        ingress_url: The URL of the server's ingress.
        request: What :func:`find_pending` has found.
        message: What the model is told.

    Raises:
        ServerError: The server cannot be reached or refuses, or the request is not one to be answered so.
    """
    _check_answerable(ingress_url, request)
    no = {"kind": "tool-denied", "message": message}
    _resolve(ingress_url, request.token, {"approvals": {call.id: no for call in request.calls}})


def _check_answerable(ingress_url: str, request: PendingRequest) -> None:
    """Refuse what takes more than a yes or a no."""
    if any(call.kind != _APPROVAL for call in request.calls) or not request.calls:
        raise ServerError(
            f"{request.name} of {request.agent} waits for more than an approval. Send the answer as JSON to "
            f"{ingress_url.rstrip('/')}/restate/awakeables/{request.token}/resolve."
        )


def _resolve(ingress_url: str, token: str, payload: Any) -> None:
    try:
        import httpx
    except ImportError as error:
        raise missing_extra("httpx", "answer") from error

    url = f"{ingress_url.rstrip('/')}/restate/awakeables/{token}/resolve"
    try:
        answer = httpx.post(url, json=payload, timeout=_TIMEOUT, trust_env=False)
    except httpx.HTTPError as error:
        raise ServerError(f"cannot answer: no answer from the ingress at {ingress_url}: {error!r}") from error
    if not answer.is_success:
        raise ServerError(f"cannot answer: the server answered {answer.status_code}: {answer.text.strip()}")


def _pending_in(admin: AdminClient, row: Mapping[str, Any]) -> list[PendingRequest]:
    entries = admin.journal(row["id"])
    found: list[PendingRequest] = []
    signals: set[int] | None = None
    for entry in entries:
        match = _ASKED.fullmatch(entry.name or "") if entry.type == "Command: Run" else None
        value: object = entry.value
        if match is None or not isinstance(value, dict):
            continue
        asked = cast("dict[str, Any]", value)
        if asked.get("answer") is not None or _is_late(entries, entry.index, match):
            continue
        signals = _signals(admin, row["id"]) if signals is None else signals
        if _signal_of(asked["token"]) in signals:
            continue
        calls = [PendingCall(**call) for call in asked.get("calls", [])]
        found.append(
            PendingRequest(
                token=asked["token"],
                invocation=row["id"],
                target=row["target"],
                agent=match["agent"],
                name=match["wait"],
                calls=calls,
                asked=str(row["created_at"]),
            )
        )
    return found


def _is_late(entries: Sequence[JournalEntry], asked_at: int, match: re.Match[str]) -> bool:
    """Whether the timer that belongs to a question has fired."""
    name = f"{match['agent']}{_MARK}{match['wait']}.timeout"
    timers = (entry for entry in entries if entry.index > asked_at and entry.type == "Command: Sleep")
    timer = next((entry for entry in timers if entry.name == name), None)
    return timer is not None and timer.completed


def _signals(admin: AdminClient, invocation_id: str) -> set[int]:
    rows = admin.query(
        f"SELECT entry_json FROM sys_journal WHERE id = '{invocation_id}' AND entry_type = 'Notification: Signal'"
    )
    ids = [json.loads(row["entry_json"])["Notification"]["Signal"]["id"] for row in rows]
    return {each["Index"] for each in ids if "Index" in each}


def _signal_of(token: str) -> int:
    """Return the number of the signal that an awakeable's id stands for: its last four bytes."""
    encoded = token.partition("_")[2]
    return int.from_bytes(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))[-4:], "big")
