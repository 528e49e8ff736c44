"""One run of an agent in a handler: what its parts have to know of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic_ai.messages import AgentStreamEvent
from pydantic_ai.tools import DeferredToolRequests, RunContext

from restate_steps.concurrency._crew import Crew, join
from restate_steps.context import Invocation, running_step

__all__ = ["Run", "caller", "current_run", "run_of_body"]

T = TypeVar("T")

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
        changes: How often each MCP server has said that its tools have changed, by the id of the toolset.
        task: The asyncio task that drives the run.

    Attributes:
        requests: What the run waits for people to decide, while it does.
        latest: When the latest response of the model came, by its own timestamp.
        has_fallback: Whether another model is asked when a request fails.
        request_timeout: How long the next request to the model may take, in seconds.
    """

    def __init__(
        self,
        invocation: Invocation,
        agent_name: str,
        max_parallel_tools: int | None,
        has_event_handler: bool,
        changes: Mapping[str, Callable[[], int]],
        task: asyncio.Task[Any] | None,
    ) -> None:
        self.invocation = invocation
        self.agent_name = agent_name
        self.has_event_handler = has_event_handler
        self.requests: DeferredToolRequests | None = None
        self.latest: datetime | None = None
        self.has_fallback = False
        self.request_timeout: float | None = None
        self._scheduler = invocation.scheduler()
        self._strand = self._scheduler.current()
        self._task = task
        self._changes = changes
        self._seen = {name: count() for name, count in changes.items()}
        self._slots = asyncio.Semaphore(max_parallel_tools) if max_parallel_tools is not None else None

    def enter(self) -> None:
        """Make it the run of the code that follows, and of the tasks that it starts."""
        _run.set(self)

    async def call_tool(self, function: Callable[[], Coroutine[Any, Any, T]], name: str, *, makes_steps: bool) -> T:
        """Run a tool call beside the other calls of its response.

        Args:
            function: The call.
            name: A name for messages.
            makes_steps: Whether the tool makes its own steps. It has a branch then even if it is the only one, as it
                may cancel the run between two of them.
        """

        async def call() -> T:
            if self._slots is None:
                return await function()
            async with self._slots:
                return await function()

        return await self._join(call, name, alone=not makes_steps)

    async def beside_others(self, function: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        """Run something that pydantic-ai may do several of at once, each in an asyncio task."""
        if asyncio.current_task() is self._task:
            return await function()
        return await self._join(function, name)

    async def _join(self, function: Callable[[], Coroutine[Any, Any, T]], name: str, *, alone: bool = True) -> T:
        # With a handler of events, the run's own task has steps to make while a tool runs.
        alone = alone and not self.has_event_handler
        return await join(self._scheduler, function, name=name, task=self._task, alone=alone)

    def tools_changed(self) -> list[str]:
        """Return the ids of the MCP toolsets whose tools have changed since this was last asked; called in a body."""
        changed: list[str] = []
        for name, count in self._changes.items():
            if (number := count()) != self._seen[name]:
                self._seen[name] = number
                changed.append(name)
        return changed

    @property
    def _crew(self) -> Crew | None:
        """The tool calls that are under way."""
        crew = self._strand.crew
        return crew if crew is not None and crew.working else None

    def cancel_in_order(self) -> bool:
        """Cancel the run through the scheduler, if that can be; return whether it was done.

        It can if a branch asks for it, at its turn: a tool call that is under way, or the timer of the run.
        """
        if not self._scheduler.active or self._scheduler.holder in (None, self._strand):
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


def run_of_body() -> Run | None:
    """Return the run that the body of a unit works for."""
    return _run.get()


def current_run() -> Run | None:
    """Return the run that the caller belongs to; None outside of one, and inside a step's body."""
    return _run.get() if running_step.get() is None else None
