"""The JSON codec, and the check that a value comes back unchanged."""

from __future__ import annotations

from typing import Any, Final, Protocol

from pydantic.errors import PydanticUndefinedAnnotation

from restate_steps._not_awaited import not_awaited
from restate_steps.codec._adapters import CACHE, Adapter, adapter_for, is_plain
from restate_steps.codec._advice import (
    explain_load,
    first_line,
    fix_for_difference,
    fix_for_load,
    fix_for_type,
    fix_for_value,
    path_of,
    tidy,
)
from restate_steps.codec._compare import find_difference
from restate_steps.codec._error_paths import colliding_keys, locate
from restate_steps.codec._lossless import union_choices
from restate_steps.codec._names import type_name
from restate_steps.codec._strict_json import encode, encode_slowly
from restate_steps.errors import DecodeError, EncodeError, StepDefinitionError

__all__ = ["DEFAULT_CODEC", "Codec", "JsonCodec", "verify"]

_cached: Final = CACHE.get


class Codec(Protocol):
    """Converts values to bytes and back.

    Both methods must depend on their arguments alone: recorded values are decoded again on every replay, possibly by
    another process.
    """

    def dump(self, type: Any, value: Any) -> bytes:
        """Encode a value.

        Args:
            type: The declared type, or :data:`PLAIN_JSON`.
            value: The value.

        Returns:
            The encoded value; never empty.

        Raises:
            EncodeError: The value does not fit the type, or cannot be encoded.
        """
        ...

    def load(self, type: Any, data: bytes) -> Any:
        """Decode a value.

        Args:
            type: The declared type, or :data:`PLAIN_JSON`.
            data: The bytes that :meth:`dump` returned.

        Returns:
            The value.

        Raises:
            DecodeError: The bytes do not fit the type.
        """
        ...


class JsonCodec:
    r"""Encodes values as JSON with pydantic, in one pass to bytes and one pass from bytes.

    It has no state: adapters are cached per type for the whole process, and all codecs share them.

    Args:
        round_trip: Leave out what decoding does not need, such as computed fields. With ``False`` the output follows
            pydantic's serialization schema, for readers other than this codec.

    Example:
        >>> JsonCodec().dump(tuple[int, bytes], (1, b"\xff"))
        b'[1,"_w=="]'
        >>> JsonCodec().load(tuple[int, bytes], b'[1,"_w=="]')
        (1, b'\xff')
    """

    __slots__ = ("_round_trip",)

    def __init__(self, *, round_trip: bool = True) -> None:
        self._round_trip = round_trip

    def __repr__(self) -> str:
        return "JsonCodec()" if self._round_trip else "JsonCodec(round_trip=False)"

    def dump(self, type: Any, value: Any) -> bytes:
        """Encode a value as JSON.

        Args:
            type: Any type that pydantic supports, or :data:`PLAIN_JSON`.
            value: The value.

        Returns:
            UTF-8 JSON.

        Raises:
            EncodeError: The value does not fit the type, or cannot be written as JSON.
            NotAwaitedError: There is a coroutine in the value.
        """
        adapter = _cached(id(type))
        if adapter is None:
            try:
                adapter = adapter_for(type)
            except Exception as error:
                raise EncodeError(type_name(type), "$", first_line(error), fix_for_type(error)) from error
        try:
            data = encode(adapter.to_json, value, self._round_trip)
        except MemoryError:
            raise
        except Exception:
            data = self._encode_again(adapter, value)
        if adapter.plain:
            collision = colliding_keys(value)
            if collision is not None:
                path, keys = collision
                raise EncodeError(
                    type_name(type),
                    path,
                    f"the keys {keys[0]!r} and {keys[1]!r} become the same text",
                    "Use keys of one type, or declare a type that keeps them apart, such as list[tuple[K, V]].",
                )
        return data

    def load(self, type: Any, data: bytes) -> Any:
        """Decode JSON.

        Args:
            type: Any type that pydantic supports, or :data:`PLAIN_JSON`.
            data: UTF-8 JSON.

        Returns:
            The value, an instance of the type.

        Raises:
            DecodeError: The bytes are not JSON, or do not fit the type.
        """
        adapter = _cached(id(type))
        try:
            if adapter is None:
                adapter = adapter_for(type)
            return adapter.validate_json(data)
        except MemoryError:
            raise
        except Exception as error:
            raise DecodeError(type_name(type), explain_load(error)) from error

    def check(self, type: Any) -> None:
        """Reject a type that can never work; called when a step is decorated.

        A type that refers to an undefined name passes: it is checked again on first use.

        Args:
            type: The type.

        Raises:
            StepDefinitionError: Pydantic cannot handle the type, or decodes it lazily.
        """
        if is_plain(type):
            return
        try:
            adapter = adapter_for(type)
        except (PydanticUndefinedAnnotation, NameError):
            return
        except Exception as error:
            raise StepDefinitionError(
                f"{type_name(type)} cannot be encoded: {first_line(error)}. {fix_for_type(error)}"
            ) from error
        if _is_lazy(adapter.schema):
            raise StepDefinitionError(
                f"{type_name(type)} would be decoded as an iterator, which can be read only once, while a recorded "
                "value must be the same every time it is read. Declare a list, tuple or set."
            )

    def _encode_again(self, adapter: Adapter, value: Any) -> bytes:
        try:
            return encode_slowly(adapter.to_json, value, self._round_trip)
        except Exception as error:
            path, cause, part = locate(adapter.schema, value, error, self._round_trip)
            if (forgotten := not_awaited(part, path)) is not None:
                raise forgotten from error
            reason = tidy(str(cause)) or type(cause).__name__
            raise EncodeError(type_name(adapter.type), path, reason, fix_for_value(reason)) from error


DEFAULT_CODEC: Final = JsonCodec()
"""The codec of steps that do not name another one."""


def verify(codec: Codec, type: Any, value: Any, data: bytes) -> Any:
    """Check that an encoded value decodes to an equal value of the same type.

    Args:
        codec: The codec that encoded it.
        type: The declared type. For :data:`PLAIN_JSON` there is nothing to compare with, and the value is only decoded.
        value: The value that was encoded.
        data: The result of ``codec.dump(type, value)``.

    Returns:
        The decoded value.

    Raises:
        EncodeError: The value would be changed; the error says where, and how to fix it.

    Example:
        >>> verify(DEFAULT_CODEC, set[int], {1, 2}, b"[1,2]")
        {1, 2}
    """
    try:
        decoded = codec.load(type, data)
    except DecodeError as error:
        path = path_of(error.__cause__)
        raise EncodeError(
            type_name(type), path, f"it can be encoded but not decoded again: {error.reason}", fix_for_load(error)
        ) from error
    if is_plain(type):
        return decoded
    difference = find_difference(value, decoded, widen=True)
    if difference is not None:
        raise EncodeError(type_name(type), difference.path, difference.reason, fix_for_difference(difference))
    return decoded


def _is_lazy(schema: Any) -> bool:
    """Return whether the type itself, and not a field inside it, is decoded as an iterator."""
    while schema["type"] not in ("model", "dataclass", "typed-dict"):
        if schema["type"] == "generator":
            return True
        if schema["type"] == "union":
            return any(map(_is_lazy, union_choices(schema)))
        if not isinstance(schema.get("schema"), dict):
            return False
        schema = schema["schema"]
    return False
