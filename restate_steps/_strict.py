"""Encoding in which a value that does not fit its type is an error, at the price of one in which it is not.

Pydantic encodes a misfit as it comes and gives a warning. It can raise an error instead, but asking it to
(``warnings="error"``) costs a microsecond a call, twice what encoding a small model takes. A warning asked for as usual
costs nothing. So this module makes sure that no warning raised on its behalf can pass: Python looks for the record of a
module's past warnings under ``__warningregistry__`` in its globals, before it looks at any filter, and raises
``TypeError`` if what it finds is not a dictionary. The caller then encodes again in the slow way, for the real error.

That is a detail of Python, so it is tried out once on import; where it does not hold, the slow way is the only one.
Nothing else may be put into this module: every warning attributed to it is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pydantic_core import SchemaSerializer, core_schema

__all__ = ["encode", "encode_slowly"]

_ToJson: TypeAlias = Callable[..., bytes]

__warningregistry__: Final = ()
# False, as other code that resets these registries (unittest's assertWarns) leaves alone what looks empty.


def encode_slowly(to_json: _ToJson, value: Any, round_trip: bool) -> bytes:
    """Encode a value, raising pydantic's own error for one that does not fit.

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
"""Encode a value, raising an error of any kind for one that does not fit."""
