"""Reject requests that are not signed by the Restate with a given public key."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import restate

from restate_steps.errors import ServerError
from restate_steps.server._serving import ASGIApp

__all__ = ["verified"]

_UNAUTHORIZED = 401
_NO_BODY = {"type": "http.request", "body": b"", "more_body": False}


def verified(app: ASGIApp, keys: Sequence[str]) -> ASGIApp:
    """Wrap an application so that it accepts only signed requests, and health checks.

    The SDK verifies requests only with keys that an application was created with. So another one, without services,
    gets the headers of each request first, and its answer says whether they are valid.

    Args:
        app: The application.
        keys: The public keys, which start with ``publickeyv1_``.

    Returns:
        The wrapped application.

    Raises:
        ServerError: If a key is invalid.
    """
    try:
        gate: Any = restate.app([], identity_keys=list(keys))
    except Exception as error:
        raise ServerError(f"cannot verify requests with the identity keys {list(keys)!r}: {error}.") from error

    async def guarded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and await _status(gate, scope) == _UNAUTHORIZED:
            await gate(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


async def _status(gate: ASGIApp, scope: MutableMapping[str, Any]) -> int:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return _NO_BODY

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await gate(scope, receive, send)
    return statuses[0]
