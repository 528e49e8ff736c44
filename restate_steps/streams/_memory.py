"""A store in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from restate_steps.streams._errors import StreamClosedError, StreamGoneError

__all__ = ["MemoryStore"]


@dataclass
class _Log:
    records: list[bytes] = field(default_factory=list[bytes])
    is_closed: bool = False


class MemoryStore:
    """A :class:`StreamStore` in memory, for tests: for one process and one event loop.

    Args:
        page_size: The largest number of records that one read returns.

    Example:
        >>> store = MemoryStore()
        >>> await store.append("inv_1", b"first")
        0
        >>> await store.append("inv_1", b"last", close=True)
        1
        >>> await store.read("inv_1", 1, wait=0)
        ([b'last'], True)
    """

    def __init__(self, *, page_size: int = 512) -> None:
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1, and is {page_size!r}")
        self._page_size = page_size
        self._logs: dict[str, _Log] = {}
        self._readers: dict[str, set[asyncio.Future[None]]] = {}

    async def append(self, stream: str, record: bytes, *, close: bool = False) -> int:
        """Append a record; see :meth:`StreamStore.append`.

        Args:
            stream: The id of the stream.
            record: The record.
            close: Take no record after this one.

        Returns:
            The number of the record.

        Raises:
            StreamClosedError: The stream is closed.
        """
        log = self._logs.setdefault(stream, _Log())
        if log.is_closed:
            raise StreamClosedError(stream)
        log.records.append(record)
        log.is_closed = close
        self._wake(stream)
        return len(log.records) - 1

    async def read(self, stream: str, start: int, *, wait: float) -> tuple[list[bytes], bool]:
        """Return records from a number on; see :meth:`StreamStore.read`.

        Args:
            stream: The id of the stream.
            start: The number of the first record.
            wait: The longest time to wait, in seconds.

        Returns:
            The records, and True if there will be none after them.

        Raises:
            StreamGoneError: The stream has fewer than ``start`` records.
        """
        found, is_last = self._read(stream, start)
        if found or is_last or wait <= 0:
            return found, is_last
        reader = asyncio.get_running_loop().create_future()
        self._readers.setdefault(stream, set()).add(reader)
        try:
            await asyncio.wait([reader], timeout=wait)
        finally:
            self._forget(stream, reader)
        return self._read(stream, start)

    async def delete(self, stream: str) -> None:
        """Delete a stream, if it exists; see :meth:`StreamStore.delete`.

        Args:
            stream: The id of the stream.
        """
        self._logs.pop(stream, None)
        self._wake(stream)

    def _read(self, stream: str, start: int) -> tuple[list[bytes], bool]:
        log = self._logs.get(stream) or _Log()
        if start > len(log.records):
            raise StreamGoneError(f"record {start} of stream {stream!r}")
        found = log.records[start : start + self._page_size]
        return found, log.is_closed and start + len(found) == len(log.records)

    def _wake(self, stream: str) -> None:
        for reader in self._readers.get(stream, ()):
            if not reader.done():
                reader.set_result(None)

    def _forget(self, stream: str, reader: asyncio.Future[None]) -> None:
        readers = self._readers[stream]
        readers.discard(reader)
        if not readers:
            del self._readers[stream]
