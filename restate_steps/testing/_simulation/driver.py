"""Run an application against a ``ServerModel``, one event at a time.

D1. When nothing can run by itself, exactly one event is chosen: a body starts, something arrives, or time passes.
    The list of what can be chosen has the same order whenever the same has happened before.
D2. What an attempt sends is taken message by message; a crash can fall between any two of them.
D3. After a crash nothing of the old process runs until the verdict is in. Then it is torn down, and what it does
    while that happens counts for nothing.
D4. An operator's cancellation comes when nothing can run by itself, before the next thing happens: at a *moment*.
D5. Time is virtual and the same for the server and for the application: it passes only when time is what is chosen.
D6. What a client does next happens when it is chosen, like any other event: see :class:`Turn`.
D7. A handler may end before the bodies that it left. They run until its connection closes, which is an event then.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, get_args

from restate_steps.testing._errors import SimulationError
from restate_steps.testing._observe import allow_observers, observing
from restate_steps.testing._simulation.loop import SimulatedLoop
from restate_steps.testing._simulation.server_model import START_MS, Invocation, InvocationStatus, Manifest, ServerModel
from restate_steps.testing._simulation.wire import (
    Frame,
    FrameReader,
    MessageType,
    content_type,
    decode,
    frames_to_bytes,
    make,
)

__all__ = [
    "ASGIApp",
    "BodyRun",
    "Choose",
    "Crash",
    "Driver",
    "Mode",
    "Option",
    "Turn",
    "first",
    "quiet",
    "read_manifest",
]

ASGIApp: TypeAlias = Any
"""An application, such as ``restate_steps.app(...)`` returns."""

Mode: TypeAlias = Literal["bidirectional", "request_response"]

ROUNDS: Final = 10
"""How often a handler that sends itself again with a delay, as a cron job does, is followed after the answer."""

_INVOKE_TIME: Final = "invoke_time"
_MAX_WATCHED: Final = 10


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that can happen next."""

    label: str
    do: Callable[[], None] = field(compare=False)


class Crash(NamedTuple):
    """When the service's process is killed.

    Attributes:
        stored: How many messages are stored then.
        lost: Whether the result of a step is on its way then, and gets lost: the body has run, and will run again.
    """

    stored: int
    lost: bool = False


Choose: TypeAlias = Callable[[Sequence[Option]], int]
"""Chooses one of several options, by its index."""


