"""Watch the attempts that an application runs, by reading the messages of their connections.

An ASGI middleware sees what the server sees: it needs no hooks in handlers, and works for every kind of application.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame, decode
from restate_steps.server._serving import ASGIApp

__all__ = ["AttemptEnd", "Scanner", "watch_attempts"]

Outcome: TypeAlias = Literal["succeeded", "failed", "retried", "suspended", "rejected", "cut"]

_INVOKE = "/invoke/"

_HEADER = struct.Struct(">HHI")
_READ = frozenset({MessageType.START, MessageType.OUTPUT, MessageType.ERROR})
_OF_INTEREST = _READ | {MessageType.RUN, MessageType.END, MessageType.SUSPENSION}
# A longer output is a result, which may have many megabytes.
_LONGEST_FAILURE = 100_000


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """The end of an attempt.

    Attributes:
        invocation: The invocation's id; empty if the attempt was rejected before it began.
        target: The handler as Restate writes it: ``Orders/place``, or ``Cart/alice/add`` with a key.
        attempt: The number of the attempt since the journal last grew, from 1.
        known_entries: The number of entries that the journal had before. A new invocation has one, its input.
        steps: The number of steps in the journal.
        seconds: The duration of the attempt.
        outcome: ``succeeded`` or ``failed`` if the invocation has ended; ``retried`` if the attempt failed and Restate
            will retry or pause the invocation; ``suspended`` if the handler waits without an attempt; ``rejected`` if
            the application refused the request; ``cut`` if the connection was closed.
        code: The status code of a failure or a rejection; 200 for a success.
        message: The message of a failure.
        traceback: The traceback of a failed attempt, if the SDK sent one.
        step: The name of the step that failed, if one did.
        will_pause: Whether the attempt asks Restate to pause the invocation instead of retrying it.
    """

    invocation: str
    target: str
    attempt: int
    known_entries: int
    steps: int
    seconds: float
    outcome: Outcome
    code: int
    message: str = ""
    traceback: str = ""
    step: str = ""
    will_pause: bool = False


def watch_attempts(app: ASGIApp, ended: Callable[[AttemptEnd], None]) -> ASGIApp:
    """Wrap an application, and report the end of each attempt.

    Args:
        app: The application.
        ended: A callback for each attempt that ends. It must return quickly.

    Returns:
        An application that behaves in the same way.
    """

    async def watched(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        _, invoked, target = str(scope.get("path", "")).rpartition(_INVOKE)
        if scope["type"] != "http" or not invoked:
            await app(scope, receive, send)
            return
        attempt = _Attempt(target)

        async def receive_and_read() -> Any:
            event = await receive()
            attempt.received(event.get("body", b""))
            return event

        async def send_and_read(event: Any) -> None:
            if event["type"] == "http.response.start":
                attempt.status = event["status"]
            attempt.sent(event.get("body", b""))
            await send(event)

        try:
            await app(scope, receive_and_read, send_and_read)
        finally:
            ended(attempt.end())

    return watched


class Scanner:
    """Finds the messages of interest in a stream of bytes, without copying or decoding the others."""

    def __init__(self) -> None:
        self._header = b""
        # The type and the rest of the body that is being received; the body is None if it is of no interest.
        self._kind = 0
        self._left = 0
        self._body: list[bytes] | None = None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the messages that the next bytes complete; those of no interest have an empty body."""
        at = 0
        while at < len(data):
            if self._left == 0:
                missing = _HEADER.size - len(self._header)
                self._header += data[at : at + missing]
                at += missing
                if len(self._header) < _HEADER.size:
                    return
                self._kind, _, self._left = _HEADER.unpack(self._header)
                self._header = b""
                self._body = [] if self._is_read() else None
            if self._left:
                part = data[at : at + self._left] if self._body is not None else b""
                taken = min(self._left, len(data) - at)
                self._left -= taken
                at += taken
                if self._body is not None:
                    self._body.append(part)
            if self._left == 0 and self._kind in _OF_INTEREST:
                yield Frame(MessageType(self._kind), b"".join(self._body or ()))

    def _is_read(self) -> bool:
        return self._kind in _READ and (self._kind != MessageType.OUTPUT or self._left <= _LONGEST_FAILURE)


class _Attempt:
    def __init__(self, target: str) -> None:
        self.status = 200
        self._target = target
        self._started = time.monotonic()
        self._incoming, self._outgoing = Scanner(), Scanner()
        self._start: dict[str, Any] = {}
        self._steps = 0
        self._last: dict[str, Any] = {}
        self._outcome: Outcome = "cut"

    def received(self, data: bytes) -> None:
        for frame in self._incoming.feed(data):
            self._take(frame)

    def sent(self, data: bytes) -> None:
        for frame in self._outgoing.feed(data):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        kind = frame.type
        if kind == MessageType.RUN:
            self._steps += 1
        elif kind == MessageType.START:
            self._start = decode(frame)
        elif kind == MessageType.OUTPUT:
            self._last = decode(frame).get("failure", {})
        elif kind == MessageType.END:
            self._outcome = "failed" if self._last else "succeeded"
        elif kind == MessageType.ERROR:
            self._last, self._outcome = decode(frame), "retried"
        elif kind == MessageType.SUSPENSION:
            self._outcome = "suspended"

    def end(self) -> AttemptEnd:
        """Return what is known about the attempt at its end."""
        rejected = self.status != 200
        return AttemptEnd(
            invocation=self._start.get("debug_id", ""),
            target=self._full_target(),
            attempt=self._start.get("retry_count", 0) + 1,
            known_entries=self._start.get("known_entries", 0),
            steps=self._steps,
            seconds=time.monotonic() - self._started,
            outcome="rejected" if rejected else self._outcome,
            code=self.status if rejected else self._last.get("code", 200),
            message=self._last.get("message", ""),
            traceback=self._last.get("stacktrace", ""),
            step=self._last.get("command_name", ""),
            will_pause=self._last.get("behavior", 0) == 1,
        )

    def _full_target(self) -> str:
        service, _, handler = self._target.rpartition("/")
        key = self._start.get("key")
        return f"{service}/{key}/{handler}" if key else self._target
