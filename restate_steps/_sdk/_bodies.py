"""Mark the code that runs as the body of a ``ctx.run``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

from restate import RestateDurableFuture, RunOptions
from restate.server_context import ServerInvocationContext

from restate_steps._sdk._context import AWAIT_HOOK

__all__ = ["IN_THREAD", "has_body", "mark_bodies", "run_unmarked", "running_body"]

T = TypeVar("T")

IN_THREAD: Final = "_restate_steps_in_thread"
"""Marks the body of a step whose function runs in a thread."""


class _Bodies(dict[int, Callable[[], Awaitable[None]]]):
    """The bodies that the SDK will run, each of which calls ``enter`` first.

    Attributes:
        marks: True if bodies that are added now call it.
    """

    marks = True

    def __init__(self, bodies: dict[int, Callable[[], Awaitable[None]]], enter: Callable[[int], None]) -> None:
        super().__init__()
        self._enter = enter
        for handle, body in bodies.items():
            self[handle] = body

    def __setitem__(self, handle: int, body: Callable[[], Awaitable[None]]) -> None:
        def run() -> Awaitable[None]:
            self._enter(handle)
            return body()

        super().__setitem__(handle, run if self.marks else body)


def mark_bodies(context: ServerInvocationContext, enter: Callable[[int], None]) -> None:
    """Call ``enter(handle)`` in each body of ``ctx.run``, before the body itself, in the body's own context."""
    context.run_coros_to_execute = _Bodies(context.run_coros_to_execute, enter)


def run_unmarked(
    context: ServerInvocationContext, name: str, body: Callable[[], Awaitable[T]], options: RunOptions[T]
) -> RestateDurableFuture[T]:
    """Call ``ctx.run_typed`` for a body that marks itself, so that :func:`mark_bodies` need not."""
    bodies = cast(_Bodies, context.run_coros_to_execute)
    bodies.marks = False
    try:
        return context.run_typed(name, cast(Any, body), options)
    finally:
        bodies.marks = True


def has_body(future: Any) -> bool:
    """Return whether the body of a ``ctx.run`` that was just called will run, because no result is recorded."""
    return future.handle in future.context.run_coros_to_execute


def running_body() -> int | None:
    """Return the handle of the ``ctx.run`` whose body is the current task, if the SDK itself started it."""
    task = asyncio.current_task()
    coro: Any = task.get_coro() if task is not None else None
    if getattr(coro, "__qualname__", None) != f"ServerInvocationContext.{AWAIT_HOOK}.<locals>.wrapper":
        return None
    start: Any = coro.cr_frame.f_locals.get("f")
    names: tuple[str, ...] = start.__code__.co_freevars
    return cast(int, start.__closure__[names.index("handle")].cell_contents)
