"""Timers that never resume a handler: they check for stalls, or log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["only_logs", "watchdog"]

F = TypeVar("F", bound=Callable[..., Any])


def watchdog(callback: F) -> F:
    """Mark the callback of a timer that only checks for stalls: by itself, it never resumes a handler.

    The simulator needs the mark to decide whether anything can still happen.
    """
    marked = cast(Any, callback)
    getattr(marked, "__func__", marked).watchdog = True
    return callback


def only_logs(callback: F) -> F:
    """Mark the callback of a timer that only logs that something takes long; the simulator skips such timers."""
    cast(Any, callback).only_logs = True
    return callback
