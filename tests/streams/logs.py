"""Logs of runs that crash, retry and race, with the view that readers must end with.

A :class:`Plan` says what happens to a run: which attempts of its steps crash, what they published before, whether the
store acknowledged it, and what the journal has recorded. The expected view follows from the plan alone, before any log
exists, so it is independent of the fold. A plan has many logs: :func:`interleavings` yields all of them, and
:func:`random_log` one.

Data says where it comes from: ``a.1.0`` is event 0 of attempt 1 of step ``a``, ``a.part.0`` a finished part, and
``run@3`` the event of the handler at position 3.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from restate_steps.streams import EventId, StreamEnd, StreamEvent, StreamReset, StreamView
from restate_steps.streams._records import (
    BodyEvents,
    Commit,
    End,
    EndStatus,
    HandlerEvent,
    HandlerEvents,
    Native,
    Record,
)

Shown = tuple[str, str]
"""A producer, and the data of one of its events."""


@dataclass(frozen=True)
class Attempt:
    """An attempt of a step.

    Attributes:
        sizes: The number of events in each of its records.
        landed: The numbers of the records that get to the log at some time. Of an attempt that crashed, they are
            the first ones; of one that gave up waiting for the store, any.
    """

    sizes: tuple[int, ...] = (1, 1)
    landed: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        name: Its name.
        dead: The attempts that crashed. Their records may come at any time, even after the run has ended.
        winner: The attempt that the journal has recorded; None if it has recorded a failure.
        is_acknowledged: The store acknowledged all its records in time, so its commit has no finished parts.
        is_open: The run ended before the step did, so there is no commit.
    """

    name: str
    dead: tuple[Attempt, ...] = ()
    winner: Attempt | None = Attempt()
    is_acknowledged: bool = True
    is_open: bool = False

    @property
    def attempt(self) -> str:
        """The id of the winner."""
        return f"{self.name}.{len(self.dead)}"

    def events(self) -> list[Shown]:
        """Return the events of the winner."""
        return [] if self.winner is None else [(self.name, f"{self.attempt}.{seq}") for seq in range(self.count)]

    def recorded(self) -> list[Shown]:
        """Return the events that readers must end with.

        If the store has not acknowledged all events, these are the finished parts; see :meth:`Plan.simplify`.
        """
        if self.is_open:
            return []
        if self.is_acknowledged or not self.count:
            return self.events()
        return [(self.name, f"{self.name}.part.{index}") for index in range(PARTS)]

    @property
    def count(self) -> int:
        """The number of events that the winner published."""
        return 0 if self.winner is None else sum(self.winner.sizes)


PARTS = 2
"""The number of finished parts in a commit."""


@dataclass(frozen=True)
class Item:
    """A record on its way to the log.

    Attributes:
        record: The record.
        after: The numbers of the items that are in the log before.
    """

    record: Record
    after: frozenset[int]


@dataclass
class Plan:
    """A run: groups of parallel steps, one group after the other.

    Attributes:
        groups: The groups.
        run: The name of the run.
        is_lean: Only one step of a group carries the events of the handler; the others depend on them.
        is_scattered: The handler also publishes each of its events alone, in any order.
        ends: The way in which the run ends; None if another run in the stream ends it.
        is_killed: The run was killed in its last group, and a reader appended the end.
    """

    groups: Sequence[Sequence[Step]]
    run: str = "run"
    is_lean: bool = False
    is_scattered: bool = False
    ends: EndStatus | None = "success"
    is_killed: bool = False
    items: list[Item] = field(default_factory=list[Item], init=False)
    handler: list[HandlerEvent] = field(default_factory=list[HandlerEvent], init=False)
    order: list[Shown] = field(default_factory=list[Shown], init=False)

    def __post_init__(self) -> None:
        delivered = 0
        causes: set[int] = set()
        self._native()
        for number, group in enumerate(self.groups):
            is_last = number == len(self.groups) - 1
            position, acknowledged = len(self.handler), set[int]()
            is_delivered = False
            for index, step in enumerate(group):
                is_carrier = index == 0 or not self.is_lean
                head = self._head(delivered if is_carrier else position)
                acknowledged |= self._publish(step, head, causes)
                is_delivered |= is_carrier and step.is_acknowledged and step.winner is not None and not step.is_open
            if self.is_killed and is_last:
                causes |= acknowledged
                break
            causes |= acknowledged
            if is_delivered:
                delivered = position
            start = len(self.handler)
            for step in group:
                self._commit(step)
            for each in range(start, len(self.handler)) if self.is_scattered else ():
                self._add(Record(0, HandlerEvents(self.run, each, (self.handler[each],))), causes)
        self._finish(delivered, causes)

    def _native(self) -> None:
        data = f"{self.run}@{len(self.handler)}"
        self.handler.append(Native(data))
        self.order.append((self.run, data))

    def _head(self, position: int) -> HandlerEvents:
        return HandlerEvents(self.run, position, tuple(self.handler[position:]))

    def _publish(self, step: Step, head: HandlerEvents, causes: Iterable[int]) -> set[int]:
        """Add the records of a step, and return those that are in the log before the handler continues."""
        for number, attempt in enumerate(step.dead):
            self._attempt(step, number, attempt, head, causes, in_order=True)
        if step.winner is None:
            return set()
        added = self._attempt(step, len(step.dead), step.winner, head, causes, in_order=step.is_acknowledged)
        return added if step.is_acknowledged else set()

    def _attempt(
        self, step: Step, number: int, attempt: Attempt, head: HandlerEvents, causes: Iterable[int], *, in_order: bool
    ) -> set[int]:
        added: set[int] = set()
        seq = 0
        for index, size in enumerate(attempt.sizes):
            data = tuple(f"{step.name}.{number}.{each}" for each in range(seq, seq + size))
            body = BodyEvents(step.name, f"{step.name}.{number}", seq, data)
            if index in attempt.landed:
                before = frozenset(causes) | (added if in_order else set())
                added.add(self._add(Record(0, head if seq == 0 else None, body), before))
            seq += size
        return added

    def _commit(self, step: Step) -> None:
        if not step.is_open:
            attempt = None if step.winner is None else step.attempt
            parts = None if step.is_acknowledged else tuple(f"{step.name}.part.{index}" for index in range(PARTS))
            self.handler.append(Commit(step.name, attempt, step.count, parts))
            self.order += step.recorded()
        self._native()

    def _finish(self, delivered: int, causes: set[int]) -> None:
        if self.is_killed:
            # The reader has read everything that an attempt appended before the run was killed.
            self._add(Record(0, HandlerEvents("edge", 0, (End("killed"),))), causes)
            return
        end = () if self.ends is None else (End(self.ends, "result"),)
        events = (*self.handler[delivered:], *end)
        self._add(Record(0, HandlerEvents(self.run, delivered, events)), causes)

    def _add(self, record: Record, after: Iterable[int]) -> int:
        self.items.append(Item(record, frozenset(after)))
        return len(self.items) - 1

    def simplify(self, view: Iterable[Shown]) -> list[Shown]:
        """Return a view in which finished parts stand for the events that they replace.

        It depends on the order of the log whether the events of a winner that gave up waiting for the store are all
        there before the commit. Readers may then end with either.
        """
        simple = list(view)
        for step in (step for group in self.groups for step in group if not step.is_acknowledged):
            if step.count and [each for each in simple if each[0] == step.name] == (events := step.events()):
                start = simple.index(events[0])
                simple = [each for each in simple if each[0] != step.name]
                simple[start:start] = step.recorded()
        return simple

    def include(self, other: Plan) -> None:
        """Add another run to the stream, which ends before this one does."""
        last, offset = self.items[-1], len(self.items)
        self.items += [Item(item.record, frozenset(number + offset for number in item.after)) for item in other.items]
        self.items[offset - 1] = Item(last.record, last.after | {len(self.items) - 1})
        self.groups = [*self.groups, *other.groups]
        self.order += other.order

    def repeat(self, number: int) -> None:
        """Append a record again, as a publisher does that got no answer."""
        self._add(self.items[number].record, {number})


