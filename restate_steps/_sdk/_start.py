"""Describe an attempt: its handler, and the number of retries, which the SDK does not expose."""

from __future__ import annotations

import struct
from typing import Any, Final, cast

from restate.server_context import ServerInvocationContext
from restate.vm import VMWrapper

__all__ = ["invocation_target", "is_replaying", "note_starts", "retry_count"]

_FRAME: Final = struct.Struct(">HHI")
_RETRY_COUNT: Final = 7
"""The field of the service protocol's start message: the failed attempts since the server last stored an entry."""
_FIXED_SIZES: Final = {1: 8, 5: 4}
_START: Final = "restate_steps_start"


def note_starts() -> None:
    """Make each VM note the retry count of its attempt, from the first message that it gets."""
    original: Any = getattr(VMWrapper, "notify_input", None)
    if original is None or hasattr(original, "notes_start"):
        return

    def notify_input(self: VMWrapper, input_buf: bytes) -> None:
        state = vars(self)
        found = state.setdefault(_START, [])
        if isinstance(found, list):
            # The message has the state of a Virtual Object, and may arrive in parts.
            parts = cast("list[bytes]", found)
            parts.append(input_buf)
            if _is_complete(parts):
                state[_START] = _parse(b"".join(parts))
        original(self, input_buf)

    notify_input.notes_start = True  # type: ignore[attr-defined]
    VMWrapper.notify_input = notify_input  # type: ignore[method-assign]


def retry_count(context: ServerInvocationContext) -> int | None:
    """Return how many attempts have failed since the server last stored an entry; None if that is unknown."""
    count = vars(context.vm).get(_START)
    return count if isinstance(count, int) else None


def is_replaying(context: ServerInvocationContext) -> bool:
    """Return whether the next command of the handler is already in the journal."""
    return context.vm.is_replaying()


def invocation_target(context: ServerInvocationContext) -> str:
    """Return the handler as Restate writes it: ``Shop/checkout``, or ``Cart/alice/add`` with a key."""
    service, key, handler = context.handler.service_tag.name, context.invocation.key, context.handler.name
    return f"{service}/{key}/{handler}" if key else f"{service}/{handler}"


def _is_complete(parts: list[bytes]) -> bool:
    head = parts[0] if len(parts[0]) >= _FRAME.size else b"".join(parts)
    return len(head) >= _FRAME.size and sum(map(len, parts)) >= _FRAME.size + _FRAME.unpack_from(head)[2]


def _parse(start: bytes) -> int | None:
    """Return the retry count of a start message, or None for any other message."""
    message_type, _, size = _FRAME.unpack_from(start)
    at, end = _FRAME.size, _FRAME.size + size
    if message_type != 0:
        return None
    try:
        while at < end:
            tag, at = _varint(start, at)
            number, wire_type = tag >> 3, tag & 7
            if wire_type in _FIXED_SIZES:
                at += _FIXED_SIZES[wire_type]
                continue
            value, at = _varint(start, at)
            if number == _RETRY_COUNT:
                return value
            if wire_type == 2:
                at += value
    except IndexError:
        return None
    return 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
