"""Run an application against a ``ServerModel``, one event at a time.

D1. When nothing can run by itself, exactly one event is chosen: a body starts, a message arrives, or time passes. The
    list of options has the same order whenever the same has happened before.
D2. The messages of an attempt are handled one by one; a crash can fall between any two of them.
D3. After a crash, nothing of the old process runs until the run is judged. Then it is torn down, and what it does
    meanwhile does not count.
D4. A cancellation by an operator comes when nothing can run by itself, before the next event.
D5. Time is virtual, and the same for server and application. It passes only when that is the chosen event.
D6. The next action of a client happens when it is chosen, like any other event: see :class:`Turn`.
D7. A handler may end before the bodies that it left. They run until its connection closes, which is an event then.
D8. The schedule goes in, the trace comes out: nothing outside changes the driver in the middle of a run.
"""

from __future__ import annotations

import contextvars
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final, get_args

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame, decode
from restate_steps.testing._errors import SimulationError
from restate_steps.testing._observe import allow_observers, observing
from restate_steps.testing._simulation.application import ASGIApp, Mode, request_scope
from restate_steps.testing._simulation.invocation import Invocation, InvocationStatus
from restate_steps.testing._simulation.manifest import Manifest
from restate_steps.testing._simulation.messages import receive
from restate_steps.testing._simulation.process import Attempt, Process
from restate_steps.testing._simulation.schedule import Crash, Schedule
from restate_steps.testing._simulation.server_model import START_MS, ServerModel
from restate_steps.testing._simulation.trace import BodyRun, CancelPoint, CrashPoint, Trace
from restate_steps.testing._simulation.turn import Option, Turn

__all__ = ["Driver"]

ROUNDS: Final = 10
"""The number of times that a handler which sends itself with a delay, like a cron job, is followed after the answer."""

_MAX_WATCHED: Final = 10


