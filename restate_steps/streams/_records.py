"""The records of a log, as values and as JSON.

A record has up to two parts, because the events of the handler travel in the records of bodies (rule R2):

* :class:`HandlerEvents`, the events that a handler sees. A position numbers each of them, counted for each run from 0.
  The journal determines positions and events, so every attempt of the handler publishes the same.
* :class:`BodyEvents`, the events of one attempt of one step. A sequence number counts them from 0. An attempt begins
  with a record that has the sequence number 0, even if it has no events of the body yet. Every such record has the
  events of the handler that precede the body, or the position after them.

In JSON, a record is one object with short keys. ``t`` is the time, ``h`` the handler's part, and ``b`` the body's. In a
part, ``p`` is the publisher (the run or the step), ``a`` the attempt, ``s`` the position or the sequence number of the
first event, and ``e`` the events. A part that is missing is null::

    {
        "t": 1764403000123,
        "h": {"p": "run-1", "s": 4, "e": [{"event": {"tool": "charge"}}]},
        "b": {"p": "charge-1", "a": "5f0c…", "s": 0, "e": [{"text": "Hel"}, {"text": "lo"}]},
    }

Each of the handler's events has a key that says what it is: ``event``, ``request``, ``commit`` or ``end``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

from pydantic import JsonValue

from restate_steps.streams._errors import StreamRecordError

__all__ = [
    "BodyEvents",
    "Commit",
    "End",
    "EndStatus",
    "HandlerEvent",
    "HandlerEvents",
    "Native",
    "Record",
    "Request",
    "decode",
    "encode",
]

EndStatus = Literal["success", "failure", "cancelled", "timeout", "killed"]
"""The ways in which a run ends. A run that was killed cannot say so: a reader that notices it appends the end."""

_STATUSES: Final = get_args(EndStatus)


@dataclass(frozen=True, slots=True)
class Native:
    """An event of the application.

    Attributes:
        data: The event, which is opaque here.
    """

    data: JsonValue


@dataclass(frozen=True, slots=True)
class Request:
    """A question to a person, for example for an approval.

    Attributes:
        name: The name under which readers answer it.
        token: The secret that permits to answer it (rule R10: it never leaves the edge).
        data: The question, which is opaque here.
    """

    name: str
    token: str = field(repr=False)
    data: JsonValue


@dataclass(frozen=True, slots=True)
class Commit:
    """The recorded result of a step says which of its attempts counts (rule R5).

    Attributes:
        producer: The step.
        attempt: The attempt that was recorded; None if readers must not see any, because the step failed.
        count: The number of events that this attempt published.
        parts: The finished parts, which replace the events if not all are in the log. The publisher adds them unless
            the store has acknowledged all events.
    """

    producer: str
    attempt: str | None
    count: int = 0
    parts: tuple[JsonValue, ...] | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The end of the stream (rule R9).

    Attributes:
        status: The way in which the run ended.
        data: The result or the error, which is opaque here.
    """

    status: EndStatus
    data: JsonValue = None


HandlerEvent = Native | Request | Commit | End


@dataclass(frozen=True, slots=True)
class HandlerEvents:
    """Consecutive events that a handler sees.

    Attributes:
        run: The run that numbers the events.
        position: The position of the first event.
        events: The events. If there are none, the record depends on the positions before ``position``.
    """

    run: str
    position: int
    events: tuple[HandlerEvent, ...]


@dataclass(frozen=True, slots=True)
class BodyEvents:
    """Consecutive events of one attempt of a step.

    Attributes:
        producer: The step: its idempotency key.
        attempt: A unique id of the attempt.
        seq: The sequence number of the first event.
        events: The events, which are opaque here.
    """

    producer: str
    attempt: str
    seq: int
    events: tuple[JsonValue, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a log.

    Attributes:
        time: The publisher's time, in milliseconds since the epoch. It is information, and decides nothing.
        handler: Events of the handler, which precede those of the body.
        body: Events of a step's body.
    """

    time: int
    handler: HandlerEvents | None = None
    body: BodyEvents | None = None


def encode(record: Record) -> bytes:
    """Return the JSON form of a record.

    Raises:
        ValueError: An event contains NaN or an infinity, which readers in a browser could not parse.
        TypeError: An event is not JSON.
    """
    handler, body = record.handler, record.body
    value = {
        "t": record.time,
        "h": handler and {"p": handler.run, "s": handler.position, "e": [*map(_event_to_json, handler.events)]},
        "b": body and {"p": body.producer, "a": body.attempt, "s": body.seq, "e": body.events},
    }
    try:
        return _to_json(value, ascii_only=False).encode()
    except UnicodeEncodeError:
        # A surrogate without its partner, as half of an emoji in a delta, has no UTF-8 form.
        return _to_json(value, ascii_only=True).encode()


def _to_json(value: dict[str, Any], *, ascii_only: bool) -> str:
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))


def _event_to_json(event: HandlerEvent) -> dict[str, Any]:
    match event:
        case Native(data):
            return {"event": data}
        case Request(name, token, data):
            return {"request": name, "token": token, "data": data}
        case Commit(producer, attempt, count, parts):
            return {"commit": producer, "attempt": attempt, "count": count, "parts": parts}
        case End(status, data):
            return {"end": status, "data": data}


def decode(data: bytes) -> Record:
    """Return the record that :func:`encode` encoded.

    Raises:
        StreamRecordError: The bytes are not a record, or have something that this version does not know.
    """
    try:
        value: JsonValue = json.loads(data)
    except ValueError as error:
        raise StreamRecordError(f"it is not JSON: {error}") from None
    match value:
        case {"t": int(time), "h": handler, "b": body, **rest} if not rest:
            return Record(time, _handler(handler), _body(body))
        case _:
            raise _unexpected("a record", value)


def _body(value: JsonValue) -> BodyEvents | None:
    match value:
        case None:
            return None
        case {"p": str(producer), "a": str(attempt), "s": int(seq), "e": list(events), **rest} if seq >= 0 and not rest:
            return BodyEvents(producer, attempt, seq, tuple(events))
        case _:
            raise _unexpected("events of a body", value)


def _handler(value: JsonValue) -> HandlerEvents | None:
    match value:
        case None:
            return None
        case {"p": str(run), "s": int(position), "e": list(events), **rest} if position >= 0 and not rest:
            return HandlerEvents(run, position, tuple(map(_event, events)))
        case _:
            raise _unexpected("events of a handler", value)


def _event(value: JsonValue) -> HandlerEvent:
    match value:
        case {"event": data, **rest} if not rest:
            return Native(data)
        case {"request": str(name), "token": str(token), "data": data, **rest} if not rest:
            return Request(name, token, data)
        case {
            "commit": str(producer),
            "attempt": str() | None as attempt,
            "count": int(count),
            "parts": parts,
            **rest,
        } if count >= 0 and not rest:
            return Commit(producer, attempt, count, _parts(parts))
        case {"end": str(status), "data": data, **rest} if status in _STATUSES and not rest:
            return End(cast(EndStatus, status), data)
        case _:
            raise _unexpected("an event of a handler", value)


def _parts(value: JsonValue) -> tuple[JsonValue, ...] | None:
    match value:
        case None:
            return None
        case list(parts):
            return tuple(parts)
        case _:
            raise _unexpected("finished parts", value)


def _unexpected(expected: str, value: JsonValue) -> StreamRecordError:
    # The values may be secret, the names of the fields are not.
    found = f"fields {sorted(value)!r}" if isinstance(value, dict) else f"a {type(value).__name__}"
    return StreamRecordError(f"expected {expected}, and got {found}")
