"""The engine underneath: each durable unit of pydantic-ai is one step of ours.

1. A unit's result is encoded inside the step, so that a value that cannot be encoded fails there, and only once.
2. What a body leaves behind besides its result is recorded with it, and done in the handler; see ``_byproducts``.
3. Errors cross the journal as what they are; see ``_failures``.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, cast

from pydantic_ai.durable_exec import (
    DurableOperationId,
    JournalCallableOperationBackend,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.tools import RunContext
from pydantic_ai.toolsets import ToolsetTool
from restate import TerminalError

from restate_steps.agents._byproducts import ByProductCollector, ByProducts, collector, unpack
from restate_steps.agents._codec import ENCODED
from restate_steps.agents._failures import rebuild_error, terminal_in_step
from restate_steps.agents._pydantic_ai import emit_again, forget_tools
from restate_steps.agents._run import current_run, unit_context
from restate_steps.agents._timeouts import within_request_timeout
from restate_steps.errors import StepDefinitionError
from restate_steps.options import RetryPolicy, StepOptions
from restate_steps.step import DurableStep, durable_step, with_display_name

__all__ = ["TOOL_METADATA_KEY", "OperationBackend", "RetryPolicies", "UnitOptions", "run_unit"]

TOOL_METADATA_KEY: Final = "restate"
"""The key of a tool's metadata that says how its steps are run."""

UnitOptions: TypeAlias = Mapping[str, Any]
"""Options of a unit's step, by the names that ``durable_step`` gives them."""

_TOOL_OPTIONS: Final = ("name", "retry", "timeout")
_DEFAULT_POLICY: Final = RetryPolicy()


@dataclass(frozen=True, kw_only=True)
class RetryPolicies:
    """How the steps of each kind are retried.

    Attributes:
        model: Requests to the model.
        tool: Calls of function tools and of tools of dynamic toolsets, discovery of the latter, and the like.
        mcp: What is asked of MCP servers.
        event: Deliveries of events to the event handler.
    """

    model: RetryPolicy = _DEFAULT_POLICY
    tool: RetryPolicy = _DEFAULT_POLICY
    mcp: RetryPolicy = _DEFAULT_POLICY
    event: RetryPolicy = _DEFAULT_POLICY


class OperationBackend(JournalCallableOperationBackend[UnitOptions]):
    """Runs pydantic-ai's durable units as steps.

    Args:
        agent_name: The first part of each step's name.
        default_model_id: The id of the agent's own model, which is left out of the names.
        wraps_tools: Whether the calls of function tools are steps unless they opt out.
        policies: How steps are retried.
    """

    def __init__(
        self, *, agent_name: str, default_model_id: str | None, wraps_tools: bool, policies: RetryPolicies
    ) -> None:
        self._wraps_tools = wraps_tools
        self._policies = policies
        super().__init__(
            agent_name=agent_name,
            default_model_id=default_model_id,
            config=RoleBasedOperationConfig(
                model={"retry": policies.model},
                event={"retry": policies.event},
                capability={"retry": policies.tool},
                tool={"retry": policies.tool},
                resolve_tool=self._options_of,
            ),
        )

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: UnitOptions,
    ) -> bytes:
        """Run one unit as a step.

        Args:
            operation_id: What the unit is.
            name: The step's name, unless the options have another.
            body: Runs the unit and returns its encoded result.
            cache_key: The unit's inputs. The journal is a sequence, so only the name of an MCP tool is taken.
            config: Options of the step.

        Returns:
            The encoded result, from the journal.
        """
        options = dict(config)
        if isinstance(operation_id, ToolsetCallToolId) and operation_id.toolset_kind == "mcp":
            # pydantic-ai leaves out which tool it is; several run at once, and a reader of the journal wants to know.
            name = f"{name}:{cache_key[0]}"
        step_name = str(options.pop("name", name))
        run = current_run()
        if run is not None and run.request_timeout is not None and isinstance(operation_id, ModelRequestId):
            model_name = operation_id.model_name or operation_id.model_id or "default"
            body = functools.partial(within_request_timeout, body, run.request_timeout, model_name)
        return await run_unit(cast("Callable[[], Awaitable[bytes]]", body), step_name, **options)

    def _options_of(
        self, operation_id: DurableOperationId, tool: object | None, tool_name: str
    ) -> UnitOptions | Literal[False]:
        kind = getattr(operation_id, "toolset_kind", "mcp")
        options: dict[str, Any] = {"retry": self._policies.mcp if kind == "mcp" else self._policies.tool}
        if tool is None:
            return options
        found: object = (cast("ToolsetTool[Any]", tool).tool_def.metadata or {}).get(TOOL_METADATA_KEY)
        if found is False:
            return False
        options.update(_checked(found, tool_name) if found is not None else {})
        if not self._wraps_tools and kind != "mcp":
            return False
        if not isinstance(operation_id, ToolsetCallToolId):
            options.pop("name", None)
        return options


