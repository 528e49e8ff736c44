"""Errors with which handlers end."""

from __future__ import annotations

from typing import Any

from restate import TerminalError

__all__ = ["again", "ends_the_invocation"]


def again(error: BaseException) -> BaseException:
    """Return a copy of an exception, to be raised in another place.

    The same exception raised in several places gets a context that leads back to itself, and code that follows it, such
    as :class:`contextlib.AsyncExitStack`, never comes to an end.
    """
    copied = type(error).__new__(type(error), *error.args)
    copied.args = error.args
    vars(copied).update(vars(error))
    copied.__cause__ = error.__cause__
    return copied


def ends_the_invocation(error: BaseException) -> bool:
    """Return whether Restate ends the invocation with an error that leaves the handler, instead of retrying."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TerminalError) or (isinstance(seen, BaseExceptionGroup) and _all_terminal(seen)):
            return True
        seen = seen.__cause__
    return False


def _all_terminal(group: Any) -> bool:
    errors: tuple[BaseException, ...] = group.exceptions
    return all(ends_the_invocation(error) for error in errors)
