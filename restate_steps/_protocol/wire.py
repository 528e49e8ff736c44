"""The messages of Restate's service protocol as bytes, as values, and as JSON.

A message is a header of eight bytes (type, flags, length, big-endian) and a protobuf body. :mod:`.types` defines the
fields of the bodies. This module does not know the meaning of messages, and is pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from restate_steps._protocol.types import FIELDS, Fields, MessageType

__all__ = ["Frame", "FrameReader", "as_json", "decode", "encode", "frames_to_bytes", "from_json", "make"]

_CACHED_UP_TO: Final = 512
_HEADER_BYTES: Final = struct.Struct(">HHI")

# The wire types of protobuf.
_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
_FIXED_SIZES: Final = {1: 8, 5: 4}

_MESSAGE_TYPES: Final[dict[int, MessageType]] = {message_type.value: message_type for message_type in MessageType}


def _numbered(table: Fields) -> dict[int, tuple[str, Any]]:
    return {number: (name, field_type) for name, (number, field_type) in table.items()}


_FIELDS_BY_NUMBER: Final = {message_type: _numbered(table) for message_type, table in FIELDS.items()}
_NESTED_BY_NUMBER: Final[dict[int, dict[int, tuple[str, Any]]]] = {}
"""The fields of nested messages by number, under the id of their table; filled when first needed."""


class Frame(NamedTuple):
    """One message: its type, its protobuf body, its flags."""

    type: MessageType
    body: bytes
    flags: int = 0

    def __str__(self) -> str:
        return str(as_json(self))


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


def _encode(table: Fields, values: Mapping[str, Any]) -> bytes:
    out: list[bytes] = []
    for name, value in values.items():
        if value is None:
            continue
        number, field_type = table[name]
        if isinstance(field_type, list):
            for item in value:
                _encode_field(out, number, field_type[0], item)
        else:
            _encode_field(out, number, field_type, value)
    return b"".join(out)


def _encode_field(out: list[bytes], number: int, field_type: Any, value: Any) -> None:
    if field_type is int or field_type is bool:
        out += (_varint(number << 3 | _VARINT), _varint(int(value)))
        return
    data = value.encode() if field_type is str else value if field_type is bytes else _encode(field_type, value)
    out += (_varint(number << 3 | _LENGTH_DELIMITED), _varint(len(data)), data)


def _decode(fields: Mapping[int, tuple[str, Any]], body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at, end = 0, len(body)
    while at < end:
        tag, at = _read_varint(body, at)
        number, wire_type = tag >> 3, tag & 7
        value: Any
        if wire_type == _VARINT:
            value, at = _read_varint(body, at)
        elif wire_type == _LENGTH_DELIMITED:
            size, at = _read_varint(body, at)
            value, at = body[at : at + size], at + size
        elif (size := _FIXED_SIZES.get(wire_type, 0)) != 0:
            value, at = int.from_bytes(body[at : at + size], "little"), at + size
        else:
            raise ValueError(f"a field has the wire type {wire_type}, which protobuf no longer uses")
        known = fields.get(number)
        if known is None:
            # A newer server may send unknown fields; the rest of the message is still valid.
            continue
        name, field_type = known
        if isinstance(field_type, list):
            items = found.setdefault(name, [])
            if field_type[0] is int and wire_type == _LENGTH_DELIMITED:
                inner = 0
                while inner < len(value):
                    number, inner = _read_varint(value, inner)
                    items.append(number)
            else:
                items.append(_decode_value(field_type[0], value))
        else:
            found[name] = _decode_value(field_type, value)
    return found


def _decode_value(field_type: Any, value: Any) -> Any:
    if field_type is str:
        return value.decode()
    if field_type is bool:
        return bool(value)
    if field_type is int or field_type is bytes:
        return value
    return _decode(_by_number(field_type), value)


def _by_number(table: Fields) -> dict[int, tuple[str, Any]]:
    found = _NESTED_BY_NUMBER.get(id(table))
    if found is None:
        found = _NESTED_BY_NUMBER[id(table)] = _numbered(table)
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
        return _decode(_FIELDS_BY_NUMBER[frame.type], frame.body)
    return _decode_cached(frame.type, frame.body)


@lru_cache(maxsize=8192)
def _decode_cached(message_type: int, body: bytes) -> dict[str, Any]:
    # An exploration decodes the same messages many times.
    return _decode(_FIELDS_BY_NUMBER[message_type], body)


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
        """Add the next bytes, and return the messages that are complete now."""
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
    return {"type": frame.type.name, **flags, **_to_json(decode(frame))}


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_json(inner) for name, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_to_json(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value


def from_json(value: Mapping[str, Any]) -> Frame:
    """Return the message of a value from :func:`as_json`."""
    message_type = MessageType[value["type"]]
    table = FIELDS[message_type]
    return Frame(message_type, _encode(table, _from_json(table, value)), value.get("flags", 0))


def _from_json(table: Fields, values: Mapping[str, Any]) -> dict[str, Any]:
    def value_of(field_type: Any, value: Any) -> Any:
        if isinstance(field_type, list):
            return [value_of(field_type[0], item) for item in value]
        if field_type is bytes:
            return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])
        return value if field_type in (int, bool, str) else _from_json(field_type, value)

    return {name: value_of(field_type, values[name]) for name, (_, field_type) in table.items() if name in values}
