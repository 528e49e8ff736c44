"""The operation backend: runs each of pydantic-ai's durable units as one step.

1. A unit encodes its result inside the step, so a value that cannot be encoded fails there, and only once.
2. The by-products of a body are recorded with its result, and applied in the handler; see ``_byproducts``.
3. Errors keep their types across the journal; see ``_failures``.
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
from restate_steps.step import DurableStep, as_unit, durable_step

__all__ = ["TOOL_METADATA_KEY", "OperationBackend", "RetryPolicies", "UnitOptions", "run_unit"]

TOOL_METADATA_KEY: Final = "restate"
"""The key in a tool's metadata that configures its steps."""

UnitOptions: TypeAlias = Mapping[str, Any]
"""Options of a unit's step, named as in ``durable_step``."""

_TOOL_OPTIONS: Final = ("name", "retry", "timeout")
_DEFAULT_POLICY: Final = RetryPolicy()


@dataclass(frozen=True, kw_only=True)
class RetryPolicies:
    """The retry policies of each kind of step.

    Attributes:
        model: For model requests.
        tool: For function tools, for dynamic toolsets and their discovery, and for operations of capabilities.
        mcp: For requests to MCP servers.
        event: For deliveries to the event handler.
    """

    model: RetryPolicy = _DEFAULT_POLICY
    tool: RetryPolicy = _DEFAULT_POLICY
    mcp: RetryPolicy = _DEFAULT_POLICY
    event: RetryPolicy = _DEFAULT_POLICY


class OperationBackend(JournalCallableOperationBackend[UnitOptions]):
    """The backend that runs pydantic-ai's durable units as steps.

    Args:
        agent_name: The first part of each step's name.
        default_model_id: The id of the agent's own model, which step names omit.
        wraps_tools: Run calls of function tools as steps, unless a tool opts out.
        policies: The retry policies of the steps.
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
            operation_id: The kind of unit.
            name: The step's name, unless the options set another.
            body: Runs the unit and returns its encoded result.
            cache_key: The unit's inputs. Only the name of an MCP tool is used: the journal is ordered and needs no key.
            config: Options of the step.

        Returns:
            The encoded result, from the journal.
        """
        options = dict(config)
        if isinstance(operation_id, ToolsetCallToolId) and operation_id.toolset_kind == "mcp":
            # pydantic-ai's name does not include the tool, and several may run at once.
            name = f"{name}:{cache_key[0]}"
        step_name = str(options.pop("name", name))
        run = current_run()
        if run is not None and run.request_timeout is not None and isinstance(operation_id, ModelRequestId):
            model_name = operation_id.model_name or operation_id.model_id or "default"
            body = functools.partial(within_request_timeout, body, run.request_timeout, model_name)
            options["time_limit"] = run.request_timeout
        return await run_unit(cast("Callable[[], Awaitable[bytes]]", body), step_name, **options)

    def _options_of(
        self, operation_id: DurableOperationId, tool: object | None, tool_name: str
    ) -> UnitOptions | Literal[False]:
        toolset_kind = getattr(operation_id, "toolset_kind", "mcp")
        options: dict[str, Any] = {"retry": self._policies.mcp if toolset_kind == "mcp" else self._policies.tool}
        if tool is None:
            return options
        found: object = (cast("ToolsetTool[Any]", tool).tool_def.metadata or {}).get(TOOL_METADATA_KEY)
        if found is False:
            return False
        options.update(_checked(found, tool_name) if found is not None else {})
        if not self._wraps_tools and toolset_kind != "mcp":
            return False
        if not isinstance(operation_id, ToolsetCallToolId):
            options.pop("name", None)
        return options


async def run_unit(
    body: Callable[[], Awaitable[bytes]],
    name: str,
    *,
    retry: RetryPolicy = _DEFAULT_POLICY,
    timeout: timedelta | float | None = None,
    time_limit: float | None = None,
) -> bytes:
    """Run a function that returns an encoded result as a step.

    Args:
        body: The function; runs inside the step.
        name: The step's name.
        retry: The step's retry policy.
        timeout: The time limit of one attempt.
        time_limit: The time limit that the body has by itself, in seconds.

    Returns:
        The encoded result, from the journal.

    Raises:
        Exception: The pydantic-ai exception that the body raised, or a ``TerminalError``.
    """

    async def unit() -> bytes:
        collecting = ByProductCollector()
        collector.set(collecting)
        with terminal_in_step(retry.max_retry_interval):
            return collecting.pack(await body())

    try:
        recorded = await as_unit(_step_with(retry, timeout), name, time_limit)(name, unit)
    except TerminalError as failure:
        original = rebuild_error(failure)
        if original is None:
            raise
        raise original  # noqa: B904 - rebuild_error sets its cause
    result, byproducts = unpack(recorded)
    if byproducts is not None and (ctx := unit_context.get()) is not None:
        _apply(byproducts, ctx)
    return result


@functools.lru_cache(maxsize=128)
def _step_with(
    retry: RetryPolicy, timeout: timedelta | float | None
) -> DurableStep[[str, Callable[[], Awaitable[bytes]]], bytes]:
    # Creating a step takes longer than calling it. It depends on its options alone, so replays may share it.
    options = durable_step(name=_name_of, returns=bytes, codec=ENCODED, verify=False, retry=retry, timeout=timeout)
    return options(_call)


async def _call(name: str, unit: Callable[[], Awaitable[bytes]]) -> bytes:
    return await unit()


def _name_of(name: str, unit: Callable[[], Awaitable[bytes]]) -> str:
    return name


def _apply(byproducts: ByProducts, ctx: RunContext[Any]) -> None:
    """Apply a body's by-products in the handler, where every replay applies them again."""
    if byproducts.usage is not None:
        ctx.usage.incr(byproducts.usage)
    for toolset_id in byproducts.tools_changed:
        forget_tools(ctx, toolset_id)
    for event in byproducts.events:
        emit_again(ctx, event)


def _checked(found: object, tool_name: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise UserError(
            f"the metadata of tool {tool_name!r} has {TOOL_METADATA_KEY!r}: {found!r}, which is not False or a dict. "
            f"Use False to run the tool in the handler, or a dict with any of: {', '.join(_TOOL_OPTIONS)}."
        )
    options = dict(cast("Mapping[str, Any]", found))
    if unknown := [key for key in options if key not in _TOOL_OPTIONS]:
        raise UserError(
            f"the metadata of tool {tool_name!r} has the unknown option {unknown[0]!r} under {TOOL_METADATA_KEY!r}. "
            f"The options of a tool's step are: {', '.join(_TOOL_OPTIONS)}."
        )
    try:
        StepOptions(**options)
    except StepDefinitionError as error:
        raise UserError(
            f"the metadata of tool {tool_name!r} is invalid under {TOOL_METADATA_KEY!r}: {error}"
        ) from error
    return options
