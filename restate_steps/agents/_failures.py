"""Classify agent errors and preserve their types across the journal, on the first run and on every replay.

* Restate retries whatever a step raises. So errors that would fail every attempt become terminal inside the step, such
  as a request that the provider rejects, or a programming error.
* The journal stores a failure's text and code, and a terminal error's metadata. The metadata has pydantic-ai's own
  exceptions in full. The handler rebuilds them, so ``ModelFallback`` and the caller's ``except`` see them. If Restate
  retried an error up to the policy's limit, only its text is left, so the text includes the exception.
* In the handler's own code, an error of a run depends only on the journal, so every attempt would raise it again. It
  becomes terminal but keeps its type for the caller's ``except``: Restate looks for a terminal error among its causes.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, cast

import pydantic_ai.exceptions as exceptions
from pydantic_ai.exceptions import (
    AgentRunError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelServerError,
    ModelUnavailableError,
    UserError,
)
from pydantic_ai.messages import ModelResponse
from pydantic_core import to_jsonable_python
from restate import SdkInternalBaseException, TerminalError
from restate.exceptions import RetryableError

from restate_steps.agents._codec import VALUES
from restate_steps.agents._pydantic_ai import mark_streamed, streamed_before
from restate_steps.context import current_invocation
from restate_steps.errors import ContextInStepError, StepDefinitionError

__all__ = ["is_cancellation", "rebuild_error", "terminal_cause", "terminal_in_handler", "terminal_in_step"]

_TRANSIENT_STATUSES: Final = frozenset({408, 409, 425, 429})
_METADATA: Final = "restate-steps-error"
_MARK: Final = " [restate-steps-error: "
_CANCELLED: Final = 409


@contextmanager
def terminal_in_step(longest_delay: timedelta | None) -> Generator[None]:
    """Make permanent errors terminal; encode transient ones so they can be rebuilt.

    Args:
        longest_delay: The maximum delay before the next attempt, even if the provider asks for a longer one.
    """
    try:
        yield
    except (ContextInStepError, StepDefinitionError) as error:
        raise TerminalError(_describe(error)) from error
    except (AgentRunError, UserError, FallbackExceptionGroup) as error:
        if not _is_transient(error):
            metadata = {_METADATA: json.dumps(_encode(error))}
            raise TerminalError(_describe(error), status_code=_status(error), metadata=metadata) from error
        text = f"{_describe(error)}{_MARK}{json.dumps(_encode(error))}]"
        delay = getattr(error, "retry_after", None)
        if delay is None:
            raise _TransientError(text) from error
        after = timedelta(seconds=min(float(delay), timedelta.max.total_seconds() / 2))
        raise RetryableError(
            text, status_code=_status(error), retry_after=after if longest_delay is None else min(after, longest_delay)
        ) from error


class _TransientError(Exception):
    """A transient error. Restate shows its ``repr``, and stores it once the attempts are used up."""

    def __repr__(self) -> str:
        return str(self)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, FallbackExceptionGroup):
        return any(_is_transient(one) for one in cast("tuple[Exception, ...]", error.exceptions))
    if isinstance(error, (ModelQuotaExceededError, ModelRequestRejectedError)):
        # The category that the provider's adapter chose takes precedence over the status.
        return False
    if isinstance(error, (ModelUnavailableError, ModelRateLimitError, ModelServerError)):
        return True
    if isinstance(error, ModelHTTPError):
        return error.status_code >= 500 or error.status_code in _TRANSIENT_STATUSES or error.status_code < 400
    return isinstance(error, ModelAPIError)


def _status(error: BaseException) -> int:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and 400 <= status < 600 else 500


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# --- across the journal -----------------------------------------------------------------------------------------


def rebuild_error(failure: TerminalError) -> Exception | None:
    """Rebuild pydantic-ai's exception from a journaled failure; return None for any other failure.

    Its cause is a terminal error with a message for the handler's caller, in case nothing catches it.
    """
    found = (failure.metadata or {}).get(_METADATA)
    if found is None and failure.message.endswith("]") and _MARK in failure.message:
        found = failure.message.rpartition(_MARK)[2][:-1]
    if found is None:
        return None
    try:
        original = _decode(json.loads(found))
    except (ValueError, LookupError, TypeError):
        # Written by another version. The failure itself is terminal too, and says what happened.
        return None
    original.__cause__ = TerminalError(_describe(original), status_code=_status(original))
    return original


def _encode(error: BaseException) -> dict[str, Any]:
    if isinstance(error, FallbackExceptionGroup):
        inner = cast("tuple[Exception, ...]", error.exceptions)
        return {"group": error.message, "errors": [_encode(one) for one in inner]}
    if not isinstance(error, (AgentRunError, UserError)):
        return {"class": RuntimeError.__name__, "args": [_describe(error)]}
    # Store a class of pydantic-ai: a subclass from elsewhere may be gone when the error is rebuilt.
    known = next(cls for cls in type(error).__mro__ if cls.__module__ == exceptions.__name__)
    state = {key: value for key, value in vars(error).items() if not key.startswith("_")}
    encoded = {
        "class": known.__name__,
        "http": isinstance(error, ModelHTTPError),
        "args": to_jsonable_python(list(error.args), fallback=str),
        "state": to_jsonable_python(state, fallback=str),
    }
    if (streamed := streamed_before(error)) is not None:
        encoded["streamed"] = json.loads(VALUES.dump(ModelResponse, streamed))
    return encoded


def _decode(data: dict[str, Any]) -> Exception:
    if "group" in data:
        return FallbackExceptionGroup(data["group"], [_decode(one) for one in data["errors"]])
    if data["class"] == RuntimeError.__name__:
        return RuntimeError(*data["args"])
    # Skip __init__: its effects are already in the stored arguments and state.
    cls = _class(data["class"], http=data["http"])
    error = cls.__new__(cls, *data["args"])
    error.args = tuple(data["args"])
    vars(error).update(data["state"])
    if "streamed" in data:
        mark_streamed(error, VALUES.load(ModelResponse, json.dumps(data["streamed"]).encode()))
    return error


def _class(name: str, *, http: bool) -> type[Exception]:
    """Return a pydantic-ai exception class by its name.

    Errors with both a category and an HTTP status have their own class, with the same name as the category's.
    """
    for cls in _subclasses(AgentRunError, UserError):
        if cls.__name__ == name and cls.__module__ == exceptions.__name__ and issubclass(cls, ModelHTTPError) == http:
            return cls
    raise LookupError(name)


def _subclasses(*classes: type[Exception]) -> Iterator[type[Exception]]:
    for cls in classes:
        yield cls
        yield from _subclasses(*cls.__subclasses__())


# --- in the handler ---------------------------------------------------------------------------------------------


def terminal_cause(error: BaseException) -> TerminalError | None:
    """Return the first terminal error among an exception and its causes, where Restate looks too."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, TerminalError):
        found = found.__cause__
    return found


