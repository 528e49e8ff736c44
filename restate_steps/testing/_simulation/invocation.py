"""Invocations: everything that the server has stored about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame
from restate_steps.testing._simulation.manifest import HandlerInfo, Target

__all__ = ["MISMATCH", "Failure", "Invocation", "InvocationStatus", "value_fields"]

MISMATCH: Final = (570, 571)
"""The codes with which the SDK reports that a replay does not match the journal."""

_ALL_COMPLETED: Final = 2


class InvocationStatus(StrEnum):
    """The status of a simulated invocation."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    READY = "ready"
    RUNNING = "running"
    SUSPENDED = "suspended"
    BACKING_OFF = "backing-off"
    PAUSED = "paused"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of an invocation, a step or a wait."""

    code: int
    message: str
    metadata: tuple[tuple[str, str], ...] = ()
    stacktrace: str = field(default="", compare=False)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Failure:
        """Read it from the fields of a message."""
        metadata = tuple((pair.get("key", ""), pair.get("value", "")) for pair in fields.get("metadata", ()))
        return cls(fields.get("code", 0), fields.get("message", ""), metadata)

    def fields(self) -> dict[str, Any]:
        """Return it as the fields of a message."""
        pairs = [{"key": key, "value": value} for key, value in self.metadata]
        return {"code": self.code, "message": self.message, **({"metadata": pairs} if pairs else {})}


def value_fields(content: bytes) -> dict[str, Any]:
    """Return a value as the fields of a message; protobuf omits what is empty."""
    return {"content": content} if content else {}


@dataclass(slots=True, eq=False)
class Invocation:
    """One invocation.

    Attributes:
        completed: The numbers of the completions in the journal.
        signals: The numbers and names of the signals in the journal.
        awaits: What a suspended invocation waits for, as the tree of ``AWAITING_ON``; in version 6, a single node.
        entries_at_start: The number of entries that its latest attempt started with.
        step_names: The names of its steps, by the number of their completion.
        rounds: How many invocations of each handler led to this one by calls and sends, including itself.
        children: The invocations that it has called or sent.
        attempts: The number of its attempts.
        failures: The number of failed attempts since the last entry was stored.
        failing_since: The time of the first of these.
        failures_in_a_row: The number of failed attempts since it began, was suspended or was resumed, which is what the
            retry policy counts.
        epoch: A number that increases when a timer for the next attempt becomes pointless.
        removal: The failure of those that waited for it when it was cancelled or killed before it began. Since then,
            nothing is stored about it.
        waiters: The invocations that wait for its result: the id of each, and the number and type of the command.
        digest: A hash of the journal, equal in all runs that store the same.
    """

    id: str
    raw_id: bytes
    target: Target
    info: HandlerInfo
    seed: int
    idempotency_key: str | None
    limit_key: str | None
    journal: list[Frame]
    status: InvocationStatus = InvocationStatus.READY
    completed: set[int] = field(default_factory=set[int])
    signals: set[int | str] = field(default_factory=set[int | str])
    awaits: dict[str, Any] = field(default_factory=dict[str, Any])
    entries_at_start: int = 0
    step_names: dict[int, str] = field(default_factory=dict[int, str])
    rounds: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    children: list[str] = field(default_factory=list[str])
    attempts: int = 0
    failures: int = 0
    failing_since: int = 0
    failures_in_a_row: int = 0
    epoch: int = 0
    output: bytes | None = None
    failure: Failure | None = None
    last_error: Failure | None = None
    removal: Failure | None = None
    waiters: list[tuple[str, int, MessageType]] = field(default_factory=list[tuple[str, int, MessageType]])
    digest: int = 0

    @property
    def ended(self) -> bool:
        """True if it has a result."""
        return self.status is InvocationStatus.COMPLETED

    @property
    def has_begun(self) -> bool:
        """True unless it is scheduled, or queued for its key."""
        return self.status not in (InvocationStatus.SCHEDULED, InvocationStatus.QUEUED)

    @property
    def has_mismatch(self) -> bool:
        """True if it is paused because today's code does not match the journal, which no retry fixes."""
        return (
            self.status is InvocationStatus.PAUSED and self.last_error is not None and self.last_error.code in MISMATCH
        )

    def can_resume(self) -> bool:
        """Return whether the journal has what the invocation waits for."""
        return _is_resolved(self.awaits, self)


def _is_resolved(awaits: Mapping[str, Any], invocation: Invocation) -> bool:
    """Return whether a node's children are resolved: all of them if it says so, otherwise any."""
    resolved = [number in invocation.completed for number in awaits.get("completions", ())]
    resolved += [number in invocation.signals for number in awaits.get("signals", ())]
    resolved += [name in invocation.signals for name in awaits.get("named", ())]
    resolved += [_is_resolved(inner, invocation) for inner in awaits.get("nested", ())]
    return all(resolved) if awaits.get("combinator") == _ALL_COMPLETED else any(resolved)
