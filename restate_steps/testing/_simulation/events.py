"""Events that have not happened: deliveries from one invocation to another, and timers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

__all__ = ["Deliveries", "Delivery", "Event", "Timer", "Timers", "Verb"]

Verb: TypeAlias = Literal["begin", "retry", "complete", "signal", "attach"]


class Event(NamedTuple):
    """An event in the life of an invocation.

    Attributes:
        verb: The kind: begin or retry the invocation, ``complete`` a command of it, send it a ``signal``, or ``attach``
            another invocation to it.
        invocation_id: The id of the invocation.
        content: The message; for a retry, the epoch; to attach, the id of the other invocation and the number of its
            command.
    """

    verb: Verb
    invocation_id: str
    content: Any = None


class Delivery(NamedTuple):
    """An event that one invocation causes for another.

    Attributes:
        event: The event.
        sender: The id of the invocation that causes it; None if its order among other deliveries does not matter.
    """

    event: Event
    sender: str | None


class Deliveries:
    """The deliveries on their way, oldest first."""

    def __init__(self) -> None:
        self._pending: list[Delivery] = []

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self._pending)

    def __getitem__(self, index: int) -> Delivery:
        return self._pending[index]

    def add(self, event: Event, *, sender: str | None) -> None:
        """Add a delivery; see :class:`Delivery`."""
        self._pending.append(Delivery(event, sender))

    def arriving(self) -> list[int]:
        """Return which deliveries can arrive next, oldest first: those between two invocations keep their order."""
        if len(self._pending) < 2:
            return [0] if self._pending else []
        seen: set[tuple[str, str]] = set()
        indices: list[int] = []
        for index, (event, sender) in enumerate(self._pending):
            if sender is None:
                indices.append(index)
            elif (event.invocation_id, sender) not in seen:
                indices.append(index)
                seen.add((event.invocation_id, sender))
        return indices

    def pop(self, index: int) -> Event:
        """Remove a delivery, which must be one of :meth:`arriving`, and return its event."""
        return self._pending.pop(index).event


@dataclass(frozen=True, slots=True, order=True)
class Timer:
    """An event at a time. Timers that are due together fire in the order in which they were set."""

    due: int
    number: int
    event: Event = field(compare=False)


class Timers:
    """The timers that have not fired, in the order in which they will.

    Args:
        is_pointless: Returns whether an event has become pointless; its timer never fires.
    """

    def __init__(self, is_pointless: Callable[[Event], bool]) -> None:
        self._pending: list[Timer] = []
        self._number = 0
        self._is_pointless = is_pointless

    def add(self, due: int, event: Event) -> None:
        """Let an event happen at a time."""
        self._number += 1
        self._pending.append(Timer(due, self._number, event))
        self._pending.sort()

    def next_due(self) -> int | None:
        """Return when the next timer is due; None if there is none."""
        while self._pending and self._is_pointless(self._pending[0].event):
            del self._pending[0]
        return self._pending[0].due if self._pending else None

    def pop(self, now: int) -> Event | None:
        """Remove the next timer if it is due, and return its event."""
        due = self.next_due()
        return None if due is None or due > now else self._pending.pop(0).event

    def are_due_together(self) -> bool:
        """Return whether the next two timers are due at the same time, for the same invocation."""
        due = [timer.event.invocation_id for timer in self._pending[:2] if timer.due == self._pending[0].due]
        return len(due) > 1 and due[0] == due[1]
