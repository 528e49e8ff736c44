"""Waits for something durable, and the port that completes them."""

from __future__ import annotations

import asyncio
import contextvars
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Protocol

from restate import TerminalError

from restate_steps._loop._task import HandlerTask

if TYPE_CHECKING:
    from restate_steps._loop._local import LocalOperation

__all__ = ["CANCELLED", "Cancelled", "DurableWait", "Port", "Wait"]

CANCELLED: Final = 409
"""The status code of the error for the invocation's cancellation, as in the SDK."""


class Cancelled(TerminalError):
    """The invocation was cancelled; raised in code that waits."""

    def __init__(self) -> None:
        super().__init__("cancelled", CANCELLED)


class Wait(Protocol):
    """A durable wait.

    Attributes:
        source: The future to ask the VM for.
        context: The context variables for a step body that starts because of this wait.
    """

    @property
    def source(self) -> Any: ...
    @property
    def context(self) -> Context: ...

    def complete(self) -> None:
        """Resume the code that waits."""
        ...


class Port(Protocol):
    """The interface through which an execution reaches the server."""

    def add(self, wait: Any) -> None:
        """Add a wait to ask the VM for."""
        ...

    def discard(self, wait: Any) -> None:
        """Remove a wait."""
        ...

    def __bool__(self) -> bool:
        """Return whether there are any waits."""
        ...

    def waits(self) -> list[Any]:
        """Return the waits, in the order in which they were added."""
        ...

    def ask(self) -> list[Any] | None:
        """Advance to the next completion, and return the waits that it ends; None if the invocation was cancelled."""
        ...

    def ask_for(self, handle: int) -> bool | None:
        """Return whether a handle is completed, without any other wait; None if the invocation was cancelled."""
        ...

    def sleep(self, seconds: float) -> Any:
        """Begin a durable sleep, and return its durable future."""
        ...

    async def wait(self) -> None:
        """Wait until asking again may return another completion."""
        ...

    async def flush(self) -> None:
        """Send all buffered messages."""
        ...

    def interrupt(self) -> None:
        """Make :meth:`wait` return."""
        ...

    def fail(self, error: BaseException, *, pause: bool = False) -> None:
        """Make the attempt fail, so that Restate retries it, or pauses the invocation."""
        ...


class DurableWait:
    """Code that waits for something durable.

    Attributes:
        future: The future that the code awaits.
        operation: The local operation that the code belongs to, or None.
    """

    __slots__ = ("context", "future", "operation", "source", "task")

    def __init__(
        self,
        source: Any,
        task: HandlerTask | None,
        operation: LocalOperation | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.source = source
        self.task = task
        self.operation = operation
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[None] = asyncio.Future(loop=loop)

    def complete(self) -> None:
        """Resume the code."""
        if self.operation is not None:
            self.end(None)
        elif not self.future.done():
            self.future.set_result(None)

    def end(self, error: BaseException | None) -> None:
        """Resume the code, or raise ``error`` in it."""
        if self.operation is not None:
            self.operation.end_wait()
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            self.future.cancel()
        else:
            self.future.set_exception(error)
