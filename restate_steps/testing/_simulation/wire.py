"""The messages of Restate's service protocol (versions 6 and 7), as bytes and as values.

A message is a header of eight bytes (type, flags, length, big-endian) and a protobuf body. The tables below define the
fields of the bodies. This module does not know the meaning of messages, and is pure: no I/O, no clock, no randomness.

The protocol is described in ``service-protocol/`` of restatedev/sdk-shared-core.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias, cast

from restate_steps._ids import FIRST_AWAKEABLE, awakeable_id, awakeable_of

__all__ = [
    "CANCEL_SIGNAL",
    "FIRST_AWAKEABLE",
    "NOTIFICATION",
    "REQUESTED_ACK",
    "Frame",
    "FrameReader",
    "MessageType",
    "as_json",
    "awakeable_id",
    "awakeable_of",
    "content_type",
    "decode",
    "encode",
    "frames_to_bytes",
    "from_json",
    "is_command",
    "is_completion",
    "is_notification",
    "make",
    "notification_of",
]

NOTIFICATION: Final = 0x8000
REQUESTED_ACK: Final = 0x8000
CANCEL_SIGNAL: Final = 1
_CACHED_UP_TO: Final = 512
_HEADER_BYTES: Final = struct.Struct(">HHI")


class MessageType(IntEnum):
    """The types of messages. A completion has the low byte of its command, with the highest bit set."""

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


_MESSAGE_TYPES: Final[dict[int, MessageType]] = {message_type.value: message_type for message_type in MessageType}


class Frame(NamedTuple):
    """One message: its type, its protobuf body, its flags."""

    type: MessageType
    body: bytes
    flags: int = 0

    def __str__(self) -> str:
        return str(as_json(self))


_Fields: TypeAlias = Mapping[str, tuple[int, Any]]
"""The name of a field, its number and its type: ``int``, ``bool``, ``bytes``, ``str``, the fields of a message that
is nested, or a list with one of these for a repeated field."""

_HEADER: _Fields = {"key": (1, str), "value": (2, str)}
_STATE: _Fields = {"key": (1, bytes), "value": (2, bytes)}
_VOID: _Fields = {}
_VALUE: _Fields = {"content": (1, bytes)}
_FAILURE: _Fields = {"code": (1, int), "message": (2, str), "metadata": (3, [_HEADER])}
_KEYS: _Fields = {"keys": (1, [bytes])}
_FUTURE: dict[str, tuple[int, Any]] = {"completions": (1, [int]), "signals": (2, [int]), "named": (3, [str])}
_FUTURE["nested"] = (4, [_FUTURE])
_FUTURE["combinator"] = (5, int)
_COMPLETION: _Fields = {
    "completion_id": (1, int),
    "signal_id": (2, int),
    "signal_name": (3, str),
    "void": (4, _VOID),
    "value": (5, _VALUE),
    "failure": (6, _FAILURE),
    "invocation_id": (16, str),
    "state_keys": (17, _KEYS),
}
_NAME: _Fields = {"name": (12, str)}
_RESULT: _Fields = {"completion_id": (11, int), **_NAME}
_ATTACH: _Fields = {
    "invocation_id": (1, str),
    "idempotent": (3, {"service": (1, str), "key": (2, str), "handler": (3, str), "idempotency_key": (4, str)}),
    "workflow": (4, {"workflow": (1, str), "key": (2, str)}),
    **_RESULT,
}

FIELDS: Final[Mapping[int, _Fields]] = {
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

_BY_NUMBER: Final = {
    message_type: {number: (name, of) for name, (number, of) in table.items()} for message_type, table in FIELDS.items()
}
_NUMBERED: Final[dict[int, dict[int, tuple[str, Any]]]] = {}
"""The tables of nested messages by number, found by the identity of the table; filled when first needed."""


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


# --- bytes ------------------------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _encode(table: _Fields, values: Mapping[str, Any]) -> bytes:
    out: list[bytes] = []
    for name, value in values.items():
        if value is None:
            continue
        number, of = table[name]
        if isinstance(of, list):
            for item in value:
                _put(out, number, of[0], item)
        else:
            _put(out, number, of, value)
    return b"".join(out)


def _put(out: list[bytes], number: int, of: Any, value: Any) -> None:
    if of is int or of is bool:
        out += (_varint(number << 3), _varint(int(value)))
        return
    data = value.encode() if of is str else value if of is bytes else _encode(of, value)
    out += (_varint(number << 3 | 2), _varint(len(data)), data)


def _decode(numbered: Mapping[int, tuple[str, Any]], body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at, end = 0, len(body)
    while at < end:
        tag, at = _read_varint(body, at)
        number, wire = tag >> 3, tag & 7
        value: Any
        if wire == 0:
            value, at = _read_varint(body, at)
        elif wire == 2:
            size, at = _read_varint(body, at)
            value, at = body[at : at + size], at + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = int.from_bytes(body[at : at + size], "little"), at + size
        else:
            raise ValueError(f"a field has the wire type {wire}, which protobuf no longer uses")
        known = numbered.get(number)
        if known is None:
            # A newer server may send unknown fields; the rest of the message is still valid.
            continue
        name, of = known
        if isinstance(of, list):
            items = found.setdefault(name, [])
            if of[0] is int and wire == 2:
                inner = 0
                while inner < len(value):
                    number, inner = _read_varint(value, inner)
                    items.append(number)
            else:
                items.append(_typed(of[0], value))
        else:
            found[name] = _typed(of, value)
    return found


def _typed(of: Any, value: Any) -> Any:
    if of is str:
        return value.decode()
    if of is bool:
        return bool(value)
    if of is int or of is bytes:
        return value
    return _decode(_numbered(of), value)


def _numbered(table: _Fields) -> dict[int, tuple[str, Any]]:
    found = _NUMBERED.get(id(table))
    if found is None:
        found = _NUMBERED[id(table)] = {number: (name, of) for name, (number, of) in table.items()}
    return found


def make(message_type: MessageType, /, *, flags: int = 0, **values: Any) -> Frame:
    """Build a message; fields that are None are omitted.

    Example:
        >>> decode(make(MessageType.RUN, completion_id=1, name="charge"))
        {'completion_id': 1, 'name': 'charge'}
    """
    return Frame(message_type, _encode(FIELDS[message_type], values), flags)


def decode(frame: Frame) -> dict[str, Any]:
    """Return the fields of a message; unset fields are omitted. The result may be shared: do not change it.

    Example:
        >>> decode(make(MessageType.SLEEP, completion_id=1, wake_up_time=5))
        {'completion_id': 1, 'wake_up_time': 5}
    """
    if len(frame.body) > _CACHED_UP_TO:
        return _decode(_BY_NUMBER[frame.type], frame.body)
    return _decode_cached(frame.type, frame.body)


@lru_cache(maxsize=8192)
def _decode_cached(message_type: int, body: bytes) -> dict[str, Any]:
    # An exploration decodes the same messages many times.
    return _decode(_BY_NUMBER[message_type], body)


def encode(frame: Frame) -> bytes:
    """Return a message as bytes, including the header."""
    return _HEADER_BYTES.pack(frame.type, frame.flags, len(frame.body)) + frame.body


def frames_to_bytes(frames: Iterable[Frame]) -> bytes:
    """Return messages as bytes, one after the other."""
    return b"".join(encode(frame) for frame in frames)


def _message_type(number: int) -> MessageType:
    if (message_type := _MESSAGE_TYPES.get(number)) is None:
        raise ValueError(
            f"the message type {number:#06x} is unknown. This version of restate-steps knows versions 6 and 7 of the "
            "service protocol. Install a version that was tested with your restate-sdk."
        )
    return message_type


class FrameReader:
    """Cuts a stream of bytes into messages.

    Example:
        >>> reader = FrameReader()
        >>> reader.feed(encode(make(MessageType.END))[:5]), reader.feed(encode(make(MessageType.END))[5:])
        ([], [Frame(type=<MessageType.END: 3>, body=b'', flags=0)])
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes, and return the messages that are complete now."""
        data = self._rest + data if self._rest else data
        frames: list[Frame] = []
        at = 0
        while len(data) - at >= 8:
            number, flags, size = _HEADER_BYTES.unpack_from(data, at)
            if len(data) - at < 8 + size:
                break
            frames.append(Frame(_message_type(number), bytes(data[at + 8 : at + 8 + size]), flags))
            at += 8 + size
        self._rest = bytes(data[at:])
        return frames


# --- JSON -------------------------------------------------------------------------------------------------------


def as_json(frame: Frame) -> dict[str, Any]:
    """Return a message as a JSON value: ``type``, ``flags`` if there are any, and the fields.

    Bytes become text if they are UTF-8, and ``{"base64": ...}`` otherwise.

    Example:
        >>> as_json(make(MessageType.RUN, completion_id=1, name="charge"))
        {'type': 'RUN', 'completion_id': 1, 'name': 'charge'}
    """
    flags = {"flags": frame.flags} if frame.flags else {}
    return {"type": frame.type.name, **flags, **_plain(decode(frame))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value


def from_json(value: Mapping[str, Any]) -> Frame:
    """Return the message of a value from :func:`as_json`."""
    message_type = MessageType[value["type"]]
    fields = {name: inner for name, inner in value.items() if name not in ("type", "flags")}
    return Frame(
        message_type, _encode(FIELDS[message_type], _unplain(FIELDS[message_type], fields)), value.get("flags", 0)
    )


def _unplain(table: _Fields, values: Mapping[str, Any]) -> dict[str, Any]:
    def one(of: Any, value: Any) -> Any:
        if of is bytes:
            return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])
        return value if of in (int, bool, str) else _unplain(of, value)

    return {
        name: [one(of[0], item) for item in values[name]] if isinstance(of, list) else one(of, values[name])
        for name, (_, of) in table.items()
        if name in values
    }
