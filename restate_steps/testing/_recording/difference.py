"""Report how today's code differs from a recorded journal, and what to do about it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from restate_steps._printable import cut
from restate_steps._protocol.types import CANCEL_SIGNAL, FIELDS, MessageType, is_command
from restate_steps._protocol.wire import Frame, decode, make
from restate_steps._user_code import MACHINERY, is_user_code
from restate_steps.testing._errors import ReplayDifferenceError
from restate_steps.testing._recording.attempt import Asked, Attempt, CodeLine
from restate_steps.testing._recording.recorded import RecordedJournal
from restate_steps.testing._simulation.invocation import Failure
from restate_steps.testing._simulation.journal import describe_frame
from restate_steps.testing._simulation.manifest import Manifest
from restate_steps.testing._texts import cut_apart

__all__ = ["difference", "missing_handler"]

_AROUND: Final = 3
_WIDTH: Final = 100
# Numbers and times that differ from attempt to attempt; the SDK does not compare them either.
_NOT_COMPARED: Final = frozenset({"completion_id", "invocation_id_completion_id", "invoke_time", "wake_up_time"})
_STATE_READS: Final = (MessageType.GET_EAGER_STATE, MessageType.GET_LAZY_STATE)
_KEY_READS: Final = (MessageType.GET_EAGER_STATE_KEYS, MessageType.GET_LAZY_STATE_KEYS)
_MACHINERY_FILES: Final = re.compile(rf"[/\\]({'|'.join(sorted(MACHINERY))})[/\\]")

_STUCK: Final = (
    "A run in flight with this journal would be stuck: Restate would retry it forever, each time with the error 570."
)
_CONTINUES: Final = (
    "Runs in flight would not be stuck: they would continue with the new code. If this is intended, record the journal "
    "again."
)
_WAYS_OUT: Final = (
    "If the change is not intended, revert it. If it is, keep it away from runs in flight: serve today's code at "
    "another URL and register it as a new deployment (Restate finishes a run on the deployment it started on), or "
    "rename the handler."
)


def difference(recorded: RecordedJournal, attempt: Attempt) -> ReplayDifferenceError | None:
    """Return how a replay differs from the journal, or None if it does not."""
    return _Comparison(recorded, attempt).result()


def missing_handler(recorded: RecordedJournal, manifest: Manifest) -> ReplayDifferenceError | None:
    """Return an error if the application lacks the journal's handler; None if it has it."""
    target = recorded.origin.target
    info = manifest.handlers.get((target.service, target.handler))
    if info is not None and info.keyed is (target.key is not None):
        return None
    if info is not None:
        today = f"{target.service} {'needs a key' if info.keyed else 'takes no key'} today"
    else:
        same = sorted(name for service, name in manifest.handlers if service == target.service)
        known = [f"{target.service}/{name}" for name in same] or sorted({name for name, _ in manifest.handlers})
        today = f"there is no handler {target.service}/{target.handler} today, only {', '.join(known) or 'nothing'}"
    message = (
        f"{recorded}: {recorded.target} cannot be replayed: {today}.\n\n"
        "Restate could not continue a run in flight. Restore the handler under its old name, or keep the deployment "
        "that has it until its runs have ended."
    )
    return ReplayDifferenceError(message, journal=str(recorded), entry=None, recorded=recorded.target, today=today)


