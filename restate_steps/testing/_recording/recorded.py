"""Store the journal of an invocation in a file, so that later code can be checked against it.

A file is JSON with one entry per line, in the order of the journal, for readable diffs. A JSON value is stored as JSON
if it can be encoded to the same bytes again, because a replay compares bytes. Other values are stored as text, or as
base64.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast

from restate_steps._protocol.types import MessageType, is_command, is_notification
from restate_steps._protocol.wire import Frame, as_json, from_json
from restate_steps.testing._errors import SimulationError
from restate_steps.testing._simulation.journal import Journal, Origin
from restate_steps.testing._simulation.manifest import Target

__all__ = ["Recordable", "RecordedJournal", "as_recorded", "record", "recorded_from"]

FORMAT: Final = 1

# Credentials do not belong in a repository, and no handler's path should depend on them.
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})
_REMOVED: Final = "(removed)"
_BYTES: Final = ("value", "parameter")


@dataclass(frozen=True)
class RecordedJournal:
    """A journal with everything needed to replay it.

    Attributes:
        origin: The invocation that the journal comes from.
        frames: The entries, as messages of the service protocol.
        made_by: The versions of this package, of the SDK and of the server that made it.
        name: The journal's name in messages: the path of its file, or the id of its invocation.

    Example:
        >>> journal = RecordedJournal.from_text('''{
        ...     "format": 1, "made_by": {}, "protocol": 6, "target": {"service": "Shop", "handler": "checkout"},
        ...     "invocation": {"id": "inv_1", "raw_id": "00", "random_seed": 1},
        ...     "entries": [{"type": "INPUT", "value": {"json": "tea"}}, {"type": "RUN", "name": "charge"}]
        ... }''')
        >>> journal.target, journal.ended
        ('Shop/checkout', False)
        >>> print(journal.journal)
           0  input 'tea'
           1  run charge
    """

    origin: Origin
    frames: tuple[Frame, ...]
    made_by: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str = ""

    @property
    def target(self) -> str:
        """The handler and its key, as ``Service/handler`` or ``Service/key/handler``."""
        return str(self.origin.target)

    @property
    def ended(self) -> bool:
        """True if the handler had ended with an answer; otherwise the run was in flight."""
        return any(frame.type == MessageType.OUTPUT for frame in self.frames)

    @cached_property
    def journal(self) -> Journal:
        """The entries with decoded values, for inspection."""
        return Journal(self.frames, self.origin)

    def to_text(self) -> str:
        """Return the journal as the JSON text of a file."""
        origin = self.origin
        target = {"service": origin.target.service, "handler": origin.target.handler, "key": origin.target.key}
        invocation = {
            "id": origin.invocation_id,
            "raw_id": origin.raw_id.hex(),
            "idempotency_key": origin.idempotency_key,
            "random_seed": origin.random_seed,
        }
        head = {
            "format": FORMAT,
            "made_by": dict(sorted(self.made_by.items())),
            "protocol": origin.protocol,
            "target": _present(target),
            # An unknown seed is written as null: a replay then draws other random numbers.
            "invocation": {**_present(invocation), "random_seed": origin.random_seed},
        }
        lines = [f"  {json.dumps(name)}: {_line(value)}" for name, value in head.items()]
        entries = ",\n".join(f"    {_line(_entry(frame))}" for frame in self.frames)
        return "{\n" + ",\n".join(lines) + ',\n  "entries": [\n' + entries + "\n  ]\n}\n"

    def save(self, path: str | Path) -> Path:
        """Write the journal to a file, and create missing folders."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_text(), encoding="utf-8")
        return path

    @classmethod
    def from_text(cls, text: str, name: str = "") -> RecordedJournal:
        """Parse the JSON text of a file.

        Args:
            text: The JSON text.
            name: The journal's name in messages.

        Raises:
            SimulationError: The text is not a recorded journal, or has the format of a later version.
        """
        what = name or "the text"
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise SimulationError(
                    f"{what} has the format {data['format']!r}, but this version of restate-steps reads {FORMAT}. "
                    "Install a version that is at least as new as the one that made it."
                )
            target, invocation = data["target"], data["invocation"]
            origin = Origin(
                target=Target(target["service"], target["handler"], target.get("key")),
                invocation_id=invocation["id"],
                raw_id=bytes.fromhex(invocation["raw_id"]),
                protocol=data["protocol"],
                random_seed=invocation["random_seed"],
                idempotency_key=invocation.get("idempotency_key"),
            )
            frames = tuple(_frame(entry) for entry in data["entries"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SimulationError(f"{what} is not a recorded journal: {type(error).__name__}: {error}") from error
        if not frames or frames[0].type != MessageType.INPUT:
            raise SimulationError(f"{what} is not a complete journal: its first entry must be INPUT.")
        return cls(origin, frames, data.get("made_by", {}), name or origin.invocation_id)

    @classmethod
    def load(cls, path: str | Path) -> RecordedJournal:
        """Read a file written by :func:`record` or ``restate-steps journal export``.

        Raises:
            SimulationError: The file does not exist, or is not a recorded journal.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SimulationError(f"{path} cannot be read: {error}") from error
        return cls.from_text(text, str(path))

    def __str__(self) -> str:
        return self.name or self.origin.invocation_id


class HasJournal(Protocol):
    """An object with a journal."""

    @property
    def journal(self) -> Journal: ...


Recordable: TypeAlias = RecordedJournal | Journal | HasJournal
"""A ``Result``, a ``SimulatedInvocation``, the ``Journal`` of one of them, or a recorded journal."""


def record(what: Recordable, path: str | Path) -> RecordedJournal:
    """Write the journal of an invocation to a file, so that :func:`replay` can check later code against it.

    Record the important runs when you release their code, commit the files, and replay them on every change. You can
    also record an invocation in flight. To record one from a real server, use :func:`export_journal`, or
    ``restate-steps journal export`` on the command line.

    Args:
        what: The result of :meth:`Simulator.call <restate_steps.testing.Simulator.call>`, a handle to an invocation, or
            the result of :func:`export_journal`.
        path: The file, which is replaced if it exists.

    Returns:
        The journal, as :meth:`RecordedJournal.load` would read it.

    Raises:
        SimulationError: The journal does not say which invocation it comes from.

    Example:
        >>> import pathlib, restate, restate_steps, tempfile
        >>> shop = restate.Service("Shop")
        >>> @shop.handler()
        ... async def checkout(ctx: restate.Context, item: str) -> str:
        ...     return await ctx.run_typed("charge", lambda: f"paid for {item}")
        >>> path = pathlib.Path(tempfile.mkdtemp(), "checkout.json")
        >>> async with simulate(restate_steps.app([shop])) as sim:
        ...     print(record(await sim.call(checkout, "tea"), path).journal)
           0  input 'tea'
           1  run charge  → 1
           2  run completion 1 = 'paid for tea'
           3  output 'paid for tea'
        >>> replay(path, restate_steps.app([shop]))
    """
    recorded = as_recorded(what)
    recorded.save(path)
    return RecordedJournal.load(path)


def as_recorded(what: Recordable) -> RecordedJournal:
    """Return the recorded journal of an object."""
    if isinstance(what, RecordedJournal):
        return what
    journal = what if isinstance(what, Journal) else what.journal
    if journal.origin is None:
        raise SimulationError(
            "this journal does not say which handler it is from, so it cannot be recorded. Pass the result of "
            "sim.call(...) or sim.send(...)."
        )
    return recorded_from(journal.origin, journal.frames, server="simulator")


def recorded_from(origin: Origin, frames: Sequence[Frame], *, server: str, name: str = "") -> RecordedJournal:
    """Return a recorded journal with the versions that made it, and without secrets in its headers."""
    made_by = {"restate_steps": _version("restate-steps"), "restate_sdk": _version("restate-sdk"), "server": server}
    kept = tuple(frame for frame in frames if is_command(frame.type) or is_notification(frame.type))
    return RecordedJournal(origin, tuple(map(_without_secrets, kept)), made_by, name or origin.invocation_id)


def _without_secrets(frame: Frame) -> Frame:
    if frame.type != MessageType.INPUT:
        return frame
    entry = as_json(frame)
    for header in entry.get("headers", ()):
        if header.get("key", "").lower() in _SECRET_HEADERS:
            header["value"] = _REMOVED
    return from_json(entry)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# --- entries ----------------------------------------------------------------------------------------------------


def _entry(frame: Frame) -> dict[str, Any]:
    """Return an entry in readable form: values without their wrappers, and JSON as JSON."""
    entry = as_json(frame)
    for name in _BYTES:
        value: Any = entry.get(name)
        if isinstance(value, dict) and value.keys() == {"content"}:
            value = cast("dict[str, Any]", value)["content"]
        elif name == "value":
            continue
        if isinstance(value, str):
            entry[name] = _as_json_if_same(value)
        elif value is not None:
            entry[name] = value
    return entry


def _frame(entry: Mapping[str, Any]) -> Frame:
    entry = dict(entry)
    for name in _BYTES:
        if name not in entry:
            continue
        value: Any = entry[name]
        if isinstance(value, dict) and "json" in value:
            value = _STYLES[cast("dict[str, Any]", value).get("style", "compact")](value["json"])
        wrapped = name == "value" and (isinstance(value, str) or "base64" in value)
        entry[name] = {"content": value} if wrapped else value
    return from_json(entry)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# The spacing of pydantic, and of json.dumps.
_STYLES: Final[Mapping[str, Callable[[Any], str]]] = {"compact": _compact, "spaced": json.dumps}


def _as_json_if_same(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse)
        # JSON can spell a lone surrogate, but a UTF-8 file cannot hold one.
        _compact(value).encode()
        for style, encode in _STYLES.items():
            if encode(value) == text:
                return {"json": value} if style == "compact" else {"json": value, "style": style}
    except (ValueError, RecursionError):
        pass
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
