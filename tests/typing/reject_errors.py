"""Wrong uses of the error tree, each with the error that mypy must report on its line."""

from __future__ import annotations

from restate import TerminalError

from restate_steps import errors


def retryable_is_not_terminal(error: errors.DecodeError) -> TerminalError:
    """What a redeploy can fix must not pass as something that ends the invocation."""
    return error  # error: return-value


def texts_are_built_from_data() -> None:
    """A ready-made text is no argument of an error that builds its own."""
    errors.ResultTooLargeError("step is too large")  # error: call-arg
    errors.StepTimeoutError("charge", "30 s")  # error: arg-type
    errors.DecodeError("Order", "no field", "charge")  # error: call-arg
