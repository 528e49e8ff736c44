"""Classify the errors that end a handler."""

from __future__ import annotations

from typing import Any, cast

from restate import SdkInternalBaseException, TerminalError
from restate.exceptions import RetryableError

__all__ = ["again", "causes_of", "ends_the_invocation", "terminal_cause"]


def again(error: BaseException) -> BaseException:
    """Return a copy of an exception, to be raised in another place.

    An exception that is raised in several places gets a ``__context__`` that leads back to itself, and code that
    follows it, such as :class:`contextlib.AsyncExitStack`, never ends.
    """
    copied = type(error).__new__(type(error), *error.args)
    copied.args = error.args
    vars(copied).update(vars(error))
    copied.__cause__ = error.__cause__
    return copied


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an error and its causes; break a cycle among them, which the SDK would follow forever."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        if any(cause is each for each in chain):
            chain[-1].__cause__ = None
        else:
            chain.append(cause)
    return chain


def terminal_cause(error: BaseException) -> BaseException | None:
    """Return the cause by which an error that leaves the handler ends the invocation; None if Restate retries it.

    The SDK follows the causes, and the first that is terminal or retryable decides. If there is none, a group of
    terminal errors is terminal.
    """
    chain = causes_of(error)
    for each in chain:
        if isinstance(each, TerminalError | RetryableError | SdkInternalBaseException):
            return each if isinstance(each, TerminalError) else None
    return next((each for each in chain if _is_terminal_group(each)), None)


def ends_the_invocation(error: BaseException) -> bool:
    """Return whether Restate ends the invocation with an error that leaves the handler, instead of retrying."""
    return terminal_cause(error) is not None


def _is_terminal_group(error: Any) -> bool:
    return isinstance(error, BaseExceptionGroup) and all(map(ends_the_invocation, cast(Any, error).exceptions))
