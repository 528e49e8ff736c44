"""The only module that uses private names of pydantic-ai: why each is needed, and what happens if it is renamed.

**Toolsets.** pydantic-ai requires an id on every toolset, and accepts only the toolsets that the agent was constructed
with, because other engines register their units before a process takes work. Our units are created when needed, and
pydantic-ai's documented example gives no id to an MCP server or to ``@agent.toolset``. So in :class:`EngineBase`:

* ``_wrap_and_register_leaf`` numbers the toolsets without an id: ``unnamed-1``, ``unnamed-2``. ``_explicit_id`` tells a
  chosen id from a derived one. A copy gets the number, because the same toolset may have another number in another
  agent, and which agent runs first differs between processes. The public ``get_wrapper_toolset`` substitutes the copy.
* ``_reject_runtime_toolsets`` accepts every toolset that was bound. It also accepts one that a capability rebuilds for
  each run under the id of a bound one (``_toolsets_by_id``); ``_wrap_leaf_toolset`` wraps that one for the run.

If a method is renamed, pydantic-ai no longer calls ours, and rejects such toolsets with an explicit error. If an
attribute is renamed, the first run fails and names it.

**By-products.** A replay would lose the effects of a body besides its result.

* ``_durable_run_context`` creates the context that a body gets, where usage and events are collected. If renamed: after
  a replay, usage that a sub-agent added in a wrapped tool is missing; events of a wrapped tool are emitted at once.
* ``_event_stream_buffer`` and ``_emit_event`` of a run context receive events. If renamed: as above.
* ``_prepare_event_dispatch`` of a capability is called with such an event, as pydantic-ai does when a tool emits one.
  If renamed: a run with an event handler fails, and names what is missing.
* ``_invalidate_tools_cache`` of an MCP toolset is called when its server announces a change of tools. The client calls
  it on the toolset it was created for, so a copy would keep its ``_cached_tools``. ``_mcp_tool_defs_cache`` of a run
  context holds the tools that the run has discovered. If renamed: a run keeps the tools that it discovered first.

**Streams.** A stream that fails midway attaches its partial response to the error, through
``mark_streamed_before_failing`` and ``streamed_before_failing`` of ``pydantic_ai.durable_exec._utils``. The attachment
must survive the journal. If renamed: another model may continue after a partially delivered stream.

**Models.** A run knows models by name. ``_bind_models`` adds the models of ``ModelFallback`` to ``_extra_models``, and
``_override_model`` of an agent holds the model that overrides its own. If renamed: these models must be passed in
``models=``; without ``_extra_models``, no agent can be bound.

**Local operations.** Instructions, system prompts and hooks are awaited in the handler, where they may use a database,
so inside a durable run they are local operations. For this, ``SystemPromptRunner.run`` of
``pydantic_ai._system_prompt`` and ``_call_func`` of ``pydantic_ai.capabilities.hooks`` are wrapped; outside a durable
run they are unchanged. ``_output_validators`` of an agent tells whether it has output validators, which run as local
operations too. ``_wrap_other_leaf_toolset`` wraps custom toolsets. If renamed: such code runs on the handler loop,
which rejects sockets with an error that points to ``restate_steps.local``.

``tests/agents/test_pydantic_ai.py`` fails when one of these names changes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import weakref
from collections.abc import Awaitable
from types import ModuleType
from typing import Any, Final, TypeVar, cast

from pydantic_ai._system_prompt import SystemPromptRunner
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import hooks
from pydantic_ai.durable_exec import BaseDurabilityCapability
from pydantic_ai.messages import AgentStreamEvent, ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.tools import RunContext
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, WrapperToolset

from restate_steps._app import local
from restate_steps.agents._capabilities import models_to_fall_back_to
from restate_steps.agents._local_callables import LocalToolset, is_custom
from restate_steps.agents._run import current_run

__all__ = [
    "AnnouncedVersion",
    "EngineBase",
    "collect_events",
    "emit_again",
    "forget_tools",
    "has_output_validators",
    "mark_streamed",
    "overriding_model",
    "run_callables_locally",
    "streamed_before",
    "wrap_leaves",
]

AgentDepsT = TypeVar("AgentDepsT")

_CHANGES: Final = "_restate_steps_changes"
_COPIES: Final = "_restate_steps_copies"


def collect_events(ctx: RunContext[Any], into: list[AgentStreamEvent]) -> None:
    """Redirect the events that are emitted on a context to a list, if the context has a stream at all."""
    if getattr(ctx, "_event_stream_buffer", None) is not None:
        ctx._event_stream_buffer = into  # pyright: ignore[reportPrivateUsage]


def emit_again(ctx: RunContext[Any], event: AgentStreamEvent) -> None:
    """Emit, in the run's stream, an event that was emitted in a body."""
    if getattr(ctx, "_event_stream_buffer", None) is None:
        return
    ctx._emit_event(event)  # pyright: ignore[reportPrivateUsage]
    if ctx.root_capability is not None:
        ctx.root_capability._prepare_event_dispatch(ctx, event)  # pyright: ignore[reportPrivateUsage]


