"""The one module that uses private names of pydantic-ai, and why.

pydantic-ai wants an id on every toolset and takes those only that the agent was constructed with, because other engines
register their units before a process takes work. Ours are made when they are needed, and the documented example gives
no id to an MCP server and none to ``@agent.toolset``. So in :class:`EngineBase`

* ``_wrap_and_register_leaf`` gives a toolset without an id (``_explicit_id`` tells a chosen one from a derived one) the
  number of its place: ``unnamed-1``, ``unnamed-2``. A copy gets it, because the same toolset can have another place in
  another agent, and which of the two runs first differs from process to process. ``get_wrapper_toolset``, which is
  public, puts the copy in the toolset's place.
* ``_reject_runtime_toolsets`` sees everything that was bound as known, and what a capability makes anew for each run
  under the id of what was bound (``_toolsets_by_id``). That is wrapped for the run, by ``_wrap_leaf_toolset``.

If a method is renamed, ours is no longer called, and pydantic-ai refuses such toolsets with an error that says so. If
an attribute is, the first run fails, and says which.

What a body leaves behind besides its result is lost on a replay. For that

* ``_durable_run_context`` makes the context that a body gets: there usage and events are collected. Renamed: usage that
  a sub-agent adds in a wrapped tool is missing after a replay, and events of a wrapped tool go out when they come.
* ``_event_stream_buffer`` and ``_emit_event`` of a run context are where events go. Renamed: as above.
* ``_prepare_event_dispatch`` of a capability is called with such an event, as pydantic-ai does when a tool emits one.
  Renamed: a run with an event handler fails, and says which name is missing.
* ``_invalidate_tools_cache`` of an MCP toolset is called when its server says that its tools have changed, on the
  toolset that the client was made for, not on a copy, whose ``_cached_tools`` would stay; and ``_mcp_tool_defs_cache``
  of a run context holds what the run has discovered. Renamed: a run keeps the tools that it discovered first.

What a stream has delivered before it failed is marked on the error, with ``mark_streamed_before_failing`` and
``streamed_before_failing`` of ``pydantic_ai.durable_exec._utils``; the mark has to cross the journal. Renamed: another
model may go on after a stream that has been delivered in part.

Models are known to a run by name. ``_bind_models`` takes those of ``ModelFallback`` into ``_extra_models``, and
``_override_model`` of an agent tells the one that overrides its own. Renamed: they have to be given in ``models=``;
without ``_extra_models`` no agent can be bound.

Instructions, system prompts and hooks are awaited in the handler, where they may talk to a database. They run as local
operations, and so do output validators, of which ``_output_validators`` of an agent tells whether there are any. For
this ``SystemPromptRunner.run`` of ``pydantic_ai._system_prompt`` and ``_call_func`` of
``pydantic_ai.capabilities.hooks`` do so inside a durable run, and everywhere else what they did. Custom toolsets are
wrapped by ``_wrap_other_leaf_toolset``. Renamed: such code runs on the handler's loop, which refuses sockets and names
``restate_steps.local``.

``tests/agents/test_pydantic_ai.py`` fails when one of these names changes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import weakref
from collections.abc import Awaitable, Callable
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
    "EngineBase",
    "collect_events",
    "count_changes",
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
    """Have the events that are emitted on a context go into a list, if they go anywhere."""
    if getattr(ctx, "_event_stream_buffer", None) is not None:
        ctx._event_stream_buffer = into  # pyright: ignore[reportPrivateUsage]


def emit_again(ctx: RunContext[Any], event: AgentStreamEvent) -> None:
    """Let an event that was emitted in a body take its place in the run's stream."""
    if getattr(ctx, "_event_stream_buffer", None) is None:
        return
    ctx._emit_event(event)  # pyright: ignore[reportPrivateUsage]
    if ctx.root_capability is not None:
        ctx.root_capability._prepare_event_dispatch(ctx, event)  # pyright: ignore[reportPrivateUsage]


def count_changes(made: Any, used: Any) -> Callable[[], int]:
    """Count how often the server of an MCP toolset says that its tools have changed.

    Args:
        made: The toolset that was made by the program, whose client hears of it.
        used: The one that is used in its place, or the same.

    Returns:
        What tells how often, so far.
    """
    kept = cast("dict[str, Any]", vars(made))
    if _CHANGES not in kept:
        kept[_CHANGES] = 0
        copies: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        kept[_COPIES] = copies

        def invalidate() -> None:
            kept[_CHANGES] += 1
            cast(Any, type(made))._invalidate_tools_cache(made)
            for copied in list(copies.values()):
                copied._cached_tools = None

        made._invalidate_tools_cache = invalidate
    if used is not made:
        kept[_COPIES][id(used)] = used
    return lambda: cast(int, kept[_CHANGES])


def forget_tools(ctx: RunContext[Any], toolset_id: str) -> None:
    """Have a run discover the tools of an MCP toolset anew."""
    found = cast("dict[str, Any]", getattr(ctx, "_mcp_tool_defs_cache", {}))
    found.pop(toolset_id, None)


def has_output_validators(agent: Any) -> bool:
    """Return whether an agent has output validators, or may have."""
    while isinstance(agent, WrapperAgent):
        agent = cast(Any, agent).wrapped
    return bool(getattr(agent, "_output_validators", True))


