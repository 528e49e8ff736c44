"""The engine underneath: each durable unit of pydantic-ai is one step of ours.

1. A run has at most one step under way. pydantic-ai lists the tools of several toolsets at once, in asyncio tasks of
   its own; they take turns here, in the order in which they come.
2. A turn that ends because the SDK suspends or fails the attempt is not handed on: nobody may issue another command.
   Whoever waits for it is cancelled by pydantic-ai, which is on its way out too.
3. A unit's result is encoded inside the step, so that a value that cannot be encoded fails there, and only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Literal, TypeAlias, cast

from pydantic_ai.durable_exec import (
    DurableOperationId,
    JournalCallableOperationBackend,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.toolsets import ToolsetTool

from restate_steps.agents._codec import ENCODED
from restate_steps.agents._errors import ending_the_step
from restate_steps.errors import StepDefinitionError
from restate_steps.options import StepOptions
from restate_steps.step import run_step

__all__ = ["TOOL_METADATA_KEY", "StepBackend", "UnitOptions", "one_unit_at_a_time"]

TOOL_METADATA_KEY: Final = "restate"
"""The key of a tool's metadata that says how its steps are run."""

UnitOptions: TypeAlias = Mapping[str, Any]
"""Options of a unit's step, by the names that ``durable_step`` gives them."""

_TOOL_OPTIONS: Final = ("name", "retry", "timeout")
_turn: ContextVar[asyncio.Lock | None] = ContextVar("restate_steps_agents_turn", default=None)


@contextmanager
def one_unit_at_a_time() -> Generator[None]:
    """Let the units of one run take turns."""
    token = _turn.set(asyncio.Lock())
    try:
        yield
    finally:
        _turn.reset(token)


class StepBackend(JournalCallableOperationBackend[UnitOptions]):
    """Runs pydantic-ai's durable units as steps.

    Args:
        agent_name: The first part of each step's name.
        default_model_id: The id of the agent's own model, which is left out of the names.
        wraps_tools: Whether the calls of function tools are steps unless they opt out.
    """

    def __init__(self, *, agent_name: str, default_model_id: str | None, wraps_tools: bool) -> None:
        self._wraps_tools = wraps_tools
        nothing: UnitOptions = {}
        super().__init__(
            agent_name=agent_name,
            default_model_id=default_model_id,
            config=RoleBasedOperationConfig(
                model=nothing, event=nothing, capability=nothing, tool=nothing, resolve_tool=self._options_of
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
            operation_id: What the unit is; unused, its name says it.
            name: The step's name, unless the options have another.
            body: Runs the unit and returns its encoded result.
            cache_key: For engines that find results by their inputs; unused, the journal is a sequence.
            config: Options of the step.

        Returns:
            The encoded result, from the journal.
        """
        options = dict(config)
        step_name = str(options.pop("name", name))

        async def unit() -> bytes:
            with ending_the_step():
                return cast(bytes, await body())

        unit.__name__ = step_name
        # A name is given as a function, because text could be taken for a template.
        run = partial(run_step, unit, name=lambda: step_name, returns=bytes, codec=ENCODED, verify=False, **options)
        turn = _turn.get()
        if turn is None:
            return await run()
        await turn.acquire()
        try:
            result = await run()
        except (Exception, asyncio.CancelledError):
            turn.release()
            raise
        turn.release()
        return result

    def _options_of(
        self, operation_id: DurableOperationId, tool: object | None, tool_name: str
    ) -> UnitOptions | Literal[False]:
        if tool is None:
            return {}
        found: object = (cast("ToolsetTool[Any]", tool).tool_def.metadata or {}).get(TOOL_METADATA_KEY)
        if found is False:
            return False
        options = _checked(found, tool_name) if found is not None else {}
        kind = getattr(operation_id, "toolset_kind", None)
        if not self._wraps_tools and kind != "mcp":
            return False
        if not isinstance(operation_id, ToolsetCallToolId):
            options.pop("name", None)
        return options


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