class _Comparison:
    def __init__(self, recorded: RecordedJournal, attempt: Attempt) -> None:
        self._recorded, self._attempt = recorded, attempt
        self._frames = recorded.frames
        # The indexes of the commands in the journal, without the answer, and without the input, which no code issues.
        self._places = [
            index
            for index, frame in enumerate(self._frames)
            if is_command(frame.type) and frame.type not in (MessageType.INPUT, MessageType.OUTPUT)
        ]
        asked = [command for command in attempt.commands if not _is_answer(command.operation)]
        self._next = self._places[len(asked)] if len(asked) < len(self._places) else None

    def result(self) -> ReplayDifferenceError | None:
        attempt = self._attempt
        error = attempt.sent_of(MessageType.ERROR)
        if attempt.refused is not None:
            return self._another_wait(attempt.refused) if attempt.refused.waits else self._another(attempt.refused)
        if error is not None:
            return self._fails(decode(error))
        if attempt.crashed is not None:
            return self._fails({"message": repr(attempt.crashed)})
        if self._next is not None:
            return self._too_short()
        if self._recorded.ended:
            return self._after_the_end()
        if not attempt.sent_of(MessageType.OUTPUT) and not self._waits_durably() and not attempt.bodies:
            return self._hangs()
        return None

    def _waits_durably(self) -> bool:
        return self._attempt.sent_of(MessageType.SUSPENSION) is not None

    # --- the kinds of differences -------------------------------------------------------------------------------

    def _another(self, asked: Asked) -> ReplayDifferenceError:
        today = _as_frame(asked)
        at = self._next
        if at is None:
            # All commands were repeated, so only the answer is left, and the attempt never receives it (R2).
            return self._made("the journal has nothing more", None, describe(today), asked.places, [])
        there = self._frames[at]
        hints = list(self._hints(at, there, today))
        changes = _changes(there, today)
        return self._made(_described(there), at, describe(today), asked.places, hints, changes)

    def _another_wait(self, asked: Asked) -> ReplayDifferenceError:
        at = self._next
        recorded = _described(self._frames[at]) if at is not None else "nothing more"
        said = decode(error).get("message", "") if (error := self._attempt.sent_of(MessageType.ERROR)) else ""
        hint = "Today's code waits before it issues that; in the recorded run it did not. " + _first_line(said)
        return self._made(recorded, at, "a wait for something that the journal does not have", asked.places, [hint])

    def _hints(self, at: int, there: Frame, today: Frame) -> Iterable[str]:
        later = [index for index in self._places if index > at and _same(self._frames[index], today)]
        if _is_answer_kind(today.type):
            yield "Today's code ends here, and never issues this entry and those after it."
        elif later:
            skipped = "this entry" if later[0] == at + 1 else f"the entries {at} to {later[0] - 1}"
            yield f"The journal has it at entry {later[0]}. So today's code no longer issues {skipped} at this point."
        elif there.type == today.type == MessageType.RUN:
            old = decode(there).get("name", "")
            yield f"If the step was only renamed, keep its old name in journals: @durable_step(name={old!r})."
        elif not _same_kind(there, today):
            yield "Today's code issues a new command here, or the same commands in another order."

    def _fails(self, error: Mapping[str, Any]) -> ReplayDifferenceError:
        message = str(error.get("message", ""))
        trace = _own_trace(str(error.get("stacktrace", ""))) or _shown(self._attempt.last_wait)
        text = (
            f"{self._head()} today's code fails with\n\n  {message}\n\n"
            + (f"{trace}\n\n" if trace else "")
            + f"The journal until then:\n\n{self._until_then()}\n\n"
            "A run in flight with this journal would fail in the same way on every attempt, until you deploy code that "
            "can continue it."
            + (
                " A recorded value cannot be changed. Make the type accept it: for example, give a new field a "
                "default, or use a union of the old type and the new one."
                if "Decode" in message
                else ""
            )
        )
        return self._error(text, self._next, "", message)

    def _too_short(self) -> ReplayDifferenceError:
        at = self._next
        assert at is not None
        today = "waits for something that the journal does not have" if self._waits_durably() else "stops"
        if self._attempt.bodies:
            today = f"runs the step {self._attempt.bodies[0]!r}, whose result the journal does not have"
        hint = "Today's code never issues this entry."
        return self._made(
            _described(self._frames[at]), at, today, self._waiting_place(), [hint], verb="and today's code"
        )

    def _after_the_end(self) -> ReplayDifferenceError | None:
        attempt = self._attempt
        at = next(index for index, frame in enumerate(self._frames) if frame.type == MessageType.OUTPUT)
        there = self._frames[at]
        if attempt.new:
            asked = [command for command in attempt.commands if not _is_answer(command.operation)][len(self._places)]
            hint = "Today's code continues where the recorded run ended."
            return self._made(
                _described(there), at, describe(_as_frame(asked)), asked.places, [hint], advice=_CONTINUES
            )
        answer = attempt.sent_of(MessageType.OUTPUT)
        if answer is None:
            if not self._waits_durably() and not attempt.bodies:
                return self._hangs()
            hint = "Today's code waits where the recorded run ended."
            return self._made(_described(there), at, "a wait", self._waiting_place(), [hint], advice=_CONTINUES)
        if _answer(answer) == _answer(there):
            return None
        text = (
            f"{self._head()} today's code answers differently.\n\n"
            f"  recorded  {_answer_text(there)}\n"
            f"  today     {_answer_text(answer)}\n\n"
            "All commands are the same, so runs in flight can continue, but they will end with a different answer than "
            "that of the code they started with. If this is intended, record the journal again."
        )
        return self._error(text, at, _answer_text(there), _answer_text(answer))

    def _hangs(self) -> ReplayDifferenceError:
        where = "".join(f"\n\n{_shown(places)}" for places in self._attempt.waits_at)
        text = (
            f"{self._head()} today's code waits for something outside Restate: it does not end, and does not "
            f"suspend.{where}\n\nThe journal until then:\n\n{self._until_then()}"
        )
        return self._error(text, self._next, "", "a wait that is not durable")

    # --- words --------------------------------------------------------------------------------------------------

    def _made(
        self,
        recorded: str,
        at: int | None,
        today: str,
        places: Sequence[CodeLine],
        hints: Sequence[str],
        changes: Sequence[str] = (),
        verb: str = "and today's code issues",
        advice: str = f"{_STUCK} {_WAYS_OUT}",
    ) -> ReplayDifferenceError:
        where = f"at entry {at} the journal has" if at is not None else "the journal has"
        width = max(len(where), len(verb))
        parts = [
            f"{self._head()} today's code diverges from the journal:",
            f"  {where:<{width}}  {recorded}\n  {verb:<{width}}  {today}",
            "\n".join(f"  {change}" for change in changes),
            self._around(at),
            _shown(places),
            " ".join([*hints, self._seed_hint()]).strip(),
            advice,
        ]
        return self._error("\n\n".join(part for part in parts if part), at, recorded, today, places)

    def _seed_hint(self) -> str:
        if self._recorded.origin.random_seed is not None:
            return ""
        return (
            "The random seed of this run is not known, so ctx.random() and ctx.uuid() return other values than in the "
            "recorded run. If the handler's path depends on them, this journal cannot be replayed."
        )

    def _head(self) -> str:
        return f"{self._recorded}: {self._recorded.target}:"

    def _error(
        self, text: str, at: int | None, recorded: str, today: str, places: Sequence[CodeLine] = ()
    ) -> ReplayDifferenceError:
        line = next((f"{_short(place.file)}:{place.line}" for place in places if is_user_code(place.file)), "")
        return ReplayDifferenceError(
            text, journal=str(self._recorded), entry=at, recorded=recorded, today=today, line=line
        )

    def _until_then(self) -> str:
        """Return the entries before the first one that was not issued: one of them is involved."""
        last = self._next if self._next is not None else len(self._frames) - self._recorded.ended
        lines = [f"    {index:3}  {describe_frame(self._frames[index])}" for index in range(last)]
        return "\n".join(lines[-2 * _AROUND :])

    def _around(self, at: int | None) -> str:
        middle = len(self._frames) if at is None else at
        first, last = max(0, middle - _AROUND), min(len(self._frames), middle + _AROUND + 1)
        lines = [
            f"  {'→' if index == at else ' '} {index:3}  {describe_frame(self._frames[index])}"
            for index in range(first, last)
        ]
        if first:
            lines.insert(0, "        …")
        if last < len(self._frames):
            lines.append("        …")
        return "\n".join(lines)

    def _waiting_place(self) -> Sequence[CodeLine]:
        return next(iter(self._attempt.waits_at), self._attempt.last_wait)


