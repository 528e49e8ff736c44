"""Information about the step whose body is running."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass

__all__ = ["StepInfo", "running_step"]


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Information about the running step, for use in its body.

    Attributes:
        name: The step's name in the journal.
        invocation_id: The id of the step's invocation; empty outside a handler.
        idempotency_key: A key that is the same on every attempt and replay of this step, and different for every other
            step of every invocation. Pass it to a payment API, and repeated attempts charge only once. Empty outside a
            handler.
    """

    name: str
    invocation_id: str
    idempotency_key: str


running_step: contextvars.ContextVar[StepInfo | None] = contextvars.ContextVar("restate_steps_step", default=None)
