"""The protocol of stores."""

from __future__ import annotations

from typing import Protocol

__all__ = ["StreamStore"]


class StreamStore(Protocol):
    """A store of streams: logs of records that are opaque to it.

    A store only appends and reads (rule R3). The records of a stream are numbered from 0, in the order in which the
    store takes them, without gaps. A record never changes, and keeps its number. A stream exists from its first record
    until it is deleted. ``tests/streams/store_conformance.py`` in the sources tests any store.
    """

    async def append(self, stream: str, record: bytes, *, close: bool = False) -> int:
        """Append a record, and close the stream if asked.

        A publisher that gets no answer appends the record again, so that a log may contain it twice.

        Args:
            stream: The id of the stream.
            record: The record.
            close: Take no record after this one.

        Returns:
            The number of the record.

        Raises:
            StreamClosedError: The stream is closed.
        """
        ...

    async def read(self, stream: str, start: int, *, wait: float) -> tuple[list[bytes], bool]:
        """Return records from a number on, and whether the stream is closed and these are the last.

        If there are none yet, wait for the first. A store may return fewer records than it has; a reader continues
        after those that it got. A stream that does not exist yet is empty.

        Args:
            stream: The id of the stream.
            start: The number of the first record.
            wait: The longest time to wait, in seconds. With 0, return immediately.

        Returns:
            The records, and True if there will be none after them.

        Raises:
            StreamGoneError: The stream has fewer than ``start`` records. It was deleted, because a reader knows numbers
                only from what it has read.
        """
        ...

    async def delete(self, stream: str) -> None:
        """Delete a stream, if it exists. An append after that starts it again, at 0.

        Args:
            stream: The id of the stream.
        """
        ...
