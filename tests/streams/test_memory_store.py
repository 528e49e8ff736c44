"""The store in memory."""

from __future__ import annotations

import asyncio

import pytest

from restate_steps.streams import MemoryStore, StreamStore
from tests.streams.store_conformance import PATIENCE, StoreConformance, read_all


class TestMemoryStore(StoreConformance):
    """R3: what every store does."""

    @pytest.fixture(params=[512, 2], ids=["long-pages", "short-pages"])
    def store(self, request: pytest.FixtureRequest) -> StreamStore:
        return MemoryStore(page_size=request.param)


async def test_a_read_returns_a_page() -> None:
    """R8: a reader of a long stream gets it in parts, and the last one says that it is the last."""
    store = MemoryStore(page_size=2)
    for number in range(4):
        await store.append("a", b"%d" % number, close=number == 3)

    assert ([b"0", b"1"], False) == await store.read("a", 0, wait=0)
    assert ([b"2", b"3"], True) == await store.read("a", 2, wait=0)
    assert ([b"0", b"1", b"2", b"3"], True) == await read_all(store, "a")


def test_a_page_has_a_record() -> None:
    """A page without any would never end."""
    with pytest.raises(ValueError, match="page_size must be at least 1, and is 0"):
        MemoryStore(page_size=0)


async def test_readers_leave_nothing_behind() -> None:
    """R8: whether they got a record, waited in vain, or were cancelled."""
    store = MemoryStore()
    leaving = asyncio.create_task(store.read("a", 0, wait=PATIENCE))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await store.read("b", 0, wait=0.01)
    reader = asyncio.create_task(store.read("c", 0, wait=PATIENCE))
    await asyncio.sleep(0)
    await store.append("c", b"x")
    await reader
    await store.delete("c")

    assert vars(MemoryStore()) == vars(store)
