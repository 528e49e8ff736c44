"""The possible next events, including the next action of a client."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

__all__ = ["Option", "Turn"]


@dataclass(frozen=True, slots=True)
class Option:
    """One event that can happen next."""

    label: str
    do: Callable[[], None] = field(compare=False)


@dataclass(slots=True)
class Turn:
    """The next action of a client.

    Attributes:
        ready: Returns whether the client can continue.
        first: True if the client, by default, continues before other events and not after them.
        label: The client's name in the timeline.
        taken: True once it was chosen.
        then: Called when it is chosen.
    """

    ready: Callable[[], bool]
    first: bool = False
    label: str = "client"
    taken: bool = False
    then: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Let the client continue."""
        self.taken = True
        if self.then is not None:
            self.then()

    def __await__(self) -> Generator[Turn, None, bool]:
        """Wait for this turn, in the coroutine of a started client."""
        yield self
        return True
