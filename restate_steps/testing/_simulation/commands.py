"""The effect of each command of a handler on the server.

Every function takes the model, the invocation whose attempt sent the command, and the fields of the command, which is
in the journal by then. :data:`COMMANDS` has the function of each type of command; a type that is missing there only
fills the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from restate_steps._ids import awakeable_of
from restate_steps._protocol.types import MessageType, notification_of
from restate_steps._protocol.wire import make
from restate_steps.testing._simulation.events import Event
from restate_steps.testing._simulation.invocation import Failure, Invocation, value_fields
from restate_steps.testing._simulation.manifest import Target, UnknownHandlerError
from restate_steps.testing._simulation.scopes import refusal
from restate_steps.testing._simulation.server_model import ServerModel, result_of

__all__ = ["CALLS", "COMMANDS", "Command", "refused_call"]

Fields: TypeAlias = dict[str, Any]

Command: TypeAlias = Callable[[ServerModel, Invocation, Fields], None]

CALLS: Final = frozenset({MessageType.CALL, MessageType.ONE_WAY_CALL})
"""The commands that are stored only if the server accepts the call."""

_CONFLICT: Final = 409
_NOT_FOUND: Final = 404


def refused_call(model: ServerModel, fields: Fields) -> str | None:
    """Return why the server refuses a handler's call; None if it accepts the call."""
    try:
        _ = model.manifest[_target(fields)]
    except UnknownHandlerError as error:
        return str(error)
    return refusal(fields.get("scope"), fields.get("limit_key"))


def _complete(model: ServerModel, invocation: Invocation, command: MessageType, number: int, **fields: Any) -> None:
    model.complete(invocation, make(notification_of(command), completion_id=number, **fields))


# --- steps and time ---------------------------------------------------------------------------------------------