class Driver:
    """Runs an application against a server model, and records what happens.

    Args:
        app: The application.
        manifest: Its manifest, from :func:`read_manifest`.
        schedule: The choices to make, the crashes, and whether attempts are suspended at every wait. After the given
            choices, the first option is chosen.
        random: Chooses a random option after the given choices.
        version: The version of the service protocol.
        mode: How attempts are connected.
        seed: The seed from which the random seeds of invocations are made.
        max_events: The number of events after which a run counts as endless.
        deadline: When to stop, by ``time.perf_counter()``, even if more can happen.
        on_crash: Called after a crash, before the service's process starts again.
        with_cancel_points: Record the points at which a cancellation can happen, unless the schedule has one.
        disable_retries: End an invocation at the first failed attempt.

    Attributes:
        model: The model of the server.
        trace: What has happened so far.
        turns: The turns that clients wait for. The client that adds one removes it again.
    """

    def __init__(
        self,
        app: ASGIApp,
        manifest: Manifest,
        *,
        schedule: Schedule = Schedule(),  # noqa: B008 (it is frozen)
        random: Random | None = None,
        version: int = 6,
        mode: Mode = "bidirectional",
        seed: int = 0,
        max_events: int = 100_000,
        deadline: float | None = None,
        on_crash: Callable[[], object] | None = None,
        with_cancel_points: bool = False,
        disable_retries: bool = False,
    ) -> None:
        if version not in (6, 7):
            raise SimulationError(f"the version of the service protocol is 6 or 7, not {version!r}.")
        if mode not in get_args(Mode):
            raise SimulationError(f"mode is 'bidirectional' or 'request_response', not {mode!r}.")
        allow_observers()
        self.app = app
        self.model = ServerModel(manifest, version=version, seed=seed, disable_retries=disable_retries)
        self.trace = Trace()
        self.turns: list[Turn] = []
        self.max_events = max_events
        self._schedule, self._random = schedule, random
        self._version = version
        self._mode: Mode = mode
        self._deadline, self._on_crash = deadline, on_crash
        self._with_cancel_points = with_cancel_points and schedule.cancel is None
        self._stays = mode == "bidirectional" and not schedule.always_replay
        self._until: Callable[[], bool] = lambda: True
        self._time_limit: int | None = None
        self._turns_taken = 0
        self._unrecorded: Counter[tuple[str, int]] = Counter()
        """The runs of bodies without a recorded result: those in progress, and those that a crash has lost."""
        self._failures: set[tuple[str, str]] = set()
        self._watched = 0
        self._automatic = 0
        self._cancel_points = 0
        self._stored = 0
        self._graveyard: list[Process] = []
        self._process: Process | None = None

    # --- running ------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool]) -> bool:
        """Let events happen until a condition holds.

        Args:
            until: The condition; checked when nothing can run by itself.

        Returns:
            Whether the condition holds. If not, nothing more can happen, or a limit was reached.
        """
        self._until = until
        while True:
            self._pass_stored_messages()
            process = self._process
            if process is None:
                if self._graveyard and self._on_crash is not None:
                    self._on_crash()
                process = self._process = Process(self)
            process.loop.run()
            if not process.dead:
                self.trace.is_endless = self.trace.is_endless or process.loop.endless
                return until()

    def run_to(self, end: int) -> None:
        """Let events happen until the virtual time is ``end``, in milliseconds."""
        self._time_limit = end
        try:
            self.run(lambda: False)
        finally:
            self._time_limit = None
        self.model.advance(end)
        if self._process is not None:
            self._process.loop.advance((end - START_MS) / 1000)

    def run_out(self) -> None:
        """Let everything happen that still can; what sends itself again and again, :data:`ROUNDS` times."""
        self.model.max_rounds = ROUNDS
        self.run(lambda: False)

    def wait_for(self, turn: Turn) -> bool:
        """Let events happen until it is a client's turn; return False if nothing more can happen before."""
        self.turns.append(turn)
        try:
            return self.run(lambda: turn.taken)
        finally:
            self.turns.remove(turn)

    # --- what a client or an operator does ----------------------------------------------------------------------

    def disconnect(self) -> None:
        """End the connection of every attempt; the process survives."""
        self._note("cut")
        for attempt in list(self._process.attempts.values()) if self._process is not None else ():
            attempt.hang_up()

    def kill(self, invocation_id: str) -> None:
        """End an invocation immediately, and its connection."""
        self.model.kill(invocation_id)
        self._note(f"kill {self.model.invocations[invocation_id].target}")
        for attempt in list(self._process.attempts.values()) if self._process is not None else ():
            if attempt.invocation.ended:
                attempt.hang_up()

    def crash(self) -> None:
        """Kill the service's process; its attempts start again with the next :meth:`run`."""
        self.model.crash()
        self._note("crash")
        if self._process is not None:
            self._process.dead = True
            if self._process.loop.is_running():
                self._process.loop.stop()
            self._graveyard.append(self._process)
            self._process = None

    def close(self) -> None:
        """Tear down every process of the run."""
        graves, self._graveyard = self._graveyard, []
        if self._process is not None:
            graves.append(self._process)
            self._process = None
        for process in graves:
            process.end()

    # --- one event at a time ------------------------------------------------------------------------------------

    def idle(self, next_timer: float | None) -> bool:
        """Let one event happen; see :class:`~restate_steps.testing._simulation.loop.SimulatedLoop`."""
        process, trace = self._process, self.trace
        if process is None or process.dead:
            return False
        if self._deadline is not None and time.perf_counter() > self._deadline:
            trace.is_out_of_time = True
            return False
        if self._do_what_has_no_alternative(process):
            self._automatic += 1
            if self._automatic <= self.max_events:
                return True
            trace.is_endless = True
            return False
        self._automatic = 0
        if self._until():
            return False
        options = self._options(process, next_timer)
        if not self._pass_cancel_point(process, options):
            if not options:
                return False
            trace.events += 1
            if trace.events > self.max_events:
                trace.is_endless = True
                return False
            option = options[self._choose(options) if len(options) > 1 else 0]
            self._note(option.label)
            option.do()
        self.flush()
        self._pass_stored_messages()
        return self._process is process

    def _do_what_has_no_alternative(self, process: Process) -> bool:
        """Send what is ready to send, or start what is ready to start; return whether there was anything."""
        if self.flush():
            return True
        ready = self.model.ready()
        for invocation_id in ready:
            self._begin(process, self.model.invocations[invocation_id])
        return bool(ready)

    def _begin(self, process: Process, invocation: Invocation) -> None:
        frames = self.model.begin(invocation.id)
        self._note(f"attempt {invocation.attempts} of {invocation.target} begins with {len(frames) - 1} entries")
        attempt = Attempt(self, process, invocation)
        process.attempts[invocation.id] = attempt
        attempt.feed(frames, more=self._stays)
        scope = request_scope(invocation.target, version=self._version, mode=self._mode)
        context = contextvars.copy_context()
        context.run(observing.set, (attempt,))
        task = process.loop.create_task(self.app(scope, attempt.receive, attempt.send), context=context)
        process.tasks[invocation.id] = task
        task.add_done_callback(lambda _: self._connection_ended(process, attempt))

    def _connection_ended(self, process: Process, attempt: Attempt) -> None:
        if process.attempts.get(attempt.invocation.id) is not attempt:
            return
        del process.attempts[attempt.invocation.id]
        task = process.tasks.pop(attempt.invocation.id)
        if not task.cancelled():
            # Retrieve it, so that asyncio does not report it: the SDK has logged it.
            task.exception()
        if not process.dead:
            self.model.end_of_stream(attempt.invocation.id)

    def _choose(self, options: Sequence[Option]) -> int:
        trace, given = self.trace, self._schedule.choices
        at = len(trace.choices)
        if at < len(given):
            chosen = given[at]
        else:
            chosen = self._random.randrange(len(options)) if self._random is not None else 0
        if chosen >= len(options):
            trace.misfit = f"Choice {at + 1} takes option {chosen + 1}, but there are only {len(options)}."
            chosen = 0
        trace.choices.append(chosen)
        trace.widths.append(len(options))
        return chosen

    # --- the options --------------------------------------------------------------------------------------------

    def _options(self, process: Process, next_timer: float | None) -> list[Option]:
        """Return what can happen next: what has been possible for longest first, then clients, and time last."""
        options = list(process.body_options())
        options += (self._delivery(index) for index in self.model.deliveries.arriving())
        for turn in self.turns:
            if turn.ready():
                options.insert(0 if turn.first else len(options), Option(turn.label, partial(self._take_turn, turn)))
        due = self.model.timers.next_due()
        ends = [end for end in (next_timer, None if due is None else (due - START_MS) / 1000) if end is not None]
        if not ends and not options and self._watched < _MAX_WATCHED:
            # Nothing can continue. A watchdog over the handler's branches may say why.
            self._watched += 1
            ends = [end for end in (process.loop.next_watchdog(),) if end is not None]
        elif options or ends:
            self._watched = 0
        if ends and (self._time_limit is None or START_MS + min(ends) * 1000 <= self._time_limit):
            options.append(Option("time", lambda: self._pass_time(process, min(ends))))
            if due is not None and (due - START_MS) / 1000 == min(ends) and self.model.timers.are_due_together():
                options.append(
                    Option("time, for the first timer", lambda: self._pass_time(process, min(ends), timers=1))
                )
        return options

    def _take_turn(self, turn: Turn) -> None:
        self._turns_taken += 1
        turn()

    def _delivery(self, index: int) -> Option:
        event, _ = self.model.deliveries[index]
        target = self.model.invocations[event.invocation_id].target
        return Option(f"{event.verb} {target}", lambda: self.model.deliver(index))

    def _pass_time(self, process: Process, to: float, *, timers: int | None = None) -> None:
        process.loop.advance(to)
        self.model.advance(START_MS + round(to * 1000), timers=timers)

    # --- messages -----------------------------------------------------------------------------------------------

    def receive(self, attempt: Attempt, frame: Frame) -> None:
        """Handle a message of an attempt."""
        model = self.model
        if model.invocations[attempt.invocation.id].status is not InvocationStatus.RUNNING:
            return
        if frame.type == MessageType.PROPOSE_RUN_COMPLETION:
            if self._pass_crash_point(lost=model.opaque.copy().renamed(frame.body)):
                return
            self._mark_recorded(attempt, frame)
        receive(model, attempt.invocation, frame)
        if self._process is None:
            return
        if attempt.invocation.status is not InvocationStatus.RUNNING:
            self._note(_description(frame, attempt.invocation))
            if frame.type == MessageType.END:
                self.trace.unread_failures += attempt.unread_failures()
                attempt.close_after_bodies()
            else:
                attempt.close()
        self._pass_stored_messages()

    def flush(self) -> bool:
        """Send what the server has to send; return whether there was anything."""
        outbox, self.model.outbox = self.model.outbox, []
        sent = False
        for invocation_id, frame in outbox if self._process is not None else ():
            attempt = self._process.attempts.get(invocation_id) if self._process is not None else None
            if attempt is not None and attempt.open:
                attempt.feed([frame], more=True)
                sent = True
        return sent

    # --- where a run can go differently -------------------------------------------------------------------------

    def _pass_stored_messages(self) -> None:
        """Pass a crash point if messages were stored since the last one."""
        if len(self.model.history) != self._stored:
            self._stored = len(self.model.history)
            self._pass_crash_point()

    def _pass_crash_point(self, *, lost: bytes | None = None) -> bool:
        """Record a crash point, and crash if the schedule says so; return whether it did.

        Args:
            lost: The result that is in transit, and that a crash loses.
        """
        trace, crashes = self.trace, self._schedule.crashes
        here = Crash(len(self.model.history), lost is not None)
        fingerprint = hash((self._fingerprint(), lost))
        cancelled = self._schedule.cancel is None or trace.cancelled
        trace.crash_points.append(CrashPoint(here, fingerprint, len(trace.choices), trace.crashes, cancelled))
        if trace.crashes >= len(crashes) or here < crashes[trace.crashes]:
            return False
        trace.crashes += 1
        self.crash()
        return True

    def _pass_cancel_point(self, process: Process, options: Sequence[Option]) -> bool:
        """Record a cancel point, and cancel if the schedule says so; return whether it did."""
        self._cancel_points += 1
        trace, cancel, number = self.trace, self._schedule.cancel, self._cancel_points
        if self._with_cancel_points:
            statuses = tuple(each.status.value for each in self.model.invocations.values())
            running = tuple(run.name for attempt in process.attempts.values() for run in attempt.running.values())
            labels = tuple(option.label for option in options)
            fingerprint = hash((self._fingerprint(), statuses, running, labels))
            trace.cancel_points.append(CancelPoint(number, fingerprint, len(trace.choices), trace.crashes))
        if number != cancel:
            return False
        oldest = next((each for each in self.model.invocations.values() if not each.ended), None)
        if oldest is None:
            return False
        self._note(f"an operator cancels {oldest.target}")
        trace.cancelled = True
        self.model.cancel(oldest.id)
        return True

    def _fingerprint(self) -> int:
        """Return a number that is equal for equal states of server, service and client.

        It includes the bodies that ran without a recorded result: a payment made twice is not a payment made once.
        """
        return hash((self.model.fingerprint(), frozenset(self._unrecorded.items()), self._turns_taken))

    # --- what is recorded ---------------------------------------------------------------------------------------

    def count_body(self, run: BodyRun, process: Process) -> None:
        """Count the run of a body."""
        if process.dead:
            return
        self.trace.bodies.append(run)
        self._unrecorded[run.invocation, run.completion_id] += 1
        invocation = self.model.invocations[run.invocation]
        is_open = process.attempts.get(run.invocation) is not None and run.attempt == invocation.attempts
        if is_open and run.completion_id in invocation.completed:
            self.trace.anomalies.append(f"the body of step {run.name!r} runs although its result is in the journal")

    def is_new_failure(self, invocation: Invocation, failure: str) -> bool:
        """Return whether an invocation fails this way for the first time."""
        known = (invocation.id, failure) in self._failures
        self._failures.add((invocation.id, failure))
        return not known

    def _mark_recorded(self, attempt: Attempt, frame: Frame) -> None:
        number = decode(frame)["completion_id"]
        for run in reversed(self.trace.bodies):
            if run.completion_id == number and run.invocation == attempt.invocation.id:
                run.recorded = True
                self._unrecorded -= Counter({(run.invocation, number): 1})
                return

    def _note(self, what: str) -> None:
        self.trace.log.append((len(self.model.history), what))


def _description(frame: Frame, invocation: Invocation) -> str:
    if frame.type != MessageType.ERROR:
        return f"{invocation.target} {'ends' if frame.type == MessageType.END else 'suspends'}"
    fields = decode(frame)
    return f"{invocation.target} fails with {fields.get('code')}: {fields.get('message', '')}"
