"""Every error this package raises, in one tree.

Two questions decide where an error belongs:

* Could a redeploy fix it? Then it must be *retryable*: the invocation stays open, and fixed code continues it. These
  errors are ordinary exceptions.
* Would a retry repeat a side effect that has happened? Then it must be *terminal*: it also derives from
  :class:`restate.TerminalError`, and Restate ends the step immediately.
"""

from __future__ import annotations

from restate import TerminalError

from restate_steps._public import publish

__all__ = [
    "ConcurrencyError",
    "ContextInStepError",
    "DecodeError",
    "EncodeError",
    "NotAwaitedError",
    "ResultTooLargeError",
    "ServerError",
    "StepDefinitionError",
    "StepResultError",
    "StepTimeoutError",
    "StepsError",
    "TerminalEncodeError",
]


class StepsError(Exception):
    """Base class of this package's errors."""


class StepDefinitionError(StepsError, TypeError):
    """A decorator or an option was used in a way that cannot work.

    It is raised at decoration. For a ``timeout`` that is longer than the handler allows, it is raised at the call, and
    Restate pauses the invocation.
    """


class EncodeError(StepsError, ValueError):
    """A value cannot be encoded, or would come back changed when decoded.

    Attributes:
        type_name: The type the value was encoded as, written as in source code.
        path: The place inside the value, for example ``$.items[3].price``.
        reason: The problem at that place.
        fix: The way to fix it.
    """

    def __init__(self, type_name: str, path: str, reason: str, fix: str) -> None:
        super().__init__(f"cannot encode a value as {type_name}: at {path}: {reason}. {fix}")
        self.type_name = type_name
        self.path = path
        self.reason = reason
        self.fix = fix


class NotAwaitedError(StepsError, TypeError):
    """A step or another coroutine was used without ``await``; retryable, so that a redeploy can fix it.

    Attributes:
        what: The call that was not awaited, for example ``step 'quote'``.
        fix: The way to fix it.
        path: The place of the coroutine in a value that was to be recorded, for example ``$.price``; empty elsewhere.
    """

    def __init__(self, what: str, fix: str, path: str = "") -> None:
        place = f" at {path}" if path else ""
        super().__init__(f"{what} was not awaited, so its result is missing{place}. {fix}")
        self.what = what
        self.fix = fix
        self.path = path


class DecodeError(StepsError, ValueError):
    """Recorded bytes do not fit the type they are decoded as; retryable, so that a redeploy can fix it.

    Attributes:
        type_name: The type the bytes were decoded as.
        reason: The mismatch, and its place inside the value.
        where: The value that was decoded, for example ``the journaled result of step 'charge'``.
    """

    def __init__(self, type_name: str, reason: str, *, where: str = "a recorded value") -> None:
        super().__init__(
            f"{where} does not fit {type_name}: {reason}. The recorded value is intact: deploy code whose type "
            "accepts it (for example with a default for a new field), and the invocation continues from here."
        )
        self.type_name = type_name
        self.reason = reason
        self.where = where


class StepResultError(StepsError, TerminalError):
    """A step ran, but its result cannot be journaled; terminal, because a retry would run the step again.

    Attributes:
        step: The name of the step.
    """

    def __init__(self, step: str, detail: str) -> None:
        TerminalError.__init__(self, f"step {step!r} ran, but its result was not recorded: {detail}", status_code=500)
        self.step = step


class TerminalEncodeError(StepsError, TerminalError):
    """A value passed to a serde cannot be encoded; terminal, because the serde may belong to a ``ctx.run``.

    The body of a ``ctx.run`` runs before its result is encoded, so a retry would run it again. Where a retry would
    repeat nothing, use ``serde(T, terminal=False)``: it raises :class:`EncodeError`, which a redeploy can fix.

    Attributes:
        error: The error, which says what is wrong and where.
    """

    def __init__(self, error: EncodeError) -> None:
        TerminalError.__init__(self, str(error), status_code=500)
        self.error = error


class ResultTooLargeError(StepResultError):
    """A step's encoded result is larger than the server accepts.

    Attributes:
        size: The size of the encoded result, in bytes.
        limit: The largest size that the server accepts, in bytes.
    """

    def __init__(self, step: str, size: int, limit: int) -> None:
        super().__init__(
            step,
            f"it has {size:,} bytes encoded, and the server accepts at most {limit:,}. Store the data elsewhere "
            "(object storage, a database) and return a reference to it, or split the step.",
        )
        self.size = size
        self.limit = limit


class StepTimeoutError(StepsError, TimeoutError):
    """One attempt of a step took longer than its ``timeout``; the step's retry policy decides what happens next.

    Attributes:
        step: The name of the step.
        seconds: The timeout, in seconds.
    """

    def __init__(self, step: str, seconds: float) -> None:
        super().__init__(f"step {step!r} did not finish within its timeout of {seconds:g} s")
        self.step = step
        self.seconds = seconds


class ContextInStepError(StepsError, RuntimeError):
    """The Restate context was used inside a step's body, where its commands could not be journaled."""

    def __init__(self, operation: str, step: str) -> None:
        super().__init__(
            f"{operation} was called inside the body of step {step!r}. A step is one journal entry, so it cannot "
            "contain others. Move the call out of the step into the handler, or remove @durable_step from the "
            "function and make the parts of it that do I/O steps of their own."
        )
        self.operation = operation
        self.step = step


class ConcurrencyError(StepsError, RuntimeError):
    """Concurrent code was refused, because a replay could not repeat its order.

    The attempt fails even if the handler catches the error. Restate pauses the invocation if only a code change helps,
    and retries it otherwise.
    """


class ServerError(StepsError):
    """A restate-server could not be found, fetched, started or reached."""


publish("restate_steps", globals(), __all__)
