"""Journals in readable form: named entries with decoded values, as in :mod:`restate_steps.server`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

from restate_steps._printable import cut
from restate_steps._protocol.types import MessageType, is_notification
from restate_steps._protocol.wire import Frame, decode
from restate_steps.server import JournalEntry, JournalFailure
from restate_steps.server._journal import Message, decoded, linked
from restate_steps.testing._simulation.manifest import Target

__all__ = ["Journal", "Origin", "describe_frame"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The invocation that a journal comes from, with the other inputs of its attempts.

    Attributes:
        target: The handler, and the key it was called with.
        invocation_id: The id of the invocation.
        raw_id: The id as bytes, from which the ids of awakeables are made.
        protocol: The version of the service protocol.
        random_seed: The seed of ``ctx.random()`` and ``ctx.uuid()``; None if it is not known.
        idempotency_key: The caller's idempotency key, if any.
    """

    target: Target
    invocation_id: str
    raw_id: bytes
    protocol: int
    random_seed: int | None = None
    idempotency_key: str | None = None


class Journal(Sequence[JournalEntry]):
    """The journal of an invocation, with decoded values.

    Attributes:
        frames: The messages.
        origin: The invocation that the journal comes from, if known.

    Example:
        >>> from restate_steps._protocol.types import MessageType
        >>> from restate_steps._protocol.wire import make
        >>> journal = Journal([make(MessageType.RUN, completion_id=1, name="charge")])
        >>> journal.names, journal[0].completed
        (['charge'], False)
    """

    def __init__(self, frames: Sequence[Frame], origin: Origin | None = None) -> None:
        self.frames = tuple(frames)
        self.origin = origin
        self._entries: list[JournalEntry] | None = None

    @property
    def names(self) -> list[str]:
        """The names of the steps (``ctx.run`` and ``ctx.run_typed``), in the order of their commands."""
        return [decode(frame).get("name", "") for frame in self.frames if frame.type == MessageType.RUN]

    @property
    def entries(self) -> list[JournalEntry]:
        """Every entry, as :meth:`restate_steps.server.AdminClient.journal` returns them."""
        if self._entries is None:
            self._entries = linked([_message(frame) for frame in self.frames])
        return self._entries

    @overload
    def __getitem__(self, index: int) -> JournalEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[JournalEntry]: ...
    def __getitem__(self, index: int | slice) -> JournalEntry | list[JournalEntry]:
        return self.entries[index]

    def __iter__(self) -> Iterator[JournalEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        of = "" if self.origin is None else f" of {self.origin.target}"
        return f"<Journal{of}, {len(self)} entries>"

    def __str__(self) -> str:
        return "\n".join(f"{index:4}  {describe_frame(frame)}" for index, frame in enumerate(self.frames))


_WITH_KEY: Final = (
    MessageType.SET_STATE,
    MessageType.CLEAR_STATE,
    MessageType.GET_LAZY_STATE,
    MessageType.GET_EAGER_STATE,
)


def describe_frame(frame: Frame) -> str:
    """Describe a message in one line."""
    fields = decode(frame)
    kind = MessageType(frame.type).name.lower().replace("_", " ")
    name = fields.get("name") or fields.get("signal_name") or ""
    number = fields.get("completion_id")
    if is_notification(frame.type):
        what = f"signal {fields.get('signal_id', '')}" if frame.type == MessageType.SIGNAL else f"{kind} {number}"
        return f"{what} {name}".rstrip() + f" = {_shown(_outcome(frame.type, fields))}"
    if frame.type in (MessageType.CALL, MessageType.ONE_WAY_CALL):
        name = "/".join(fields[part] for part in ("service", "key", "handler") if part in fields)
    if frame.type in (MessageType.INPUT, MessageType.OUTPUT):
        return f"{kind} {_shown(_outcome(frame.type, fields))}"
    if frame.type in _WITH_KEY:
        name = fields["key"].decode(errors="replace")
    return f"{kind} {name}".rstrip() + (f"  → {number}" if number is not None else "")


def _message(frame: Frame) -> Message:
    fields = decode(frame)
    name = fields.get("name") or fields.get("signal_name") or None
    ids = [fields[field] for field in ("completion_id", "invocation_id_completion_id") if field in fields]
    return Message(_type(frame.type), name, ids, *_outcome(frame.type, fields))


def _type(kind: int) -> str:
    words = MessageType(kind).name.removesuffix("_COMPLETION").title().replace("_", "")
    return f"{'Notification' if is_notification(kind) else 'Command'}: {words}"


def _outcome(kind: int, fields: dict[str, Any]) -> tuple[Any, JournalFailure | None]:
    if "failure" in fields:
        failure = fields["failure"]
        return None, JournalFailure(code=failure.get("code", 0), message=failure.get("message", ""))
    if "invocation_id" in fields:
        return fields["invocation_id"], None
    keys = fields.get("value") if kind == MessageType.GET_EAGER_STATE_KEYS else fields.get("state_keys")
    if keys is not None:
        return [key.decode(errors="replace") for key in keys.get("keys", ())], None
    value: Any = fields.get("value", b"")
    return decoded(value if isinstance(value, bytes) else value.get("content", b"")), None


def _shown(outcome: tuple[Any, JournalFailure | None], limit: int = 60) -> str:
    value, failure = outcome
    text = repr(value) if failure is None else f"failure {failure.code}: {failure.message}"
    return cut(text, limit)
