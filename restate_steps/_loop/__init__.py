"""The event loop of handlers: plain asyncio in an order that the journal determines."""

from restate_steps._loop._cancellation import begin_undoing
from restate_steps._loop._driver import Driver
from restate_steps._loop._endings import again, ends_the_invocation, terminal_cause
from restate_steps._loop._execution import Execution
from restate_steps._loop._frames import describe, frames_of, user_line
from restate_steps._loop._inspect import frames_above, handler_tasks
from restate_steps._loop._local import LocalContext, running_operation
from restate_steps._loop._loop import EXECUTION, HandlerLoop
from restate_steps._loop._task import HandlerTask
from restate_steps._loop._waits import CANCELLED, Cancelled
from restate_steps._loop._watchdog import only_logs, watchdog

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
    "begin_undoing",
    "describe",
    "ends_the_invocation",
    "frames_above",
    "frames_of",
    "handler_tasks",
    "only_logs",
    "running_operation",
    "terminal_cause",
    "user_line",
    "watchdog",
]
