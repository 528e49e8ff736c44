"""Describe an attempt: its handler, and the number of retries, which the SDK does not expose."""

from __future__ import annotations

import struct
from typing import Any, Final, cast

from restate.server_context import ServerInvocationContext
from restate.vm import VMWrapper

__all__ = ["invocation_target", "is_replaying", "note_starts", "retry_count"]

_FRAME: Final = struct.Struct(">HHI")
_START: Final = "restate_steps_start"


def note_starts() -> None:
    """Make each VM keep the first message of its attempt, which has the retry count."""
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
            if (size := _size_of(parts)) is not None and sum(map(len, parts)) >= size:
                state[_START] = b"".join(parts)[:size]
        original(self, input_buf)

    notify_input.notes_start = True  # type: ignore[attr-defined]
    VMWrapper.notify_input = notify_input  # type: ignore[method-assign]


def retry_count(context: ServerInvocationContext) -> int | None:
    """Return how many attempts have failed since the server last stored an entry; None if that is unknown."""
    state = vars(context.vm)
    found = state.get(_START)
    if isinstance(found, bytes):
        found = state[_START] = _retry_count_in(found)
    return found if isinstance(found, int) else None


def _size_of(parts: list[bytes]) -> int | None:
    """Return the size of the first message, if its header has arrived."""
    head = parts[0] if len(parts[0]) >= _FRAME.size else b"".join(parts)
    return _FRAME.size + _FRAME.unpack_from(head)[2] if len(head) >= _FRAME.size else None


def _retry_count_in(message: bytes) -> int | None:
    # Only spans need it, and importing this package should not take longer for them.
    from restate_steps._protocol.types import MessageType
    from restate_steps._protocol.wire import FrameReader, decode

    try:
        [start] = FrameReader().feed(message)
        return decode(start).get("retry_count", 0) if start.type == MessageType.START else None
    except (ValueError, IndexError):
        # A later version of the protocol.
        return None


def is_replaying(context: ServerInvocationContext) -> bool:
    """Return whether the next command of the handler is already in the journal."""
    return context.vm.is_replaying()


def invocation_target(context: ServerInvocationContext) -> str:
    """Return the handler as Restate writes it: ``Shop/checkout``, or ``Cart/alice/add`` with a key."""
    service, key, handler = context.handler.service_tag.name, context.invocation.key, context.handler.name
    return f"{service}/{key}/{handler}" if key else f"{service}/{handler}"
