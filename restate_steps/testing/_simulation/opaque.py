"""Compare the stored messages of two runs without values that are new in each run, such as ids and timestamps.

A model's response contains the time at which it arrived, and each tool call a random id. So no two runs of an agent
store the same bytes, although nothing differs. Such a value is replaced by what a handler can rightly learn from it:

V1. An id is equal to another one, or it is not. It becomes its number, in the order of first appearance.
V2. A timestamp is also before or after another one. It becomes its place among the timestamps seen before.
V3. Only values that can mean nothing else are replaced: UUIDs that are random or made from the clock, and timestamps
    with microseconds. All other bytes stay unchanged.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Final

__all__ = ["OpaqueValues"]

_ID: Final = rb"[0-9a-f]{7}-?[0-9a-f]{4}-?[1467][0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}"
_TIME: Final = rb"[0-9]{3}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}"
# It starts with a single character of a set; otherwise, the search takes ten times as long.
_VALUE: Final = re.compile(rb"[0-9a-f](?<![0-9a-f]{2})(?:(%s)|%s)(?![0-9a-f])" % (_ID, _TIME))
_MIN_LENGTH: Final = 26
"""The length of the shortest such value."""


class OpaqueValues:
    """The ids and timestamps of one run.

    Example:
        >>> OpaqueValues().renamed(b'{"at": "2026-01-02T10:00:00.123456Z"}')
        b'{"at": "<time 0 of 0>Z"}'
        >>> OpaqueValues().renamed(b'{"at": "2027-03-04T11:30:00.654321Z"}')
        b'{"at": "<time 0 of 0>Z"}'
    """

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._times: list[bytes] = []

    def copy(self) -> OpaqueValues:
        """Return a copy, for messages that a crash loses."""
        copied = OpaqueValues()
        copied._ids, copied._times = {**self._ids}, [*self._times]
        return copied

    def renamed(self, body: bytes) -> bytes:
        """Return the bytes with each value replaced by what is equal in another run."""
        if len(body) < _MIN_LENGTH:
            return body
        return _VALUE.sub(self._rename, body)

    def _rename(self, found: re.Match[bytes]) -> bytes:
        value, times = found[0], self._times
        if found[1] is not None:
            return b"<id %d>" % self._ids.setdefault(value, len(self._ids))
        # Sorting the texts sorts the times.
        place = bisect_left(times, value)
        known = len(times)
        if place < known and times[place] == value:
            return b"<known time %d of %d>" % (place, known)
        times.insert(place, value)
        return b"<time %d of %d>" % (place, known)
