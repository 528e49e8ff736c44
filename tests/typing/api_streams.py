"""The types of streams; checked by mypy and pyright, never run."""

from __future__ import annotations

from typing import assert_type

from pydantic import JsonValue

from restate_steps.streams import (
    EventId,
    MemoryStore,
    StreamEnd,
    StreamEvent,
    StreamReset,
    StreamStore,
    StreamView,
)

store: StreamStore = MemoryStore()


async def stores() -> None:
    assert_type(await store.append("inv_1", b"record"), int)
    assert_type(await store.append("inv_1", b"record", close=True), int)
    assert_type(await store.read("inv_1", 0, wait=1.5), tuple[list[bytes], bool])
    assert_type(await store.delete("inv_1"), None)


def views(view: StreamView) -> None:
    assert_type(view.id, EventId)
    assert_type(view.payload(), dict[str, JsonValue])
    match view:
        case StreamEvent():
            assert_type(view.token, str | None)
        case StreamReset(producer=producer, epoch=epoch):
            assert_type((producer, epoch), tuple[str, int])
        case StreamEnd():
            assert_type(view.data, JsonValue)


assert_type(EventId.parse("1.2"), EventId)
