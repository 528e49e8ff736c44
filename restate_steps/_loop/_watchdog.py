"""Timers that only check for stalls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["watchdog"]

F = TypeVar("F", bound=Callable[..., Any])


def watchdog(callback: F) -> F:
    """Mark the callback of a timer that only checks for stalls: by itself, it never resumes a handler.

    The simulator needs the mark to decide whether anything can still happen.
    """
    marked = cast(Any, callback)
    getattr(marked, "__func__", marked).watchdog = True
    return callback
