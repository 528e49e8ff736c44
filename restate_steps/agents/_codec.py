"""How pydantic-ai's values become bytes in the journal, and values again."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Final

from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.usage import RequestUsage

from restate_steps.codec import Codec, JsonCodec
from restate_steps.codec._adapters import adapter_for
from restate_steps.context import running_step
from restate_steps.errors import EncodeError, StepResultError

__all__ = ["ENCODED", "UNIT_CODEC", "VALUES", "encoding_failure"]

VALUES: Final = JsonCodec(round_trip=False)
"""Encodes pydantic-ai's own types.

What pydantic-ai derives (the media type and identifier of a file, the digests that vouch for a tool's files) it expects
to find again, so it has to be written, while our own default leaves out whatever is computed.
"""


_USAGE_DEFAULTS: Final = {field.name: getattr(RequestUsage(), field.name) for field in dataclasses.fields(RequestUsage)}

_WITHOUT_NULLS: Final = frozenset({TextPart, ThinkingPart, ToolCallPart})


def _dump_response(response: ModelResponse) -> bytes:
    """Encode a response without what decoding fills in, which is two thirds of a short one.

    What is None there is None by default (a test goes through the fields); the arguments of a tool call, and whatever
    else is free-form, are written as they are. Parts of other types may hold a None that means something.
    """
    if all(type(part) in _WITHOUT_NULLS for part in response.parts):
        usage = response.usage
        unused = {name for name, default in _USAGE_DEFAULTS.items() if getattr(usage, name) == default}
        # What fails is encoded once more, for an error that says what is wrong, and where.
        with contextlib.suppress(Exception):
            return adapter_for(ModelResponse).to_json(
                response, by_alias=True, exclude_none=True, exclude={"usage": unused}, warnings="error"
            )
    return VALUES.dump(ModelResponse, response)


class _UnitCodec:
    """Encodes as JSON in one pass to bytes, so that the step records what it is given.

    Implements ``pydantic_ai.durable_exec.DurabilityCodec``.
    """

    def dump(self, tp: Any, value: Any) -> bytes:
        """Encode a result, inside the step that it is the result of.

        Raises:
            StepResultError: It cannot be encoded; terminal, because another attempt would repeat the step for nothing.
        """
        try:
            return _dump_response(value) if type(value) is ModelResponse else VALUES.dump(tp, value)
        except EncodeError as error:
            raise encoding_failure(error) from error

    def load(self, tp: Any, payload: Any) -> Any:
        """Decode a result.

        Raises:
            DecodeError: It does not fit the type; retryable, so that a redeploy can mend it.
        """
        return VALUES.load(tp, payload)


UNIT_CODEC: Final = _UnitCodec()
"""The codec of the engine."""


def encoding_failure(error: Exception) -> StepResultError:
    """Build the terminal error for a result that cannot be encoded."""
    info = running_step.get()
    return StepResultError(info.name if info is not None else "(outside a handler)", str(error))


class _Encoded:
    """Hands on bytes that are encoded already."""

    def dump(self, type: Any, value: bytes) -> bytes:
        return value

    def load(self, type: Any, data: bytes) -> bytes:
        return data


ENCODED: Final[Codec] = _Encoded()
"""The codec of a step whose body encodes its result itself."""
