"""An ASGI application that can stop working without losing a step.

1. Before :meth:`DrainingApp.drain`, every message passes unchanged.
2. Draining ends the input of every open request, as the server does after its inactivity timeout. The handler's attempt
   then ends as soon as it has to wait: bodies that are running end, their results are sent, and it suspends.
3. A request that is still receiving its journal is not ended before it has been quiet for a moment or has sent data.
4. A response ends only after the server has closed its side of the request. Hypercorn drops a whole connection if data
   arrives for a stream that has ended.
5. New requests are rejected with 503, which Restate retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from restate_steps._sdk import end_input

__all__ = ["DrainingApp"]

_Message: TypeAlias = Any
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]

_QUIET: Final = 0.05
_REASON: Final = b"this application is shutting down."


class DrainingApp:
    """Wrap an ASGI application so that it can be drained.

    Args:
        app: The application.
        first_request: A callback for the first request, on the server's event loop.
        verifies: Whether the application verifies that requests come from Restate.
    """

    def __init__(
        self,
        app: Callable[[Any, _Receive, _Send], Awaitable[None]],
        *,
        first_request: Callable[[DrainingApp], None],
        verifies: bool = False,
    ) -> None:
        self.verifies = verifies
        self._app = app
        self._first_request: Callable[[DrainingApp], None] | None = first_request
        self._requests: set[_Request] = set()
        self._draining = False
        self._empty = asyncio.Event()

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        """Handle a request, as an ASGI application."""
        if (first_request := self._first_request) is not None:
            self._first_request = None
            first_request(self)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._draining:
            await _reject(receive, send)
            return
        request = _Request(receive, send)
        self._requests.add(request)
        try:
            await self._app(scope, request.receive, request.send)
        finally:
            self._requests.discard(request)
            self._note_empty()

    def drain(self) -> None:
        """Stop taking requests, and let the open ones end. Call it on the server's event loop; it returns at once."""
        if not self._draining:
            self._draining = True
            for request in list(self._requests):
                request.drain()
            self._note_empty()

    def _note_empty(self) -> None:
        if self._draining and not self._requests:
            self._empty.set()

    async def drained(self) -> None:
        """Wait until all requests have ended, after :meth:`drain`."""
        await self._empty.wait()


class _Request:
    """A request, with the functions that the application gets."""

    __slots__ = ("_closed", "_ended", "_latest", "_loop", "_reader", "_receive", "_send", "_sent")

    def __init__(self, receive: _Receive, send: _Send) -> None:
        self._receive, self._send = receive, send
        self._loop = asyncio.get_running_loop()
        # The SDK's task that reads messages, the time of the latest message, and whether output was sent.
        self._reader: asyncio.Task[Any] | None = None
        self._latest = self._loop.time()
        self._sent = False
        # Whether the application has got the end of the input, from the server or from us.
        self._ended = False
        # Set when the server has closed its side.
        self._closed = asyncio.Event()

    async def receive(self) -> _Message:
        """Return the next message."""
        if self._reader is None:
            self._reader = asyncio.current_task()
        while True:
            message = await self._receive()
            if not self._sent:
                self._latest = self._loop.time()
            if message["type"] == "http.disconnect":
                self._closed.set()
                return message
            ended = self._ended
            if message["type"] == "http.request" and not message.get("more_body", False):
                self._closed.set()
                self._ended = True
                return message
            # While the attempt is ending, the server sends what it will send again in the next one.
            if not ended:
                return message

    async def send(self, message: _Message) -> None:
        """Send a message, but no end if the request was cancelled: the SDK ignores that, and Hypercorn hangs."""
        if message["type"] == "http.response.body":
            self._sent = True
            if not message.get("more_body", False):
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError
                if self._reader is not None:
                    await self._closed.wait()
        await self._send(message)

    def drain(self) -> None:
        """End the input, unless the server has ended it."""
        if self._ended:
            return
        if not self._sent and self._loop.time() - self._latest < _QUIET:
            self._loop.call_later(_QUIET, self.drain)
            return
        self._ended = True
        if self._reader is not None:
            end_input(self._reader)


async def _reject(receive: _Receive, send: _Send) -> None:
    await send({"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain")]})
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            break
    await send({"type": "http.response.body", "body": _REASON})
