"""The outcome of an invocation, as a value that can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from restate import TerminalError

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an invocation or of a scenario.

    Attributes:
        kind: ``"value"``, or ``"failure"`` for a ``TerminalError``.
        value: The value; for a failure, its status code and message.
    """

    kind: Literal["value", "failure"]
    value: Any

    @classmethod
    def of_failure(cls, error: TerminalError) -> Self:
        """Return the outcome of a call that failed."""
        return cls("failure", (error.status_code, error.message))

    def __str__(self) -> str:
        return repr(self.value) if self.kind == "value" else f"TerminalError {self.value[0]}: {self.value[1]}"
