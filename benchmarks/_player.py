"""A minimal in-process stand-in for the server, with as little overhead as possible.

The SDK, its VM and this package are real; only the other end of the connection is simulated, in service protocol V6. It
stores what the handler sends, and acknowledges every proposed result immediately. Its own time is measured separately.
"""

from __future__ import annotations

import asyncio
import gc
import struct
import time
from collections import deque
from typing import Any

from benchmarks._handlers import SERVICE

__all__ = ["Player", "Recording", "first"]

START, SUSPENSION, ERROR, END, PROPOSAL = 0x0000, 0x0001, 0x0002, 0x0003, 0x0005
INPUT, OUTPUT, RUN, RUN_COMPLETION = 0x0400, 0x0401, 0x0411, 0x8411
HEADER = struct.Struct(">HHI")
CONTENT_TYPE = b"application/vnd.restate.invocation.v6"

Recording = list[bytes]
"""The frames that a server stored."""


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def blob(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def frame(kind: int, body: bytes) -> bytes:
    return HEADER.pack(kind, 0, len(body)) + body


def completion_of(proposal: bytes) -> bytes:
    """Return the notification with which a server answers a proposed result."""
    at = 1
    while proposal[at] > 127:
        at += 1
    at += 1
    identity, tag = proposal[:at], proposal[at]
    if tag != 14 << 3 | 2:
        raise RuntimeError(f"a step failed: {proposal!r}")
    at += 1
    while proposal[at] > 127:
        at += 1
    return frame(RUN_COMPLETION, identity + blob(5, blob(1, proposal[at + 1 :])))


def first(count: int) -> Recording:
    """Return the journal of a new invocation of a handler that runs ``count`` steps."""
    return [frame(INPUT, blob(14, blob(1, b"%d" % count)))]


class Player:
    """A runner for attempts of an application's handlers.

    Args:
        app: The application.
        one_by_one: Whether to send every completion in its own chunk, as for bodies that end at different times.
            Otherwise, a chunk has all completions that are available.
    """

    def __init__(self, app: Any, *, one_by_one: bool = False) -> None:
        self._app = app
        self._one_by_one = one_by_one
        self._runner = asyncio.Runner()
        self._journal: Recording = []

    def close(self) -> None:
        self._runner.close()

    def record(self, handler: str, count: int) -> Recording:
        """Run a handler from the start, and return the journal just before the handler ends."""
        self.play(handler, first(count))
        return self._journal

    def play(self, handler: str, journal: Recording, *, times: int = 1) -> tuple[float, float]:
        """Return the CPU time of an attempt in seconds, and the share of the player itself.

        Args:
            handler: The name of the handler.
            journal: The journal to start from: :func:`first`, or a recording.
            times: The number of attempts; the result is the sum over all of them.
        """
        seconds = own = 0.0
        gc.collect()
        # Like timeit: a collection would add to the time of the attempt that happens to trigger it.
        gc.disable()
        try:
            for _ in range(times):
                self._reset(journal)
                seconds += self._runner.run(self._attempt(handler))
                own += self._own
                if not self._ended or self._failure:
                    raise RuntimeError(f"{handler} did not end: {self._failure}")
        finally:
            gc.enable()
        return seconds, own

    def _reset(self, journal: Recording) -> None:
        self._journal = list(journal)
        self._chunks: deque[tuple[bytes, bool]] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False
        self._failure = ""
        self._own = 0.0
        start = blob(1, b"0123456789") + blob(2, b"inv_1") + varint(3 << 3) + varint(len(journal))
        self._chunks.append((frame(START, start) + b"".join(journal), True))

    async def _attempt(self, handler: str) -> float:
        scope = {
            "type": "http",
            "path": f"/invoke/{SERVICE}/{handler}",
            "http_version": "2",
            "headers": [(b"content-type", CONTENT_TYPE), (b"accept", CONTENT_TYPE)],
        }
        start = time.process_time()
        await self._app(scope, self._receive, self._send)
        return time.process_time() - start

    async def _receive(self) -> dict[str, Any]:
        if not self._chunks:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        body, more = self._chunks.popleft()
        if more and not self._one_by_one and self._chunks and self._chunks[-1][1]:
            body += b"".join(chunk for chunk, _ in self._chunks)
            self._chunks.clear()
        return {"type": "http.request", "body": body, "more_body": more}

    async def _send(self, event: dict[str, Any]) -> None:
        if event["type"] != "http.response.body":
            return
        # The player never waits, so the wall clock works, which is cheaper to read.
        start = time.perf_counter()
        self._take(event["body"])
        if self._chunks and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        self._own += time.perf_counter() - start

    def _take(self, data: bytes) -> None:
        # The SDK sends whole frames.
        at = 0
        while at < len(data):
            kind, _, size = HEADER.unpack_from(data, at)
            end = at + HEADER.size + size
            if kind == RUN:
                self._journal.append(data[at:end])
            elif kind == PROPOSAL:
                completion = completion_of(data[at + HEADER.size : end])
                self._journal.append(completion)
                self._chunks.append((completion, True))
            elif kind == END:
                self._ended = True
                self._chunks.append((b"", False))
            elif kind in (ERROR, SUSPENSION):
                self._failure = repr(data[at:end])
                self._chunks.append((b"", False))
            at = end
