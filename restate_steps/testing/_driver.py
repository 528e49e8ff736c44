"""Runs an application against a :class:`~restate_steps.testing._world.World`, one event at a time.

D1. When nothing can run by itself, exactly one event is chosen: a body starts, something arrives, or time passes.
    The list of what can be chosen has the same order whenever the same has happened before.
D2. What an attempt sends is taken message by message; a crash can fall between any two of them.
D3. After a crash nothing of the old process runs until the verdict is in. Then it is torn down, and what it does
    while that happens counts for nothing.
D4. Time is virtual and the same for the server and for the application: it passes only when time is what is chosen.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from restate_steps._sdk import allow_observers, observing
from restate_steps.testing._loop import SimulatedLoop
from restate_steps.testing._wire import (
    Frame,
    FrameReader,
    Kind,
    content_type,
    decode,
    frames_to_bytes,
    make,
)
from restate_steps.testing._world import START_MS, Invocation, Manifest, Status, World

__all__ = ["ASGIApp", "BodyRun", "Choose", "Driver", "Mode", "Option", "first", "read_manifest"]

ASGIApp: TypeAlias = Any
"""An application, such as ``restate.app(...)`` returns."""

Mode: TypeAlias = Literal["bidirectional", "request_response"]

_INVOKE_TIME: Final = "invoke_time"
_ENDINGS: Final = frozenset({Kind.SUSPENSION, Kind.ERROR, Kind.END})


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that can happen next."""

    label: str
    do: Callable[[], None] = field(compare=False)


Choose: TypeAlias = Callable[[Sequence[Option]], int]
"""Chooses one of several options, by its index."""


def first(options: Sequence[Option]) -> int:
    """Choose what has been possible for longest, and time only if there is nothing else."""
    del options
    return 0


@dataclass(slots=True)
class BodyRun:
    """One run of the body of a step.

    Attributes:
        invocation: The id of the invocation.
        name: The name of the step.
        attempt: The number of the attempt, from 1.
        ended: Whether the body ended before its attempt did.
        recorded: Whether the server has stored what came of it.
    """

    invocation: str
    name: str
    attempt: int
    ended: bool = False
    recorded: bool = False