class AnnouncedVersion:
    """The version of an MCP toolset's tools: it grows when the server announces a change.

    Args:
        made: The program's own toolset, whose client receives the announcements.
        used: The copy that is used in its place, or the same toolset.
    """

    def __init__(self, made: Any, used: Any) -> None:
        self._counts = cast("dict[str, Any]", vars(made))
        if _CHANGES not in self._counts:
            _count_changes(made, self._counts)
        if used is not made:
            self._counts[_COPIES][id(used)] = used

    @property
    def number(self) -> int:
        """The number of changes that the server has announced."""
        return cast(int, self._counts[_CHANGES])


def _count_changes(made: Any, counts: dict[str, Any]) -> None:
    counts[_CHANGES] = 0
    copies: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
    counts[_COPIES] = copies

    def invalidate() -> None:
        counts[_CHANGES] += 1
        cast(Any, type(made))._invalidate_tools_cache(made)
        for copied in list(copies.values()):
            copied._cached_tools = None

    made._invalidate_tools_cache = invalidate


def forget_tools(ctx: RunContext[Any], toolset_id: str) -> None:
    """Make a run discover the tools of an MCP toolset again."""
    found = cast("dict[str, Any]", getattr(ctx, "_mcp_tool_defs_cache", {}))
    found.pop(toolset_id, None)


def has_output_validators(agent: Any) -> bool:
    """Return whether an agent has output validators, or might have."""
    while isinstance(agent, WrapperAgent):
        agent = cast(Any, agent).wrapped
    return bool(getattr(agent, "_output_validators", True))


def run_callables_locally() -> None:
    """Run instructions, system prompts and functions of ``Hooks`` as local operations inside durable runs.

    Hooks that wrap something, and the methods of the user's own capabilities, run on the handler loop.
    """
    _run_locally(SystemPromptRunner, "run")
    _run_locally(hooks, "_call_func")


def _run_locally(owner: Any, name: str) -> None:
    original: Any = getattr(owner, name, None)
    if original is None or hasattr(original, "runs_locally"):
        return

    @functools.wraps(original)
    async def run(*args: Any, **kwargs: Any) -> Any:
        call: Any = original(*args, **kwargs)
        # A hook that wraps part of the run calls back into it, and that part belongs on the handler loop.
        if current_run() is None or "handler" in kwargs:
            return await call
        return await local(cast("Awaitable[Any]", call))

    cast(Any, run).runs_locally = True
    setattr(owner, name, run)


def streamed_before(error: BaseException) -> ModelResponse | None:
    """Return the partial response of the stream that an error ended, if there is one."""
    found: Any = getattr(_marks(), "streamed_before_failing", None)
    return found(error) if found is not None else None


def mark_streamed(error: BaseException, response: ModelResponse) -> None:
    """Attach to an error the partial response of the stream that it ended."""
    mark: Any = getattr(_marks(), "mark_streamed_before_failing", None)
    if mark is not None:
        mark(error, response)


def _marks() -> ModuleType | None:
    with contextlib.suppress(ImportError):
        return importlib.import_module("pydantic_ai.durable_exec._utils")
    return None


def overriding_model(agent: Any) -> Model[Any] | None:
    """Return the model that currently overrides an agent's own, if it is an instance."""
    while isinstance(agent, WrapperAgent):
        agent = cast(Any, agent).wrapped
    override: Any = getattr(agent, "_override_model", None)
    found: Any = override.get() if override is not None else None
    model: Model[Any] | str | None = found.value if found is not None else None
    return None if isinstance(model, str) else model


def wrap_leaves(
    engine: BaseDurabilityCapability[AgentDepsT], toolset: AbstractToolset[AgentDepsT]
) -> AbstractToolset[AgentDepsT]:
    """Wrap the leaves of a toolset as an agent's toolsets are wrapped."""
    return toolset.visit_and_replace(engine._wrap_and_register_leaf)  # pyright: ignore[reportPrivateUsage]


class _ExitsLocally(WrapperToolset[AgentDepsT]):
    async def __aexit__(self, *args: Any) -> bool | None:
        return await local(super().__aexit__(*args))


@functools.cache
def _exiting_locally(wrapper: type[WrapperToolset[Any]]) -> type[WrapperToolset[Any]]:
    return type(wrapper.__name__, (_ExitsLocally, wrapper), {})


