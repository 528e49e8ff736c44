"""Approvals that agents wait for: find them in the server's journals, and answer them through its ingress.

Before an agent waits (see ``restate_steps.agents``), it records a step named ``AGENT__external_event.WAIT.ask``. The
step's result is the request: ``{"token": …, "answer": …, "calls": [{"id", "tool", "kind", "args"}]}``. The token is the
id of an awakeable. The wait is over when the journal has the awakeable's signal, or the timer after the step has fired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from restate_steps._ids import awakeable_of
from restate_steps.errors import ServerError
from restate_steps.server import _sql
from restate_steps.server._admin import AdminClient
from restate_steps.server._extra import missing_extra
from restate_steps.server._journal import JournalEntry

__all__ = ["PendingCall", "PendingRequest", "approve_pending", "deny_pending", "find_pending", "pending_named"]

_MARK: Final = "__external_event."
_ASKED: Final = re.compile(rf"(?P<agent>.*){re.escape(_MARK)}(?P<wait>.*)\.ask(?: \[[\d.]*\])?")
_APPROVAL: Final = "approval"
_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A tool call that waits for a decision.

    Attributes:
        id: The id of the call, which the decision refers to.
        tool: The tool's name.
        kind: ``approval`` if the call waits for approval, ``call`` if it waits for a result from outside.
        args: The arguments.
    """

    id: str
    tool: str
    kind: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request whose answer an agent waits for.

    Attributes:
        token: The id of the awakeable that takes the answer.
        invocation: The id of the waiting invocation.
        target: The invocation's service and handler.
        agent: The agent's name.
        name: The name of the wait.
        calls: The tool calls to decide on.
    """

    token: str
    invocation: str
    target: str
    agent: str
    name: str
    calls: Sequence[PendingCall]


def find_pending(admin_url: str) -> list[PendingRequest]:
    """List the requests that agents wait for.

    Args:
        admin_url: The URL of the server's admin API.

    Returns:
        The requests, oldest invocation first.

    Raises:
        ServerError: If the server cannot be reached.
    """
    admin = AdminClient(admin_url)
    rows = admin.query(_sql.with_steps_named(_MARK))
    return [found for row in rows for found in _pending_in(admin, row)]


def pending_named(admin_url: str, name: str) -> PendingRequest:
    """Find a single request.

    Args:
        admin_url: The URL of the server's admin API.
        name: The request's token, or the id of an invocation that waits for one answer only.

    Raises:
        ServerError: If no request matches, or several do, or the server cannot be reached.
    """
    found = [each for each in find_pending(admin_url) if name in (each.token, each.invocation)]
    if len(found) == 1:
        return found[0]
    if found:
        tokens = ", ".join(each.token for each in found)
        raise ServerError(f"{name} waits for {len(found)} answers. Give one of their tokens: {tokens}.")
    raise ServerError(
        f"no request waits for an answer under {name}. It may have been answered already. To see what waits, run: "
        "restate-steps approvals list"
    )


def approve_pending(
    ingress_url: str, request: PendingRequest, *, calls: Sequence[str] = (), args: Mapping[str, Any] | None = None
) -> None:
    """Approve a request.

    Args:
        ingress_url: The URL of the server's ingress.
        request: A request that :func:`find_pending` returned.
        calls: The ids of the calls to approve; the others are denied. Empty to approve all.
        args: Arguments that replace the model's, if exactly one call is approved.

    Raises:
        ServerError: If the server cannot be reached or rejects the answer, or the request needs more than an approval.
    """
    _check_answerable(ingress_url, request)
    known = [each.id for each in request.calls]
    for call in calls:
        if call not in known:
            raise ServerError(f"the request has no call {call!r}; it has: {', '.join(map(repr, known))}.")
    approved = list(calls) or known
    if args is not None and len(approved) != 1:
        raise ServerError(
            f"--args applies to a single call, and {len(approved)} would be approved. Choose one with --call."
        )
    yes = {"kind": "tool-approved", "override_args": args}
    no = {"kind": "tool-denied", "message": "Only another call was approved."}
    _resolve(ingress_url, request.token, {"approvals": {call: yes if call in approved else no for call in known}})


def deny_pending(ingress_url: str, request: PendingRequest, *, message: str) -> None:
    """Deny all calls of a request.

    Args:
        ingress_url: The URL of the server's ingress.
        request: A request that :func:`find_pending` returned.
        message: The message for the model.

    Raises:
        ServerError: If the server cannot be reached or rejects the answer, or the request needs more than an approval.
    """
    _check_answerable(ingress_url, request)
    no = {"kind": "tool-denied", "message": message}
    _resolve(ingress_url, request.token, {"approvals": {call.id: no for call in request.calls}})


def _check_answerable(ingress_url: str, request: PendingRequest) -> None:
    """Reject a request that needs more than a yes or a no."""
    if any(call.kind != _APPROVAL for call in request.calls) or not request.calls:
        raise ServerError(
            f"{request.name} of {request.agent} needs more than an approval, which this command cannot send. POST the "
            f"answer as JSON to {ingress_url.rstrip('/')}/restate/awakeables/{request.token}/resolve."
        )


def _resolve(ingress_url: str, token: str, payload: Any) -> None:
    try:
        import httpx
    except ImportError as error:
        raise missing_extra("httpx", "send the answer") from error

    url = f"{ingress_url.rstrip('/')}/restate/awakeables/{token}/resolve"
    try:
        answer = httpx.post(url, json=payload, timeout=_TIMEOUT, trust_env=False)
    except httpx.HTTPError as error:
        raise ServerError(
            f"cannot send the answer: no response from the ingress at {ingress_url} ({error!r}). Check that the server "
            "is running, and that this is the URL of its ingress."
        ) from error
    if not answer.is_success:
        raise ServerError(f"cannot send the answer: the server answered {answer.status_code}: {answer.text.strip()}")


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
        if awakeable_of(asked["token"])[1] in signals:
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
            )
        )
    return found


def _is_late(entries: Sequence[JournalEntry], asked_at: int, match: re.Match[str]) -> bool:
    """Return whether the timeout of a request has expired."""
    name = f"{match['agent']}{_MARK}{match['wait']}.timeout"
    timers = (entry for entry in entries if entry.index > asked_at and entry.type == "Command: Sleep")
    timer = next((entry for entry in timers if entry.name == name), None)
    return timer is not None and timer.completed


def _signals(admin: AdminClient, invocation_id: str) -> set[int]:
    rows = admin.query(_sql.signals_of(invocation_id))
    ids = [json.loads(row["entry_json"])["Notification"]["Signal"]["id"] for row in rows]
    return {each["Index"] for each in ids if "Index" in each}
