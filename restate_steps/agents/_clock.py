"""The time of a run, and its limit: ``agent.run(timeout=...)`` and ``model_settings={'request_timeout': ...}``.

pydantic-ai measures both with local timers, which interrupt the run at a moment that no replay would find again. Here

* the time in the handler is that of the journal: when the run started, recorded as a step, and then when the latest
  response of the model came. In a step's body it is the real one.
* the run's limit is a durable timer, in a branch beside the run, that interrupts it at its place in the journal.
* the limit of a request to the model is kept inside the step that makes it, for each attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from pydantic_ai.exceptions import ModelRequestTimeout
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext

from restate_steps.agents._private import expire_through
from restate_steps.agents._run import Run
from restate_steps.concurrency._strand import Branch
from restate_steps.context import running_step

__all__ = ["RunClock", "clock_of_run", "ending_in_time", "take_request_timeout", "within_request_timeout"]

_REQUEST_TIMEOUT: Final = "request_timeout"


class RunClock:
    """Tells the time that a run goes by.

    Attributes:
        time: The latest time that the journal knows of.
        is_limited: Whether the run has a limit of its own, apart from that of a run around it.
        task: The asyncio task that prepares the run, which is the one that drives it.
    """

    def __init__(self, around: RunClock | None) -> None:
        self.time: datetime | None = around.time if around is not None else None
        self.is_limited = False
        self.task = asyncio.current_task()

    def __call__(self) -> datetime:
        """Return the time."""
        if self.time is None or running_step.get() is not None:
            return datetime.now(UTC)
        return self.time


clock_of_run: Final[ContextVar[RunClock | None]] = ContextVar("restate_steps_agents_clock", default=None)


@asynccontextmanager
async def ending_in_time(run: Run, ctx: RunContext[Any]) -> AsyncGenerator[None]:
    """Interrupt a run when its time is up, if it has a limit."""
    clock = clock_of_run.get()
    if clock is None or not clock.is_limited or ctx.deadline is None:
        yield
        return
    scheduler = run.invocation.scheduler()
    expire = expire_through(ctx)
    deadline = ctx.deadline

    async def wait() -> None:
        left = (deadline - clock()).total_seconds()
        await run.invocation.context.sleep(timedelta(seconds=max(left, 0.0)))
        expire()

    over: list[Callable[[], None]] = []

    def ended(branch: Branch) -> None:
        for wake in over:
            wake()

    timer = scheduler.spawn(wait(), "timeout of the run", ended, clock.task)
    try:
        yield
    finally:
        if scheduler.closed is None:
            scheduler.cancel_when_cleaned_up(timer)
            while not timer.over:
                await scheduler.wait_for_strands(over.append)


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
