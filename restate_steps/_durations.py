"""Durations that users pass: a timedelta, or a number of seconds as in asyncio."""

from __future__ import annotations

import math
from datetime import timedelta

from restate_steps.errors import StepDefinitionError

__all__ = ["to_limit", "to_seconds", "to_timedelta"]


def to_timedelta(name: str, value: object, *, zero: bool = False) -> timedelta:
    """Convert a duration to a timedelta.

    Args:
        name: The parameter, for the error.
        value: A timedelta, or a number of seconds.
        zero: Allow a duration of zero.

    Returns:
        The duration.

    Raises:
        StepDefinitionError: The value is not a duration, is negative, or is zero where that is not allowed.
    """
    found = _timedelta(name, value)
    if found < timedelta(0) or (not found and not zero):
        bound = "must not be negative" if zero else "must be longer than zero"
        raise StepDefinitionError(f"{name} {bound}, got {value!r}.")
    return found


def to_seconds(name: str, value: object, *, zero: bool = False) -> float:
    """Convert a duration to seconds; see :func:`to_timedelta`."""
    return to_timedelta(name, value, zero=zero).total_seconds()


def to_limit(name: str, value: object) -> float | None:
    """Convert a timeout to seconds as asyncio reads it: at most zero is up already, None and infinity never are."""
    if value is None or value == math.inf:
        return None
    return max(_timedelta(name, value).total_seconds(), 0.0)


def _timedelta(name: str, value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StepDefinitionError(
            f"{name} must be a number of seconds or a datetime.timedelta, got {value!r}. Write {name}=5 or "
            f"{name}=timedelta(seconds=5)."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise StepDefinitionError(f"{name} must be a finite number of seconds, got {value!r}.")
    try:
        return timedelta(seconds=value)
    except OverflowError:
        raise StepDefinitionError(f"{name} is longer than a datetime.timedelta can be, got {value!r}.") from None
