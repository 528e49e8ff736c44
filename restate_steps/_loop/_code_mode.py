"""pydantic-ai-harness's code mode in handler code.

Its sandbox, Monty, runs in its own thread and wakes the event loop from there, which a replay could not repeat. For
Temporal, whose event loop has the same limit, the harness calls the sandbox through a blocking portal. This module
makes it do so on the handler loop, too. This needs one private name, the function ``in_temporal_workflow`` of
``_monty_exec`` and of the modules that import it. If it is renamed, code mode in a handler is refused as a deadlock.

While the sandbox runs code between two tool calls, it blocks the server's event loop.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Final

from restate_steps._loop._asyncio import get_running_loop_or_none
from restate_steps._loop._loop import HandlerLoop

__all__ = ["adapt_code_mode"]

_MODULES: Final = ("_monty_exec", "code_mode._toolset", "dynamic_workflow._toolset")
_NAME: Final = "in_temporal_workflow"


def adapt_code_mode() -> None:
    """Make code mode call its sandbox through a portal on the handler loop, if code mode is imported."""
    if "pydantic_ai_harness._monty_exec" not in sys.modules:
        return
    for name in _MODULES:
        module: Any = sys.modules.get(f"pydantic_ai_harness.{name}")
        original: Any = getattr(module, _NAME, None)
        if original is not None and not hasattr(original, "knows_handlers"):
            setattr(module, _NAME, _knowing_handlers(original))


def _knowing_handlers(original: Any) -> Any:
    @functools.wraps(original)
    def in_workflow() -> bool:
        return isinstance(get_running_loop_or_none(), HandlerLoop) or bool(original())

    changed: Any = in_workflow
    changed.knows_handlers = True
    return changed
