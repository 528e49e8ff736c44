"""The event loop of handlers: plain asyncio in an order that the journal decides."""

from ._cancellation import undo
from ._driver import Driver
from ._endings import again, ends_the_invocation, terminal_cause
from ._execution import Execution
from ._frames import describe, frames_of, user_line
from ._inspect import frames_above, handler_tasks
from ._local import LocalContext, running_operation
from ._loop import EXECUTION, HandlerLoop
from ._task import HandlerTask
from ._waits import CANCELLED, Cancelled
from ._watchdog import watchdog

__all__ = [
    "CANCELLED",
    "EXECUTION",
    "Cancelled",
    "Driver",
    "Execution",
    "HandlerLoop",
    "HandlerTask",
    "LocalContext",
    "again",
    "describe",
    "ends_the_invocation",
    "frames_above",
    "frames_of",
    "handler_tasks",
    "running_operation",
    "terminal_cause",
    "undo",
    "user_line",
    "watchdog",
]
