"""Clocks of runs and timeouts of their requests.

* In the handler, a run's clock shows the journal's time: first the start of the run, recorded as a step, then the time
  of the latest model response. In a step's body it shows the real time. pydantic-ai uses it to compute the time left of
  ``agent.run(timeout=...)``. The timer that it starts is durable, like every timer of the handler loop.
* The step that makes a request enforces ``model_settings={'request_timeout': ...}``, for each attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, cast

from pydantic_ai.exceptions import ModelRequestTimeout
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.settings import ModelSettings

from restate_steps.agents._run import Run
from restate_steps.context import running_step

__all__ = ["RunClock", "clock_of_run", "move_request_timeout", "within_request_timeout"]

_REQUEST_TIMEOUT: Final = "request_timeout"


class RunClock:
    """The clock of one run.

    Args:
        outer: The clock of the run around this one, whose time it starts with.

    Attributes:
        time: The latest time in the journal, or None if there is none yet.
    """

    def __init__(self, outer: RunClock | None) -> None:
        self.time: datetime | None = outer.time if outer is not None else None

    def __call__(self) -> datetime:
        """Return the current time."""
        if self.time is None or running_step.get() is not None:
            return datetime.now(UTC)
        return self.time


clock_of_run: Final[ContextVar[RunClock | None]] = ContextVar("restate_steps_agents_clock", default=None)


def move_request_timeout(run: Run, request: ModelRequestContext) -> None:
    """Move the timeout of a request from its settings to the run; pydantic-ai would start a local timer for it."""
    settings = request.model_settings
    if settings is None or _REQUEST_TIMEOUT not in settings:
        return
    run.request_timeout = settings[_REQUEST_TIMEOUT]
    rest = {key: value for key, value in settings.items() if key != _REQUEST_TIMEOUT}
    request.model_settings = cast(ModelSettings, rest)


async def within_request_timeout(body: Callable[[], Awaitable[Any]], seconds: float, model_name: str) -> Any:
    """Send a model request, with a timeout; for use in the step.

    Raises:
        ModelRequestTimeout: The timeout has expired. Retryable.
    """
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await body()
    except TimeoutError:
        if timer.expired():
            raise ModelRequestTimeout(model_name, seconds) from None
        raise
