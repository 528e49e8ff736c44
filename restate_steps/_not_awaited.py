"""Name the coroutine that was used where its result was meant: a forgotten ``await``."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable
from itertools import islice
from types import CodeType
from typing import Any, Final

from pydantic_core import PydanticSerializationError, ValidationError
from restate import TerminalError
from restate.exceptions import RetryableError

from restate_steps.errors import NotAwaitedError, StepsError

__all__ = ["forgotten_await", "not_awaited", "step_calls"]

_CAUSED: Final = (TypeError, AttributeError, ValidationError, PydanticSerializationError)
"""The errors of Python and pydantic about a value of a wrong type. Any other error is the user's, whatever its text."""

_MAX_PARTS: Final = 10_000
# Finding the cause of an error must not take long.

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
    if issubclass(type(value), Awaitable):
        return NotAwaitedError(f"an object of type {type(value).__name__}", "Await it first.", path)
    return None


def forgotten_await(error: BaseException | None) -> NotAwaitedError | None:
    """Return a better error for one that an awaitable has caused, such as "coroutine is not JSON serializable".

    Args:
        error: Any error. None is returned for those with another cause.
    """
    if not isinstance(error, _CAUSED) or isinstance(error, (StepsError, TerminalError, RetryableError)):
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


def _awaitable(value: Any, text: str) -> Any:
    """Return an awaitable whose type an error's text names, and that is not running: the value, or a part of it."""
    parts: list[Any] = [value]
    for _ in range(_MAX_PARTS):
        if not parts:
            break
        part: Any = parts.pop()
        # Look at the type: `isinstance` would run code of the object, which may raise any error.
        kind: type[Any] = type(part)  # pyright: ignore[reportUnknownVariableType]
        if kind in (dict, list, tuple):
            items = part.values() if kind is dict else part
            parts.extend(reversed(list(islice(items, _MAX_PARTS))))
        elif kind.__name__ in text and issubclass(kind, Awaitable) and not _is_running(part):
            return part
    return None


def _is_running(awaitable: Any) -> bool:
    return inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) != inspect.CORO_CREATED
