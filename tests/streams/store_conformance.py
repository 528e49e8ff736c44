"""The tests of any store: a test class of a store derives from :class:`StoreConformance`, and has a fixture ``store``.

A store may live elsewhere, and streams outlive a test, so each test has streams of its own.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from uuid import uuid4

import pytest

from restate_steps.streams import StreamClosedError, StreamGoneError, StreamStore
from restate_steps.streams._fold import Fold
from restate_steps.streams._records import BodyEvents, Commit, End, HandlerEvents, Record, decode, encode

PATIENCE = 30.0
"""The longest wait for something that must happen, in seconds."""

NONE: tuple[list[bytes], bool] = ([], False)


async def read_all(store: StreamStore, stream: str, start: int = 0) -> tuple[list[bytes], bool]:
    """Read what there is now, page by page."""
    records: list[bytes] = []
    while True:
        page, is_last = await store.read(stream, start + len(records), wait=0)
        records += page
        if is_last or not page:
            return records, is_last


async def follow(store: StreamStore, stream: str, start: int = 0, *, count: float = math.inf) -> list[bytes]:
    """Read until the stream is closed, or until there are so many records."""
    records: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        is_last = False
        while not is_last and len(records) < count:
            page, is_last = await store.read(stream, start + len(records), wait=PATIENCE)
            records += page
        return records


class StoreConformance:
    """R3: the log is append-only and numbered without gaps, and the store knows nothing of its records."""

    @pytest.fixture
    def new(self) -> Callable[[], str]:
        """Make ids of streams that no other test uses."""
        return lambda: f"stream-{uuid4().hex}"

    async def test_records_are_numbered_from_0(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R3: and read in this order, from any number on."""
        stream = new()
        numbers = [await store.append(stream, record) for record in (b"a", b"b", b"c")]

        assert [0, 1, 2] == numbers
        assert ([b"a", b"b", b"c"], False) == await read_all(store, stream)
        assert ([b"b", b"c"], False) == await read_all(store, stream, 1)
        assert NONE == await read_all(store, stream, 3)

    async def test_a_record_keeps_its_number(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R3: whatever is appended later, and however often it is read."""
        stream = new()
        await store.append(stream, b"a")
        before = await read_all(store, stream)
        await store.append(stream, b"b")

        assert ([b"a"], False) == before
        assert ([b"a", b"b"], False) == await read_all(store, stream)

    async def test_equal_records_are_different_records(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R3: duplicates are recognized by readers, not by the store."""
        stream = new()

        assert [0, 1] == [await store.append(stream, b"a"), await store.append(stream, b"a")]
        assert ([b"a", b"a"], False) == await read_all(store, stream)

    @pytest.mark.parametrize(
        "record", [b"", b"\x00\xff\r\n", "ü€😀".encode(), b'{"a": 1}', b"x" * 100_000], ids=lambda record: len(record)
    )
    async def test_records_are_opaque(self, store: StreamStore, new: Callable[[], str], record: bytes) -> None:
        """R3: any bytes come back unchanged."""
        stream = new()
        await store.append(stream, record)

        assert ([record], False) == await read_all(store, stream)

    async def test_streams_are_independent(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R3: each has its own numbers and its own end."""
        one, other = new(), new()
        await store.append(one, b"a", close=True)

        assert 0 == await store.append(other, b"x")
        assert ([b"a"], True) == await read_all(store, one)
        assert ([b"x"], False) == await read_all(store, other)

    @pytest.mark.parametrize("name", ["inv_1:a/b?c=d#e", "üñ😀", "a b", "{x}.*"])
    async def test_an_id_may_have_any_characters(self, store: StreamStore, new: Callable[[], str], name: str) -> None:
        """R3: keys of virtual objects may become ids."""
        stream = f"{new()}{name}"
        await store.append(stream, b"a")

        assert ([b"a"], False) == await read_all(store, stream)
        assert NONE == await store.read(f"{stream}x", 0, wait=0)

    async def test_concurrent_appends_have_different_numbers(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R3: parallel bodies append to one stream, and each gets the number of its record."""
        stream = new()
        sent = [f"{index}".encode() for index in range(20)]
        numbers = await asyncio.gather(*(store.append(stream, record) for record in sent))

        records, _ = await read_all(store, stream)
        assert list(range(20)) == sorted(numbers)
        assert sent == [records[number] for number in numbers]

    async def test_a_stream_that_does_not_exist_is_empty(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R7: a reader may come before the first record."""
        assert NONE == await store.read(new(), 0, wait=0)

    async def test_a_read_waits_for_the_next_record(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R7: of a new stream, and at the end of one."""
        stream = new()
        for number, record in enumerate((b"a", b"b")):
            reader = asyncio.create_task(store.read(stream, number, wait=PATIENCE))
            await asyncio.sleep(0)
            await store.append(stream, record)

            assert ([record], False) == await reader

    async def test_a_read_that_waited_in_vain_returns_nothing(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R9: the edge sends a heartbeat then."""
        stream = new()
        await store.append(stream, b"a")

        assert NONE == await store.read(stream, 1, wait=0.01)
        assert NONE == await store.read(new(), 0, wait=0.01)

    async def test_all_readers_get_a_record(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R7: waiting readers do not take records from each other."""
        stream = new()
        readers = [asyncio.create_task(store.read(stream, 0, wait=PATIENCE)) for _ in range(5)]
        await asyncio.sleep(0)
        await store.append(stream, b"a")

        assert [([b"a"], False)] * 5 == await asyncio.gather(*readers)

    async def test_a_reader_that_leaves_disturbs_nothing(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R8: readers come and go."""
        stream = new()
        leaving, staying = (asyncio.create_task(store.read(stream, 0, wait=PATIENCE)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        await store.append(stream, b"a")

        assert leaving.cancelled()
        assert ([b"a"], False) == await staying

    async def test_a_closed_stream_says_so_with_its_last_record(
        self, store: StreamStore, new: Callable[[], str]
    ) -> None:
        """R9: readers that wait, and those that come later, see the end without waiting."""
        stream = new()
        await store.append(stream, b"a")
        reader = asyncio.create_task(store.read(stream, 1, wait=PATIENCE))
        await asyncio.sleep(0)
        await store.append(stream, b"b", close=True)

        assert ([b"b"], True) == await reader
        assert ([b"a", b"b"], True) == await read_all(store, stream)
        assert ([], True) == await store.read(stream, 2, wait=PATIENCE)

    async def test_a_closed_stream_takes_no_record(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R9: a zombie that writes after the end changes nothing."""
        stream = new()
        await store.append(stream, b"a", close=True)

        for close in (False, True):
            with pytest.raises(StreamClosedError, match=f"stream '{stream}' is closed"):
                await store.append(stream, b"late", close=close)
        assert ([b"a"], True) == await read_all(store, stream)

    async def test_a_deleted_stream_is_gone(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R7, R9: a reader that has seen a part of it learns that it cannot continue."""
        stream = new()
        await store.append(stream, b"a")
        await store.append(stream, b"b", close=True)
        await store.delete(stream)

        assert NONE == await store.read(stream, 0, wait=0)
        with pytest.raises(StreamGoneError, match=f"record 2 of stream '{stream}' is not in the log"):
            await store.read(stream, 2, wait=PATIENCE)

    async def test_deleting_wakes_readers(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R7: a reader does not wait for records of a stream that is gone."""
        stream = new()
        await store.append(stream, b"a")
        reader = asyncio.create_task(store.read(stream, 1, wait=PATIENCE))
        await asyncio.sleep(0)
        await store.delete(stream)

        with pytest.raises(StreamGoneError):
            await reader

    async def test_a_deleted_stream_starts_again(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R3: at 0, and open."""
        stream = new()
        await store.delete(stream)
        await store.append(stream, b"a", close=True)
        await store.delete(stream)

        assert 0 == await store.append(stream, b"b")
        assert ([b"b"], False) == await read_all(store, stream)

    async def test_readers_from_anywhere_see_the_same(self, store: StreamStore, new: Callable[[], str]) -> None:
        """R6, R7: three writers, a zombie among them, and readers that start at any record at any time."""
        stream, rng = new(), random.Random(7)

        async def write(attempt: str, count: int) -> None:
            for seq in range(count):
                await store.append(stream, encode(Record(0, body=BodyEvents("step", attempt, seq, (seq,)))))
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)

        async def read(start: int) -> list[bytes]:
            await follow(store, stream, count=start)
            return await follow(store, stream, start)

        starts = range(0, 40, 5)
        readers = [asyncio.create_task(read(start)) for start in starts]
        await asyncio.gather(write("1", 12), write("2", 12), write("3", 17))
        end = HandlerEvents("run", 0, (Commit("step", "2", 12), End("success")))
        await store.append(stream, encode(Record(0, end)), close=True)

        whole, _ = await read_all(store, stream)
        assert 42 == len(whole)
        assert [whole[start:] for start in starts] == await asyncio.gather(*readers)
        fold = Fold()
        views = [view for record in whole for view in fold.add(decode(record))]
        assert fold.has_ended
        assert len(views) == len({view.id for view in views})
