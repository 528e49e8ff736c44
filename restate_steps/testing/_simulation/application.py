"""The application under test, from the server's side: what it serves, and a connection to it."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from restate_steps._protocol.types import content_type
from restate_steps._protocol.wire import Frame, FrameReader, frames_to_bytes
from restate_steps.testing._simulation.loop import SimulatedLoop
from restate_steps.testing._simulation.manifest import Manifest, Target

__all__ = ["ASGIApp", "Connection", "Mode", "read_manifest", "request_scope"]

ASGIApp: TypeAlias = Any
"""An application, such as ``restate_steps.app(...)`` returns."""

Mode: TypeAlias = Literal["bidirectional", "request_response"]
"""The connection of an attempt: over HTTP/2, or over HTTP/1.1, where it receives nothing after its start."""

_MANIFEST = b"application/vnd.restate.endpointmanifest.v4+json"


class Connection:
    """The server's end of the connection of one attempt."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._inbox: deque[dict[str, Any]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self) -> dict[str, Any]:
        """Return the next ASGI event for the application."""
        while not self._inbox:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._inbox.popleft()

    def feed(self, frames: Sequence[Frame], *, more: bool) -> None:
        """Send messages to the application.

        Args:
            frames: The messages.
            more: False if these are the last ones.
        """
        self._put({"type": "http.request", "body": frames_to_bytes(frames), "more_body": more})

    def hang_up(self) -> None:
        """Disconnect."""
        self._put({"type": "http.disconnect"})

    def frames_in(self, event: dict[str, Any]) -> list[Frame]:
        """Return the messages that an ASGI event of the application completes."""
        return self._reader.feed(event["body"]) if event.get("body") else []

    def _put(self, event: dict[str, Any]) -> None:
        self._inbox.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def request_scope(target: Target, *, version: int, mode: Mode) -> dict[str, Any]:
    """Return the ASGI scope of an attempt.

    Args:
        target: The handler.
        version: The version of the service protocol.
        mode: How the attempt is connected.
    """
    media = content_type(version).encode()
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2" if mode == "bidirectional" else "1.1",
        "method": "POST",
        "path": f"/invoke/{target.service}/{target.handler}",
        "headers": [(b"content-type", media), (b"accept", media)],
    }


def read_manifest(app: ASGIApp) -> Manifest:
    """Ask an application which handlers it has, as a server does.

    Raises:
        TypeError: The object is not a Restate application.
    """
    if not callable(app):
        raise TypeError(f"expected an application, as in simulate(restate_steps.app([...])), not {app!r}.")
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        answers.append(event)

    scope = {"type": "http", "http_version": "2", "method": "GET", "path": "/discover"}
    loop = SimulatedLoop(lambda _: False)
    try:
        task = loop.create_task(app({**scope, "headers": [(b"accept", _MANIFEST)]}, receive, send))
        loop.waiting = lambda: [task]
        loop.run()
        if not task.done():
            raise TypeError("the application did not answer the server's request for its handlers.")
        task.result()
    finally:
        loop.end()
    body = b"".join(event.get("body", b"") for event in answers)
    status = answers[0].get("status") if answers else None
    if status != 200:
        raise TypeError(
            f"the application answered the server's request for its handlers with {status}: {body.decode()}"
        )
    return Manifest(json.loads(body))
