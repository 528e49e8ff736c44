"""The messages of an open attempt: commands, results of steps, and how the attempt ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from restate_steps._protocol.types import REQUESTED_ACK, MessageType, is_command
from restate_steps._protocol.wire import Frame, decode, make
from restate_steps.testing._simulation.commands import CALLS, COMMANDS, refused_call
from restate_steps.testing._simulation.invocation import Failure, Invocation, InvocationStatus, value_fields
from restate_steps.testing._simulation.scopes import UNSUPPORTED_FEATURE, with_version_hint
from restate_steps.testing._simulation.server_model import PAUSE, ServerModel

__all__ = ["receive"]


def receive(model: ServerModel, invocation: Invocation, frame: Frame) -> None:
    """Handle a message of the open attempt of an invocation; without an open attempt, discard it."""
    if invocation.status is not InvocationStatus.RUNNING:
        return
    if is_command(frame.type):
        _receive_command(model, invocation, frame)
    elif (handle := _OTHERS.get(frame.type)) is not None:
        handle(model, invocation, frame)


def _receive_command(model: ServerModel, invocation: Invocation, frame: Frame) -> None:
    if frame.type in CALLS and (reason := refused_call(model, decode(frame))) is not None:
        # A server retries until an operator registers the service. Here, no operator does.
        model.fail_attempt(invocation, Failure(500, reason), behavior=PAUSE)
        return
    model.store(invocation, frame)
    if (command := COMMANDS.get(frame.type)) is not None:
        command(model, invocation, decode(frame))


def _propose_run_completion(model: ServerModel, invocation: Invocation, frame: Frame) -> None:
    fields = decode(frame)
    number = fields["completion_id"]
    if number in invocation.completed:
        name = invocation.step_names.get(number, "?")
        model.anomalies.append(f"step {name!r} of {invocation.target} has a second result; the first one counts")
        return
    result: dict[str, Any] = (
        {"failure": fields["failure"]} if "failure" in fields else {"value": value_fields(fields.get("value", b""))}
    )
    completion = make(MessageType.RUN_COMPLETION, completion_id=number, **result)
    model.complete(invocation, completion, send=model.version < 7)
    if frame.flags & REQUESTED_ACK:
        model.outbox.append((invocation.id, make(MessageType.PROPOSE_RUN_COMPLETION_ACK, completion_id=number)))


def _suspend(model: ServerModel, invocation: Invocation, frame: Frame) -> None:
    fields = decode(frame)
    invocation.awaits = fields.get("awaiting_on", fields)
    invocation.status = InvocationStatus.SUSPENDED
    invocation.failures_in_a_row = 0
    # The server resumes even if the handler has seen the entry before, such as its cancellation. While the handler
    # waits for something else, that repeats endlessly; here, only until an attempt stores nothing new.
    if len(invocation.journal) > invocation.entries_at_start and invocation.can_resume():
        invocation.status = InvocationStatus.READY


def _fail(model: ServerModel, invocation: Invocation, frame: Frame) -> None:
    fields = decode(frame)
    code, message = fields.get("code", 500), fields.get("message", "")
    if code == UNSUPPORTED_FEATURE:
        message = with_version_hint(message)
    failure = Failure(code, message, (), fields.get("stacktrace", ""))
    model.fail_attempt(invocation, failure, delay=fields.get("next_retry_delay"), behavior=fields.get("behavior", 0))


def _end(model: ServerModel, invocation: Invocation, frame: Frame) -> None:
    model.end(invocation, invocation.output, invocation.failure)


_Handle: TypeAlias = Callable[[ServerModel, Invocation, Frame], None]

_OTHERS: Final[Mapping[MessageType, _Handle]] = {
    MessageType.PROPOSE_RUN_COMPLETION: _propose_run_completion,
    MessageType.SUSPENSION: _suspend,
    MessageType.ERROR: _fail,
    MessageType.END: _end,
}
"""The function of each message that is not a command. ``AWAITING_ON`` changes nothing on the server."""
