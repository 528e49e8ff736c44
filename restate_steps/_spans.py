"""OpenTelemetry spans of steps.

1. A body that runs has one span, which ends with it. A replayed step has none, because its body does not run.
2. Its parent is the current span of the code that awaits the step, or else the server's span of the attempt.
3. Without a tracer provider, no span is made, and opentelemetry is not imported.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from restate import TerminalError

from restate_steps import __version__, _sdk

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["StepSpan", "current_tracer"]

# The first three are those of Restate's own integration for TypeScript.
INVOCATION_ID: Final = "restate.invocation.id"
TARGET: Final = "restate.invocation.target"
NAME: Final = "restate.run.name"
ATTEMPT: Final = "restate.step.attempt"
MAX_ATTEMPTS: Final = "restate.step.max_attempts"
RESULT_SIZE: Final = "restate.step.result.size"
TERMINAL: Final = "restate.step.terminal"
ERROR_TYPE: Final = "error.type"

_sdk.note_starts()


def current_tracer() -> Tracer | None:
    """Return this package's tracer, or None if no tracer provider is set."""
    # Code that sets a provider has imported the API.
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return None
    return _tracer_of(provider)


@functools.lru_cache(maxsize=1)
def _tracer_of(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("restate_steps", __version__)


class StepSpan:
    """The span of one step of an attempt, if its body runs. Create it right before the step's command.

    Args:
        tracer: The tracer.
        context: The SDK's context.
        title: The span's name, which has no arguments in it, so that spans of one step can be grouped.
        name: The step's name in the journal.
        max_attempts: The limit of the step's retry policy.
    """

    __slots__ = ("_attempt", "_context", "_max_attempts", "_name", "_title", "_tracer")

    def __init__(
        self, tracer: Tracer, context: _sdk.ServerInvocationContext, title: str, name: str, max_attempts: int | None
    ) -> None:
        self._tracer = tracer
        self._context = context
        self._title = title
        self._name = name
        self._max_attempts = max_attempts
        # A command that is not in the journal yet has not failed yet.
        failed = _sdk.retry_count(context) if _sdk.is_replaying(context) else 0
        self._attempt = None if failed is None else failed + 1

    @property
    def _is_last(self) -> bool:
        """True if the retry policy allows no further attempt."""
        return None not in (self._attempt, self._max_attempts) and self._attempt == self._max_attempts

    async def around(self, body: Coroutine[Any, Any, bytes]) -> bytes:
        """Await the step's body, which returns the encoded result, in the span."""
        attributes: dict[str, str | int] = {
            INVOCATION_ID: _sdk.invocation_id(self._context),
            TARGET: _sdk.invocation_target(self._context),
            NAME: self._name,
        }
        if self._attempt is not None:
            attributes[ATTEMPT] = self._attempt
        if self._max_attempts is not None:
            attributes[MAX_ATTEMPTS] = self._max_attempts
        with self._tracer.start_as_current_span(
            self._title,
            _parent(self._context),
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                data = await body
            except BaseException as error:
                _record_failure(span, error, is_last=self._is_last)
                raise
            span.set_attribute(RESULT_SIZE, len(data))
            return data


def _parent(context: _sdk.ServerInvocationContext) -> Context | None:
    """Return the context of the server's span; None if the code that awaits the step has a span of its own."""
    from opentelemetry import propagate, trace

    if trace.get_current_span().get_span_context().is_valid:
        return None
    return propagate.extract(context.request().attempt_headers)


def _record_failure(span: Span, error: BaseException, *, is_last: bool) -> None:
    from opentelemetry.trace import StatusCode

    # A body's exception becomes a terminal error when the step converts it; the original says more.
    cause = error.__cause__ if type(error) is TerminalError else None
    shown = error if cause is None else cause
    span.set_attribute(ERROR_TYPE, _type_name(shown))
    if isinstance(shown, (asyncio.CancelledError, GeneratorExit)):
        span.set_status(StatusCode.ERROR, "the attempt ended before the step")
        return
    span.set_attribute(TERMINAL, is_last or isinstance(error, TerminalError))
    span.record_exception(shown)
    span.set_status(StatusCode.ERROR, f"{type(shown).__name__}: {shown}")


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
