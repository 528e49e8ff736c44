"""Record what a handler does, and run it again from the whole journal, with at most one thing changed.

Z1. A run is recorded once, with real results. In every later run no body runs, and all results are the recorded ones.
Z2. Two runs are compared operation by operation, with all parameters. The VM compares less: it ignores what is past the
    end of the journal. The delay of a sleep or a send is ignored here too, because the recorded delay counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

from restate import TerminalError

from restate_steps._printable import cut
from restate_steps._protocol.types import MessageType, is_command
from restate_steps._protocol.wire import Frame, decode
from restate_steps.testing._determinism.user_code import Place
from restate_steps.testing._determinism.watch import Changed, ExternalAccess, Operation, Playback, Tape, Watch, watched
from restate_steps.testing._errors import (
    InvocationEndedError,
    InvocationPausedError,
    JournalMismatchError,
    OutOfTimeError,
)
from restate_steps.testing._recording.attempt import run_against
from restate_steps.testing._recording.recorded import RecordedJournal
from restate_steps.testing._simulation.application import ASGIApp
from restate_steps.testing._simulation.driver import Driver
from restate_steps.testing._simulation.invocation import Failure
from restate_steps.testing._simulation.journal import Journal, Origin
from restate_steps.testing._simulation.manifest import Manifest
from restate_steps.testing._simulation.process import quiet
from restate_steps.testing._simulation.simulator import Simulator
from restate_steps.testing._texts import cut_apart

__all__ = ["Divergence", "Recording", "Rerun", "Scenario", "describe_operation", "record_runs", "rerun"]

Scenario = Callable[[Simulator], Coroutine[Any, Any, Any]]

_WIDTH: Final = 120


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded invocation.

    Attributes:
        origin: The invocation that was recorded.
        frames: The journal.
        operations: The operations, in order.
        tape: The values that it read outside the journal.
        outside: The accesses to the outside world.
        contradicted: The operations of an earlier attempt, if the attempts of the recorded run itself diverged.
        definition: The line where the handler is defined.
        defined_in: The name of the module that defines the handler.
    """

    origin: Origin
    frames: tuple[Frame, ...]
    operations: tuple[Operation, ...]
    tape: Tape
    outside: tuple[ExternalAccess, ...] = ()
    contradicted: tuple[Operation, ...] | None = None
    definition: Place | None = None
    defined_in: str | None = None

    @property
    def target(self) -> str:
        """The handler."""
        return str(self.origin.target)

    def entry_of(self, operation: int) -> int:
        """Return the index of an operation's entry in the journal."""
        # The first command is the input, which no code issues.
        number = sum(each.is_entry for each in self.operations[: operation + 1])
        commands = [index for index, frame in enumerate(self.frames) if is_command(frame.type)]
        return commands[min(number, len(commands) - 1)]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The point at which a run diverges from the recorded one.

    Attributes:
        index: The number of operations that both runs have in common.
        recorded: A description of what the recorded run did next.
        rerun: A description of what the other run did.
        place: The line of user code where the other run did it.
    """

    index: int
    recorded: str
    rerun: str
    place: Place | None
    failed: bool = False
    """True if the other run raised an exception."""
    operation: Operation | None = None
    """The operation of the other run; None if it issued none."""

    @property
    def way(self) -> tuple[int, Operation | str]:
        """The path of the other run, equal for runs that diverge in the same way."""
        return self.index, self.operation or self.rerun


@dataclass(frozen=True, slots=True)
class Rerun:
    """The result of running a handler again."""

    divergence: Divergence | None
    tape: Tape
    definition: Place | None = None


# --- recording --------------------------------------------------------------------------------------------------


def record_runs(
    app: ASGIApp, manifest: Manifest, scenario: Scenario, version: int, deadline: float
) -> tuple[list[Recording], list[str]]:
    """Run a scenario, and return a recording of each invocation, and why some were left out.

    Args:
        app: The application.
        manifest: The application's manifest.
        scenario: The client.
        version: The version of the service protocol.
        deadline: The time at which to stop, by ``time.perf_counter()``.

    Raises:
        SimulationError: The scenario does not end, or awaits something that is not the simulator.
    """
    watches: list[Watch] = []

    def begin() -> Watch:
        watches.append(Watch())
        return watches[-1]

    simulator = Simulator(Driver(watched(app, begin), manifest, version=version, deadline=deadline))
    try:
        failure: InvocationPausedError | None = None
        with quiet():
            try:
                simulator.run(scenario(simulator))
            except (TerminalError, InvocationEndedError, OutOfTimeError):
                pass
            except JournalMismatchError as error:
                failure = error
            simulator.driver.run_out()
        for watch in watches:
            watch.open = False
        return _recordings(simulator, watches, failure)
    finally:
        simulator.close()


def _recordings(
    simulator: Simulator, watches: list[Watch], failure: InvocationPausedError | None
) -> tuple[list[Recording], list[str]]:
    recordings: list[Recording] = []
    left_out: list[str] = []
    for handle, invocation in zip(simulator.invocations, simulator.driver.model.invocations.values(), strict=True):
        mine = [watch for watch in watches if watch.invocation == invocation.id]
        origin = handle.journal.origin
        if not mine or origin is None:
            left_out.append(f"{invocation.target}: it has not started")
            continue
        last = mine[-1]
        recording = Recording(origin, tuple(invocation.journal), tuple(last.operations), last.tape, tuple(last.outside))
        recording = replace(recording, definition=last.handler, defined_in=last.handler_module)
        if invocation.has_mismatch and len(mine) > 1:
            recordings.append(replace(recording, contradicted=tuple(mine[-2].operations)))
        elif invocation.ended and MessageType.OUTPUT in {frame.type for frame in invocation.journal}:
            recordings.append(recording)
        else:
            left_out.append(f"{invocation.target}: it has not ended ({invocation.status.value})")
    if failure is not None and not any(each.contradicted is not None for each in recordings):
        raise failure
    return recordings, left_out


# --- running again ----------------------------------------------------------------------------------------------


def rerun(recording: Recording, app: ASGIApp, changed: Changed = None, variant: int = 0) -> Rerun:
    """Run a handler again from the whole journal, and compare it with the recorded run.

    Args:
        recording: The recorded run.
        app: The application.
        changed: The readings to change; by default, all recorded values are played back unchanged.
        variant: The variant of the changed values.
    """
    watches: list[Watch] = []
    divergences: list[Divergence] = []

    def compare(operation: Operation) -> None:
        index = len(watches[-1].operations)
        recorded = recording.operations[index] if index < len(recording.operations) else None
        if operation.agrees_with(recorded):
            return
        divergences.append(_divergence(index, recorded, operation))
        watches[-1].open = False

    def begin() -> Watch:
        watch = Watch(Playback(recording.tape, changed, variant))
        watch.on_operation = compare
        watches.append(watch)
        return watch

    journal = RecordedJournal(recording.origin, recording.frames)
    # The watch notes the places itself.
    attempt = run_against(journal, watched(app, begin), places=False)
    watch = watches[-1]
    watch.open = False
    divergence = divergences[0] if divergences else None
    asked = len(watch.operations)
    if divergence is None and asked < len(recording.operations):
        does, failed = "it ends there", False
        if attempt.bodies:
            does = f"it waits for step {attempt.bodies[0]!r}"
        elif (error := attempt.sent_of(MessageType.ERROR)) is not None:
            does, failed = f"it fails: {decode(error).get('message', '')}", True
        elif attempt.crashed is not None:
            does, failed = f"it fails: {attempt.crashed!r}", True
        elif attempt.sent_of(MessageType.SUSPENSION) is not None or attempt.waits_at:
            does = "it waits"
        place = next((str_of(places[0]) for places in attempt.waits_at if places), None)
        divergence = Divergence(asked, describe_operation(recording.operations[asked]), does, place, failed)
    return Rerun(divergence, watch.tape, watch.handler)


def str_of(place: Any) -> Place:
    """Return a place of a replay as ``file:line``."""
    return f"{place.file}:{place.line}"


def contradiction(recording: Recording) -> Divergence | None:
    """Return where two attempts of the recorded run itself diverged."""
    earlier = recording.contradicted or ()
    for index, operation in enumerate(recording.operations):
        if index >= len(earlier) or not operation.agrees_with(earlier[index]):
            return _divergence(index, earlier[index] if index < len(earlier) else None, operation)
    return None


def _divergence(index: int, recorded: Operation | None, again: Operation) -> Divergence:
    there = "nothing more" if recorded is None else _in_full(recorded)
    there, here = cut_apart(there, _in_full(again), _WIDTH)
    return Divergence(index, there, here, _where_they_diverge(recorded, again), operation=again)


def _where_they_diverge(recorded: Operation | None, again: Operation) -> Place | None:
    """Return the outermost line in which the second stack differs; the lines that it calls may be the same."""
    first = () if recorded is None else recorded.places
    differing = [place for index, place in enumerate(again.places) if first[index : index + 1] != (place,)]
    return next(iter(differing or again.places), None)


# --- words ------------------------------------------------------------------------------------------------------


def describe_operation(operation: Operation) -> str:
    """Describe an operation.

    Example:
        >>> describe_operation(Operation("sys_run", ("charge",)))
        "step 'charge'"
        >>> describe_operation(Operation("sys_call", ("Shop", "pay", b'"tea"', None)))
        "call Shop/pay with 'tea'"
    """
    return cut(_in_full(operation), _WIDTH)


def _in_full(operation: Operation) -> str:
    return _described(operation.name, list(operation.arguments))


def _described(name: str, arguments: list[Any]) -> str:
    first = arguments[0] if arguments else None
    second = arguments[1] if len(arguments) > 1 else None
    match name:
        case "sys_run":
            return f"step {first!r}"
        case "sys_sleep":
            return f"sleep {(first or 0) / 1000:g} s" + (f" {second!r}" if second else "")
        case "sys_call" | "sys_send":
            key = f"{arguments[3]}/" if len(arguments) > 3 and arguments[3] is not None else ""
            waits = arguments[4] if name == "sys_send" and len(arguments) > 4 else None
            delay = f" in {waits / 1000:g} s" if waits else ""
            rest = [each for each in arguments[4 + (name == "sys_send") :] if each]
            more = f" and {', '.join(map(repr, rest))}" if rest else ""
            verb = "call" if name == "sys_call" else "send"
            return f"{verb} {first}/{key}{second} with {_value(arguments[2])}{more}{delay}"
        case "sys_set_state":
            return f"set state {first!r} to {_value(second)}"
        case "sys_write_output_success":
            return f"answer {_value(first)}"
        case "sys_write_output_failure":
            code, message = first if isinstance(first, tuple) else (0, str(first))  # pyright: ignore[reportUnknownVariableType]
            failure = Failure(code, message)  # pyright: ignore[reportUnknownArgumentType]
            return f"end with TerminalError {failure.code}: {failure.message}"
        case _:
            words = name.removeprefix("sys_").replace("_", " ")
            shown = ", ".join(_value(each) for each in arguments if each is not None)
            return f"{words} {shown}".rstrip()


def _value(value: Any) -> str:
    if value is None:
        return "something"
    if isinstance(value, bytes):
        try:
            return repr(json.loads(value)) if value else "nothing"
        except ValueError:
            return repr(value)
    return repr(value)


def journal_of(recording: Recording) -> Journal:
    """Return the journal with decoded values."""
    return Journal(recording.frames, recording.origin)
