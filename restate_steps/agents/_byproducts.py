"""By-products: the effects of a unit's body on the run besides its result, preserved across replays.

A replay does not run the body again; it only has the recorded result. So the effects are collected while the body runs,
recorded with the result, and applied in the handler, on the first run and on every replay. They are usage that the body
added (through a sub-agent, for example), events that it emitted, and changes of tools that an MCP server announced. In
the usual case there are none, and the recorded bytes are the plain result.
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

# The codec never writes a leading space, which is valid JSON.
_HEAD: Final = b' {"restate-steps":'
_MIDDLE: Final = b',"result":'


@dataclass
class ByProducts:
    """By-products that are recorded with a result.

    Attributes:
        usage: The usage that was added to the run's.
        events: The events that were emitted, in order.
        tools_changed: The ids of the MCP toolsets whose servers announced a change of their tools.
    """

    usage: RunUsage | None = None
    events: list[AgentStreamEvent] = field(default_factory=list[AgentStreamEvent])
    tools_changed: list[str] = field(default_factory=list[str])

    def __bool__(self) -> bool:
        return self.usage is not None or bool(self.events) or bool(self.tools_changed)


class ByProductCollector:
    """A collector of the by-products of one body."""

    def __init__(self) -> None:
        self.byproducts = ByProducts()
        self._usages: list[tuple[RunUsage, RunUsage]] = []

    def track(self, ctx: RunContext[AgentDepsT]) -> RunContext[AgentDepsT]:
        """Give the body copies to add usage and events to, and track the changes."""
        before = ctx.usage
        # Adding copies the usage with its details, and is cheaper than a deep copy.
        ctx.usage = RunUsage() + before
        self._usages.append((ctx.usage, RunUsage() + before))
        collect_events(ctx, self.byproducts.events)
        return ctx

    def pack(self, result: bytes) -> bytes:
        """Return the bytes to record: the result, with by-products if there are any."""
        for usage, before in self._usages:
            if usage != before:
                self.byproducts.usage = (self.byproducts.usage or RunUsage()) + (usage - before)
        if (run := run_of_body()) is not None:
            self.byproducts.tools_changed = run.tools_changed()
        if not self.byproducts:
            return result
        # The result is JSON, so it can be embedded in JSON.
        return b"".join((_HEAD, UNIT_CODEC.dump(ByProducts, self.byproducts), _MIDDLE, result, b"}"))


def unpack(recorded: bytes) -> tuple[bytes, ByProducts | None]:
    """Split recorded bytes into the result and its by-products."""
    if not recorded.startswith(_HEAD):
        return recorded, None
    text = recorded[len(_HEAD) :].decode()
    _, end = json.JSONDecoder().raw_decode(text)
    return text[end + len(_MIDDLE) : -1].encode(), UNIT_CODEC.load(ByProducts, text[:end].encode())


collector: Final[ContextVar[ByProductCollector | None]] = ContextVar("restate_steps_agents_collector", default=None)
"""The collector of the running body."""
