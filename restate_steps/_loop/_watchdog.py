"""Timers that only watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["watchdog"]

F = TypeVar("F", bound=Callable[..., Any])


def watchdog(callback: F) -> F:
    """Mark a timer's callback that only checks for stalls: by itself, it never resumes a handler.

    The simulator must know, because it asks whether anything can happen.
    """
    marked = cast(Any, callback)
    getattr(marked, "__func__", marked).watchdog = True
    return callback
