"""One run of an agent in a handler: what its parts have to know of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic_ai.messages import AgentStreamEvent
from pydantic_ai.tools import DeferredToolRequests, RunContext

from restate_steps.concurrency._crew import Crew, join
from restate_steps.context import Invocation, running_step

__all__ = ["Run", "caller", "current_run", "driving_task"]

T = TypeVar("T")

driving_task: Final[ContextVar[asyncio.Task[Any] | None]] = ContextVar("restate_steps_agents_task", default=None)
"""The asyncio task that drives the run, as it was when the run was prepared."""

caller: Final[ContextVar[RunContext[Any] | None]] = ContextVar("restate_steps_agents_caller", default=None)
"""The context, in the handler, of whoever asks for a unit: of a tool call, or of a model request."""

_run: Final[ContextVar[Run | None]] = ContextVar("restate_steps_agents_run", default=None)


class Run:
    """One run of an agent in a handler.

    Args:
        invocation: The invocation that the handler runs for.
        agent_name: The first part of each step's name.
        max_parallel_tools: How many tool calls of one response run at once; None for all of them.
        has_event_handler: Whether an event handler of the engine's gets the run's events.

    Attributes:
        requests: What the run waits for people to decide, while it does.
        latest: When the latest response of the model came, by its own timestamp.
        has_fallback: Whether another model is asked when a request fails.
    """

    def __init__(
        self, invocation: Invocation, agent_name: str, max_parallel_tools: int | None, has_event_handler: bool
    ) -> None:
        self.invocation = invocation
        self.agent_name = agent_name
        self.has_event_handler = has_event_handler
        self.requests: DeferredToolRequests | None = None
        self.latest: datetime | None = None
        self.has_fallback = False
        self._scheduler = invocation.scheduler()
        self._strand = self._scheduler.current()
        self._task = driving_task.get()
        self._slots = asyncio.Semaphore(max_parallel_tools) if max_parallel_tools is not None else None

    def enter(self) -> None:
        """Make it the run of the code that follows, and of the tasks that it starts."""
        _run.set(self)

    async def call_tool(self, function: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        """Run a tool call beside the other calls of its response."""

        async def call() -> T:
            if self._slots is None:
                return await function()
            async with self._slots:
                return await function()

        return await self._join(call, name)

    async def beside_others(self, function: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        """Run something that pydantic-ai may do several of at once, each in an asyncio task."""
        if asyncio.current_task() is self._task:
            return await function()
        return await self._join(function, name)

    async def _join(self, function: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        # With a handler of events, the run's own task has steps to make while a tool runs.
        return await join(self._scheduler, function, name=name, task=self._task, alone=not self.has_event_handler)

    @property
    def _crew(self) -> Crew | None:
        """The tool calls that are under way."""
        crew = self._strand.crew
        return crew if crew is not None and crew.working else None

    def cancel_in_order(self) -> bool:
        """Cancel the run through the scheduler, if tool calls are under way; return whether that was done."""
        if self._crew is None:
            return False
        self._scheduler.interrupt(self._strand, asyncio.CancelledError())
        return True

    def event_emitted(self) -> None:
        """Have the run's own task get its turn, because a tool call has emitted an event."""
        if (crew := self._crew) is not None and self.has_event_handler:
            crew.call()

    async def in_turn(self, stream: AsyncIterable[AgentStreamEvent]) -> AsyncIterator[AgentStreamEvent]:
        """Pass events on, those of tool calls that are under way when it is the run's own turn."""
        async for event in stream:
            if (crew := self._crew) is None:
                yield event
                continue
            await crew.turn()
            yield event
            crew.rest()


def current_run() -> Run | None:
    """Return the run that the caller belongs to; None outside of one, and inside a step's body."""
    return _run.get() if running_step.get() is None else None