@dataclass(slots=True)
class Turn:
    """The next thing that a client does.

    Attributes:
        ready: Returns whether the client can continue.
        first: Whether :func:`first` lets the client continue before other events, instead of after them.
        label: What the timeline calls the client.
        taken: Whether it was chosen.
        then: Called when it is chosen.
    """

    ready: Callable[[], bool]
    first: bool = False
    label: str = "client"
    taken: bool = False
    then: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Let the client continue."""
        self.taken = True
        if self.then is not None:
            self.then()

    def __await__(self) -> Generator[Turn, None, bool]:
        """Wait for it, in the coroutine of a client that was started."""
        yield self
        return True


def first(options: Sequence[Option]) -> int:
    """Choose what has been possible for longest, then a client, and time only if there is nothing else."""
    del options
    return 0


@dataclass(slots=True)
class BodyRun:
    """One run of the body of a step.

    Attributes:
        invocation: The id of the invocation.
        name: The name of the step.
        attempt: The number of the attempt, from 1.
        completion_id: The number of the step's completion, which tells steps of the same name apart.
        ended: Whether the body ended before its attempt did.
        recorded: Whether the server has stored what came of it.
        works: Whether it has begun its work.
    """

    invocation: str
    name: str
    attempt: int
    completion_id: int
    ended: bool = False
    recorded: bool = False
    works: bool = field(default=False, repr=False)


class _Attempt:
    """One open attempt: the connection between the application and the world."""

    def __init__(self, driver: Driver, process: _Process, invocation: Invocation) -> None:
        self.invocation = invocation
        self.number = invocation.attempts
        self.gates: dict[int, asyncio.Future[None]] = {}
        self.running: dict[int, BodyRun] = {}
        self.open = True
        self.is_closing = False
        self._driver, self._process = driver, process
        self._reader = FrameReader()
        self._inbox: deque[dict[str, Any]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._names: dict[int, str] = {}
        self._calls: dict[int, str] = {}
        self._read: set[int] = set()
        self._delays: list[int] = []
        self._timed = sum(_is_timed(frame) for frame in invocation.journal)

    def is_new(self, failure: str) -> bool:
        """Return whether the invocation fails so for the first time."""
        known = self._driver.logged.setdefault(self.invocation.id, set())
        new = failure not in known
        known.add(failure)
        return new

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
                self._driver.receive(self, self._in_virtual_time(frame))
        self._driver.flush()

    def feed(self, frames: Sequence[Frame], *, more: bool) -> None:
        if not self.open:
            return
        self._put({"type": "http.request", "body": frames_to_bytes(frames), "more_body": more})
        self.open = more

    def close(self) -> None:
        """Close the server's side: the invocation has ended, or its attempt has."""
        self.is_closing = False
        self.feed([], more=False)

    def close_after_bodies(self) -> None:
        """Let the bodies that the handler left run until the connection closes (D7)."""
        if self.gates and self.open:
            self.is_closing = True
        else:
            self.close()

    def hang_up(self) -> None:
        self.open = self.is_closing = False
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
        name = "wake_up_time" if frame.type == MessageType.SLEEP else _INVOKE_TIME
        if self._timed < len(self._delays):
            delay = self._delays[self._timed]
        else:
            delay = max(0, fields[name] - int(time.time() * 1000))
        self._timed += 1
        return make(MessageType(frame.type), flags=frame.flags, **{**fields, name: self._driver.world.now + delay})

    # What the context tells; see restate_steps.testing._observe.AttemptObserver.

    def run_requested(self, handle: int, name: str) -> None:
        self._names[handle] = name

    def call_requested(self, handle: int, name: str) -> None:
        self._calls[handle] = name

    def result_read(self, handle: int) -> None:
        self._read.add(handle)

    def unread_failures(self) -> list[str]:
        """Return the steps and calls that have failed without the handler's having looked at their result."""
        failed: set[int] = set()
        calls: list[int] = []
        for frame in self.invocation.journal:
            if frame.type in (MessageType.RUN_COMPLETION, MessageType.CALL_COMPLETION):
                fields = decode(frame)
                if "failure" in fields:
                    failed.add(fields["completion_id"])
            elif frame.type == MessageType.CALL:
                calls.append(decode(frame)["completion_id"])
        if not failed:
            return []
        made = [*zip(self._names.items(), self.invocation.runs, strict=False)]
        made += zip(self._calls.items(), calls, strict=False)
        return [name for (handle, name), number in made if number in failed and handle not in self._read]

    def delay_requested(self, milliseconds: int) -> None:
        self._delays.append(milliseconds)

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        if not in_thread:
            gate = self.gates[handle] = asyncio.get_running_loop().create_future()
            try:
                await gate
            finally:
                self.gates.pop(handle, None)
        run = self.running[handle] = BodyRun(
            self.invocation.id, self._names.get(handle, "?"), self.number, self._completion_of(handle)
        )
        if not in_thread:
            self._process.bodies[self, handle] = cast("asyncio.Task[Any]", asyncio.current_task())
            self.body_works(run)
        _body.set(_Body(self, handle, run, in_thread))

    def body_works(self, run: BodyRun) -> None:
        """Count the run of a body, which begins its work."""
        run.works = True
        self._driver.body_runs(run, self._process)

    def body_ended(self, handle: int) -> None:
        self._process.bodies.pop((self, handle), None)
        run = self.running.pop(handle, None)
        if run is not None and run.works:
            run.ended = True

    def awakeable_made(self, awakeable_id: str) -> None:
        if not self._process.dead:
            self._driver.awakeables.setdefault(self.invocation.id, {})[awakeable_id] = None

    def name_of(self, handle: int) -> str:
        """Return the name of a step, with its number if there is another one of that name to choose from."""
        name = self._names.get(handle, "?")
        waiting = [*self.gates]
        if self._process.threads:
            waiting += {each.body.handle for each in self._process.threads if each.body.attempt is self}
        same = sum(self._names.get(other) == name for other in waiting)
        return f"{name} (completion {self._completion_of(handle)})" if same > 1 else name

    def _completion_of(self, handle: int) -> int:
        # Steps are asked for in the order in which their commands are in the journal.
        place = list(self._names).index(handle) if handle in self._names else -1
        runs = list(self.invocation.runs)
        return runs[place] if 0 <= place < len(runs) else 0


