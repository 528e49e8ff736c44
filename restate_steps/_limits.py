"""The time that a handler allows the body of a step.

The server ends an attempt from which it has heard nothing for the inactivity timeout plus the abort timeout of its
handler, and runs the body again. Over HTTP/1.1, and if the server suspends at every wait, the inactivity timeout is
zero. So only the abort timeout is certain, and it is the one that ``app`` sets: an inactivity timeout of its own would
override the server's, for example the one that makes it suspend at every wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from restate_steps._durations import to_timedelta
from restate_steps.errors import StepDefinitionError

__all__ = ["DEFAULT_LONGEST_STEP", "BodyLimit", "abort_timeout_for", "limit_of", "longest_step_of"]

DEFAULT_LONGEST_STEP: Final = timedelta(hours=1)
"""Clients of models give up after 10 minutes and repeat a request twice, and some research models take half an hour."""

_LONGEST: Final = timedelta(days=36_500)

_MARGIN: Final = timedelta(seconds=10)
# A step whose timeout= is as long as the longest step still has to report that it has expired.


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """The time that a handler allows the body of a step.

    Attributes:
        seconds: The time.
        setting: The setting that changes it, as part of a sentence.
    """

    seconds: float
    setting: str


def longest_step_of(value: object) -> timedelta:
    """Convert the argument ``longest_step`` of ``app``.

    Raises:
        StepDefinitionError: It is neither a duration nor a number of seconds, or not a positive and finite one.
    """
    found = to_timedelta("longest_step", value)
    if found > _LONGEST:
        raise StepDefinitionError(
            f"longest_step must not be longer than {_LONGEST.days:,} days, got {value!r}. Write the time that the "
            "longest body of a step takes, for example longest_step=7200."
        )
    return found


def abort_timeout_for(longest_step: timedelta) -> timedelta:
    """Return the abort timeout of a handler whose steps take up to ``longest_step``."""
    return longest_step + _MARGIN


def limit_of(handler: Any, service: Any, longest_step: timedelta, *, streams: bool) -> BodyLimit:
    """Return the time that a handler allows.

    Args:
        handler: The handler, as the user defined it.
        service: Its service, as the user defined it.
        longest_step: The time that handlers without an abort timeout of their own allow.
        streams: False if the server is known to use request/response mode, where no inactivity timeout applies.
    """
    if handler.abort_timeout is not None:
        allowed, setting = handler.abort_timeout, f"abort_timeout= of handler {handler.name!r}"
    elif service.abort_timeout is not None:
        allowed, setting = service.abort_timeout, f"abort_timeout= of service {service.name!r}"
    else:
        allowed, setting = longest_step, "longest_step= of restate_steps.app"
    inactivity = service.inactivity_timeout if handler.inactivity_timeout is None else handler.inactivity_timeout
    seconds = allowed.total_seconds()
    if streams and inactivity is not None:
        seconds += inactivity.total_seconds()
    return BodyLimit(seconds, setting)
