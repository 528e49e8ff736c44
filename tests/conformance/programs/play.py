"""Play a program on a server or in the simulator, and put what came of it in a form that is the same on both."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from restate_steps._protocol.types import CANCEL_SIGNAL, MessageType, is_command, is_completion
from restate_steps._protocol.wire import Frame, as_json, decode
from tests.conformance.drive import Answer, World
from tests.conformance.programs.handlers import PLAYS, Play, argument
from tests.conformance.programs.program import KINDS, Program, is_orderly

__all__ = ["PlayedIn", "Stored", "play"]

_TIMES = ("wake_up_time", "invoke_time")
_NUMBERS = ("completion_id", "invocation_id_completion_id")


@dataclass(frozen=True)
class Stored:
    """What is stored of an invocation.

    Attributes:
        status: Its status, such as ``completed``.
        failure: How it failed, such as ``[500] no``; None if it did not.
        journal: Its journal.
    """

    status: str
    failure: str | None
    journal: Sequence[Frame]


class PlayedIn(World, Protocol):
    """A server, of which can be seen what it stores."""

    async def until_or_ended(self, seen: Callable[[], Any], invocation_id: str, gone: Container[str]) -> Any:
        """Wait until something is true that is looked up, or an invocation and all that it has started have ended."""
        ...

    async def stored(self, invocation_id: str, gone: Container[str]) -> Mapping[str, Stored]:
        """Wait until an invocation and all that it has started have ended, and return what is stored of each.

        Those that are ``gone`` are not stored any more.
        """
        ...

    async def state(self, of_keys: str) -> Mapping[str, Any]:
        """Return the state of all keys that begin so."""
        ...


async def play(world: PlayedIn, program: Program, token: str) -> dict[str, Any]:
    """Play a program.

    Args:
        world: Where to play it.
        program: The program.
        token: What its keys begin with, which nothing else on the server may.

    Returns:
        What came of it: ``answer``, ``client``, ``invocations`` and ``state``.
    """
    with _playing(program, token) as this:
        root = program["nodes"][0]
        target, body = KINDS[root["kind"]], json.dumps(argument(this, 0)).encode()
        key, idempotency_key = this.key(root["key"]), this.key(program.get("idempotency_key"))
        known = await world.send(*target, body, key=key, idempotency_key=idempotency_key)
        client = await _act(world, this, known)
        if idempotency_key is not None:
            again = await world.send(*target, body, key=key, idempotency_key=idempotency_key)
            client["again"] = again == known
        answer = await world.attach(known)
        stored = await world.stored(known, this.gone)
        state = await world.state(f"{token}-")
        return {
            "answer": _answered(this, answer),
            "client": client,
            "invocations": {this.names[one]: _invocation(this, stored[one]) for one in sorted(stored, key=this.number)},
            "state": {place.replace(f"{token}-", ""): state[place] for place in state},
        }


@contextmanager
def _playing(program: Program, token: str) -> Generator[Play, None, None]:
    this = PLAYS[token] = Play(program, token)
    try:
        yield this
    finally:
        del PLAYS[token]


async def _act(world: PlayedIn, this: Play, root: str) -> dict[str, Any]:
    """Do what the client does, each action when its time has come, and return what it was answered."""
    pending = list(this.program["client"])
    answers: dict[str, Any] = {}

    def due() -> list[Any] | None:
        return next((action for action in pending if action[0] in this.marks), None)

    while pending and (action := await world.until_or_ended(due, root, this.gone)):
        pending.remove(action)
        answers[action[0]] = _answered(this, await _do(world, this, action))
    return {mark: answers[mark] for mark in sorted(answers)}


async def _do(world: World, this: Play, action: list[Any]) -> Answer:
    mark, verb, *operands = action
    if verb == "complete":
        [outcome] = operands
        if outcome[0] == "value":
            return await world.resolve_awakeable(this.marks[mark], json.dumps(outcome[1]).encode())
        return await world.reject_awakeable(this.marks[mark], outcome[2])
    if verb == "signal":
        name, outcome = operands
        arg = {"to": this.marks[mark], "name": name, "outcome": outcome}
        return await world.call("ProgramHelper", "signal", json.dumps(arg).encode())
    [number] = operands
    if verb in ("cancel", "kill"):
        [target] = (known for known, name in this.names.items() if name == f"inv({number})")
        return await (world.cancel(target) if verb == "cancel" else world.kill(target))
    assert verb == "call"
    node = this.program["nodes"][number]
    body = json.dumps(argument(this, number)).encode()
    return await world.call(*KINDS[node["kind"]], body, key=this.key(node["key"]))


# --- what is compared -------------------------------------------------------------------------------------------


def _answered(this: Play, answer: Answer) -> list[Any]:
    body = _named(this, answer.body.decode())
    if isinstance(body, dict):
        body.pop("stacktrace", None)
    return [answer.status, body]


def _invocation(this: Play, stored: Stored) -> dict[str, Any]:
    if not stored.journal:
        return {"status": stored.status}
    commands = [frame for frame in stored.journal if is_command(frame.type)]
    signals = [as_json(frame) for frame in stored.journal if frame.type == MessageType.SIGNAL]
    is_cancelled = any(signal.get("signal_id") == CANCEL_SIGNAL for signal in signals)
    made: dict[int, Frame] = {
        decode(frame)["completion_id"]: frame for frame in stored.journal if is_completion(frame.type)
    }
    lines = [_command(this, frame, made, is_cancelled) for frame in commands]
    found: dict[str, Any] = {"status": stored.status, "failure": stored.failure, "journal": lines}
    if signals:
        signals.sort(key=lambda signal: str(signal.get("signal_id", signal.get("signal_name"))))
        found["signals"] = [
            _line(this, {name: signal[name] for name in signal if name != "type"}) for signal in signals
        ]
    node = json.loads(decode(commands[0])["value"]["content"])["node"]
    if not signals and is_orderly(this.program["nodes"][node]["body"]):
        found["order"] = _order(stored.journal)
    return found


def _command(this: Play, frame: Frame, made: Mapping[int, Frame], is_cancelled: bool) -> str:
    fields = as_json(frame)
    kind = fields.pop("type")
    results: list[Frame] = []
    for name in reversed(_NUMBERS):
        number = fields.pop(name, None)
        is_unread = is_cancelled and kind == "CALL" and name == "completion_id"
        if number in made and not is_unread:
            results.append(made[number])
    for name in _TIMES:
        if name in fields:
            fields[name] = "<time>"
    if "headers" in fields:
        kept = [one for one in fields.pop("headers") if one["key"].startswith("x-conformance")]
        fields |= {"headers": kept} if kept else {}
    line = f"{kind.lower()} {_line(this, fields)}"
    for result in results:
        shown = as_json(result)
        del shown["completion_id"], shown["type"]
        line += f" → {_line(this, shown)}"
    return line


def _order(journal: Sequence[Frame]) -> str:
    """Return the place of each entry: commands by their number, with ' for an id and " for a result."""
    numbers: dict[int, str] = {}
    words: list[str] = []
    for frame in journal:
        fields = decode(frame)
        if is_command(frame.type):
            at = str(sum(word.isdigit() for word in words))
            numbers |= {fields[name]: at + mark for name, mark in zip(_NUMBERS, "\"'", strict=True) if name in fields}
            words.append(at)
        else:
            words.append(numbers[fields["completion_id"]])
    return " ".join(words)


def _line(this: Play, value: Any) -> str:
    return json.dumps(_clean(this, value), ensure_ascii=False)


def _clean(this: Play, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _clean(this, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_clean(this, inner) for inner in value]
    return _named(this, value) if isinstance(value, str) else value


def _named(this: Play, value: str) -> Any:
    """Replace ids by names, and show JSON as what it is."""
    for known, name in this.names.items():
        value = value.replace(known, name)
    value = value.replace(this.token, "~")
    if value[:1] in ("{", "["):
        return _clean(this, json.loads(value))
    return value
