"""Errors of streams."""

from __future__ import annotations

from restate_steps.errors import StepsError

__all__ = ["StreamClosedError", "StreamGoneError", "StreamRecordError"]


class StreamClosedError(StepsError):
    """A record was appended to a stream that is closed; the store did not take it.

    Attributes:
        stream: The id of the stream.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"stream {stream!r} is closed, so the record was not appended. Readers have seen the end of the stream, "
            "and the record could not change what they show. A publisher that retries may ignore this error."
        )
        self.stream = stream


class StreamGoneError(StepsError, LookupError):
    """A reader asked for a part of a stream that is not in the log, usually because the stream was deleted.

    Attributes:
        place: The part, for example ``record 12 of stream 'inv_1'``.
    """

    def __init__(self, place: str) -> None:
        super().__init__(
            f"{place} is not in the log, so the reader cannot continue from there. The stream was probably deleted "
            "after its retention. Read it from the start, and forget what was shown before."
        )
        self.place = place


class StreamRecordError(StepsError, ValueError):
    """A record of a stream cannot be decoded.

    Attributes:
        reason: The problem.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"a record of a stream cannot be decoded: {reason}. Readers must know everything that publishers write: "
            "deploy new versions to readers first."
        )
        self.reason = reason
