"""Recordings of what a server, an application and a client said to each other: taking, normalising, keeping them.

A recording that was just taken has real ids and times in it. :func:`normalise` replaces them, so that two recordings of
the same scenario are equal, whoever played the server; :func:`load` and :func:`save` deal with normalised ones only.

1. An invocation is ``inv-1``, ``inv-2``, ...: first those that the client was told of, in that order, each followed by
   those it has called, then the others in the order in which they began.
2. An awakeable is ``awakeable(inv-1, 17)``. Times are ``<time>``, durations ``<ms>``, stack traces ``<stacktrace>``.
3. An attempt is one request of the server: what either side sent, in the order in which the application's side saw it.
   Attempts are kept by invocation, because those of different invocations are not ordered by anything.
4. An attempt that repeats the one before it word by word is left out: the server resumes an invocation
   again and again that waits for a signal which it has had before, and how often is a matter of speed.
5. ``AWAITING_ON`` is left out. It tells the server what it may show to somebody who looks; the SDK repeats it whenever
   bytes have come in, so how often it is sent depends on how the bytes were cut.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from restate_steps._ids import awakeable_of
from restate_steps._protocol import wire as _wire
from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame, FrameReader

__all__ = ["CLOSED", "CUT", "FOLDER", "UNKNOWN", "Attempt", "Tape", "load", "names", "normalise", "save", "sides"]

FOLDER = Path(__file__).parent / "recordings"

CLOSED = "closed"
"""The side has said everything: the server closed its input, or the application its output."""
CUT = "cut"
"""The server ended the request before the application had."""

Recording: TypeAlias = dict[str, Any]
"""``note``, ``client`` (what was asked and answered, in order) and ``invocations``: each with its ``id``, ``target``
and ``attempts``, which are lists of events. An event is a dict with one item, ``server`` or ``app``: a message as
:func:`restate_steps._protocol.wire.as_json` makes it, or one of the words above."""


# --- taking -----------------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One request of the server, as it is recorded."""

    target: str
    version: int
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    def server(self, *frames: Frame) -> None:
        """Record what the server sent."""
        self.events += [{"server": _wire.as_json(frame)} for frame in frames]

    def app(self, *frames: Frame) -> None:
        """Record what the application sent."""
        self.events += [{"app": _wire.as_json(frame)} for frame in frames]

    def mark(self, side: str, what: str) -> None:
        """Record that a side has ended."""
        self.events.append({side: what})


