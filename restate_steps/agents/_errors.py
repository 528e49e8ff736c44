"""Which errors of a run end the invocation, and which are worth another attempt.

* Inside a step, whatever is raised is tried again by Restate, without end if nobody set a limit. So what can never
  succeed has to become terminal there: a request that the provider rejects, a mistake in the program.
* In the handler's own code an error of the run is a function of what the journal holds, so every attempt would meet it
  again. It becomes terminal there and stays what it is for the caller's ``except``: Restate looks along the causes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from pydantic_ai.exceptions import AgentRunError, ModelHTTPError, ModelRequestRejectedError, UserError
from restate import TerminalError

from restate_steps.context import current_invocation
from restate_steps.errors import ContextInStepError, StepDefinitionError

__all__ = ["ending_the_invocation", "ending_the_step"]

_WORTH_ANOTHER_ATTEMPT: Final = frozenset({408, 409, 425, 429})


@contextmanager
def ending_the_step() -> Generator[None]:
    """Make errors terminal that would meet a step's every attempt."""
    try:
        yield
    except ModelHTTPError as error:
        if not _is_rejection(error.status_code):
            raise
        raise TerminalError(_describe(error), status_code=error.status_code) from error
    except (ModelRequestRejectedError, UserError, ContextInStepError, StepDefinitionError) as error:
        raise TerminalError(_describe(error)) from error


@contextmanager
def ending_the_invocation() -> Generator[None]:
    """Let errors of a run end the invocation if the handler does not catch them, and keep their type."""
    if current_invocation() is None:
        yield
        return
    try:
        yield
    except (AgentRunError, UserError) as error:
        last: BaseException = error
        while not isinstance(last, TerminalError) and last.__cause__ is not None:
            last = last.__cause__
        if not isinstance(last, TerminalError):
            last.__cause__ = TerminalError(_describe(error))
        raise


def _is_rejection(status: int) -> bool:
    return 400 <= status < 500 and status not in _WORTH_ANOTHER_ATTEMPT


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
