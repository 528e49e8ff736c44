"""Information about the step whose body is running."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass

__all__ = ["StepInfo", "running_step"]


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Information about a step for its own body.

    Attributes:
        name: The step's name in the journal.
        invocation_id: The id of the invocation it belongs to; empty outside a handler.
        idempotency_key: The same on every attempt and replay of this step, and different for every other step of
            every invocation. Hand it to a payment API, and a repeated attempt charges once. Empty outside a handler.
    """

    name: str
    invocation_id: str
    idempotency_key: str


running_step: contextvars.ContextVar[StepInfo | None] = contextvars.ContextVar("restate_steps_step", default=None)
