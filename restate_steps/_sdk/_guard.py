"""Check commands before they enter the journal, and fail attempts."""

from __future__ import annotations

import dataclasses
import functools
import random
import struct
import traceback
from collections.abc import Callable
from typing import Any, Final, cast

from restate.server_context import ServerInvocationContext
from restate.vm import Failure, UnresolvedFuture, VMWrapper

__all__ = ["fail_attempt", "failure_of", "guard_commands"]

_FAILURE: Final = "restate_steps_failure"


class _GuardedVM(VMWrapper):
    """The SDK's VM wrapper with a check before each command; assigned as the class of an existing instance."""

    _check: Callable[[str], None]

    # The methods that every step calls are written out, because forwarding *args takes as long as the check.
    def sys_run(self, name: str) -> Any:
        self._check("sys_run")
        return super().sys_run(name)

    def do_progress(self, unresolved_future: UnresolvedFuture) -> Any:
        self._check("do_progress")
        return super().do_progress(unresolved_future)


def _guarded(name: str) -> Callable[..., Any]:
    original = getattr(VMWrapper, name)

    @functools.wraps(original)
    def command(self: _GuardedVM, *args: Any, **kwargs: Any) -> Any:
        self._check(name)  # pyright: ignore[reportPrivateUsage]
        return original(self, *args, **kwargs)

    return command


# Only the SDK itself reads the input and ends the attempt.
_UNGUARDED: Final = frozenset({"sys_input", "sys_end", "sys_write_output_success", "sys_write_output_failure"})

for _name in sorted(dir(VMWrapper)):
    if (_name.startswith("sys_") and _name not in _UNGUARDED | vars(_GuardedVM).keys()) or _name == "attach_invocation":
        setattr(_GuardedVM, _name, _guarded(_name))


def _with_sendable_text(name: str) -> Callable[..., Any]:
    original = getattr(VMWrapper, name)

    @functools.wraps(original)
    def report(self: _GuardedVM, *args: Any, **kwargs: Any) -> Any:
        return original(self, *map(_sendable, args), **{key: _sendable(value) for key, value in kwargs.items()})

    return report


def _sendable(value: Any) -> Any:
    """Escape lone surrogates in the texts of a failure.

    A file name of another encoding has them. The VM raises an error for them, and the attempt would never end.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Failure):
        return dataclasses.replace(value, message=_sendable(value.message), stacktrace=_sendable(value.stacktrace))
    return value


_REPORTS: Final = (
    "notify_error",
    "sys_write_output_failure",
    "propose_run_completion_failure",
    "propose_run_completion_transient",
    "propose_run_completion_transient_with_delay_override",
)

for _name in _REPORTS:
    setattr(_GuardedVM, _name, _with_sendable_text(_name))


class _GuardedRandom(random.Random):
    """The context's random numbers with a check before each: a replay skips bodies, and the numbers they draw."""

    _check: Callable[[str], None]

    def random(self) -> float:
        self._check("random")
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._check("random")
        return super().getrandbits(k)


def guard_commands(context: ServerInvocationContext, check: Callable[[str], None]) -> None:
    """Call ``check(operation)`` before every command that the invocation issues; ``check`` raises to refuse it."""
    guarded: list[tuple[object, type, type]] = [
        (context.vm, VMWrapper, _GuardedVM),
        (getattr(context, "random_instance", None), random.Random, _GuardedRandom),
    ]
    for thing, plain, guard in guarded:
        if type(thing) is plain:
            thing.__class__ = guard
            cast(Any, thing)._check = check


_DEPTH: Final = 30
"""The number of innermost frames in the traceback of a failed attempt."""

_FRAME: Final = struct.Struct(">HHI")
_ERROR: Final = 0x0002
_PAUSE: Final = b"\x48\x01"
"""Field 9 of the service protocol's error message, ``behavior``, with the value 1: pause instead of retrying."""


def fail_attempt(context: ServerInvocationContext, error: BaseException, *, pause: bool = False) -> None:
    """Fail the attempt with a retryable error, even if the handler catches the error.

    After that, the VM accepts no output, so a handler that catches the error cannot return a result. Only the first
    error of an attempt counts.

    Args:
        context: The SDK's context.
        error: The error.
        pause: Whether Restate should pause the invocation at once, until it is resumed, because a retry of the same
            code would fail as well. restate-server 1.7 does so; a server that does not know of it retries.
    """
    if failure_of(context) is not None:
        return
    vars(context)[_FAILURE] = error
    vm = context.vm
    before = bytes(vm.take_output() or b"") if pause else b""
    vm.notify_error(f"{type(error).__name__}: {error}", _traceback_of(error))
    if not pause:
        return
    _give_back(vm, before + _with_pause(bytes(vm.take_output() or b"")))


def failure_of(context: ServerInvocationContext) -> BaseException | None:
    """Return the error with which :func:`fail_attempt` has failed the attempt, or None."""
    return cast("BaseException | None", vars(context).get(_FAILURE))


def _traceback_of(error: BaseException) -> str:
    """Return the traceback of an error, or of the code that is about to raise it."""
    if error.__traceback__ is not None:
        return "".join(traceback.format_exception(error))
    stack = "".join(traceback.format_list(traceback.extract_stack(limit=_DEPTH)[:-2]))
    return f"Traceback (most recent call last):\n{stack}{type(error).__name__}: {error}\n"


def _with_pause(output: bytes) -> bytes:
    """Add the request to pause to the VM's output, if that is an error message."""
    if len(output) < _FRAME.size:
        return output
    message_type, flags, size = _FRAME.unpack_from(output)
    if message_type != _ERROR or _FRAME.size + size != len(output):
        return output
    return _FRAME.pack(message_type, flags, size + len(_PAUSE)) + output[_FRAME.size :] + _PAUSE


def _give_back(vm: VMWrapper, output: bytes) -> None:
    """Make output that was taken from the VM the next output that the SDK takes."""

    def take_output() -> bytes:
        vars(vm).pop("take_output", None)
        return output

    if output:
        cast(Any, vm).take_output = take_output
