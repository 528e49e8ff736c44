"""A handler's async generators.

As in asyncio, a generator that is dropped before its end is closed, and closing it may run steps. A reference count
that drops to zero does this at the same place in every attempt. The garbage collector does not. So a generator that it
finds is closed when the handler ends, like one that is never collected.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restate_steps._loop._execution import Execution

__all__ = ["AsyncGenerators"]

_collecting = threading.local()


def _note_collection(phase: str, info: dict[str, int]) -> None:
    del info
    _collecting.now = phase == "start"


class AsyncGenerators:
    """The async generators that one execution has started, in that order.

    Attributes:
        hooks: The arguments of :func:`sys.set_asyncgen_hooks` while code of the execution runs.
    """

    def __init__(self, execution: Execution) -> None:
        if _note_collection not in gc.callbacks:
            gc.callbacks.append(_note_collection)
        self._execution = execution
        self._begun = 0
        self._alive: dict[int, tuple[int, weakref.ref[AsyncGenerator[Any, Any]]]] = {}
        self._collected: dict[int, AsyncGenerator[Any, Any]] = {}
        self.hooks = (self._begin, self._finalize)

    def _begin(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._begun += 1
        self._alive[id(generator)] = (self._begun, weakref.ref(generator))

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        number, _ = self._alive.pop(id(generator), (self._begun, None))
        execution = self._execution
        if execution.is_over:
            return
        if getattr(_collecting, "now", False) or not execution.driven_by_this_thread():
            self._collected[number] = generator
        else:
            execution.create_task(_close(generator), name=None, context=None)

    def pop_first(self) -> AsyncGenerator[Any, Any] | None:
        """Remove and return the first generator that is still open; None if there is none."""
        if not self._alive and not self._collected:
            return None
        open_generators = dict(self._collected)
        for number, reference in self._alive.values():
            if (generator := reference()) is not None:
                open_generators[number] = generator
        if not open_generators:
            return None
        number = min(open_generators)
        generator = open_generators[number]
        self._collected.pop(number, None)
        self._alive.pop(id(generator), None)
        return generator


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()
