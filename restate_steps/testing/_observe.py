"""Observe attempts: which bodies run, what the handler asks of the VM, and how long its sleeps are.

This module uses two private names of restate-sdk:

* ``restate.server.ServerInvocationContext`` is the class of every handler's context. :func:`allow_observers` replaces
  it by a subclass, for the attempts of the testing kit only. If it is missing, the simulator raises an error.
* ``VMWrapper.vm`` is the compiled VM. It is wrapped for observers of commands, so that a replay can report which
  command the handler issued, and where. If it is missing, recorded journals cannot be replayed.
"""

from __future__ import annotations

import contextvars
import importlib
import inspect
from datetime import timedelta
from typing import Any, Final, cast

from restate.server_context import ServerInvocationContext

from restate_steps._sdk import IN_THREAD

__all__ = ["AttemptObserver", "CommandObserver", "allow_observers", "observing"]


class AttemptObserver:
    """Observes an attempt, and decides when bodies start. The methods do nothing, unless a subclass overrides them."""

    def run_requested(self, handle: int, name: str) -> None:
        """Note that the handler issued a step, now or in an earlier attempt."""

    def delay_requested(self, milliseconds: int) -> None:
        """Note that the handler issued a sleep or a delayed call."""

    def awakeable_made(self, awakeable_id: str) -> None:
        """Note that the handler made an awakeable, now or in an earlier attempt."""

    def call_requested(self, handle: int, name: str) -> None:
        """Note that the handler calls another handler, whose result has this handle."""

    def result_read(self, handle: int) -> None:
        """Note that the handler reads the result of this handle."""

    async def body_starts(self, handle: int, in_thread: bool) -> None:
        """Wait until a body may run; ``in_thread`` is True if all of it runs in a thread, which cannot be cancelled."""

    def body_ended(self, handle: int) -> None:
        """Note that a body has returned or failed, and that the VM has its result."""


class CommandObserver(AttemptObserver):
    """Observes the handler's calls to the VM as well: its commands and its waits."""

    def asked(self, operation: str, arguments: tuple[Any, ...]) -> None:
        """Note that the current task is about to call a method of the VM, named ``operation``."""

    def refused(self, operation: str, arguments: tuple[Any, ...], error: Exception) -> None:
        """Note that a call to the VM has failed."""


observing: Final[contextvars.ContextVar[tuple[AttemptObserver, ...]]] = contextvars.ContextVar("observing", default=())
"""The observers of the current attempt, in every task of the attempt."""


class _WatchedVM:
    """A wrapper of the native VM that reports calls to observers."""

    def __init__(self, vm: Any, observers: list[CommandObserver]) -> None:
        self._vm, self._observers = vm, observers

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._vm, name)
        if not name.startswith("sys_") and name not in ("attach_invocation", "do_progress", "take_notification"):
            return original

        def ask(*arguments: Any) -> Any:
            for observer in self._observers:
                observer.asked(name, arguments)
            try:
                return original(*arguments)
            except Exception as error:
                for observer in self._observers:
                    observer.refused(name, arguments, error)
                raise

        return ask


class _ObservedContext(ServerInvocationContext):
    """The SDK's context, reporting to observers what the messages do not contain.

    They lack which body a handle belongs to, when a body starts, and how long a sleep lasts: the VM sends only its
    end, by the real clock.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._observers = observing.get()
        of_commands = [each for each in self._observers if isinstance(each, CommandObserver)]
        if of_commands:
            cast(Any, self.vm).vm = _WatchedVM(cast(Any, self.vm).vm, of_commands)

    def run(self, name: str, *args: Any, **options: Any) -> Any:
        future = super().run(name, *args, **options)
        for observer in self._observers:
            observer.run_requested(cast(Any, future).handle, name)
        return future

    def run_typed(self, name: str, /, *args: Any, **options: Any) -> Any:
        future = super().run_typed(name, *args, **options)
        for observer in self._observers:
            observer.run_requested(cast(Any, future).handle, name)
        return future

    def sleep(self, delta: timedelta, name: str | None = None) -> Any:
        for observer in self._observers:
            observer.delay_requested(int(delta.total_seconds() * 1000))
        return super().sleep(delta, name)

    def awakeable(self, *args: Any, **options: Any) -> Any:
        awakeable = super().awakeable(*args, **options)
        for observer in self._observers:
            observer.awakeable_made(awakeable[0])
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
            for observer in self._observers:
                observer.delay_requested(int(send_delay.total_seconds() * 1000))
        call = super().do_raw_call(
            service, handler, input_param, input_serde, output_serde, key, send_delay, *rest, **options
        )
        if (handle := getattr(call, "handle", None)) is not None:
            for observer in self._observers:
                observer.call_requested(handle, f"{service}/{handler}")
        return call

    async def must_take_notification(self, handle: int) -> Any:
        for observer in self._observers:
            observer.result_read(handle)
        return await super().must_take_notification(handle)  # type: ignore[no-untyped-call]

    async def create_run_coroutine(self, handle: int, action: Any, *args: Any, **options: Any) -> None:
        marked = hasattr(getattr(action, "func", action), IN_THREAD)
        for observer in self._observers:
            await observer.body_starts(handle, marked or not inspect.iscoroutinefunction(action))
        try:
            await super().create_run_coroutine(handle, action, *args, **options)
        finally:
            for observer in self._observers:
                observer.body_ended(handle)


def _make_context(*args: Any, **options: Any) -> ServerInvocationContext:
    make = _ObservedContext if observing.get() else ServerInvocationContext
    return make(*args, **options)


def allow_observers() -> None:
    """Allow attempts to be observed from now on; attempts without an observer are not affected."""
    server = importlib.import_module("restate.server")
    if not hasattr(server, "ServerInvocationContext"):
        raise RuntimeError(
            "restate.server has no ServerInvocationContext in the installed restate-sdk, so handlers cannot be "
            "observed. Install a restate-sdk version that this release of restate-steps was tested with."
        )
    cast(Any, server).ServerInvocationContext = _make_context