class _Body(NamedTuple):
    """The body of a step that code is a part of.

    Attributes:
        in_thread: Whether all of it runs in a thread.
    """

    attempt: _Attempt
    handle: int
    run: BodyRun
    in_thread: bool


class _Thread(NamedTuple):
    """A thread of a body that has been started, and does its work when that is chosen: it cannot be cancelled."""

    body: _Body
    start: Callable[[], None]


_body: contextvars.ContextVar[_Body | None] = contextvars.ContextVar("body", default=None)


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Keep logs back: what is torn down complains, and what is explored fails a hundred times in the same way."""
    before = logging.root.manager.disable
    if before >= logging.CRITICAL:
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _first_time(record: logging.LogRecord) -> bool:
    """Keep back from the log what it has of an invocation already: one that fails is tried again and again."""
    attempt = observing.get()
    if not isinstance(attempt, _Attempt) or record.exc_info is None:
        return True
    return attempt.is_new(repr(record.exc_info[1]))


logging.getLogger("restate.server").addFilter(_first_time)


class _Process:
    """The service's process: an event loop, and the attempts that are open in it."""

    def __init__(self, driver: Driver) -> None:
        now = (driver.world.now - START_MS) / 1000
        self.loop = SimulatedLoop.take(driver.idle, now)
        self.loop.holds_back = self._holds_back
        self.loop.waiting = self._waiting
        self.loop.on_silence = driver.note_silence
        self.threads: list[_Thread] = []
        self.attempts: dict[str, _Attempt] = {}
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.bodies: dict[tuple[_Attempt, int], asyncio.Task[Any]] = {}
        """The tasks of the bodies that work on the event loop, by their attempt and handle."""
        self.dead = False
        self._driver = driver

    def _waiting(self) -> list[asyncio.Task[Any]]:
        return [*self.tasks.values(), *self.bodies.values()]

    def _holds_back(self, start: Callable[[], None]) -> bool:
        body = _body.get()
        if body is None or self.dead:
            return False
        self.threads.append(_Thread(body, start))
        return True

    def end(self) -> None:
        self.dead = True
        for attempt in self.attempts.values():
            attempt.hang_up()
        with quiet():
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
        if version not in (6, 7):
            raise SimulationError(f"the version of the service protocol is 6 or 7, not {version!r}.")
        if mode not in get_args(Mode):
            raise SimulationError(f"mode is 'bidirectional' or 'request_response', not {mode!r}.")
        allow_observers()
        self.world = ServerModel(manifest, version=version, seed=seed)
        self.bodies: list[BodyRun] = []
        self.log: list[tuple[int, str]] = []
        """What has happened: the number of messages stored by then, and what it was."""
        self.awakeables: dict[str, dict[str, None]] = {}
        """The ids of the awakeables that each invocation has made, in order."""
        self.logged: dict[str, set[str]] = {}
        """How each invocation has failed so far, as the log has it."""
        self.anomalies: list[str] = []
        self.unread_failures: list[str] = []
        """The steps and calls whose failure no handler has looked at."""
        self.silences = 0
        """How often it waited for the world outside in real time, and nothing came."""
        self.events = 0
        self.endless = False
        self.deadline: float | None = None
        """When to stop, by ``time.perf_counter()``, however much could still happen."""
        self.is_out_of_time = False
        self.on_restart: Callable[[], object] = lambda: None
        """Called after a crash, before the service's process begins anew."""
        self.crash_at: Crash | None = None
        """When to crash next."""
        self.on_point: Callable[[Crash, int], None] | None = None
        """Told at each moment at which a crash can fall, with a number that is the same for the same moment."""
        self.cancel_at: int | None = None
        """Before which moment to cancel, counted from 1."""
        self.on_moment: Callable[[int, int], None] | None = None
        """Told at each moment, with its number, and another number that is the same where all stands the same."""
        self.cancelled = False
        self.turns: list[Turn] = []
        """The turns that clients wait for. Whoever adds one removes it again."""
        self.turns_taken = 0
        self._unrecorded: Counter[tuple[str, int]] = Counter()
        """The runs of bodies without a recorded result: those in progress, and those that a crash has lost."""
        self.clients: list[Any] = []
        """The clients that were started."""
        self._app, self._mode = app, mode
        self._version = version
        self._always_replay = always_replay
        self._choose, self.max_events = choose, max_events
        self._until: Callable[[], bool] = lambda: True
        self._limit: int | None = None
        self._watched = 0
        self._settled = 0
        self._moments = 0
        self._graveyard: list[_Process] = []
        self._process: _Process | None = None
        self._seen = 0

    # --- running ------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool]) -> bool:
        """Let events happen until ``until()``.

        Args:
            until: Whether it is enough; asked when nothing can run by itself.

        Returns:
            Whether ``until()`` was reached. If not, nothing more can happen, or :attr:`endless` is set.
        """
        self._until = until
        while True:
            self._stored()
            process = self._process
            if process is None:
                if self._graveyard:
                    self.on_restart()
                process = self._process = _Process(self)
            process.loop.run()
            if not process.dead:
                self.endless = self.endless or process.loop.endless
                return until()

    def run_to(self, end: int) -> None:
        """Let events happen until it is ``end``, in milliseconds of virtual time."""
        self._limit = end
        try:
            self.run(lambda: False)
        finally:
            self._limit = None
        self.world.advance(end)
        if self._process is not None:
            self._process.loop.advance((end - START_MS) / 1000)

    def run_out(self) -> None:
        """Let all happen that still can, and what sends itself again and again :data:`ROUNDS` times."""
        self.world.rounds = ROUNDS
        self.run(lambda: False)

    def take(self, turn: Turn) -> bool:
        """Let events happen until it is a client's turn; return False if nothing more can happen before."""
        self.turns.append(turn)
        try:
            return self.run(lambda: turn.taken)
        finally:
            self.turns.remove(turn)

    def disconnect(self) -> None:
        """End the connection of every attempt; the process lives on."""
        self._note("cut")
        for attempt in list(self._process.attempts.values()) if self._process is not None else ():
            attempt.hang_up()

    def kill(self, invocation_id: str) -> None:
        """End an invocation at once, and its connection."""
        self.world.kill(invocation_id)
        self._note(f"kill {self.world.invocations[invocation_id].target}")
        for attempt in list(self._process.attempts.values()) if self._process is not None else ():
            if attempt.invocation.ended:
                attempt.hang_up()

    def crash(self) -> None:
        """Kill the service's process; its attempts begin again with the next :meth:`run`."""
        self.world.crash()
        self._note("crash")
        if self._process is not None:
            self._process.dead = True
            if self._process.loop.is_running():
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

    def idle(self, next_timer: float | None) -> bool:
        """Let one thing happen; see :class:`~restate_steps.testing._simulation.loop.SimulatedLoop`."""
        process = self._process
        if process is None or process.dead:
            return False
        if self.deadline is not None and time.perf_counter() > self.deadline:
            self.is_out_of_time = True
            return False
        if self._settle(process):
            self._settled += 1
            if self._settled <= self.max_events:
                return True
            self.endless = True
            return False
        self._settled = 0
        if self._until():
            return False
        options = self._options(process, next_timer)
        if not self._pass_moment(process, options):
            if not options:
                return False
            self.events += 1
            if self.events > self.max_events:
                self.endless = True
                return False
            option = options[self._choose(options) if len(options) > 1 else 0]
            self._note(option.label)
            option.do()
        self.flush()
        self._stored()
        return self._process is process

    def _settle(self, process: _Process) -> bool:
        """Do what has no alternative: send what is there, and begin what is ready."""
        if self.flush():
            return True
        if ready := self.world.ready():
            for invocation_id in ready:
                self._begin(process, self.world.invocations[invocation_id])
            return True
        return False

    def _begin(self, process: _Process, invocation: Invocation) -> None:
        frames = self.world.begin(invocation.id)
        self._note(f"attempt {invocation.attempts} of {invocation.target} begins with {len(frames) - 1} entries")
        attempt = _Attempt(self, process, invocation)
        process.attempts[invocation.id] = attempt
        attempt.feed(frames, more=self._mode == "bidirectional" and not self._always_replay)
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
        if process.attempts.get(attempt.invocation.id) is not attempt:
            return
        del process.attempts[attempt.invocation.id]
        task = process.tasks.pop(attempt.invocation.id)
        if not task.cancelled():
            # Looked at, so that asyncio does not report it: the SDK has logged it already.
            task.exception()
        if not process.dead:
            self.world.end_of_stream(attempt.invocation.id)

    # --- what can happen ----------------------------------------------------------------------------------------

    def _options(self, process: _Process, next_timer: float | None) -> list[Option]:
        options: list[Option] = []
        for attempt in process.attempts.values():
            if attempt.is_closing:
                options.append(Option(f"the connection of {attempt.invocation.target} closes", attempt.close))
            if not process.threads:
                options += (self._start_body(attempt, handle) for handle in sorted(attempt.gates))
                continue
            bodies = [(handle, self._start_body(attempt, handle)) for handle in attempt.gates]
            bodies += [
                (thread.body.handle, self._start_thread(process, thread))
                for thread in process.threads
                if thread.body.attempt is attempt
            ]
            options += (option for _, option in sorted(bodies, key=itemgetter(0)))
        if process.threads:
            # An attempt may end before them.
            open_attempts = list(process.attempts.values())
            options += (
                self._start_thread(process, thread)
                for thread in process.threads
                if thread.body.attempt not in open_attempts
            )
        options += (self._delivery(index) for index in self.world.arriving())
        for turn in self.turns:
            if turn.ready():
                options.insert(0 if turn.first else len(options), Option(turn.label, partial(self._take, turn)))
        due = self.world.next_timer()
        ends = [end for end in (next_timer, None if due is None else (due - START_MS) / 1000) if end is not None]
        if not ends and not options and self._watched < _MAX_WATCHED:
            # Nobody can go on. One who watches over the branches of the handler may say why.
            self._watched += 1
            ends = [end for end in (process.loop.next_watchdog(),) if end is not None]
        elif options or ends:
            self._watched = 0
        if ends and (self._limit is None or START_MS + min(ends) * 1000 <= self._limit):
            options.append(Option("time", lambda: self._pass_time(process, min(ends))))
            if due is not None and (due - START_MS) / 1000 == min(ends) and self.world.due_together():
                options.append(
                    Option("time, for the first timer", lambda: self._pass_time(process, min(ends), timers=1))
                )
        return options

    def _take(self, turn: Turn) -> None:
        self.turns_taken += 1
        turn()

    def _start_body(self, attempt: _Attempt, handle: int) -> Option:
        def start() -> None:
            gate = attempt.gates.pop(handle)
            if not gate.done():
                gate.set_result(None)

        return Option(f"run {attempt.name_of(handle)}", start)

    def _start_thread(self, process: _Process, thread: _Thread) -> Option:
        attempt, handle, run, in_thread = thread.body

        def start() -> None:
            process.threads.remove(thread)
            if in_thread:
                attempt.body_works(run)
            thread.start()

        name = attempt.name_of(handle)
        return Option(f"run {name}" if in_thread else f"run a thread of {name}", start)

    def _delivery(self, index: int) -> Option:
        verb, target, _, _ = self.world.deliveries[index]
        return Option(f"{verb} {self.world.invocations[target].target}", lambda: self.world.deliver(index))

    def _pass_time(self, process: _Process, to: float, *, timers: int | None = None) -> None:
        process.loop.advance(to)
        self.world.advance(START_MS + round(to * 1000), timers=timers)

    def _pass_moment(self, process: _Process, options: Sequence[Option]) -> bool:
        """Cancel if this is the moment for it, and return whether it was."""
        self._moments += 1
        if self.on_moment is not None:
            statuses = tuple(each.status.value for each in self.world.invocations.values())
            running = tuple(run.name for attempt in process.attempts.values() for run in attempt.running.values())
            labels = tuple(option.label for option in options)
            self.on_moment(self._moments, hash((self._fingerprint(), statuses, running, labels)))
        if self.cancel_at is None or self._moments < self.cancel_at:
            return False
        self.cancel_at = None
        oldest = next((each for each in self.world.invocations.values() if not each.ended), None)
        if oldest is None:
            return False
        self._note(f"an operator cancels {oldest.target}")
        self.cancelled = True
        self.world.cancel(oldest.id)
        return True

    # --- what attempts do ---------------------------------------------------------------------------------------

    def receive(self, attempt: _Attempt, frame: Frame) -> None:
        """Take a message of an attempt."""
        world, kind = self.world, frame.type
        if world.invocations[attempt.invocation.id].status is not InvocationStatus.RUNNING:
            return
        if kind == MessageType.PROPOSE_RUN_COMPLETION:
            if self._pass_point(lost=True, what=world.opaque.copy().renamed(frame.body)):
                return
            self._mark_recorded(attempt, frame)
        world.receive(attempt.invocation.id, frame)
        if self._process is None:
            return
        if attempt.invocation.status is not InvocationStatus.RUNNING:
            self._note(_said(frame, attempt.invocation))
            if frame.type == MessageType.END:
                self.unread_failures += attempt.unread_failures()
                attempt.close_after_bodies()
            else:
                attempt.close()
        self._stored()

    def _fingerprint(self) -> int:
        """Return a number that is the same for the same state of server, service and client.

        Bodies that ran without a recorded result are a part of it: a payment made twice is not one made once.
        """
        return hash((self.world.fingerprint(), frozenset(self._unrecorded.items()), self.turns_taken))

    def _mark_recorded(self, attempt: _Attempt, frame: Frame) -> None:
        number = decode(frame)["completion_id"]
        for run in reversed(self.bodies):
            if run.completion_id == number and run.invocation == attempt.invocation.id:
                run.recorded = True
                self._unrecorded -= Counter({(run.invocation, number): 1})
                return

    def body_runs(self, run: BodyRun, process: _Process) -> None:
        """Count the run of a body."""
        if process.dead:
            return
        self.bodies.append(run)
        self._unrecorded[run.invocation, run.completion_id] += 1
        invocation = self.world.invocations[run.invocation]
        is_open = process.attempts.get(run.invocation) is not None and run.attempt == invocation.attempts
        if is_open and run.completion_id in invocation.completed:
            self.anomalies.append(f"the body of step {run.name!r} runs although its result is in the journal")

    def note_silence(self) -> None:
        """Count a wait for the world outside in which nothing came."""
        self.silences += 1

    def flush(self) -> bool:
        """Send what there is to send; return whether anything was."""
        outbox, self.world.outbox = self.world.outbox, []
        sent = False
        for invocation_id, frame in outbox if self._process is not None else ():
            attempt = self._process.attempts.get(invocation_id) if self._process is not None else None
            if attempt is not None and attempt.open:
                attempt.feed([frame], more=True)
                sent = True
        return sent

    def _stored(self) -> None:
        """Look at what was stored since the last time: it may be time to crash."""
        if len(self.world.history) == self._seen:
            return
        self._seen = len(self.world.history)
        self._pass_point(lost=False, what=None)

    def _pass_point(self, *, lost: bool, what: object) -> bool:
        """Crash if this is the moment for it, and return whether it was."""
        here = Crash(len(self.world.history), lost)
        if self.on_point is not None:
            self.on_point(here, hash((self._fingerprint(), what)))
        if self.crash_at is None or here < self.crash_at:
            return False
        self.crash_at = None
        self.crash()
        return True

    def _note(self, what: str) -> None:
        self.log.append((len(self.world.history), what))


def read_manifest(app: ASGIApp) -> Manifest:
    """Ask an application which handlers it has, as a server does.

    Raises:
        TypeError: It is no Restate application.
    """
    if not callable(app):
        raise TypeError(f"give the application, simulate(restate_steps.app([...])), not {app!r}.")
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
        loop.waiting = lambda: [task]
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


def _said(frame: Frame, invocation: Invocation) -> str:
    if frame.type != MessageType.ERROR:
        return f"{invocation.target} {'ends' if frame.type == MessageType.END else 'suspends'}"
    fields = decode(frame)
    return f"{invocation.target} fails with {fields.get('code')}: {fields.get('message', '')}"


def _is_timed(frame: Frame) -> bool:
    return frame.type == MessageType.SLEEP or (frame.type == MessageType.ONE_WAY_CALL and _INVOKE_TIME in decode(frame))
