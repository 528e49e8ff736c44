"""Plays the server for one handler in-process, so that a test can choose every schedule and every crash.

The SDK, its VM and this package are real; only the other end of the connection is played here, in service protocol V6.
An attempt is run against a *journal*, the list of frames a server would have stored. What the handler sends is appended
to it; completions are appended in an order drawn from a seed, at moments when the handler can do nothing by itself.

:func:`explore` runs a handler under many orders, and then resumes it from every prefix of every journal it has seen.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import restate

START, SUSPENSION, ERROR, END, PROPOSAL = 0x0000, 0x0001, 0x0002, 0x0003, 0x0005
INPUT, OUTPUT, SLEEP, RUN, SIGNAL = 0x0400, 0x0401, 0x040C, 0x0411, 0xFBFF
NOTIFICATION = 0x8000
RESULT_COMPLETION_ID, NAME = 11, 12
CONTENT_TYPE = b"application/vnd.restate.invocation.v6"
TIMERS_WITHIN = 1.0

Frame = tuple[int, bytes]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def text(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def fields(body: bytes) -> dict[int, Any]:
    found: dict[int, Any] = {}
    at = 0

    def read() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(body):
        key = read()
        if key & 7 == 0:
            found[key >> 3] = read()
        elif key & 7 == 2:
            size = read()
            found[key >> 3] = body[at : at + size]
            at += size
        else:
            raise AssertionError(f"wire type {key & 7} is not used by the protocol")
    return found


def encoded(frames: list[Frame]) -> bytes:
    return b"".join(struct.pack(">HHI", kind, 0, len(body)) + body for kind, body in frames)


def describe(journal: list[Frame]) -> str:
    lines = []
    for index, (kind, body) in enumerate(journal):
        data = fields(body)
        what = {RUN: "run", SLEEP: "sleep", INPUT: "input", SIGNAL: "signal"}.get(kind, f"{kind:04x}")
        if kind & NOTIFICATION and kind != SIGNAL:
            what = f"completion of {data.get(1)}"
        name = data.get(NAME, b"").decode() if not kind & NOTIFICATION else ""
        lines.append(f"{index:3} {what} {name} {data.get(RESULT_COMPLETION_ID, '')}".rstrip())
    return "\n".join(lines)


@dataclass
class Attempt:
    """What came of one attempt."""

    journal: list[Frame]
    verdict: str = "stuck"
    output: bytes = b""
    failure: str = ""
    bodies: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.verdict} {self.failure}\n{describe(self.journal)}"


class Player:
    """One attempt of one handler.

    Args:
        app: The application.
        path: Service and handler, for example ``Shop/checkout``.
        journal: The frames that the server has stored so far.
        seed: Decides the order of completions.
        suspend: End the input at once, as a server does that wants the handler to suspend.
        cancel_after: Deliver a cancellation once the journal has this many frames.
    """

    def __init__(
        self,
        app: Any,
        path: str,
        journal: list[Frame],
        seed: int,
        *,
        suspend: bool = False,
        cancel_after: int | None = None,
        crash_after: int | None = None,
    ) -> None:
        self.attempt = Attempt(list(journal))
        self._app, self._path = app, path
        self._random = random.Random(seed)
        self._suspend, self._cancel_after, self._crash_after = suspend, cancel_after, crash_after
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._pending: list[Frame] = []
        self._buffer = b""
        self._ended = False
        self.wait_for: Callable[[], bool] = lambda: True
        """What has to have happened before the handler counts as quiet, where a thread is at work."""
        completed = {fields(body).get(1) for kind, body in journal if kind & NOTIFICATION and kind != SIGNAL}
        for kind, body in journal:
            if kind == SLEEP and (done := fields(body)[RESULT_COMPLETION_ID]) not in completed:
                self._pending.append((NOTIFICATION | SLEEP, whole(1, done) + text(4, b"")))

    async def play(self) -> Attempt:
        journal = self.attempt.journal
        start = text(1, b"0123456789") + text(2, b"inv_1") + whole(3, len(journal)) + whole(9, 7)
        self._feed([(START, start), *journal], more=not self._suspend)
        scope = {
            "type": "http",
            "path": f"/invoke/{self._path}",
            "http_version": "2",
            "headers": [(b"content-type", CONTENT_TYPE), (b"accept", CONTENT_TYPE)],
        }
        running = asyncio.ensure_future(self._app(scope, self._receive, self._send))
        try:
            await self._drive(running)
        finally:
            running.cancel()
            self._incoming.put_nowait({"type": "http.disconnect"})
            await asyncio.gather(running, return_exceptions=True)
        return self.attempt

    async def _drive(self, running: asyncio.Future[Any]) -> None:
        while not self._ended:
            await self._settle()
            if self._ended or running.done():
                return
            length = len(self.attempt.journal)
            if self._crash_after is not None and length >= self._crash_after:
                self.attempt.verdict = "crashed"
                return
            if self._cancel_after is not None and length >= self._cancel_after:
                self._cancel_after = None
                self._deliver((SIGNAL, whole(2, 1) + text(4, b"")))
            elif self._suspend:
                return
            elif self._pending:
                # Often one completion, sometimes several in one chunk, as a busy server sends them.
                for _ in range(min(len(self._pending), self._random.choice((1, 1, 1, 2, 3)))):
                    self._deliver(self._pending.pop(self._random.randrange(len(self._pending))))
            else:
                return

    async def _settle(self) -> None:
        """Let the handler go on until it can do nothing by itself: nothing is ready, and no timer is due soon."""
        loop: Any = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)
            if not loop._ready:
                soon = loop.time() + TIMERS_WITHIN
                if self.wait_for() and not any(
                    timer.when() < soon and not timer.cancelled() for timer in loop._scheduled
                ):
                    return
                await asyncio.sleep(0.0005)

    def _deliver(self, frame: Frame) -> None:
        self.attempt.journal.append(frame)
        self._feed([frame], more=True)

    def _feed(self, frames: list[Frame], *, more: bool) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": encoded(frames), "more_body": more})

    async def _receive(self) -> dict[str, Any]:
        return await self._incoming.get()

    async def _send(self, event: dict[str, Any]) -> None:
        if event["type"] != "http.response.body":
            return
        self._buffer += event["body"]
        while len(self._buffer) >= 8:
            kind, _, size = struct.unpack(">HHI", self._buffer[:8])
            if len(self._buffer) < 8 + size:
                return
            body, self._buffer = self._buffer[8 : 8 + size], self._buffer[8 + size :]
            self._take(kind, body)

    def _take(self, kind: int, body: bytes) -> None:
        attempt, data = self.attempt, fields(body)
        if kind == PROPOSAL:
            result = text(5, text(1, data[14])) if 14 in data else text(6, data[15])
            completion = (NOTIFICATION | RUN, whole(1, data[1]) + result)
            if self._suspend:
                attempt.journal.append(completion)
            else:
                self._pending.append(completion)
        elif kind == ERROR:
            attempt.verdict, attempt.failure = "error", data.get(2, b"").decode()
        elif kind == SUSPENSION:
            attempt.verdict = "suspended"
        elif kind == END:
            self._ended = True
        elif kind == OUTPUT:
            attempt.verdict, attempt.output = "done", data.get(14, data.get(15, b""))
            attempt.journal.append((kind, body))
        else:
            attempt.journal.append((kind, body))
            if kind == SLEEP:
                self._pending.append((NOTIFICATION | SLEEP, whole(1, data[RESULT_COMPLETION_ID]) + text(4, b"")))
        if kind in (ERROR, SUSPENSION):
            self._ended = True


def first_journal(arg: bytes = b"") -> list[Frame]:
    """Return what a server has stored when a handler is first called."""
    return [(INPUT, text(14, text(1, arg)))]


async def run_suspending(app: Any, path: str, seed: int, limit: int = 400) -> Attempt:
    """Run a handler in attempts that suspend at every wait, each completion coming between two attempts."""
    journal, chance = first_journal(), random.Random(seed)
    for _ in range(limit):
        attempt = await Player(app, path, journal, chance.randrange(2**32), suspend=True).play()
        journal = attempt.journal
        if attempt.verdict not in ("suspended", "stuck"):
            return attempt
        completed = {fields(body).get(1) for kind, body in journal if kind & NOTIFICATION and kind != SIGNAL}
        sleeps = [fields(body)[RESULT_COMPLETION_ID] for kind, body in journal if kind == SLEEP]
        open_sleeps = [done for done in sleeps if done not in completed]
        if open_sleeps:
            journal.append((NOTIFICATION | SLEEP, whole(1, chance.choice(open_sleeps)) + text(4, b"")))
    return attempt


@dataclass
class Report:
    """How much was explored."""

    schedules: int = 0
    prefixes: int = 0
    outputs: set[bytes] = field(default_factory=set)


async def explore(
    app: Any, path: str, *, seeds: int, verdicts: tuple[str, ...] = ("done",), cancel: bool = False
) -> Report:
    """Run a handler under many orders of completions, and resume it from every prefix of every journal.

    Raises:
        AssertionError: An attempt ended otherwise than with one of ``verdicts``; the message has the journal.
    """
    report, seen = Report(), set[tuple[Frame, ...]]()
    for seed in range(seeds):
        chance = random.Random(seed)
        cancel_after = chance.randrange(1, 12) if cancel else None
        attempt = await Player(app, path, first_journal(), seed, cancel_after=cancel_after).play()
        assert attempt.verdict in verdicts, f"seed {seed}: {attempt}"
        report.schedules += 1
        report.outputs.add(attempt.output)
        for length in range(1, len(attempt.journal)):
            prefix = attempt.journal[:length]
            if prefix[-1][0] == OUTPUT or tuple(prefix) in seen:
                continue
            seen.add(tuple(prefix))
            resumed = await Player(app, path, prefix, seed * 1000 + length).play()
            assert resumed.verdict in verdicts, (
                f"seed {seed}, resumed from the first {length} of\n{attempt}\n-> {resumed}"
            )
            report.prefixes += 1
            report.outputs.add(resumed.output)
    return report


def app_of(*services: Any) -> Any:
    """Return the ASGI application for some services."""
    return restate.app(services)
