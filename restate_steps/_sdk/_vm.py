"""Poll the SDK's virtual machine (VM), and pass it the server's messages."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import restate.server_context as _server
from restate.exceptions import SdkInternalException, SuspendedException

__all__ = ["hand_over", "native", "progress_of"]

logger = logging.getLogger("restate_steps")

# The SDK's compiled part has no type information.
native: Any = importlib.import_module("restate._internal")


def progress_of(vm: Any, awaited: Any) -> Any:
    """Let the VM advance to the next completion of an awaited future, and return its progress."""
    try:
        progress = vm.do_progress(awaited)
    except native.VMException as error:
        reason, _, details = str(error).partition("\nStacktrace:")
        command = details.rpartition("\nRelated command: ")[2] if details else ""
        # One line an attempt: the server has the stack trace.
        logger.warning("the attempt failed, Restate will retry it: %s%s", reason, f" in {command}" if command else "")
        raise SdkInternalException from error
    if isinstance(progress, native.PySuspended):
        raise SuspendedException
    return progress


def hand_over(vm: Any, event: Any) -> None:
    """Pass an event of the connection to the VM."""
    if event.get("type") == "restate.run_completed":
        return
    if event.get("type") == "http.disconnect":
        raise _server.DisconnectedException
    if body := event.get("body"):
        vm.notify_input(body)
    if not event.get("more_body", False):
        vm.notify_input_closed()
