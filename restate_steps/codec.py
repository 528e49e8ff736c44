"""How values become bytes in the journal, and values again.

:class:`Codec` is the port the rest of the package depends on; :data:`DEFAULT_CODEC` is what it uses unless told
otherwise. The encoded form is JSON, so it can be read in Restate's UI and by services in other languages:

* A declared type decides both directions: ``dump(list[Order], orders)`` and ``load(list[Order], data)``.
* Nothing declared (:data:`PLAIN_JSON`) means dicts, lists, strings, numbers, booleans and ``None``.
* ``None`` is ``null``. Bytes are base64. NaN and the infinities are written as ``NaN`` and ``Infinity``, which Python
  and most databases read, and strict JSON parsers do not.
* Fields are written under their aliases, as other services see them, and read back from them.

What a value cannot keep is an error, never a silent change: pydantic's serialization warnings are errors here, and
:func:`verify` decodes what was encoded and compares.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar, Union, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic.errors import PydanticUndefinedAnnotation

from restate_steps._adapters import CACHE, PLAIN_JSON, Adapter, adapter_for, is_plain
from restate_steps._amend import union_choices
from restate_steps._compare import Difference, find_difference
from restate_steps._locate import colliding_keys, locate
from restate_steps._paths import format_path
from restate_steps._strict import encode, encode_slowly
from restate_steps.errors import DecodeError, EncodeError, StepDefinitionError

__all__ = ["DEFAULT_CODEC", "PLAIN_JSON", "Codec", "JsonCodec", "is_plain", "type_name", "verify"]


_cached: Final = CACHE.get


class Codec(Protocol):
    """Turns values into bytes and back.

    Both methods must be functions of their arguments alone: what was recorded is decoded again on every replay, maybe
    by another process.
    """

    def dump(self, type: Any, value: Any) -> bytes:
        """Encode a value.

        Args:
            type: Its declared type, or :data:`PLAIN_JSON`.
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
            type: Its declared type, or :data:`PLAIN_JSON`.
            data: What :meth:`dump` returned.

        Returns:
            The value.

        Raises:
            DecodeError: The bytes do not fit the type.
        """
        ...


class JsonCodec:
    r"""Encodes as JSON by pydantic, in one pass to bytes and one pass from bytes.

    It has no state: adapters are cached per type for the whole process, and two codecs share them.

    Args:
        round_trip: Leave out what decoding does not need, such as computed fields. With ``False`` the output is what
            pydantic's serialization schema promises, for readers who are not this codec.

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
            type: Anything pydantic takes, or :data:`PLAIN_JSON`.
            value: The value.

        Returns:
            UTF-8 JSON.

        Raises:
            EncodeError: The value does not fit the type, or cannot be written as JSON.
        """
        adapter = _cached(id(type))
        if adapter is None:
            try:
                adapter = adapter_for(type)
            except Exception as error:
                raise EncodeError(type_name(type), "$", _first_line(error), _fix_for_type(error)) from error
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
            type: Anything pydantic takes, or :data:`PLAIN_JSON`.
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
            raise DecodeError(type_name(type), _explain_load(error)) from error

    def check(self, type: Any) -> None:
        """Refuse a type that can never work; called when a step is decorated.

        A type that refers to a name which is not defined yet is let pass: it is looked at again on first use.

        Args:
            type: Anything.

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
                f"{type_name(type)} cannot be encoded: {_first_line(error)}. {_fix_for_type(error)}"
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
            path, cause = locate(adapter.schema, value, error, self._round_trip)
            reason = _tidy(str(cause)) or type(cause).__name__
            raise EncodeError(type_name(adapter.type), path, reason, _fix_for_value(reason)) from error


DEFAULT_CODEC: Final = JsonCodec()
"""The codec of every step that is not given another."""


def verify(codec: Codec, type: Any, value: Any, data: bytes) -> Any:
    """Make sure that an encoded value decodes to an equal one of equal type.

    Args:
        codec: The codec that encoded it.
        type: The declared type. For :data:`PLAIN_JSON` there is nothing to compare with, and the value is only decoded.
        value: The value before it was encoded.
        data: What ``codec.dump(type, value)`` gave.

    Returns:
        The decoded value.

    Raises:
        EncodeError: The value does not survive; the error says where, and what to do about it.

    Example:
        >>> verify(DEFAULT_CODEC, set[int], {1, 2}, b"[1,2]")
        {1, 2}
    """
    try:
        decoded = codec.load(type, data)
    except DecodeError as error:
        path = _path_of(error.__cause__)
        raise EncodeError(
            type_name(type), path, f"it can be encoded but not decoded again: {error.reason}", _fix_for_load(error)
        ) from error
    if is_plain(type):
        return decoded
    difference = find_difference(value, decoded, widen=True)
    if difference is not None:
        raise EncodeError(type_name(type), difference.path, difference.reason, _fix_for_difference(difference))
    return decoded


def type_name(type: Any) -> str:
    """Write a type the way it appears in source code.

    Args:
        type: Any type or annotation.

    Returns:
        For example ``list[Order]`` or ``Order | None``.

    Example:
        >>> type_name(dict[str, int | None])
        'dict[str, int | None]'
    """
    if type is None or type is types.NoneType:
        return "None"
    if type is Any:
        return "Any"
    if is_plain(type):
        return "plain JSON"
    if type is Ellipsis:
        return "..."
    if isinstance(type, str):
        return type
    if isinstance(type, list):
        return f"[{', '.join(map(type_name, cast('list[object]', type)))}]"
    origin = get_origin(type)
    if origin is None:
        if isinstance(type, TypeVar):
            return type.__name__
        name = getattr(type, "__name__", None) or getattr(type, "__forward_arg__", None)
        return name if isinstance(name, str) else repr(type)
    args = get_args(type)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is Union or origin is types.UnionType:
        return " | ".join(map(type_name, args))
    return f"{type_name(origin)}[{', '.join(map(type_name, args))}]"


