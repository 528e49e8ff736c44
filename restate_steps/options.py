"""The options of a step, checked once, at decoration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Final, TypeAlias, cast

from restate import TerminalError
from restate.exceptions import RetryableError

from restate_steps._durations import to_seconds, to_timedelta
from restate_steps.codec import DEFAULT_CODEC, Codec
from restate_steps.errors import StepDefinitionError

__all__ = ["ErrorFilter", "RetryPolicy", "StepOptions"]

ErrorFilter: TypeAlias = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
"""A filter of errors: a class, a tuple of classes, or a predicate."""


_TOO_MANY: Final = 2**32
# The SDK stores the number in 32 bits, and does not check it before the step runs.


@dataclass(frozen=True, slots=True, init=False, repr=False)
class RetryPolicy:
    """The limits and delays of a step's retries, with the field names of ``restate.RunOptions``.

    A field that is left out has the server's default. If all are left out, the invocation's retry policy applies, which
    retries and then pauses. When a limit is reached, the step ends with a ``TerminalError``.

    Durations are numbers of seconds or timedeltas; the fields are timedeltas.

    Args:
        max_attempts: The maximum number of attempts, including the first.
        max_duration: The maximum total time of all attempts.
        initial_retry_interval: The delay before the second attempt.
        max_retry_interval: The maximum delay between two attempts.
        retry_interval_factor: The factor by which the delay grows from one attempt to the next.

    Raises:
        StepDefinitionError: A value has the wrong type or is out of range.

    Example:
        ```python
        @durable_step(retry=RetryPolicy(max_attempts=5, initial_retry_interval=0.5))
        async def charge(order: Order) -> Receipt: ...
        ```
    """

    max_attempts: int | None
    max_duration: timedelta | None
    initial_retry_interval: timedelta | None
    max_retry_interval: timedelta | None
    retry_interval_factor: float | None

    def __init__(
        self,
        *,
        max_attempts: int | None = None,
        max_duration: timedelta | float | None = None,
        initial_retry_interval: timedelta | float | None = None,
        max_retry_interval: timedelta | float | None = None,
        retry_interval_factor: float | None = None,
    ) -> None:
        if max_attempts is not None and not _is_count(max_attempts):
            raise StepDefinitionError(
                f"max_attempts must be an integer of at least 1 and less than {_TOO_MANY}, got {max_attempts!r}."
            )
        if retry_interval_factor is not None and not _is_factor(retry_interval_factor):
            raise StepDefinitionError(
                f"retry_interval_factor must be a finite number of at least 1, got {retry_interval_factor!r}."
            )
        durations = {
            "max_duration": max_duration,
            "initial_retry_interval": initial_retry_interval,
            "max_retry_interval": max_retry_interval,
        }
        for name, value in durations.items():
            object.__setattr__(self, name, None if value is None else to_timedelta(name, value))
        object.__setattr__(self, "max_attempts", max_attempts)
        object.__setattr__(self, "retry_interval_factor", retry_interval_factor)

    def __repr__(self) -> str:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        return f"RetryPolicy({shown})"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < _TOO_MANY


def _is_factor(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """The options of a step; see :func:`durable_step` for the meaning of each field.

    Attributes:
        seconds: The timeout, in seconds.
        declared: The exceptions in ``raises``, as a tuple.
    """

    name: str | Callable[..., str] | None = None
    retry: RetryPolicy = RetryPolicy()
    timeout: timedelta | float | None = None
    returns: Any = None
    raises: type[Exception] | tuple[type[Exception], ...] = ()
    codec: Codec = DEFAULT_CODEC
    verify: bool | None = None
    retry_on: ErrorFilter | None = None
    no_retry_on: ErrorFilter | None = None
    seconds: float | None = field(init=False)
    declared: tuple[type[Exception], ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, str) and not callable(self.name):
            raise StepDefinitionError(
                f"name must be a string, a template such as 'charge {{order.id}}', or a function of the step's "
                f"arguments; got {self.name!r}."
            )
        _refuse_async("name", self.name)
        if isinstance(self.name, str) and not self.name.strip():
            raise StepDefinitionError("name must not be empty.")
        if not isinstance(self.retry, RetryPolicy):
            raise StepDefinitionError(f"retry must be a RetryPolicy, got {self.retry!r}.")
        object.__setattr__(self, "seconds", None if self.timeout is None else to_seconds("timeout", self.timeout))
        object.__setattr__(self, "declared", _declared(self.raises))
        for method in ("dump", "load"):
            if not callable(getattr(self.codec, method, None)):
                raise StepDefinitionError(f"codec must have a {method}() method (see restate_steps.Codec).")
        if self.verify is not None and not isinstance(self.verify, bool):
            raise StepDefinitionError(f"verify must be True, False or None, got {self.verify!r}.")
        _check_filter("retry_on", self.retry_on)
        _check_filter("no_retry_on", self.no_retry_on)

    def should_retry(self, error: Exception) -> bool:
        """Return whether to retry after an error that is neither declared nor Restate's own."""
        if self.no_retry_on is not None and _matches(self.no_retry_on, error):
            return False
        return self.retry_on is None or _matches(self.retry_on, error)


def _declared(raises: object) -> tuple[type[Exception], ...]:
    """Return the exceptions that a step declares, given as one class or a tuple of them."""
    classes = cast("tuple[object, ...]", raises) if isinstance(raises, tuple) else (raises,)
    for error in classes:
        if not (isinstance(error, type) and issubclass(error, Exception)):
            raise StepDefinitionError(
                f"raises must be an exception class or a tuple of them; got {error!r}. Write raises=ValueError or "
                "raises=(ValueError, KeyError)."
            )
        if error in (Exception, TerminalError) or issubclass(error, RetryableError):
            raise StepDefinitionError(
                f"raises must not contain {error.__name__}, which has a special meaning for Restate. Name the "
                "exceptions of your own domain."
            )
    return cast("tuple[type[Exception], ...]", classes)


def _check_filter(field: str, value: object) -> None:
    _refuse_async(field, value)
    if value is None or (callable(value) and not isinstance(value, type)):
        return
    classes = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, type) and issubclass(item, BaseException) for item in classes):
        raise StepDefinitionError(
            f"{field} must be an exception class, a tuple of them, or a function from the exception to bool; "
            f"got {value!r}."
        )


def _refuse_async(field: str, value: object) -> None:
    if inspect.iscoroutinefunction(value):
        raise StepDefinitionError(
            f"{field} must be a plain function, because its result is needed at once; got an async function."
        )


def _matches(which: ErrorFilter, error: BaseException) -> bool:
    if isinstance(which, (type, tuple)):
        return isinstance(error, which)
    return bool(which(error))
