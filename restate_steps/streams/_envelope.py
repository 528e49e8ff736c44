"""The events that a reader sees: ids, events, resets and the end."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue

from restate_steps.streams._records import EndStatus

__all__ = ["EventId", "StreamEnd", "StreamEvent", "StreamReset", "StreamView"]

# At most 18 digits, because a client sends it.
_ID: Final = re.compile(r"(0|[1-9]\d{0,17})\.(0|[1-9]\d{0,17})(?:\.(0|[1-9]\d{0,17}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class EventId:
    """The id of an event in a stream, which is the same for every reader, forever (rule R6).

    As text it is ``record.index``, or ``record.index.chunk`` for one of several chunks that an event becomes in a
    protocol.

    Attributes:
        record: The number of the record in the log that caused the event.
        index: The number of the event among those that the record caused.
        chunk: The number of the chunk; None for the whole event.

    Example:
        >>> EventId.parse("12.0")
        EventId(record=12, index=0, chunk=None)
        >>> str(EventId(12, 0, chunk=3))
        '12.0.3'
    """

    record: int
    index: int
    chunk: int | None = None

    @classmethod
    def parse(cls, text: str) -> EventId:
        """Return the id that a client sends back, for example as ``Last-Event-ID``.

        Args:
            text: The id as text.

        Raises:
            ValueError: The text is not an id.

        Example:
            >>> EventId.parse("last")
            Traceback (most recent call last):
            ValueError: 'last' is not the id of an event: expected 'record.index' or 'record.index.chunk'
        """
        if (match := _ID.fullmatch(text)) is None:
            raise ValueError(
                f"{text[:80]!r} is not the id of an event: expected 'record.index' or 'record.index.chunk'"
            )
        record, index, chunk = match.groups()
        return cls(int(record), int(index), None if chunk is None else int(chunk))

    def __str__(self) -> str:
        whole = f"{self.record}.{self.index}"
        return whole if self.chunk is None else f"{whole}.{self.chunk}"


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event that readers see.

    Attributes:
        id: The id of the event.
        producer: The step or the run that published it.
        epoch: The number of times that the events of this producer were taken back before.
        data: The event of the application.
        request: The name under which readers answer it, if it is a question to a person; None otherwise.
        token: The secret that permits to answer it. It must not be sent to readers.
    """

    id: EventId
    producer: str
    epoch: int
    data: JsonValue
    request: str | None = None
    token: str | None = field(default=None, repr=False)

    def payload(self) -> dict[str, JsonValue]:
        """Return the form that a client gets, without the token."""
        payload: dict[str, JsonValue] = {"producer": self.producer, "epoch": self.epoch, "data": self.data}
        return payload if self.request is None else {**payload, "request": self.request}


@dataclass(frozen=True, slots=True)
class StreamReset:
    """Everything that a producer has shown so far is taken back.

    A step's attempt may fail after readers have seen its events. When another attempt replaces it, they must forget
    them.

    Attributes:
        id: The id of the event.
        producer: The step.
        epoch: The epoch of the events that are taken back. The events that follow have the next one.
    """

    id: EventId
    producer: str
    epoch: int

    def payload(self) -> dict[str, JsonValue]:
        """Return the form that a client gets."""
        return {"producer": self.producer, "epoch": self.epoch}


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a stream. Nothing follows.

    Attributes:
        id: The id of the event.
        status: The way in which the run ended.
        data: The result or the error.
    """

    id: EventId
    status: EndStatus
    data: JsonValue = None

    def payload(self) -> dict[str, JsonValue]:
        """Return the form that a client gets."""
        return {"status": self.status, "data": self.data}


StreamView = StreamEvent | StreamReset | StreamEnd
"""Anything that a reader sees."""