# --- what went wrong, and what to do ----------------------------------------------------------------------------

_USE_FITTING_TYPE: Final = (
    "Return a value of the declared type, or declare the type that is returned, in the annotation or with returns=."
)
_OWN_CODEC: Final = "or give codec= an object with dump and load of your own"
_VALUE_FIXES: Final[tuple[tuple[str, str], ...]] = (
    (
        "surrogates not allowed",
        "The text is not valid Unicode: decode it with errors='replace', or keep it as bytes.",
    ),
    (
        "invalid utf-8",
        "Set ser_json_bytes='base64' and val_json_bytes='base64' in the configuration of the class, or declare the "
        "type of the value, so that its bytes are written as base64.",
    ),
    (
        "Circular reference",
        "JSON is a tree: replace the reference back by an identifier.",
    ),
    (
        "Unable to serialize unknown type",
        "Return data (a model, a dataclass, a dict) instead of the object, declare a type that says how to encode it "
        f"(Annotated with PlainSerializer and BeforeValidator), {_OWN_CODEC}.",
    ),
    ("Expected `", _USE_FITTING_TYPE),
)


def _fix_for_value(reason: str) -> str:
    for sign, fix in _VALUE_FIXES:
        if sign in reason:
            return fix
    return f"Return a value that can be written as JSON, {_OWN_CODEC}."


def _fix_for_type(error: Exception) -> str:
    if isinstance(error, PydanticUndefinedAnnotation | NameError):
        return "Define the name in the module of the class that uses it before the first use, or call model_rebuild()."
    return (
        "Declare a type pydantic can handle (models, dataclasses, TypedDict, builtin and standard types), declare "
        f"another with returns=, {_OWN_CODEC}."
    )


def _fix_for_load(error: DecodeError) -> str:
    cause = error.__cause__
    details = cause.errors(include_url=False, include_input=False) if isinstance(cause, ValidationError) else []
    if any("[key]" in item["loc"] for item in details):
        return "The keys of a JSON object are text: return a list of pairs, list[tuple[K, V]], instead of the dict."
    kinds = {item["type"] for item in details}
    if "finite_number" in kinds:
        return "Allow it in the type: Annotated[Decimal, Field(allow_inf_nan=True)]."
    if "missing" in kinds:
        return (
            "A field is left out of the encoded form (Field(exclude=True) or a serializer of its own): give it a "
            "default, or include it."
        )
    if "extra_forbidden" in kinds:
        return "A serializer adds a field that the type forbids: leave it out of the encoded form, or allow it."
    return (
        "Make the type accept what it is written as (its serializers and validators must be each other's inverse), "
        "or return a value that satisfies the type's own validation."
    )


def _fix_for_difference(difference: Difference) -> str:
    leave = "or switch the check off with verify=False if the difference does not matter"
    match difference.kind:
        case "subclass":
            return (
                "Declare the subclass, or a union of the classes that can be returned (best a discriminated one), in "
                f"the return annotation or with returns=, {leave}."
            )
        case "type":
            return (
                "Convert the value to the declared type, declare the type that is returned (in the annotation or with "
                "returns=), or where members of a union look alike in JSON, tell them apart by a discriminator, "
                f"{leave}."
            )
        case "iterator":
            return "Return a list, tuple or set, and declare it."
        case "excluded":
            return f"Remove exclude=True from the field, give the value back outside the step, {leave}."
        case "missing":
            return (
                "Declare what is returned in full (a field for it, or extra='allow' in the configuration of the "
                f"class), or leave it out, {leave}."
            )
        case "opaque":
            return f"Define __eq__ on the class, {leave}."
        case "depth":
            return f"Return a flatter value, {leave}."
        case "value":
            if "**********" in difference.reason:
                return (
                    "A secret is masked when it is encoded. Fetch it where it is used instead of recording it, or "
                    "return it as str."
                )
            return (
                "Make serializers and validators of the type each other's inverse, return the value the validation "
                f"makes of it, {leave}."
            )


def _tidy(message: str) -> str:
    """Pydantic's text without its frame: several lines become one."""
    for prefix in ("Error serializing to JSON: ", "Pydantic serializer warnings:"):
        message = message.removeprefix(prefix)
    lines = [line.strip().rstrip(".") for line in message.strip().splitlines()]
    return "; ".join(
        line.removeprefix("PydanticSerializationUnexpectedValue(").removesuffix(")")
        if line.startswith("PydanticSerializationUnexpectedValue(")
        else line
        for line in lines
        if line
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def _explain_load(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {_first_line(error)}"
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"at {_location(item['loc'])}: {item['msg']}" for item in errors[:3]]
    if len(errors) > 3:
        told.append(f"and {len(errors) - 3} more")
    return "; ".join(told)


def _path_of(error: BaseException | None) -> str:
    if isinstance(error, ValidationError):
        return _location(error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"])
    return "$"


def _location(loc: tuple[int | str, ...]) -> str:
    # Pydantic marks an error in a key by a last item of this text.
    return format_path(item for item in loc if item != "[key]")


def _is_lazy(schema: Any) -> bool:
    """Whether a value of the type itself, not of a field inside, is decoded as an iterator."""
    while schema["type"] not in ("model", "dataclass", "typed-dict"):
        if schema["type"] == "generator":
            return True
        if schema["type"] == "union":
            return any(map(_is_lazy, union_choices(schema)))
        if not isinstance(schema.get("schema"), dict):
            return False
        schema = schema["schema"]
    return False