def interleavings(items: Sequence[Item]) -> Iterator[list[Record]]:
    """Yield every log that the items can become."""
    chosen: list[int] = []
    present: set[int] = set()

    def extend() -> Iterator[list[Record]]:
        if len(chosen) == len(items):
            yield [items[number].record for number in chosen]
            return
        for number, item in enumerate(items):
            if number not in present and item.after <= present:
                chosen.append(number)
                present.add(number)
                yield from extend()
                chosen.pop()
                present.remove(number)

    return extend()


def random_log(rng: random.Random, items: Sequence[Item]) -> list[Record]:
    """Return one of the logs that the items can become."""
    log: list[Record] = []
    present: set[int] = set()
    missing = list(range(len(items)))
    while missing:
        number = rng.choice([number for number in missing if items[number].after <= present])
        missing.remove(number)
        present.add(number)
        log.append(items[number].record)
    return log


class Reader:
    """A client: it shows events, forgets those that are taken back, and checks that the order makes sense.

    Attributes:
        shown: The events that it shows, with their epochs.
        end: The end of the stream.
    """

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, str]] = []
        self.end: StreamEnd | None = None
        self.last: tuple[int, int] = (-1, -1)

    def see(self, view: StreamView) -> None:
        assert self.end is None, "nothing follows the end"
        assert self.last < (view.id.record, view.id.index), "ids are unique, and grow"
        assert view.id.chunk is None
        self.last = view.id.record, view.id.index
        match view:
            case StreamEvent(_, producer, epoch, data):
                assert isinstance(data, str)
                before = [(seen, old) for name, old, seen in self.shown if name == producer]
                assert all(old == epoch for _, old in before), "one epoch is visible at a time"
                if "@" not in data:
                    source, _, seq = data.rpartition(".")
                    assert seq == str(len(before)), "no event is missing or shown twice"
                    assert all(seen.rpartition(".")[0] == source for seen, _ in before), "one attempt is visible"
                self.shown.append((producer, epoch, data))
            case StreamReset(_, producer, epoch):
                assert any(name == producer and old == epoch for name, old, _ in self.shown), "there is something"
                self.shown = [each for each in self.shown if each[0] != producer]
            case StreamEnd():
                self.end = view

    @property
    def view(self) -> list[Shown]:
        return [(producer, data) for producer, _, data in self.shown]


def read(views: Iterable[StreamView]) -> Reader:
    """Return a reader that has seen some views."""
    reader = Reader()
    for view in views:
        reader.see(view)
    return reader


def by_producer(shown: Iterable[Shown]) -> dict[str, list[str]]:
    """Return what each producer shows."""
    found: dict[str, list[str]] = {}
    for producer, data in shown:
        found.setdefault(producer, []).append(data)
    return found


def ids(views: Iterable[StreamView]) -> list[EventId]:
    """Return the ids of views."""
    return [view.id for view in views]
