"""Observe attempts: which bodies run, what the handler asks of the VM, and how long its sleeps are.

Two private names of restate-sdk are used here:

* ``restate.server.ServerInvocationContext`` is the class of every handler's context. :func:`allow_observers` lets the
  testing kit put a subclass in its place, for attempts that it makes itself. Missing: the simulator says so.
* ``VMWrapper.vm`` is the compiled VM; for an observer that asks for it, it is wrapped, so that a replay can say what
  the handler asked for, and where. Missing: recorded journals cannot be replayed.
"""

from __future__ import annotations

import contextvars
import importlib
import inspect
from datetime import timedelta
from typing import Any, Final, Protocol, cast

from restate.server_context import ServerInvocationContext

from restate_steps._sdk import IN_THREAD

__all__ = ["AttemptObserver", "CommandObserver", "allow_observers", "observing"]


class AttemptObserver(Protocol):
    """Observes an attempt, and decides when bodies start."""

    def run_requested(self, handle: int, name: str) -> None:
        """A step was asked for, now or in an earlier attempt."""
        ...

    def delay_requested(self, milliseconds: int) -> None:
        """A sleep, or a call that is to be made later, was asked for."""
        ...

    def awakeable_made(self, awakeable_id: str) -> None:
        """An awakeable was asked for, now or in an earlier attempt."""
        ...

    def call_requested(self, handle: int, name: str) -> None:
        """Another handler is called, and its result has this handle."""
        ...

    def result_read(self, handle: int) -> None:
        """The handler takes the result of this handle."""
        ...

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        """Wait until a body may run; ``in_thread`` says that all of it runs in a thread, which cannot be cancelled."""
        ...

    def body_ended(self, handle: int) -> None:
        """A body has ended, well or badly, and its result was handed to the VM."""
        ...


class CommandObserver(AttemptObserver, Protocol):
    """Observes what the handler asks of the VM as well: its commands and its waits."""

    def asked(self, operation: str, arguments: tuple[Any, ...]) -> None:
        """The VM is about to be asked for something, by the name of its method; seen from the task that asks."""
        ...

    def refused(self, operation: str, arguments: tuple[Any, ...], error: Exception) -> None:
        """The VM has refused what it was asked for."""
        ...


observing: Final[contextvars.ContextVar[AttemptObserver | None]] = contextvars.ContextVar("observing", default=None)
"""The observer of the current attempt, in every task of the attempt."""


class _WatchedVM:
    """The native VM, which also tells an observer what it is asked for."""

    def __init__(self, vm: Any, observer: CommandObserver) -> None:
        self._vm, self._observer = vm, observer

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._vm, name)
        if not name.startswith("sys_") and name not in ("attach_invocation", "do_progress", "take_notification"):
            return original

        def ask(*arguments: Any) -> Any:
            self._observer.asked(name, arguments)
            try:
                return original(*arguments)
            except Exception as error:
                self._observer.refused(name, arguments, error)
                raise

        return ask


class _ObservedContext(ServerInvocationContext):
    """The SDK's context, which also tells an observer what the wire does not say, or says in real time.

    Which body a handle belongs to, when a body starts, and how long a sleep was to last: the VM sends the moment at
    which it ends, by the real clock.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._observer = cast(AttemptObserver, observing.get())
        # `hasattr`, because `isinstance` on a Protocol is slow.
        if hasattr(self._observer, "asked"):
            cast(Any, self.vm).vm = _WatchedVM(cast(Any, self.vm).vm, cast(CommandObserver, self._observer))

    def run(self, name: str, *args: Any, **options: Any) -> Any:
        future = super().run(name, *args, **options)
        self._observer.run_requested(cast(Any, future).handle, name)
        return future

    def run_typed(self, name: str, /, *args: Any, **options: Any) -> Any:
        future = super().run_typed(name, *args, **options)
        self._observer.run_requested(cast(Any, future).handle, name)
        return future

    def sleep(self, delta: timedelta, name: str | None = None) -> Any:
        self._observer.delay_requested(int(delta.total_seconds() * 1000))
        return super().sleep(delta, name)

    def awakeable(self, *args: Any, **options: Any) -> Any:
        awakeable = super().awakeable(*args, **options)
        self._observer.awakeable_made(awakeable[0])
        return awakeable

    def do_raw_call(
        self,
        service: str,
        handler: str,
        input_param: Any,
        input_serde: Any,
        output_serde: Any,
        key: str | None = None,
        send_delay: timedelta | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        if send_delay:
            self._observer.delay_requested(int(send_delay.total_seconds() * 1000))
        call = super().do_raw_call(
            service, handler, input_param, input_serde, output_serde, key, send_delay, *rest, **options
        )
        if (handle := getattr(call, "handle", None)) is not None:
            self._observer.call_requested(handle, f"{service}/{handler}")
        return call

    async def must_take_notification(self, handle: int) -> Any:
        self._observer.result_read(handle)
        return await super().must_take_notification(handle)  # type: ignore[no-untyped-call]

    async def create_run_coroutine(self, handle: int, action: Any, *args: Any, **options: Any) -> None:
        marked = hasattr(getattr(action, "func", action), IN_THREAD)
        await self._observer.body_starts(handle, marked or not inspect.iscoroutinefunction(action))
        try:
            await super().create_run_coroutine(handle, action, *args, **options)
        finally:
            self._observer.body_ended(handle)


def _make_context(*args: Any, **options: Any) -> ServerInvocationContext:
    make = ServerInvocationContext if observing.get() is None else _ObservedContext
    return make(*args, **options)


def allow_observers() -> None:
    """Let attempts be observed from now on; attempts without an observer are made as before."""
    server = importlib.import_module("restate.server")
    if not hasattr(server, "ServerInvocationContext"):
        raise RuntimeError(
            "the installed restate-sdk makes the contexts of handlers elsewhere, so they cannot be observed. Install "
            "a restate-sdk version that this release of restate-steps was tested with."
        )
    cast(Any, server).ServerInvocationContext = _make_context