class Tape:
    """Takes a recording: of the attempts through an ASGI application that it wraps, or frame by frame.

    Example:
        >>> tape = Tape()
        >>> attempt = tape.attempt("Greeter/greet", 6)
        >>> attempt.app(_wire.make(MessageType.END))
        >>> tape.raw({})["attempts"][0]["events"]
        [{'app': {'type': 'END'}}]
    """

    def __init__(self) -> None:
        self.client: list[dict[str, Any]] = []
        self.attempts: list[Attempt] = []

    @property
    def busy(self) -> bool:
        """Whether an attempt goes on."""
        return not all(attempt.ended for attempt in self.attempts)

    @property
    def length(self) -> int:
        """How much was recorded; it grows with every message."""
        return len(self.attempts) + sum(len(attempt.events) + attempt.ended for attempt in self.attempts)

    def attempt(self, target: str, version: int) -> Attempt:
        """Begin to record an attempt."""
        attempt = Attempt(target, version)
        self.attempts.append(attempt)
        return attempt

    def asked(self, what: str, answer: Any = None, **more: Any) -> None:
        """Record what a client asked for, and what it was answered."""
        shown = {name: value for name, value in more.items() if value is not None}
        self.client.append({"asked": what, **shown, **({} if answer is None else {"answer": answer})})

    def raw(self, note: dict[str, Any]) -> Recording:
        """Return what was recorded, to be normalised."""
        attempts = [{"target": one.target, "events": list(one.events)} for one in self.attempts]
        return {"note": note, "client": list(self.client), "attempts": attempts}

    def around(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """Return an ASGI application that records every attempt of another."""

        async def recorded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            target = _target(scope)
            if target is None:
                await app(scope, receive, send)
                return
            attempt = self.attempt(target, _version(scope))
            readers = {"server": FrameReader(), "app": FrameReader()}

            async def receive_and_record() -> Any:
                event = await receive()
                if attempt.ended or {"app": CLOSED} in attempt.events:
                    return event
                if event["type"] == "http.request":
                    attempt.server(*readers["server"].feed(event.get("body", b"")))
                    if not event.get("more_body", False):
                        attempt.mark("server", CLOSED)
                elif event["type"] == "http.disconnect":
                    attempt.mark("server", CUT)
                return event

            async def record_and_send(event: Any) -> None:
                if event["type"] == "http.response.body" and {"server": CUT} not in attempt.events:
                    attempt.app(*readers["app"].feed(event.get("body", b"")))
                    if not event.get("more_body", False):
                        attempt.mark("app", CLOSED)
                await send(event)

            try:
                await app(scope, receive_and_record, record_and_send)
            finally:
                attempt.ended = True

        return recorded


def _target(scope: MutableMapping[str, Any]) -> str | None:
    parts = scope.get("path", "").split("/")
    return "/".join(parts[-2:]) if len(parts) >= 3 and parts[-3] == "invoke" else None


def _version(scope: MutableMapping[str, Any]) -> int:
    [kind] = [value.decode() for name, value in scope["headers"] if name.lower() == b"content-type"]
    return int(kind.rpartition(".v")[2])


# --- normalising ------------------------------------------------------------------------------------------------

UNKNOWN = "inv_1dZn7wF7lYm94cVMlvOEUzGNKG5NnQ2Qux"
"""The id of an invocation that there never was."""

_INVOCATION = re.compile(r"inv_[0-9A-Za-z]{20,}")
_AWAKEABLE = re.compile(r"sign_1[0-9A-Za-z_-]{20,}")
_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
_CLOCK = re.compile(r"\b1[0-9]{9}\.[0-9]+")
_PORT = re.compile(r"(127\.0\.0\.1|localhost):\d{4,5}")
_DEPLOYMENT = re.compile(r"dp_[0-9A-Za-z]{20,}")
# What else the server passes on depends on the client and on tracing, and no handler here looks at it.
_HEADERS_KEPT = ("x-conformance", "idempotency-key")
_TIMES = {
    "wake_up_time": "<time>",
    "invoke_time": "<time>",
    "executionTime": "<time>",
    "duration": "<ms>",
    "stacktrace": "<stacktrace>",
}


def normalise(raw: Recording) -> Recording:
    """Replace what is different each time (see the head of this module)."""
    attempts: list[tuple[str, dict[str, Any]]] = [(_started(one["events"]), one) for one in raw["attempts"]]
    names = _names(raw["client"], attempts)
    awakeables = {}
    for known, attempt in attempts:
        awakeables[_id_bytes(attempt["events"][0]["server"]["id"])] = names[known]

    def awakeable(match: re.Match[str]) -> str:
        invocation, number = awakeable_of(match[0])
        return f"awakeable({awakeables.get(invocation, '?')}, {number})"

    def text(value: str) -> str:
        if value.startswith("{") and value.endswith("}"):
            with suppress(ValueError):
                # What the server says about an answer has no order of its own.
                value = json.dumps(clean(json.loads(value)), sort_keys=True)
        value = _AWAKEABLE.sub(awakeable, value)
        value = _INVOCATION.sub(lambda match: names.get(match[0], "<unknown>"), value)
        value = _CLOCK.sub("<time>", value)
        value = _DEPLOYMENT.sub("dp-?", value)
        return _PORT.sub(r"\1:<port>", value)

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: _TIMES.get(name) or clean(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [clean(inner) for inner in value]
        return text(value) if isinstance(value, str) else value

    invocations: dict[str, dict[str, Any]] = {}
    for known, attempt in attempts:
        name = names[known]
        found = invocations.setdefault(name, {"id": name, "target": attempt["target"], "attempts": []})
        events = [clean(_event(event, name)) for event in attempt["events"] if not _is_awaiting_on(event)]
        if events not in found["attempts"][-1:]:
            found["attempts"].append(events)
    ordered = sorted(invocations.values(), key=lambda one: int(one["id"].rpartition("-")[2]))
    return {"note": raw["note"], "client": [clean(one) for one in raw["client"]], "invocations": ordered}


def _is_awaiting_on(event: dict[str, Any]) -> bool:
    message = event.get("app")
    return isinstance(message, dict) and message["type"] == MessageType.AWAITING_ON.name


def _started(events: list[dict[str, Any]]) -> str:
    return str(events[0]["server"]["debug_id"])


def _id_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def _names(client: list[dict[str, Any]], attempts: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    names: dict[str, str] = {}

    def add(found: Iterable[str]) -> None:
        for one in found:
            if one not in names and one != UNKNOWN:
                names[one] = f"inv-{len(names) + 1}"
                # Those that it has called come next, so that the order of their beginnings does not matter.
                for known, attempt in attempts:
                    if known == one:
                        add(_INVOCATION.findall(json.dumps(attempt["events"])))

    add(_INVOCATION.findall(json.dumps(client)))
    add(known for known, _ in attempts)
    return names


def _event(event: dict[str, Any], name: str) -> dict[str, Any]:
    [(side, message)] = event.items()
    if not isinstance(message, dict):
        return event
    message = dict(message)
    if message["type"] == MessageType.START.name:
        message["id"] = name
        if _ULID.fullmatch(message.get("idempotency_key", "")):
            message["idempotency_key"] = "<ulid>"
        message["random_seed"] = "<seed>" if message.get("random_seed") else None
        # How long a first attempt took to begin says nothing, and a zero is left out by the protocol.
        message.pop("duration", None)
        if message.get("retry_count"):
            message["duration"] = "<ms>"
    if message["type"] == MessageType.SUSPENSION.name:
        message = _sorted(message)
    if "headers" in message:
        kept = [one for one in message.pop("headers") if one["key"].startswith(_HEADERS_KEPT)]
        message |= {"headers": kept} if kept else {}
    return {side: message}


def _sorted(value: Any) -> Any:
    """What an application waits for is a set: the order in which it names them differs from run to run."""
    if isinstance(value, dict):
        return {name: _sorted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(inner) for inner in value), key=repr)
    return value


# --- comparing --------------------------------------------------------------------------------------------------


def sides(recording: Recording) -> Recording:
    """Return a recording in which the order between the two sides of an attempt is forgotten.

    Each side's own order stays. When one side did not have to wait for the other, the order between them is a matter
    of chance, and two recordings are equal in this form only.
    """
    return {
        **recording,
        "invocations": [
            {**one, "attempts": [sorted(events, key=lambda event: "app" in event) for events in one["attempts"]]}
            for one in recording["invocations"]
        ],
    }


# --- keeping ----------------------------------------------------------------------------------------------------


def names(variant: str) -> list[str]:
    """List the scenarios that are recorded in a variant."""
    return sorted(path.stem for path in (FOLDER / variant).glob("*.json"))


def load(scenario: str, variant: str) -> Recording:
    """Return a recording.

    Args:
        scenario: The name of the scenario.
        variant: The version of the protocol and the mode, for example ``v6-normal``.
    """
    loaded: Recording = json.loads((FOLDER / variant / f"{scenario}.json").read_text())
    return loaded


def save(recording: Recording, scenario: str, variant: str) -> None:
    """Keep a recording, one event a line."""
    path = FOLDER / variant / f"{scenario}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(recording))


def dump(recording: Recording) -> str:
    """Return a recording as JSON, one event a line."""
    lines = ["{", f' "note": {_line(recording["note"])},', ' "client": [']
    lines += _joined("  ", recording["client"])
    lines += [" ],", ' "invocations": [']
    for at, one in enumerate(recording["invocations"]):
        lines += [f'  {{"id": {_line(one["id"])}, "target": {_line(one["target"])}, "attempts": [']
        for index, events in enumerate(one["attempts"]):
            lines += ["   [", *_joined("    ", events), "   ]" + "," * (index + 1 < len(one["attempts"]))]
        lines += ["  ]}" + "," * (at + 1 < len(recording["invocations"]))]
    return "\n".join([*lines, " ]", "}", ""])


def _joined(indent: str, values: list[Any]) -> list[str]:
    return [indent + _line(value) + "," * (at + 1 < len(values)) for at, value in enumerate(values)]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