class EngineBase(BaseDurabilityCapability[AgentDepsT]):
    """A durability capability for agents whose toolsets have no id."""

    _bound: dict[int, AbstractToolset[Any]]
    """Every bound leaf, by ``id()``. The reference keeps the ``id()`` from being reused."""
    _wrappers: dict[int, AbstractToolset[Any]]
    """The replacements of leaves without an id, by ``id()``."""
    _is_checked = False
    """True while a run's toolsets, already checked, are being wrapped: the wrappers must not be checked again."""
    _tool_lists: dict[str, AnnouncedVersion]
    """The version of the tools of each MCP toolset, by its id."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._bound, self._wrappers, self._tool_lists = {}, {}, {}

    def _bind_to_agent(self, agent: Any) -> None:
        # The capability has just been copied for this agent.
        self._bound, self._wrappers, self._tool_lists = {}, {}, {}
        super()._bind_to_agent(agent)

    def _bind_models(self, agent: Any) -> None:
        own = agent.model
        found = models_to_fall_back_to(agent.root_capability, self._extra_models)
        taken = [own, *self._extra_models.values()]
        more = {name: model for name, model in found.items() if not any(model is known for known in taken)}
        self._extra_models = {**more, **self._extra_models}
        super()._bind_models(agent)

    def _wrap_and_register_leaf(self, ts: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        self._bound[id(ts)] = ts
        if (explicit := ts._explicit_id) is not None:  # pyright: ignore[reportPrivateUsage]
            self._count_changes(explicit, ts, ts)
            return super()._wrap_and_register_leaf(ts)
        if id(ts) not in self._wrappers:
            self._wrappers[id(ts)] = self._wrap_unnamed(ts)
        return self._wrappers[id(ts)]

    def _wrap_leaf_toolset(self, ts: AbstractToolset[AgentDepsT]) -> WrapperToolset[AgentDepsT] | None:
        wrapper = super()._wrap_leaf_toolset(ts)
        if wrapper is not None and not isinstance(wrapper, (_ExitsLocally, LocalToolset)):
            # A step enters the toolset on the server's event loop, so it exits there too.
            cast(Any, wrapper).__class__ = _exiting_locally(type(wrapper))
        return wrapper

    def _wrap_other_leaf_toolset(self, ts: AbstractToolset[AgentDepsT]) -> WrapperToolset[AgentDepsT] | None:
        return LocalToolset(ts) if is_custom(ts) else super()._wrap_other_leaf_toolset(ts)

    def _wrap_unnamed(self, ts: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        named = cast(Any, copy.copy(ts))
        name = f"unnamed-{len(self._wrappers) + 1}"
        try:
            named.id = name
        except AttributeError:
            # MCP toolsets have a setter for the id; function and dynamic toolsets do not. Other kinds ignore the id.
            named._id = name
        self._count_changes(name, ts, named)
        wrapper = super()._wrap_and_register_leaf(named)
        return ts if wrapper is named else wrapper

    def _count_changes(self, name: str, made: Any, used: Any) -> None:
        if hasattr(cast(Any, type(made)), "_invalidate_tools_cache"):
            self._tool_lists[name] = AnnouncedVersion(made, used)

    def _is_rebuilt(self, ts: AbstractToolset[AgentDepsT]) -> bool:
        """Return whether a toolset replaces a bound one: a capability may rebuild its toolsets for each run."""
        explicit = ts._explicit_id  # pyright: ignore[reportPrivateUsage]
        known = self._toolsets_by_id.get(explicit) if explicit is not None else None
        return known is not None and known.wrapped is not ts and type(known.wrapped) is type(ts)

    def _reject_runtime_toolsets(self, toolset: AbstractToolset[AgentDepsT]) -> None:
        if self._is_checked:
            return
        nothing: AbstractToolset[AgentDepsT] = CombinedToolset([])
        super()._reject_runtime_toolsets(
            toolset.visit_and_replace(lambda ts: nothing if id(ts) in self._bound or self._is_rebuilt(ts) else ts)
        )

    def get_wrapper_toolset(self, toolset: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT] | None:
        """Replace the agent's toolsets with their durable wrappers.

        Args:
            toolset: The combined toolset of a run.

        Returns:
            The toolset with the wrappers, or None if nothing is wrapped.
        """
        self._reject_runtime_toolsets(toolset)
        if self.in_durable_context:
            toolset = toolset.visit_and_replace(
                lambda ts: (self._wrap_leaf_toolset(ts) or ts) if self._is_rebuilt(ts) else ts
            )
        self._is_checked = True
        try:
            named = super().get_wrapper_toolset(toolset)
        finally:
            self._is_checked = False
        if not self._wrappers:
            return named
        return (named or toolset).visit_and_replace(lambda ts: self._wrappers.get(id(ts), ts))

    def _durable_run_context(self, ctx: RunContext[AgentDepsT]) -> RunContext[AgentDepsT]:
        return self.context_in_body(super()._durable_run_context(ctx))

    def context_in_body(self, ctx: RunContext[AgentDepsT]) -> RunContext[AgentDepsT]:
        """Return the context for the body of a unit, given a copy of the run's."""
        return ctx