# --- calls to the VM as entries ---------------------------------------------------------------------------------


_CALL: Final = ("idempotency_key", "headers", "scope", "limit_key")
_FRAMES: Final[Mapping[str, tuple[MessageType, Sequence[str]]]] = {
    "attach_invocation": (MessageType.ATTACH_INVOCATION, ["invocation_id"]),
    "sys_call": (MessageType.CALL, ["service", "handler", "parameter", "key", *_CALL]),
    "sys_cancel": (MessageType.SEND_SIGNAL, ["target"]),
    "sys_clear_all_state": (MessageType.CLEAR_ALL_STATE, ["name"]),
    "sys_clear_state": (MessageType.CLEAR_STATE, ["key", "name"]),
    "sys_complete_awakeable_failure": (MessageType.COMPLETE_AWAKEABLE, ["id", "failure"]),
    "sys_complete_awakeable_success": (MessageType.COMPLETE_AWAKEABLE, ["id", "value"]),
    "sys_complete_promise_failure": (MessageType.COMPLETE_PROMISE, ["key", "failure"]),
    "sys_complete_promise_success": (MessageType.COMPLETE_PROMISE, ["key", "value"]),
    "sys_complete_signal_failure": (MessageType.SEND_SIGNAL, ["target", "signal_name", "failure"]),
    "sys_complete_signal_success": (MessageType.SEND_SIGNAL, ["target", "signal_name", "value"]),
    "sys_get_promise": (MessageType.GET_PROMISE, ["key"]),
    "sys_get_state": (MessageType.GET_LAZY_STATE, ["key", "name"]),
    "sys_get_state_keys": (MessageType.GET_LAZY_STATE_KEYS, ["name"]),
    "sys_peek_promise": (MessageType.PEEK_PROMISE, ["key"]),
    "sys_run": (MessageType.RUN, ["name"]),
    "sys_send": (MessageType.ONE_WAY_CALL, ["service", "handler", "parameter", "key", "invoke_time", *_CALL]),
    "sys_set_state": (MessageType.SET_STATE, ["key", "value", "name"]),
    "sys_sleep": (MessageType.SLEEP, ["wake_up_time", "name"]),
    "sys_write_output_failure": (MessageType.OUTPUT, ["failure"]),
    "sys_write_output_success": (MessageType.OUTPUT, ["value"]),
}
"""The entry that each method of the VM makes, and the field that each argument becomes."""


