"""The messages of Restate's service protocol, versions 6 and 7: their types, and the fields of their bodies.

The protocol is described in ``service-protocol/`` of restatedev/sdk-shared-core.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final, TypeAlias

__all__ = [
    "CANCEL_SIGNAL",
    "FIELDS",
    "NOTIFICATION",
    "REQUESTED_ACK",
    "Fields",
    "MessageType",
    "content_type",
    "is_command",
    "is_completion",
    "is_notification",
    "notification_of",
]

NOTIFICATION: Final = 0x8000
"""The bit that distinguishes notifications from commands."""

REQUESTED_ACK: Final = 0x8000
"""The flag of a message whose sender waits for an acknowledgement."""

CANCEL_SIGNAL: Final = 1
"""The number of the signal that cancels an invocation."""


class MessageType(IntEnum):
    """The types of messages. A completion has the low byte of its command, and the highest bit."""

    START = 0x0000
    SUSPENSION = 0x0001
    ERROR = 0x0002
    END = 0x0003
    PROPOSE_RUN_COMPLETION = 0x0005
    AWAITING_ON = 0x0006
    PROPOSE_RUN_COMPLETION_ACK = 0x0007
    INPUT = 0x0400
    OUTPUT = 0x0401
    GET_LAZY_STATE = 0x0402
    SET_STATE = 0x0403
    CLEAR_STATE = 0x0404
    CLEAR_ALL_STATE = 0x0405
    GET_LAZY_STATE_KEYS = 0x0406
    GET_EAGER_STATE = 0x0407
    GET_EAGER_STATE_KEYS = 0x0408
    GET_PROMISE = 0x0409
    PEEK_PROMISE = 0x040A
    COMPLETE_PROMISE = 0x040B
    SLEEP = 0x040C
    CALL = 0x040D
    ONE_WAY_CALL = 0x040E
    SEND_SIGNAL = 0x0410
    RUN = 0x0411
    ATTACH_INVOCATION = 0x0412
    GET_INVOCATION_OUTPUT = 0x0413
    COMPLETE_AWAKEABLE = 0x0414
    GET_LAZY_STATE_COMPLETION = 0x8002
    GET_LAZY_STATE_KEYS_COMPLETION = 0x8006
    GET_PROMISE_COMPLETION = 0x8009
    PEEK_PROMISE_COMPLETION = 0x800A
    COMPLETE_PROMISE_COMPLETION = 0x800B
    SLEEP_COMPLETION = 0x800C
    CALL_COMPLETION = 0x800D
    CALL_INVOCATION_ID_COMPLETION = 0x800E
    RUN_COMPLETION = 0x8011
    ATTACH_INVOCATION_COMPLETION = 0x8012
    GET_INVOCATION_OUTPUT_COMPLETION = 0x8013
    SIGNAL = 0xFBFF


Fields: TypeAlias = Mapping[str, tuple[int, Any]]
"""The number and type of each field, by name. The type is ``int``, ``bool``, ``bytes``, ``str``, the fields of a nested
message, or a list with one of these for a repeated field."""

_HEADER: Fields = {"key": (1, str), "value": (2, str)}
_STATE: Fields = {"key": (1, bytes), "value": (2, bytes)}
_VOID: Fields = {}
_VALUE: Fields = {"content": (1, bytes)}
_FAILURE: Fields = {"code": (1, int), "message": (2, str), "metadata": (3, [_HEADER])}
_KEYS: Fields = {"keys": (1, [bytes])}
_FUTURE: dict[str, tuple[int, Any]] = {"completions": (1, [int]), "signals": (2, [int]), "named": (3, [str])}
_FUTURE["nested"] = (4, [_FUTURE])
_FUTURE["combinator"] = (5, int)
_COMPLETION: Fields = {
    "completion_id": (1, int),
    "signal_id": (2, int),
    "signal_name": (3, str),
    "void": (4, _VOID),
    "value": (5, _VALUE),
    "failure": (6, _FAILURE),
    "invocation_id": (16, str),
    "state_keys": (17, _KEYS),
}
_NAME: Fields = {"name": (12, str)}
_RESULT: Fields = {"completion_id": (11, int), **_NAME}
_ATTACH: Fields = {
    "invocation_id": (1, str),
    "idempotent": (3, {"service": (1, str), "key": (2, str), "handler": (3, str), "idempotency_key": (4, str)}),
    "workflow": (4, {"workflow": (1, str), "key": (2, str)}),
    **_RESULT,
}

FIELDS: Final[Mapping[int, Fields]] = {
    MessageType.START: {
        "id": (1, bytes),
        "debug_id": (2, str),
        "known_entries": (3, int),
        "state_map": (4, [_STATE]),
        "partial_state": (5, bool),
        "key": (6, str),
        "retry_count": (7, int),
        "duration": (8, int),
        "random_seed": (9, int),
        "scope": (10, str),
        "limit_key": (11, str),
        "idempotency_key": (12, str),
    },
    MessageType.SUSPENSION: {
        "completions": (1, [int]),
        "signals": (2, [int]),
        "named": (3, [str]),
        "awaiting_on": (4, _FUTURE),
    },
    MessageType.ERROR: {
        "code": (1, int),
        "message": (2, str),
        "stacktrace": (3, str),
        "command_index": (4, int),
        "command_name": (5, str),
        "command_type": (6, int),
        "next_retry_delay": (8, int),
        "behavior": (9, int),
    },
    MessageType.END: {},
    MessageType.PROPOSE_RUN_COMPLETION: {"completion_id": (1, int), "value": (14, bytes), "failure": (15, _FAILURE)},
    MessageType.AWAITING_ON: {"awaiting_on": (1, _FUTURE), "executing": (2, bool)},
    MessageType.PROPOSE_RUN_COMPLETION_ACK: {"completion_id": (1, int)},
    MessageType.INPUT: {"headers": (1, [_HEADER]), "value": (14, _VALUE), **_NAME},
    MessageType.OUTPUT: {"value": (14, _VALUE), "failure": (15, _FAILURE), **_NAME},
    MessageType.GET_LAZY_STATE: {"key": (1, bytes), **_RESULT},
    MessageType.SET_STATE: {"key": (1, bytes), "value": (3, _VALUE), **_NAME},
    MessageType.CLEAR_STATE: {"key": (1, bytes), **_NAME},
    MessageType.CLEAR_ALL_STATE: _NAME,
    MessageType.GET_LAZY_STATE_KEYS: _RESULT,
    MessageType.GET_EAGER_STATE: {"key": (1, bytes), "void": (13, _VOID), "value": (14, _VALUE), **_NAME},
    MessageType.GET_EAGER_STATE_KEYS: {"value": (14, _KEYS), **_NAME},
    MessageType.GET_PROMISE: {"key": (1, str), **_RESULT},
    MessageType.PEEK_PROMISE: {"key": (1, str), **_RESULT},
    MessageType.COMPLETE_PROMISE: {"key": (1, str), "value": (2, _VALUE), "failure": (3, _FAILURE), **_RESULT},
    MessageType.SLEEP: {"wake_up_time": (1, int), **_RESULT},
    MessageType.CALL: {
        "service": (1, str),
        "handler": (2, str),
        "parameter": (3, bytes),
        "headers": (4, [_HEADER]),
        "key": (5, str),
        "idempotency_key": (6, str),
        "scope": (7, str),
        "limit_key": (8, str),
        "invocation_id_completion_id": (10, int),
        **_RESULT,
    },
    MessageType.ONE_WAY_CALL: {
        "service": (1, str),
        "handler": (2, str),
        "parameter": (3, bytes),
        "invoke_time": (4, int),
        "headers": (5, [_HEADER]),
        "key": (6, str),
        "idempotency_key": (7, str),
        "scope": (8, str),
        "limit_key": (9, str),
        "invocation_id_completion_id": (10, int),
        **_NAME,
    },
    MessageType.SEND_SIGNAL: {
        "target": (1, str),
        "signal_id": (2, int),
        "signal_name": (3, str),
        "void": (4, _VOID),
        "value": (5, _VALUE),
        "failure": (6, _FAILURE),
        **_NAME,
    },
    MessageType.RUN: _RESULT,
    MessageType.ATTACH_INVOCATION: _ATTACH,
    MessageType.GET_INVOCATION_OUTPUT: _ATTACH,
    MessageType.COMPLETE_AWAKEABLE: {"id": (1, str), "value": (2, _VALUE), "failure": (3, _FAILURE), **_NAME},
    **{message_type: _COMPLETION for message_type in MessageType if message_type & NOTIFICATION},
}


def content_type(version: int) -> str:
    """Return the media type of a version of the protocol."""
    return f"application/vnd.restate.invocation.v{version}"


def is_command(message_type: int) -> bool:
    """Return whether a message is a command: a journal entry that the handler issues."""
    return 0x0400 <= message_type < NOTIFICATION


def is_notification(message_type: int) -> bool:
    """Return whether a message is a notification: a journal entry that the server sends."""
    return message_type >= NOTIFICATION


def is_completion(message_type: int) -> bool:
    """Return whether a message is the completion of a command."""
    return message_type >= NOTIFICATION and message_type != MessageType.SIGNAL


def notification_of(command: int) -> MessageType:
    """Return the type of the message that completes a type of command."""
    return MessageType(NOTIFICATION | command & 0xFF)
