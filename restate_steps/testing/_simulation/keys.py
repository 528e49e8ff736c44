"""The keys of Virtual Objects and workflows: their state, their queue and their promises."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from restate_steps.testing._simulation.invocation import Failure, value_fields

__all__ = ["KeyedObject", "Promise"]


@dataclass(slots=True)
class KeyedObject:
    """A key of a service that has keys.

    Attributes:
        state: The state, by name.
        holder: The id of the exclusive invocation that has begun and not ended.
        queue: The ids of the exclusive invocations that wait for it to end, oldest first.
    """

    state: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    holder: str | None = None
    queue: deque[str] = field(default_factory=deque[str])

    def enter(self, invocation_id: str) -> bool:
        """Let an exclusive invocation hold the key, or queue it; return whether it holds the key."""
        if self.holder is not None:
            self.queue.append(invocation_id)
            return False
        self.holder = invocation_id
        return True

    def leave(self, invocation_id: str) -> str | None:
        """Release the key, or leave its queue; return the invocation that holds the key from now on, if it changes."""
        if invocation_id in self.queue:
            self.queue.remove(invocation_id)
            return None
        if self.holder != invocation_id:
            return None
        self.holder = self.queue.popleft() if self.queue else None
        return self.holder


@dataclass(slots=True)
class Promise:
    """A promise of a workflow.

    Attributes:
        waiters: The invocations that wait for it, and the numbers of their commands.
    """

    value: bytes | None = None
    failure: Failure | None = None
    waiters: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    @property
    def completed(self) -> bool:
        """True if it has a value or a failure."""
        return self.value is not None or self.failure is not None

    def fields(self) -> dict[str, Any]:
        """Return its outcome as the fields of a completion; void if it has none."""
        if self.failure is not None:
            return {"failure": self.failure.fields()}
        return {"void": {}} if self.value is None else {"value": value_fields(self.value)}