async def run_unit(
    body: Callable[[], Awaitable[bytes]],
    name: str,
    *,
    retry: RetryPolicy = _DEFAULT_POLICY,
    timeout: timedelta | None = None,
) -> bytes:
    """Run something that returns an encoded result as a step.

    Args:
        body: Runs once, in the step.
        name: The step's name.
        retry: How it is retried.
        timeout: Limit of one attempt.

    Returns:
        The encoded result, from the journal.

    Raises:
        Exception: pydantic-ai's own exception that the body raised, or a ``TerminalError``.
    """

    async def unit() -> bytes:
        collecting = ByProductCollector()
        collector.set(collecting)
        with terminal_in_step(retry.max_retry_interval):
            return collecting.pack(await body())

    try:
        recorded = await with_display_name(_step_with(retry, timeout), name)(name, unit)
    except TerminalError as failure:
        original = rebuild_error(failure)
        if original is None:
            raise
        raise original  # noqa: B904 - its cause is made for it
    result, carried = unpack(recorded)
    if carried is not None and (ctx := unit_context.get()) is not None:
        _do_in_handler(carried, ctx)
    return result


@functools.lru_cache(maxsize=128)
def _step_with(
    retry: RetryPolicy, timeout: timedelta | None
) -> DurableStep[[str, Callable[[], Awaitable[bytes]]], bytes]:
    # To make one takes longer than to call it. It is a function of its options alone, so replays may share it.
    options = durable_step(name=_name_of, returns=bytes, codec=ENCODED, verify=False, retry=retry, timeout=timeout)
    return options(_call)


async def _call(name: str, unit: Callable[[], Awaitable[bytes]]) -> bytes:
    return await unit()


def _name_of(name: str, unit: Callable[[], Awaitable[bytes]]) -> str:
    return name


def _do_in_handler(carried: ByProducts, ctx: RunContext[Any]) -> None:
    """Do what a body left to be done where it is done on every replay."""
    if carried.usage is not None:
        ctx.usage.incr(carried.usage)
    for toolset_id in carried.tools_changed:
        forget_tools(ctx, toolset_id)
    for event in carried.events:
        emit_again(ctx, event)


def _checked(found: object, tool_name: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise UserError(
            f"the metadata of tool {tool_name!r} has {TOOL_METADATA_KEY!r}: {found!r}. Give False to leave the tool to "
            f"its own steps, or a dict with any of: {', '.join(_TOOL_OPTIONS)}."
        )
    options = dict(cast("Mapping[str, Any]", found))
    if unknown := [key for key in options if key not in _TOOL_OPTIONS]:
        raise UserError(
            f"the metadata of tool {tool_name!r} has {TOOL_METADATA_KEY!r} with the unknown option {unknown[0]!r}. The "
            f"options of a tool's step are: {', '.join(_TOOL_OPTIONS)}."
        )
    try:
        StepOptions(**options)
    except StepDefinitionError as error:
        raise UserError(f"the metadata of tool {tool_name!r} is wrong under {TOOL_METADATA_KEY!r}: {error}") from error
    return options