def run_callables_locally() -> None:
    """Have instructions, system prompts and hooks run as local operations, where a run of an agent is durable."""
    _run_locally(SystemPromptRunner, "run")
    _run_locally(hooks, "_call_func")


def _run_locally(owner: Any, name: str) -> None:
    original: Any = getattr(owner, name, None)
    if original is None or hasattr(original, "runs_locally"):
        return

    @functools.wraps(original)
    async def run(*args: Any, **kwargs: Any) -> Any:
        call: Any = original(*args, **kwargs)
        # A hook that wraps a part of the run calls back into it, and that part belongs on the handler's loop.
        if current_run() is None or "handler" in kwargs:
            return await call
        return await local(cast("Awaitable[Any]", call))

    cast(Any, run).runs_locally = True
    setattr(owner, name, run)


def streamed_before(error: BaseException) -> ModelResponse | None:
    """Return what a stream delivered before an error ended it, if there was one."""
    found: Any = getattr(_marks(), "streamed_before_failing", None)
    return found(error) if found is not None else None


def mark_streamed(error: BaseException, response: ModelResponse) -> None:
    """Mark an error as having ended a stream that had delivered this."""
    mark: Any = getattr(_marks(), "mark_streamed_before_failing", None)
    if mark is not None:
        mark(error, response)


def _marks() -> ModuleType | None:
    with contextlib.suppress(ImportError):
        return importlib.import_module("pydantic_ai.durable_exec._utils")
    return None


def overriding_model(agent: Any) -> Model[Any] | None:
    """Return the model that overrides an agent's own at the moment."""
    while isinstance(agent, WrapperAgent):
        agent = cast(Any, agent).wrapped
    override: Any = getattr(agent, "_override_model", None)
    found: Any = override.get() if override is not None else None
    model: Model[Any] | str | None = found.value if found is not None else None
    return None if isinstance(model, str) else model


def wrap_leaves(
    engine: BaseDurabilityCapability[AgentDepsT], toolset: AbstractToolset[AgentDepsT]
) -> AbstractToolset[AgentDepsT]:
    """Wrap the toolsets of which a toolset is made as the toolsets of an agent are wrapped."""
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
    """Every leaf that was bound, by its identity; holding it keeps the identity its own."""
    _wrappers: dict[int, AbstractToolset[Any]]
    """What takes the place of leaves without an id."""
    _is_checked = False
    """Whether the toolsets of a run have just been judged; they must not be once more, inside their wrappers."""
    changes: dict[str, Callable[[], int]]
    """How often the server of each MCP toolset has said that its tools have changed, by the toolset's id."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._bound, self._wrappers, self.changes = {}, {}, {}

    def _bind_to_agent(self, agent: Any) -> None:
        # The capability has just been copied for this agent.
        self._bound, self._wrappers, self.changes = {}, {}, {}
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
            self._watch(explicit, ts, ts)
            return super()._wrap_and_register_leaf(ts)
        if id(ts) not in self._wrappers:
            self._wrappers[id(ts)] = self._wrap_unnamed(ts)
        return self._wrappers[id(ts)]

    def _wrap_leaf_toolset(self, ts: AbstractToolset[AgentDepsT]) -> WrapperToolset[AgentDepsT] | None:
        wrapper = super()._wrap_leaf_toolset(ts)
        if wrapper is not None and not isinstance(wrapper, (_ExitsLocally, LocalToolset)):
            # A step has entered it, on the server's loop.
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
            # An MCP toolset has a setter. Function and dynamic toolsets do not; for other kinds it is of no account.
            named._id = name
        self._watch(name, ts, named)
        wrapper = super()._wrap_and_register_leaf(named)
        return ts if wrapper is named else wrapper

    def _watch(self, name: str, made: Any, used: Any) -> None:
        if hasattr(cast(Any, type(made)), "_invalidate_tools_cache"):
            self.changes[name] = count_changes(made, used)

    def _is_made_anew(self, ts: AbstractToolset[AgentDepsT]) -> bool:
        """Whether a toolset stands for one that was bound: a capability may make its own for each run."""
        explicit = ts._explicit_id  # pyright: ignore[reportPrivateUsage]
        known = self._toolsets_by_id.get(explicit) if explicit is not None else None
        return known is not None and known.wrapped is not ts and type(known.wrapped) is type(ts)

    def _reject_runtime_toolsets(self, toolset: AbstractToolset[AgentDepsT]) -> None:
        if self._is_checked:
            return
        nothing: AbstractToolset[AgentDepsT] = CombinedToolset([])
        super()._reject_runtime_toolsets(
            toolset.visit_and_replace(lambda ts: nothing if id(ts) in self._bound or self._is_made_anew(ts) else ts)
        )

    def get_wrapper_toolset(self, toolset: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT] | None:
        """Put the durable wrappers in the place of the agent's toolsets.

        Args:
            toolset: Everything that a run offers to the model.

        Returns:
            The same with the wrappers, or None if nothing is wrapped.
        """
        self._reject_runtime_toolsets(toolset)
        if self.in_durable_context:
            toolset = toolset.visit_and_replace(
                lambda ts: (self._wrap_leaf_toolset(ts) or ts) if self._is_made_anew(ts) else ts
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
        """Change the context, a copy, that the body of a unit gets."""
        return ctx