def is_cancellation(error: BaseException) -> bool:
    """Return whether an exception means that the invocation was cancelled."""
    failure = terminal_cause(error)
    return failure is not None and failure.status_code == _CANCELLED and failure.message == "cancelled"


@contextmanager
def terminal_in_handler() -> Generator[None]:
    """Make errors of a run terminal, so that they end the invocation if uncaught, but keep their types."""
    if current_invocation() is None:
        yield
        return
    try:
        yield
    except (AgentRunError, UserError, FallbackExceptionGroup) as error:
        if terminal_cause(error) is None:
            last: BaseException = error
            while last.__cause__ is not None:
                last = last.__cause__
            last.__cause__ = TerminalError(_describe(error), status_code=_status(error))
        raise
    except BaseExceptionGroup as group:
        # pydantic-ai waits in task groups, which must not hide Restate's control flow or a terminal error.
        alone = _single(group)
        if alone is None:
            raise
        raise alone from alone.__cause__


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return the error that matters in a group: Restate's control flow if present, or else a terminal error."""
    found = list(_flat(group))
    for error_type in (SdkInternalBaseException, TerminalError):
        for error in found:
            if isinstance(error, error_type) or (error_type is TerminalError and terminal_cause(error) is not None):
                return error
    return None


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flat(cast("BaseExceptionGroup[BaseException]", error))
        else:
            yield error