def _as_frame(asked: Asked) -> Frame:
    """Return the entry that the VM would make of a call, without the numbers that the VM assigns."""
    kind, names = _FRAMES[asked.operation]
    fields: dict[str, Any] = {
        # A newer SDK may pass more arguments; show those that are known.
        name: _as_field(kind, name, argument)
        for name, argument in zip(names, asked.arguments, strict=False)
        if argument is not None
    }
    if asked.operation == "sys_cancel":
        fields |= {"signal_id": CANCEL_SIGNAL, "void": {}}
    return make(kind, **fields)


def _as_field(kind: MessageType, name: str, argument: Any) -> Any:
    if name == "headers":
        return [{"key": header.key, "value": header.value} for header in argument]
    if name == "failure":
        return Failure(argument.code, argument.message).fields()
    if name == "value":
        return {"content": bytes(argument)}
    if FIELDS[kind][name][1] is bytes:
        return argument.encode() if isinstance(argument, str) else bytes(argument)
    return argument


def _is_answer(operation: str) -> bool:
    return operation.startswith("sys_write_output")


def _is_answer_kind(kind: int) -> bool:
    return kind == MessageType.OUTPUT


def _same_kind(there: Frame, today: Frame) -> bool:
    return there.type == today.type or any({there.type, today.type} <= {*reads} for reads in (_STATE_READS, _KEY_READS))


