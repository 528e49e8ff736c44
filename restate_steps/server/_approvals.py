"""Answers that invocations wait for: find them in the server's journals, and send them through its ingress.

Before an agent waits (see ``restate_steps.agents``), it records a step named ``AGENT__external_event.WAIT.ask``. The
step's result is the request: ``{"token": …, "answer": …, "calls": [{"id", "tool", "kind", "args"}]}``. The token is the
id of an awakeable. The wait is over when the journal has the awakeable's signal, or the timer after the step has fired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast
from urllib.parse import quote

from restate_steps._ids import FIRST_AWAKEABLE, awakeable_of, beginning_of, raw_id
from restate_steps.errors import ServerError
from restate_steps.server import _sql
from restate_steps.server._admin import AdminClient
from restate_steps.server._answers import reason, unsendable
from restate_steps.server._extra import missing_extra
from restate_steps.server._journal import JournalEntry
from restate_steps.server._process import admin_of
from restate_steps.server._waits import awakeables_of

__all__ = [
    "Ingress",
    "PendingAwakeable",
    "PendingCall",
    "PendingRequest",
    "approve_pending",
    "deny_pending",
    "find_awakeables",
    "find_pending",
    "pending_named",
    "reject_awakeable",
    "resolve_awakeable",
]

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


@dataclass(frozen=True, slots=True)
class PendingAwakeable:
    """An awakeable that a suspended invocation waits for, and that does not belong to an agent.

    Attributes:
        id: The id of the awakeable.
        invocation: The id of the waiting invocation.
        target: The invocation's service and handler.
    """

    id: str
    invocation: str
    target: str


class Ingress(NamedTuple):
    """The ingress of a server.

    Attributes:
        url: Its URL.
        token: A bearer token for it, if it requires one.
    """

    url: str
    token: str | None = None


def find_awakeables(server: AdminClient | str) -> list[PendingAwakeable]:
    """List the awakeables that suspended invocations wait for, except those of agents.

    The server learns of an awakeable when the handler is suspended: after its inactivity timeout, 1 minute by default.

    Args:
        server: A client for the server's admin API, or its URL.

    Returns:
        The awakeables, oldest invocation first.

    Raises:
        ServerError: If the server cannot be reached.
    """
    admin = admin_of(server)
    asked = {each.token for each in find_pending(admin)}
    return [
        PendingAwakeable(id=each, invocation=row["id"], target=row["target"])
        for row in admin.query(_sql.waiting_for_signals(FIRST_AWAKEABLE))
        for each in awakeables_of(row)
        if each not in asked
    ]


def find_pending(server: AdminClient | str) -> list[PendingRequest]:
    """List the requests that agents wait for.

    Args:
        server: A client for the server's admin API, or its URL.

    Returns:
        The requests, oldest invocation first.

    Raises:
        ServerError: If the server cannot be reached.
    """
    admin = admin_of(server)
    rows = admin.query(_sql.with_steps_named(_MARK))
    return [found for row in rows for found in _pending_in(admin, row)]


def pending_named(server: AdminClient | str, name: str) -> PendingRequest:
    """Find a single request.

    Args:
        server: A client for the server's admin API, or its URL.
        name: The request's token, or the id of an invocation that waits for one answer only, or the beginning of one.

    Raises:
        ServerError: If no request matches, or several do, or the server cannot be reached.
    """
    beginning = beginning_of(name)
    found = [each for each in find_pending(server) if _has_name(each, beginning)]
    if len(found) == 1:
        return found[0]
    if found:
        tokens = ", ".join(each.token for each in found)
        raise ServerError(f"{name} stands for {len(found)} requests. Give one of their tokens: {tokens}.")
    raise ServerError(
        f"no request of an agent waits for an answer under {name!r}. It may have been answered already. To see what "
        "waits, run: restate-steps approvals list. To answer the awakeable of another handler, run: restate-steps "
        "approvals resolve"
    )


def _has_name(request: PendingRequest, beginning: str) -> bool:
    return beginning.startswith(("inv_", "sign_")) and any(
        each.startswith(beginning) for each in (request.token, request.invocation)
    )


def approve_pending(
    ingress: Ingress, request: PendingRequest, *, calls: Sequence[str] = (), args: Mapping[str, Any] | None = None
) -> None:
    """Approve a request.

    Args:
        ingress: The server's ingress.
        request: A request that :func:`find_pending` returned.
        calls: The ids of the calls to approve; the others are denied. Empty to approve all.
        args: Arguments that replace the model's, if exactly one call is approved.

    Raises:
        ServerError: If the server cannot be reached or rejects the answer, or the request needs more than an approval.
    """
    _check_answerable(request)
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
    resolve_awakeable(ingress, request.token, {"approvals": {call: yes if call in approved else no for call in known}})


def deny_pending(ingress: Ingress, request: PendingRequest, *, message: str) -> None:
    """Deny all calls of a request.

    Args:
        ingress: The server's ingress.
        request: A request that :func:`find_pending` returned.
        message: The message for the model.

    Raises:
        ServerError: If the server cannot be reached or rejects the answer, or the request needs more than an approval.
    """
    _check_answerable(request)
    no = {"kind": "tool-denied", "message": message}
    resolve_awakeable(ingress, request.token, {"approvals": {call.id: no for call in request.calls}})


def _check_answerable(request: PendingRequest) -> None:
    """Reject a request that needs more than a yes or a no."""
    if any(call.kind != _APPROVAL for call in request.calls) or not request.calls:
        raise ServerError(
            f"{request.name} of {request.agent} needs more than an approval. Send the answer as JSON: restate-steps "
            f"approvals resolve {request.token} JSON"
        )


def resolve_awakeable(ingress: Ingress, awakeable_id: str, value: Any) -> None:
    """Resolve an awakeable.

    Args:
        ingress: The server's ingress.
        awakeable_id: The id of the awakeable.
        value: The value, which is sent as JSON.

    Raises:
        ServerError: If the server cannot be reached or rejects the answer.
    """
    _answer(ingress, awakeable_id, "resolve", json=value)


def reject_awakeable(ingress: Ingress, awakeable_id: str, message: str) -> None:
    """Reject an awakeable, so that its handler gets a terminal error.

    Args:
        ingress: The server's ingress.
        awakeable_id: The id of the awakeable.
        message: The message of the error.

    Raises:
        ServerError: If the server cannot be reached or rejects the answer.
    """
    _answer(ingress, awakeable_id, "reject", content=message, headers={"content-type": "text/plain"})


def _answer(
    ingress: Ingress, awakeable_id: str, verb: str, *, headers: Mapping[str, str] | None = None, **body: Any
) -> None:
    try:
        import httpx
    except ImportError as error:
        raise missing_extra("httpx", "send the answer") from error

    headers = {**(headers or {}), **({"authorization": f"Bearer {ingress.token}"} if ingress.token else {})}
    try:
        # Another path would call a handler.
        url = f"{ingress.url.rstrip('/')}/restate/awakeables/{quote(awakeable_id, safe='')}/{verb}"
        answer = httpx.post(url, headers=headers, timeout=_TIMEOUT, trust_env=False, **body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(
            f"cannot send the answer: no response from the ingress at {ingress.url} ({error!r}). Check that the server "
            "is running, and that this is the URL of its ingress."
        ) from error
    except ValueError as error:
        raise unsendable("send the answer", error) from error
    if not answer.is_success:
        said = f"cannot send the answer: the server answered {answer.status_code}: {reason(answer.text)}"
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            said = f"{said.rstrip('.')}. Give the token of the ingress with --ingress-token or RESTATE_AUTH_TOKEN."
        raise ServerError(said)


def _pending_in(admin: AdminClient, row: Mapping[str, Any]) -> list[PendingRequest]:
    entries = admin.journal(row["id"])
    found: list[PendingRequest] = []
    signals: set[int] | None = None
    for entry in entries:
        match = _ASKED.fullmatch(entry.name or "") if entry.type == "Command: Run" else None
        request = _request(row, match, entry.value) if match is not None else None
        if match is None or request is None or _is_late(entries, entry.index, match):
            continue
        signals = _signals(admin, row["id"]) if signals is None else signals
        if awakeable_of(request.token)[1] not in signals:
            found.append(request)
    return found


def _request(row: Mapping[str, Any], match: re.Match[str], value: object) -> PendingRequest | None:
    """Return the request that a step has recorded; None if it has its answer, or is not the step of an agent."""
    asked = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    try:
        token = asked["token"]
        if asked.get("answer") is not None or awakeable_of(token)[0] != raw_id(row["id"]):
            return None
        calls = [PendingCall(**call) for call in asked.get("calls", [])]
    except (KeyError, TypeError, ValueError, AttributeError):
        # The step of a handler may have such a name too.
        return None
    return PendingRequest(
        token=token,
        invocation=row["id"],
        target=row["target"],
        agent=match["agent"],
        name=match["wait"],
        calls=calls,
    )


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