def _run(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    invocation.step_names[fields["completion_id"]] = fields.get("name", "")


def _sleep(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    completion = make(MessageType.SLEEP_COMPLETION, completion_id=fields["completion_id"], void={})
    model.timers.add(max(model.now, fields.get("wake_up_time", 0)), Event("complete", invocation.id, completion))


def _output(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    if "failure" in fields:
        invocation.failure = Failure.of(fields["failure"])
    else:
        invocation.output = _content(fields)


# --- calls ------------------------------------------------------------------------------------------------------


def _call(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    callee, is_new = _submit(model, invocation, fields)
    number = fields["completion_id"]
    if callee.info.workflow and not is_new:
        failure = Failure(_CONFLICT, "the workflow method was already invoked")
        _complete(model, invocation, MessageType.CALL, number, failure=failure.fields())
    else:
        model.wait_for(invocation, callee, number, MessageType.CALL)


def _send(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    _submit(model, invocation, fields)


def _submit(model: ServerModel, invocation: Invocation, fields: Fields) -> tuple[Invocation, bool]:
    """Return the invocation that a call or send leads to, and whether it is a new one."""
    known = len(model.invocations)
    callee = model.submit(
        _target(fields),
        fields.get("parameter", b""),
        headers=tuple((pair.get("key", ""), pair.get("value", "")) for pair in fields.get("headers", ())),
        idempotency_key=fields.get("idempotency_key"),
        limit_key=fields.get("limit_key"),
        at=fields.get("invoke_time", 0),
    )
    invocation.children.append(callee.id)
    is_new = len(model.invocations) > known
    if is_new:
        callee.rounds = {**invocation.rounds}
        callee.rounds[callee.info.target] = callee.rounds.get(callee.info.target, 0) + 1
    number = fields["invocation_id_completion_id"]
    told = make(MessageType.CALL_INVOCATION_ID_COMPLETION, completion_id=number, invocation_id=callee.id)
    model.complete(invocation, told)
    return callee, is_new


def _target(fields: Fields) -> Target:
    return Target(fields.get("service", ""), fields.get("handler", ""), fields.get("key"), fields.get("scope"))


# --- other invocations ------------------------------------------------------------------------------------------


def _attach(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    other, number = _named_invocation(model, fields), fields["completion_id"]
    if other is None:
        failure = Failure(_NOT_FOUND, "not found").fields()
        _complete(model, invocation, MessageType.ATTACH_INVOCATION, number, failure=failure)
    elif any((sender, event.invocation_id) == (invocation.id, other.id) for event, sender in model.deliveries):
        # It must not overtake what is on the way (W6).
        model.deliveries.add(Event("attach", other.id, (invocation.id, number)), sender=invocation.id)
    else:
        model.attach(invocation, other, number)


def _get_output(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    other, number = _named_invocation(model, fields), fields["completion_id"]
    if other is None or not other.ended:
        _complete(model, invocation, MessageType.GET_INVOCATION_OUTPUT, number, void={})
    else:
        model.complete(invocation, result_of(other, MessageType.GET_INVOCATION_OUTPUT, number))


def _named_invocation(model: ServerModel, fields: Fields) -> Invocation | None:
    """Return the invocation that a command names by its id, its workflow's key or its idempotency key."""
    if "invocation_id" in fields:
        known = model.invocations.get(fields["invocation_id"])
        return None if known is None or known.removal is not None else known
    if "workflow" in fields:
        names = fields["workflow"]
        for info in model.manifest.handlers.values():
            if info.workflow and info.target[0] == names["workflow"]:
                return model.identified(Target(*info.target, names.get("key", "")), "")
        return None
    names = fields.get("idempotent", {})
    target = Target(names.get("service", ""), names.get("handler", ""), names.get("key"))
    return model.identified(target, names.get("idempotency_key", ""))


def _send_signal(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    names = ("signal_id", "signal_name", "void", "value", "failure")
    signal = make(MessageType.SIGNAL, flags=0, **{name: fields[name] for name in names if name in fields})
    if fields["target"] in model.invocations:
        model.deliveries.add(Event("signal", fields["target"], signal), sender=invocation.id)


def _complete_awakeable(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    raw_id, number = awakeable_of(fields["id"])
    if (owner := model.with_raw_id(raw_id)) is not None:
        outcome: Fields = {name: fields[name] for name in ("value", "failure") if name in fields}
        signal = make(MessageType.SIGNAL, flags=0, signal_id=number, **outcome)
        model.deliveries.add(Event("signal", owner.id, signal), sender=invocation.id)


# --- state ------------------------------------------------------------------------------------------------------


def _get_state(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    content = model.object_of(invocation).state.get(fields["key"])
    found: Fields = {"void": {}} if content is None else {"value": value_fields(content)}
    _complete(model, invocation, MessageType.GET_LAZY_STATE, fields["completion_id"], **found)


def _get_state_keys(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    keys = sorted(model.object_of(invocation).state)
    _complete(model, invocation, MessageType.GET_LAZY_STATE_KEYS, fields["completion_id"], state_keys={"keys": keys})


def _set_state(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    model.object_of(invocation).state[fields["key"]] = _content(fields)


def _clear_state(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    model.object_of(invocation).state.pop(fields["key"], None)


def _clear_all_state(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    model.object_of(invocation).state.clear()


# --- promises ---------------------------------------------------------------------------------------------------


def _get_promise(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    promise, number = model.promise_of(invocation, fields["key"]), fields["completion_id"]
    if promise.completed:
        _complete(model, invocation, MessageType.GET_PROMISE, number, **promise.fields())
    else:
        promise.waiters.append((invocation.id, number))


def _peek_promise(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    promise = model.promise_of(invocation, fields["key"])
    _complete(model, invocation, MessageType.PEEK_PROMISE, fields["completion_id"], **promise.fields())


def _complete_promise(model: ServerModel, invocation: Invocation, fields: Fields) -> None:
    promise, number = model.promise_of(invocation, fields["key"]), fields["completion_id"]
    if promise.completed:
        failure = Failure(_CONFLICT, "promise was already completed").fields()
        _complete(model, invocation, MessageType.COMPLETE_PROMISE, number, failure=failure)
        return
    if "failure" in fields:
        promise.failure = Failure.of(fields["failure"])
    else:
        promise.value = _content(fields)
    _complete(model, invocation, MessageType.COMPLETE_PROMISE, number, void={})
    for waiter, waiting in promise.waiters:
        completion = make(MessageType.GET_PROMISE_COMPLETION, completion_id=waiting, **promise.fields())
        model.deliveries.add(Event("complete", waiter, completion), sender=None)
    promise.waiters.clear()


def _content(fields: Fields) -> bytes:
    content: bytes = fields.get("value", {}).get("content", b"")
    return content


COMMANDS: Final[Mapping[MessageType, Command]] = {
    MessageType.RUN: _run,
    MessageType.SLEEP: _sleep,
    MessageType.OUTPUT: _output,
    MessageType.CALL: _call,
    MessageType.ONE_WAY_CALL: _send,
    MessageType.ATTACH_INVOCATION: _attach,
    MessageType.GET_INVOCATION_OUTPUT: _get_output,
    MessageType.SEND_SIGNAL: _send_signal,
    MessageType.COMPLETE_AWAKEABLE: _complete_awakeable,
    MessageType.GET_LAZY_STATE: _get_state,
    MessageType.GET_LAZY_STATE_KEYS: _get_state_keys,
    MessageType.SET_STATE: _set_state,
    MessageType.CLEAR_STATE: _clear_state,
    MessageType.CLEAR_ALL_STATE: _clear_all_state,
    MessageType.GET_PROMISE: _get_promise,
    MessageType.PEEK_PROMISE: _peek_promise,
    MessageType.COMPLETE_PROMISE: _complete_promise,
}
"""The function of each type of command."""
