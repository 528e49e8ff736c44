"""Live event streams of durable handlers.

A stream is an append-only log in a :class:`StreamStore`. Publishers crash and retry, so the log may contain anything
twice, late, or from an attempt that failed. A function of the log decides what readers see, so all of them see the
same, and whatever raced, the view ends with what the journal has recorded.
"""

from restate_steps._public import publish
from restate_steps.streams._envelope import EventId, StreamEnd, StreamEvent, StreamReset, StreamView
from restate_steps.streams._errors import StreamClosedError, StreamGoneError, StreamRecordError
from restate_steps.streams._memory import MemoryStore
from restate_steps.streams._store import StreamStore

__all__ = [
    "EventId",
    "MemoryStore",
    "StreamClosedError",
    "StreamEnd",
    "StreamEvent",
    "StreamGoneError",
    "StreamRecordError",
    "StreamReset",
    "StreamStore",
    "StreamView",
]

publish("restate_steps.streams", globals(), __all__)
