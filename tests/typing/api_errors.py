"""The types of the error tree; checked by mypy and pyright, never run."""

from __future__ import annotations

from typing import assert_type

from restate import TerminalError

from restate_steps import errors


def attributes(
    encode: errors.EncodeError,
    decode: errors.DecodeError,
    large: errors.ResultTooLargeError,
    late: errors.StepTimeoutError,
    context: errors.ContextInStepError,
) -> None:
    """What a handler of an error can read from it."""
    assert_type(encode.path, str)
    assert_type(decode.where, str)
    assert_type(large.step, str)
    assert_type(large.size, int)
    assert_type(late.seconds, float)
    assert_type(context.operation, str)


def one_tree() -> None:
    """Each is a `StepsError`, and also what its meaning says."""
    tree: list[type[errors.StepsError]] = [errors.EncodeError, errors.DecodeError, errors.ServerError]
    terminal: type[TerminalError] = errors.StepResultError
    usage: type[TypeError] = errors.StepDefinitionError
    timeout: type[TimeoutError] = errors.StepTimeoutError
    print(tree, terminal, usage, timeout)