class _Attempt:
    """One open attempt: the connection between the application and the world."""

    def __init__(self, driver: Driver, process: _Process, invocation: Invocation) -> None:
        self.invocation = invocation
        self.number = invocation.attempts
        self.gates: dict[int, asyncio.Future[None]] = {}
        self.running: dict[int, BodyRun] = {}
        self.open = True
        self._driver, self._process = driver, process
        self._reader = FrameReader()
        self._inbox: deque[dict[str, Any]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._names: dict[int, str] = {}
        self._delays: list[int] = []
        self._timed = sum(_is_timed(frame) for frame in invocation.journal)

    # What the application sees of the connection.

    async def receive(self) -> dict[str, Any]:
        while not self._inbox:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._inbox.popleft()

    async def send(self, event: dict[str, Any]) -> None:
        if event["type"] != "http.response.body" or self._process.dead or not event["body"]:
            return
        for frame in self._reader.feed(event["body"]):
            if not self._process.dead:
                self._driver.take(self, self._in_virtual_time(frame))

    def feed(self, frames: Sequence[Frame], *, more: bool) -> None:
        if not self.open:
            return
        self._put({"type": "http.request", "body": frames_to_bytes(frames), "more_body": more})
        self.open = more

    def hang_up(self) -> None:
        self.open = False
        self._put({"type": "http.disconnect"})

    def _put(self, event: dict[str, Any]) -> None:
        self._inbox.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _in_virtual_time(self, frame: Frame) -> Frame:
        """Give a delay the end that it has in virtual time: the VM has stamped it with the real clock."""
        if not _is_timed(frame):
            return frame
        fields = decode(frame)
        name = "wake_up_time" if frame.kind == Kind.SLEEP else _INVOKE_TIME
        if self._timed < len(self._delays):
            delay = self._delays[self._timed]
        else:
            delay = max(0, fields[name] - int(time.time() * 1000))
        self._timed += 1
        return make(Kind(frame.kind), flags=frame.flags, **{**fields, name: self._driver.world.now + delay})

    # What the context tells; see restate_steps._sdk.AttemptObserver.

    def run_requested(self, handle: int, name: str) -> None:
        self._names[handle] = name

    def delay_requested(self, milliseconds: int) -> None:
        self._delays.append(milliseconds)

    async def body_starts(self, handle: int) -> None:
        gate = self.gates[handle] = asyncio.get_running_loop().create_future()
        try:
            await gate
        finally:
            self.gates.pop(handle, None)
        self._process.loop.bodies += 1
        run = self.running[handle] = BodyRun(self.invocation.id, self.name_of(handle), self.number)
        self._driver.body_ran(run, self._process)
        _in_body.set(True)

    def body_ended(self, handle: int) -> None:
        run = self.running.pop(handle, None)
        if run is not None:
            run.ended = True
            self._process.loop.bodies -= 1

    def name_of(self, handle: int) -> str:
        return self._names.get(handle, "?")


_in_body: contextvars.ContextVar[bool] = contextvars.ContextVar("in_body", default=False)


class _Process:
    """The service's process: an event loop, and the attempts that are open in it."""

    def __init__(self, driver: Driver) -> None:
        now = (driver.world.now - START_MS) / 1000
        self.loop = SimulatedLoop(driver.idle, now)
        self.loop.outside_of_steps = self._talks_outside
        self.attempts: dict[str, _Attempt] = {}
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.dead = False
        self._driver = driver

    def _talks_outside(self, what: str) -> None:
        attempt = observing.get()
        if isinstance(attempt, _Attempt) and not _in_body.get() and not self.dead:
            self._driver.talks_outside(attempt.invocation, what)

    def end(self) -> None:
        self.dead = True
        for attempt in self.attempts.values():
            attempt.hang_up()
        self.loop.end()


class Driver:
    """Runs an application against a world until something is reached.

    Args:
        app: The application.
        manifest: Its manifest, from :func:`read_manifest`.
        version: The version of the service protocol.
        mode: Whether an attempt can be told something after it has begun.
        always_replay: Whether to let an attempt suspend at every wait.
        choose: Chooses what happens next.
        seed: What the random seeds of invocations come from.
        max_events: After how many events a run counts as endless.
    """

    def __init__(
        self,
        app: ASGIApp,
        manifest: Manifest,
        *,
        version: int = 6,
        mode: Mode = "bidirectional",
        always_replay: bool = False,
        choose: Choose = first,
        seed: int = 0,
        max_events: int = 100_000,
    ) -> None:
        allow_observers()
        self.world = World(manifest, version=version, seed=seed)
        self.bodies: list[BodyRun] = []
        self.log: list[tuple[int, str]] = []
        """What has happened: the number of messages stored by then, and what it was."""
        self.outside: list[tuple[Invocation, str]] = []
        self.events = 0
        self.endless = False
        self.crash_at: int | None = None
        """Crash as soon as so many messages are stored."""
        self.on_stored: Callable[[], None] | None = None
        self._app, self._mode = app, mode
        self._version = version
        self._always_replay = always_replay
        self._choose, self._max_events = choose, max_events
        self._until: Callable[[], bool] = lambda: True
        self._graveyard: list[_Process] = []
        self._process: _Process | None = None
        self._seen = 0

    # --- running ------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool]) -> bool:
        """Let events happen until ``until()``; return whether it was reached, and not that nothing more can happen."""
        self._until = until
        while True:
            self._stored()
            if until() and not self._busy():
                return True
            process = self._process
            if process is None:
                process = self._process = _Process(self)
            process.loop.run()
            if not process.dead:
                return until()

    def crash(self) -> None:
        """Kill the service's process; its attempts begin again with the next :meth:`run`."""
        self.world.crash()
        self._note("crash")
        if self._process is not None:
            self._process.dead = True
            self._process.loop.stop()
            self._graveyard.append(self._process)
            self._process = None

    def close(self) -> None:
        """Tear down every process that there was."""
        graves, self._graveyard = self._graveyard, []
        if self._process is not None:
            graves.append(self._process)
            self._process = None
        for process in graves:
            process.end()

    def _busy(self) -> bool:
        return False

    def idle(self, next_timer: float | None) -> bool:
        """Let one thing happen; see :class:`~restate_steps.testing._loop.SimulatedLoop`."""
        process = self._process
        if process is None or process.dead:
            return False
        if self._settle(process):
            return True
        if self._process is not process or self._until():
            return False
        options = self._options(process, next_timer)
        if not options:
            return False
        self.events += 1
        if self.events > self._max_events:
            self.endless = True
            return False
        option = options[self._choose(options) if len(options) > 1 else 0]
        self._note(option.label)
        option.do()
        self._flush(process)
        self._stored()
        return self._process is process

    def _settle(self, process: _Process) -> bool:
        """Do what has no alternative: begin what is ready, and let attempts suspend that are to."""
        if ready := self.world.ready():
            for invocation_id in ready:
                self._begin(process, self.world.invocations[invocation_id])
            return True
        if self._always_replay:
            for attempt in process.attempts.values():
                if attempt.open:
                    attempt.feed([], more=False)
                    return True
        return False

    def _begin(self, process: _Process, invocation: Invocation) -> None:
        frames = self.world.begin(invocation.id)
        attempt = _Attempt(self, process, invocation)
        process.attempts[invocation.id] = attempt
        attempt.feed(frames, more=self._mode == "bidirectional")
        media = content_type(self._version).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2" if self._mode == "bidirectional" else "1.1",
            "method": "POST",
            "path": f"/invoke/{invocation.target.service}/{invocation.target.handler}",
            "headers": [(b"content-type", media), (b"accept", media)],
        }
        context = contextvars.copy_context()
        context.run(observing.set, attempt)
        task = process.loop.create_task(self._app(scope, attempt.receive, attempt.send), context=context)
        process.tasks[invocation.id] = task
        task.add_done_callback(lambda _: self._connection_ended(process, attempt))

    def _connection_ended(self, process: _Process, attempt: _Attempt) -> None:
        if process.attempts.get(attempt.invocation.id) is attempt:
            del process.attempts[attempt.invocation.id]
            process.tasks.pop(attempt.invocation.id).exception()
            if not process.dead:
                self.world.end_of_stream(attempt.invocation.id)

    # --- what can happen ----------------------------------------------------------------------------------------

    def _options(self, process: _Process, next_timer: float | None) -> list[Option]:
        options: list[Option] = []
        for attempt in process.attempts.values():
            options += (self._start_body(attempt, handle) for handle in sorted(attempt.gates))
        options += (self._delivery(index) for index in range(len(self.world.deliveries)))
        due = self.world.next_timer()
        if due is not None or next_timer is not None:
            options.append(Option("time", lambda: self._pass_time(process, next_timer, due)))
        return options

    def _start_body(self, attempt: _Attempt, handle: int) -> Option:
        def start() -> None:
            gate = attempt.gates.pop(handle)
            if not gate.done():
                gate.set_result(None)

        return Option(f"run {attempt.name_of(handle)}", start)

    def _delivery(self, index: int) -> Option:
        verb, target = self.world.deliveries[index][:2]
        return Option(f"{verb} {self.world.invocations[target].target}", lambda: self.world.deliver(index))

    def _pass_time(self, process: _Process, next_timer: float | None, due: int | None) -> None:
        ends = [end for end in (next_timer, None if due is None else (due - START_MS) / 1000) if end is not None]
        process.loop.advance(min(ends))
        self.world.advance(START_MS + round(min(ends) * 1000))

    # --- what attempts do ---------------------------------------------------------------------------------------

    def take(self, attempt: _Attempt, frame: Frame) -> None:
        """Take a message of an attempt."""
        world, kind = self.world, frame.kind
        if world.invocations[attempt.invocation.id].status is not Status.RUNNING:
            return
        if kind == Kind.PROPOSE_RUN_COMPLETION:
            self._mark_recorded(attempt, frame)
        world.receive(attempt.invocation.id, frame)
        process = self._process
        if process is None:
            return
        if attempt.invocation.status is not Status.RUNNING:
            attempt.feed([], more=False)
        self._flush(process)
        self._stored()

    def _mark_recorded(self, attempt: _Attempt, frame: Frame) -> None:
        name = attempt.invocation.runs.get(decode(frame)["completion_id"], "?")
        for run in reversed(self.bodies):
            if run.name == name and run.invocation == attempt.invocation.id and not run.recorded:
                run.recorded = True
                return

    def body_ran(self, run: BodyRun, process: _Process) -> None:
        """Count the run of a body."""
        if not process.dead:
            self.bodies.append(run)

    def talks_outside(self, invocation: Invocation, what: str) -> None:
        """Note that a handler talks to the world outside, and not in a step."""
        self.outside.append((invocation, what))

    def _flush(self, process: _Process) -> None:
        outbox, self.world.outbox = self.world.outbox, []
        for invocation_id, frame in outbox:
            attempt = process.attempts.get(invocation_id)
            if attempt is not None:
                attempt.feed([frame], more=True)

    def _stored(self) -> None:
        """Look at what was stored since the last time: it may be time to crash."""
        if self.world.stored == self._seen:
            return
        self._seen = self.world.stored
        if self.on_stored is not None:
            self.on_stored()
        if self.crash_at is not None and self._seen >= self.crash_at:
            self.crash_at = None
            self.crash()

    def _note(self, what: str) -> None:
        self.log.append((self.world.stored, what))


def read_manifest(app: ASGIApp) -> Manifest:
    """Ask an application which handlers it has, as a server does.

    Raises:
        TypeError: It is no Restate application.
    """
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        answers.append(event)

    accept = b"application/vnd.restate.endpointmanifest.v4+json"
    scope = {
        "type": "http",
        "http_version": "2",
        "method": "GET",
        "path": "/discover",
        "headers": [(b"accept", accept)],
    }
    loop = SimulatedLoop(lambda _: False)
    try:
        task = loop.create_task(app(scope, receive, send))
        loop.run()
        if not task.done():
            raise TypeError("the application did not answer when it was asked for its handlers.")
        task.result()
    finally:
        loop.end()
    body = b"".join(event.get("body", b"") for event in answers)
    status = answers[0].get("status") if answers else None
    if status != 200:
        raise TypeError(f"the application answered {status} when it was asked for its handlers: {body.decode()}")
    return Manifest(json.loads(body))


def _is_timed(frame: Frame) -> bool:
    return frame.kind == Kind.SLEEP or (frame.kind == Kind.ONE_WAY_CALL and _INVOKE_TIME in decode(frame))