def _compared(frame: Frame) -> dict[str, Any]:
    fields = {name: value for name, value in decode(frame).items() if name not in _NOT_COMPARED}
    if frame.type in (*_STATE_READS, *_KEY_READS):
        fields = {name: value for name, value in fields.items() if name in ("key", "name")}
    return {name: value for name, value in fields.items() if value not in ("", b"")}


def _same(there: Frame, today: Frame) -> bool:
    return _same_kind(there, today) and _compared(there) == _compared(today)


def _changes(there: Frame, today: Frame) -> list[str]:
    """Return what differs between two entries of the same kind, field by field."""
    if not _same_kind(there, today):
        return []
    old, new = _compared(there), _compared(today)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names == ["name"] and there.type == MessageType.RUN:
        return []
    lines: list[str] = []
    for name in names:
        recorded, now = cut_apart(_field(old.get(name)), _field(new.get(name)), _WIDTH)
        lines += [f"{name} recorded  {recorded}", f"{'':<{len(name)}} today     {now}"]
    return lines


def _field(value: Any) -> str:
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("content", cast("dict[str, Any]", value))
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return "nothing" if value is None else str(value) if isinstance(value, str) else repr(value)


def _described(frame: Frame) -> str:
    """Describe a recorded entry, without the number of its completion."""
    return describe(make(MessageType(frame.type), **{k: v for k, v in decode(frame).items() if k not in _NOT_COMPARED}))


def describe(frame: Frame) -> str:
    """Describe a command."""
    text = describe_frame(frame)
    if frame.type in (*_STATE_READS, *_KEY_READS):
        # The handler does not decide whether the state was sent with the attempt.
        text = text.replace("get eager", "get").replace("get lazy", "get")
    if frame.type == MessageType.OUTPUT:
        text = f"the answer {_answer_text(frame)}"
    return text


# --- answers, code and stacks -----------------------------------------------------------------------------------


def _answer(frame: Frame) -> Any:
    """Return an answer in comparable form; the spacing of JSON and the order of its keys do not count."""
    fields = decode(frame)
    if "failure" in fields:
        failure = Failure.of(fields["failure"])
        return "failure", failure.code, failure.message
    data: bytes = fields.get("value", {}).get("content", b"")
    try:
        return "value", json.dumps(json.loads(data), sort_keys=True)
    except ValueError:
        return "bytes", data


def _answer_text(frame: Frame) -> str:
    fields = decode(frame)
    if "failure" in fields:
        failure = Failure.of(fields["failure"])
        return f"failure {failure.code}: {failure.message}"
    return cut(_field(fields.get("value", {}).get("content", b"")), _WIDTH) or "nothing"


def _shown(places: Sequence[CodeLine]) -> str:
    lines: list[str] = []
    for place in places:
        lines.append(f"  {_short(place.file)}:{place.line}, in {place.function}")
        if place.code:
            lines.append(f"      {place.code}")
    return "\n".join(lines)


def _short(file: str) -> str:
    try:
        relative = os.path.relpath(file)
    except ValueError:
        return file
    return relative if not relative.startswith("..") else file


def _own_trace(stacktrace: str) -> str:
    """Return a stack trace without the frames of the SDK, this package and other libraries."""
    kept: list[str] = []
    keep = True
    for line in stacktrace.splitlines():
        if line.startswith('  File "'):
            keep = _MACHINERY_FILES.search(line) is None
        elif not line.startswith("    "):
            keep = True
        if keep:
            kept.append(line)
    return "\n".join(f"  {line}" for line in kept).rstrip()


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
