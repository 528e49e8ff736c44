"""The fold: a log as its readers see it.

A log only grows (rule R3), and anything may be in it twice, late or without having happened: publishers crash, retry,
and continue after others have replaced them. This module decides what readers see. Invariants:

* **F1** What a reader sees is a function of the records, in the order of their numbers (R3, R6). A record determines
  what it shows and its ids, ``record.index``, together with the records before it. Later records change neither.
* **F2** Each event of the handler is shown once, in the order of positions (R2). Those after a gap wait. So do the
  body's events in a record until the handler's events in it are shown, because the body began after them.
* **F3** One attempt of a step is visible at a time (R4). An attempt begins with the record that has its sequence number
  0; then it replaces the visible one, whose events are taken back. An attempt that was replaced shows nothing more.
* **F4** The events of the visible attempt are shown once, in the order of their sequence numbers (R4). Those after a
  gap wait.
* **F5** A commit has the last word about a step (R5). From then on, its view is the first ``count`` events of the
  committed attempt. If not all of them are in the log before the commit, it is the finished parts, if the commit has
  them. Everything else of the step is ignored, whenever it comes. Commits have positions (F2), so their order is that
  of the journal.
* **F6** The end comes in any case (R9). It does not wait for missing positions. It takes back the events of steps
  without a commit, since nothing was recorded of them. Nothing follows it.
* **F7** A reader that resumes gets what follows its id, neither more nor less (R7). An id that the log has not caused
  is refused.

All events of a step are kept until its commit, because it may choose any attempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import JsonValue

from restate_steps.streams._envelope import EventId, StreamEnd, StreamEvent, StreamReset, StreamView
from restate_steps.streams._errors import StreamGoneError
from restate_steps.streams._records import BodyEvents, Commit, End, HandlerEvent, HandlerEvents, Native, Record, Request

__all__ = ["Fold", "resume"]


class _Shown:
    """The events that one record shows.

    Args:
        record: The number of the record.
    """

    def __init__(self, record: int) -> None:
        self.record = record
        self.views: list[StreamView] = []

    def event(self, producer: str, epoch: int, data: JsonValue, request: Request | None = None) -> None:
        name, token = (None, None) if request is None else (request.name, request.token)
        self.views.append(StreamEvent(self._id(), producer, epoch, data, name, token))

    def reset(self, producer: str, epoch: int) -> None:
        self.views.append(StreamReset(self._id(), producer, epoch))

    def end(self, event: End) -> None:
        self.views.append(StreamEnd(self._id(), event.status, event.data))

    def _id(self) -> EventId:
        return EventId(self.record, len(self.views))


class _Step:
    """The view of one step.

    Attributes:
        attempts: The events of each attempt by their sequence numbers; only those that may still be shown.
        begun: The attempts that have begun.
        visible: The visible attempt; None if there is none, or if its view is final.
        shown: The number of its events that are visible.
        limit: The number of its events that were recorded; infinite before the commit.
        epoch: The number of times that events were taken back.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.attempts: dict[str | None, dict[int, JsonValue]] = {}
        self.begun: set[str] = set()
        self.visible: str | None = None
        self.shown = self.epoch = 0
        self.limit = math.inf

    def add(self, body: BodyEvents, out: _Shown) -> None:
        """Add events of an attempt (F3, F4)."""
        if self.limit != math.inf and body.attempt != self.visible:
            return
        events = self.attempts.setdefault(body.attempt, {})
        for seq, data in enumerate(body.events, body.seq):
            events.setdefault(seq, data)
        if body.seq == 0 and body.attempt not in self.begun:
            self.begun.add(body.attempt)
            if body.attempt != self.visible:
                self.take_back(out)
                self.visible = body.attempt
        self._show(out)

    def commit(self, commit: Commit, out: _Shown) -> None:
        """Let the recorded result decide (F5)."""
        if self.limit != math.inf:
            return
        attempt, count = commit.attempt, commit.count
        events = self.attempts.get(attempt, {})
        if commit.parts is not None and any(seq not in events for seq in range(count)):
            attempt, count, events = None, len(commit.parts), dict(enumerate(commit.parts))
        if attempt != self.visible or count < self.shown:
            self.take_back(out)
        self.attempts, self.visible, self.limit = {attempt: events}, attempt, count
        self._show(out)

    def end(self, out: _Shown) -> None:
        """Take back what was not recorded (F6)."""
        if self.limit == math.inf:
            self.take_back(out)

    def take_back(self, out: _Shown) -> None:
        """Forget the visible events."""
        if self.shown:
            out.reset(self.name, self.epoch)
            self.epoch += 1
            self.shown = 0

    def _show(self, out: _Shown) -> None:
        events = self.attempts.get(self.visible, {})
        while self.shown < self.limit and self.shown in events:
            out.event(self.name, self.epoch, events[self.shown])
            self.shown += 1
        if self.shown == self.limit:
            self.attempts, self.visible = {}, None


