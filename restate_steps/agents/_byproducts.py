"""What a unit's body does besides returning a result: it must not be lost when the body is not run again.

A body runs once; a replay has its result alone. So what else it leaves behind is collected while it runs, recorded with
the result, and done in the handler, on the first run as on a replay: usage that was added, by a sub-agent for example,
events that were emitted, and that an MCP server said its tools have changed. If there is nothing of the kind, which is
the rule, the recorded bytes are the result and nothing else.
"""

from __future__ import annotations

import json
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pydantic_ai.messages import AgentStreamEvent
from pydantic_ai.tools import RunContext
from pydantic_ai.usage import RunUsage

from restate_steps.agents._codec import UNIT_CODEC
from restate_steps.agents._pydantic_ai import collect_events
from restate_steps.agents._run import run_of_body

__all__ = ["ByProductCollector", "ByProducts", "collector", "unpack"]

AgentDepsT = TypeVar("AgentDepsT")

# The space makes it unlike anything that the codec writes, and it stays JSON.
_HEAD: Final = b' {"restate-steps":'
_MIDDLE: Final = b',"result":'


@dataclass
class ByProducts:
    """What is recorded beside a result.

    Attributes:
        usage: What was added to the run's usage.
        events: What was emitted, in order.
        tools_changed: The ids of the MCP toolsets whose servers have said that their tools have changed.
    """

    usage: RunUsage | None = None
    events: list[AgentStreamEvent] = field(default_factory=list[AgentStreamEvent])
    tools_changed: list[str] = field(default_factory=list[str])

    def __bool__(self) -> bool:
        return self.usage is not None or bool(self.events) or bool(self.tools_changed)


class ByProductCollector:
    """Collects what one body leaves behind."""

    def __init__(self) -> None:
        self.carried = ByProducts()
        self._usages: list[tuple[RunUsage, RunUsage]] = []

    def track(self, ctx: RunContext[AgentDepsT]) -> RunContext[AgentDepsT]:
        """Let the body add usage and emit events to copies, and take note of what it does."""
        before = ctx.usage
        # A sum is a new object, down to the details, for less than a deep copy.
        ctx.usage = RunUsage() + before
        self._usages.append((ctx.usage, RunUsage() + before))
        collect_events(ctx, self.carried.events)
        return ctx

    def pack(self, result: bytes) -> bytes:
        """Return what to record."""
        for usage, before in self._usages:
            if usage != before:
                self.carried.usage = (self.carried.usage or RunUsage()) + (usage - before)
        if (run := run_of_body()) is not None:
            self.carried.tools_changed = run.tools_changed()
        if not self.carried:
            return result
        # A result is JSON, so it can stand in the middle of JSON.
        return b"".join((_HEAD, UNIT_CODEC.dump(ByProducts, self.carried), _MIDDLE, result, b"}"))


def unpack(recorded: bytes) -> tuple[bytes, ByProducts | None]:
    """Return a result, and what was recorded beside it."""
    if not recorded.startswith(_HEAD):
        return recorded, None
    text = recorded[len(_HEAD) :].decode()
    _, end = json.JSONDecoder().raw_decode(text)
    return text[end + len(_MIDDLE) : -1].encode(), UNIT_CODEC.load(ByProducts, text[:end].encode())


collector: Final[ContextVar[ByProductCollector | None]] = ContextVar("restate_steps_agents_collector", default=None)
"""What collects for the body that is running."""
