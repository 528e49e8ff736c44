"""Strict encoding at the speed of lenient encoding.

Pydantic encodes a value that does not fit its type, and warns. It can raise an error instead, but that
(``warnings="error"``) costs a microsecond a call, twice as much as encoding a small model. The default warning costs
nothing. So this module turns every warning that is attributed to it into an error. Before Python consults any filter,
it looks up ``__warningregistry__`` in the module's globals. If that is not a dictionary, it raises ``TypeError``. The
caller then encodes again in the slow way to get the real error.

This is a detail of CPython, so it is tested once on import; where it does not hold, the slow way is used.
Do not add other code to this module: every warning attributed to it is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pydantic_core import SchemaSerializer, core_schema

__all__ = ["encode", "encode_slowly"]

_ToJson: TypeAlias = Callable[..., bytes]

__warningregistry__: Final = ()
# Falsy, because code that resets these registries (unittest's assertWarns) skips empty ones.


def encode_slowly(to_json: _ToJson, value: Any, round_trip: bool) -> bytes:
    """Encode a value; raise pydantic's own error if it does not fit.

    Args:
        to_json: ``SchemaSerializer.to_json`` of the type's serializer.
        value: The value.
        round_trip: Whether to leave out what decoding does not need.

    Returns:
        UTF-8 JSON.

    Raises:
        PydanticSerializationError: The value does not fit, or cannot be encoded.
    """
    return to_json(value, by_alias=True, round_trip=round_trip, warnings="error")


def _encode_fast(to_json: _ToJson, value: Any, round_trip: bool) -> bytes:
    return to_json(value, by_alias=True, round_trip=round_trip)


def _refuses_misfits(encode: Callable[[_ToJson, Any, bool], bytes]) -> bool:
    try:
        encode(SchemaSerializer(core_schema.int_schema()).to_json, "not a number", True)
    except Exception:
        return True
    return False


encode: Final = _encode_fast if _refuses_misfits(_encode_fast) else encode_slowly
"""Encode a value; raise an error of any kind if it does not fit."""