class _Run:
    """The events of one run of the handler.

    Attributes:
        position: The position of the next event.
        early: Events at this position and later.
    """

    def __init__(self) -> None:
        self.position = 0
        self.early: dict[int, HandlerEvent] = {}

    def add(self, handler: HandlerEvents) -> None:
        for position, event in enumerate(handler.events, handler.position):
            if position >= self.position:
                self.early.setdefault(position, event)

    def take(self) -> HandlerEvent | None:
        """Take the next event, if it is there (F2); before the end, any positions may be missing (F6)."""
        if self.position not in self.early:
            if not any(isinstance(event, End) for event in self.early.values()):
                return None
            self.position = min(self.early)
        self.position += 1
        return self.early.pop(self.position - 1)


class Fold:
    """The state of a log's view.

    Attributes:
        records: The number of records so far, which is the number of the next one.
        has_ended: The end was shown.

    Example:
        >>> fold = Fold()
        >>> [view] = fold.add(Record(0, body=BodyEvents("greet", "attempt-1", 0, ("Hel",))))
        >>> str(view.id), view.data
        ('0.0', 'Hel')
        >>> fold.add(Record(0, body=BodyEvents("greet", "attempt-2", 0, ("Hello",))))[0]
        StreamReset(id=EventId(record=1, index=0, chunk=None), producer='greet', epoch=0)
    """

    def __init__(self) -> None:
        self.records = 0
        self.has_ended = False
        self._runs: dict[str, _Run] = {}
        self._steps: dict[str, _Step] = {}
        self._waiting: list[tuple[BodyEvents, HandlerEvents | None]] = []

    def add(self, record: Record) -> list[StreamView]:
        """Return what a record shows (F1).

        Args:
            record: The record with the number :attr:`records`.
        """
        out = _Shown(self.records)
        self.records += 1
        if self.has_ended:
            return []
        if record.handler is not None:
            self._runs.setdefault(record.handler.run, _Run()).add(record.handler)
        if record.body is not None:
            self._waiting.append((record.body, record.handler))
        while not self.has_ended and (self._add_body(out) or self._add_event(out)):
            pass
        return out.views

    def _add_body(self, out: _Shown) -> bool:
        """Add the first body that waits for nothing, and return whether there was one (F2)."""
        for index, (body, handler) in enumerate(self._waiting):
            if handler is None or handler.position + len(handler.events) <= self._runs[handler.run].position:
                del self._waiting[index]
                self._step(body.producer).add(body, out)
                return True
        return False

    def _add_event(self, out: _Shown) -> bool:
        """Add the next event of a handler, and return whether there was one (F2)."""
        for name, run in self._runs.items():
            if (event := run.take()) is not None:
                self._show(name, event, out)
                return True
        return False

    def _show(self, run: str, event: HandlerEvent, out: _Shown) -> None:
        match event:
            case Native(data):
                out.event(run, 0, data)
            case Request():
                out.event(run, 0, event.data, event)
            case Commit():
                self._step(event.producer).commit(event, out)
            case End():
                for step in self._steps.values():
                    step.end(out)
                out.end(event)
                self.has_ended = True

    def _step(self, name: str) -> _Step:
        if name not in self._steps:
            self._steps[name] = _Step(name)
        return self._steps[name]


def resume(log: Iterable[Record], after: EventId | None) -> tuple[Fold, list[StreamView]]:
    """Return what a reader has missed (F7), and the fold that continues with the records to come.

    Args:
        log: All records of the log so far.
        after: The last id that the reader has seen; None for a new reader. After the id of a chunk, its event follows
            once more, so that the rest of its chunks can be sent.

    Raises:
        StreamGoneError: The log has not caused the id.
    """
    fold = Fold()
    views = [view for record in log for view in fold.add(record)]
    if after is None:
        return fold, views
    for index, view in enumerate(views):
        if (view.id.record, view.id.index) == (after.record, after.index):
            return fold, views[index + (after.chunk is None) :]
    raise StreamGoneError(f"event {str(after)!r}")
