"""Codecs that store pydantic-ai's values in the journal."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Final

from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.usage import RequestUsage

from restate_steps.codec import Codec, JsonCodec
from restate_steps.codec._adapters import adapter_for
from restate_steps.context import running_step
from restate_steps.errors import EncodeError, NotAwaitedError, StepResultError

__all__ = ["ENCODED", "UNIT_CODEC", "VALUES", "encoding_failure"]

VALUES: Final = JsonCodec(round_trip=False)
"""A codec for pydantic-ai's own types, which includes computed fields.

pydantic-ai expects to find the values that it computes: the media type and identifier of a file, and the digests that
vouch for a tool's files. The default codec omits computed fields.
"""


_USAGE_DEFAULTS: Final = {field.name: getattr(RequestUsage(), field.name) for field in dataclasses.fields(RequestUsage)}

_WITHOUT_NULLS: Final = frozenset({TextPart, ThinkingPart, ToolCallPart})


def _dump_response(response: ModelResponse) -> bytes:
    """Encode a response without its defaults, which decoding restores; they are two thirds of a short response.

    Every field that is omitted as None has None as its default, which a test checks field by field. Free-form data,
    such as the arguments of a tool call, is written unchanged. In parts of other types None may have a meaning.
    """
    if all(type(part) in _WITHOUT_NULLS for part in response.parts):
        usage = response.usage
        unused = {name for name, default in _USAGE_DEFAULTS.items() if getattr(usage, name) == default}
        # On failure, encode again below, for an error that says what is wrong and where.
        with contextlib.suppress(Exception):
            return adapter_for(ModelResponse).to_json(
                response, by_alias=True, exclude_none=True, exclude={"usage": unused}, warnings="error"
            )
    return VALUES.dump(ModelResponse, response)


class _UnitCodec:
    """A codec that encodes to JSON bytes in one pass, which the step then records unchanged.

    Implements ``pydantic_ai.durable_exec.DurabilityCodec``.
    """

    def dump(self, tp: Any, value: Any) -> bytes:
        """Encode a step's result, inside the step.

        Raises:
            StepResultError: The result cannot be encoded. Terminal: a retry would repeat the step and fail again.
        """
        try:
            return _dump_response(value) if type(value) is ModelResponse else VALUES.dump(tp, value)
        except EncodeError as error:
            raise encoding_failure(error) from error

    def load(self, tp: Any, payload: Any) -> Any:
        """Decode a result.

        Raises:
            DecodeError: The result does not fit the type. Retryable, so that a redeploy can fix it.
        """
        return VALUES.load(tp, payload)


UNIT_CODEC: Final = _UnitCodec()
"""The engine's codec."""


def encoding_failure(error: Exception) -> Exception:
    """Return the terminal error for a result that cannot be encoded; a forgotten await stays retryable."""
    if isinstance(error, NotAwaitedError):
        return error
    info = running_step.get()
    return StepResultError(info.name if info is not None else "(outside a handler)", str(error))


class _Encoded:
    """A codec that passes through bytes that are already encoded."""

    def dump(self, type: Any, value: bytes) -> bytes:
        return value

    def load(self, type: Any, data: bytes) -> bytes:
        return data


ENCODED: Final[Codec] = _Encoded()
"""The codec of steps whose body encodes its result itself."""
