"""Read the SDK's context of a handler, and attach this package's state to it."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any, Final

from restate.extensions import current_context
from restate.server_context import ServerInvocationContext

from restate_steps._limits import BodyLimit
from restate_steps.errors import ConcurrencyError

__all__ = [
    "AWAIT_HOOK",
    "ServerInvocationContext",
    "ambient_context",
    "check_supported",
    "forget_input",
    "invocation_id",
    "keep_limit",
    "keep_state",
    "limit_of_handler",
    "loop_of",
    "note_explicit_recovery",
    "state_of",
    "uses_explicit_recovery",
]

AWAIT_HOOK: Final = "create_poll_or_cancel_coroutine"
"""The method through which every await of the SDK goes."""

_STATE: Final = "restate_steps"
_EXPLICIT_RECOVERY: Final = "_restate_steps_explicit_recovery"
_LIMIT: Final = "_restate_steps_limit"


def ambient_context() -> ServerInvocationContext | None:
    """Return the context of the handler that is running, or None outside a handler."""
    try:
        context = current_context()
    except LookupError:
        return None
    return context if isinstance(context, ServerInvocationContext) else None


def invocation_id(context: ServerInvocationContext) -> str:
    """Return the id of the invocation, without building the SDK's ``Request`` object."""
    return context.invocation.invocation_id


def loop_of(context: ServerInvocationContext) -> asyncio.AbstractEventLoop:
    """Return the event loop that the handler runs in."""
    receiving: asyncio.Task[Any] | None = getattr(context.receive, "_task", None)
    return receiving.get_loop() if receiving is not None else asyncio.get_running_loop()


def uses_explicit_recovery(context: ServerInvocationContext) -> bool:
    """Return whether the handler runs in the SDK's preview mode that repeats ``ctx.run`` on every attempt."""
    if getattr(context.handler, "explicit_recovery", False):
        return True
    if (mark := getattr(context.handler, _EXPLICIT_RECOVERY, None)) is not None:
        return bool(mark)
    # The SDK passes the mark of a whole service to the VM, where it cannot be read.
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_globals.get("__name__") == "restate.server" and (service := frame.f_locals.get("service")):
            return bool(getattr(service, "explicit_recovery", False))
        frame = frame.f_back
    return False


def note_explicit_recovery(handler: Any, service: Any) -> None:
    """Record whether a handler's service uses explicit recovery, so that :func:`uses_explicit_recovery` can tell."""
    setattr(handler, _EXPLICIT_RECOVERY, bool(getattr(service, "explicit_recovery", False)))


def keep_limit(handler: Any, limit: BodyLimit) -> None:
    """Record the time that a handler allows the body of a step."""
    setattr(handler, _LIMIT, limit)


def limit_of_handler(context: ServerInvocationContext) -> BodyLimit | None:
    """Return the time that the running handler allows the body of a step; None if it is unknown."""
    return getattr(context.handler, _LIMIT, None)


def check_supported() -> None:
    """Refuse the handler loop if the SDK lacks the method through which every await goes.

    Raises:
        ConcurrencyError: The installed restate-sdk lacks it.
    """
    if not hasattr(ServerInvocationContext, AWAIT_HOOK):
        raise ConcurrencyError(
            f"the installed restate-sdk has no ServerInvocationContext.{AWAIT_HOOK}, so the tasks of a handler cannot "
            "be put in order. Install a restate-sdk version that this release of restate-steps was tested with."
        )


def forget_input(context: ServerInvocationContext) -> None:
    """Let the SDK end the response without waiting until the server has closed the request.

    The SDK swallows the cancellation of a request and then waits, forever if the ASGI server no longer reads.
    """
    context.receive.notify_shutdown()


def state_of(context: ServerInvocationContext) -> Any:
    """Return the state that :func:`keep_state` has stored, or None."""
    return vars(context).get(_STATE)


def keep_state(context: ServerInvocationContext, state: Any) -> None:
    """Store this package's state of the invocation; the SDK calls its ``__close__`` when the handler has ended.

    It is stored on the context itself. The SDK's extension data is gone when the handler's context managers exit, and a
    new state would give their steps the idempotency keys of the handler's first ones.
    """
    vars(context)[_STATE] = state
    context.extension_data[_STATE] = state
