"""Name the coroutine that was used where its result was meant: a forgotten ``await``."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any, Final, cast

from restate import TerminalError
from restate.exceptions import RetryableError

from restate_steps.errors import NotAwaitedError, StepsError

__all__ = ["forgotten_await", "not_awaited", "step_calls"]

step_calls: Final[set[CodeType]] = set()
"""The code of the coroutines that call a step, whose name is that of their ``self``."""


def not_awaited(value: object, path: str = "") -> NotAwaitedError | None:
    """Return the error for a value that is an awaitable instead of its result; None for any other value.

    A coroutine is closed. Otherwise Python would warn about it as well, without the step's name.

    Args:
        value: The value.
        path: Its place in the value that was to be recorded.
    """
    if inspect.iscoroutine(value):
        name: str = value.__name__
        what = f"{value.__qualname__}()"
        if value.cr_code in step_calls and value.cr_frame is not None:
            name = value.cr_frame.f_locals["self"].__name__
            what = f"step {name!r}"
        if inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
            value.close()
        return NotAwaitedError(what, f"Write await {name}(...).", path)
    if inspect.isawaitable(value):
        return NotAwaitedError(f"an object of type {type(value).__name__}", "Await it first.", path)
    return None


def forgotten_await(error: BaseException | None) -> NotAwaitedError | None:
    """Return a better error for one that an awaitable has caused, such as "coroutine is not JSON serializable".

    Args:
        error: Any error. None is returned for those with another cause.
    """
    if not isinstance(error, Exception) or isinstance(error, (StepsError, TerminalError, RetryableError)):
        return None
    try:
        text = str(error)
    except Exception:
        # The error of a user's __str__ must not hide the error itself.
        return None
    if "coroutine" not in text and "JSON serializable" not in text:
        return None
    if (found := _awaitable(getattr(error, "obj", None), text)) is not None:
        return not_awaited(found)
    # The JSON encoder of the standard library has the awaitable in a variable, as most code without an await has.
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if (found := _awaitable(value, text)) is not None:
                return not_awaited(found)
    return None


def _awaitable(value: Any, text: str, depth: int = 4) -> Any:
    """Return an awaitable whose type an error's text names, and that is not running: the value, or a part of it."""
    if isinstance(value, dict):
        value = list(cast("Iterable[Any]", value.values()))
    if type(value) in (list, tuple):
        if depth:
            for item in cast("Sequence[Any]", value):
                if (found := _awaitable(item, text, depth - 1)) is not None:
                    return found
        return None
    if not inspect.isawaitable(value) or type(value).__name__ not in text:
        return None
    return None if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) != inspect.CORO_CREATED else value
