"""The time of a run, and the limits of its requests.

* The time in the handler is that of the journal: when the run started, recorded as a step, and then when the latest
  response of the model came. In a step's body it is the real one. pydantic-ai computes the time that is left of
  ``agent.run(timeout=...)`` with it, and the timer that it starts is durable, like every timer of the handler loop.
* ``model_settings={'request_timeout': ...}`` is enforced inside the step that makes the request, for each attempt.
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

__all__ = ["RunClock", "clock_of_run", "take_request_timeout", "within_request_timeout"]

_REQUEST_TIMEOUT: Final = "request_timeout"


class RunClock:
    """Tells the time that a run goes by.

    Attributes:
        time: The latest time that the journal knows of.
    """

    def __init__(self, around: RunClock | None) -> None:
        self.time: datetime | None = around.time if around is not None else None

    def __call__(self) -> datetime:
        """Return the time."""
        if self.time is None or running_step.get() is not None:
            return datetime.now(UTC)
        return self.time


clock_of_run: Final[ContextVar[RunClock | None]] = ContextVar("restate_steps_agents_clock", default=None)


def take_request_timeout(run: Run, request: ModelRequestContext) -> None:
    """Take the limit of a request out of its settings, where a local timer would be made of it."""
    settings = request.model_settings
    if settings is None or _REQUEST_TIMEOUT not in settings:
        return
    run.request_timeout = settings[_REQUEST_TIMEOUT]
    rest = {key: value for key, value in settings.items() if key != _REQUEST_TIMEOUT}
    request.model_settings = cast(ModelSettings, rest)


async def within_request_timeout(body: Callable[[], Awaitable[Any]], seconds: float, model_name: str) -> Any:
    """Ask the model, for no longer than this; called in the step.

    Raises:
        ModelRequestTimeout: The time is up; worth another attempt.
    """
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await body()
    except TimeoutError:
        if timer.expired():
            raise ModelRequestTimeout(model_name, seconds) from None
        raise
