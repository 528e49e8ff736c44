"""Lossless pydantic serializers and validators, built once per type.

The rest of the package uses only :class:`Adapter`. Adapters are built from a lossless copy of the type's core schema
(see ``_lossless``). For the copy to take effect, pydantic-core must not reuse the serializers of nested classes. Only
this module uses the private names for that: ``_use_prebuilt``, and ``__pydantic_complete__`` in versions before it. If
they change, the plain adapter is used, and comparing every step's result still guards against losses.

The cache is safe on replay: an adapter depends on the type alone, so it does not matter which invocation built it, or
whether it was rebuilt. Therefore equal types do not always share an adapter: ``int | str`` and ``str | int`` compare
equal, but pydantic may prefer the first member.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Annotated, Any, Final, Literal, cast, get_args, get_origin

from pydantic import TypeAdapter
from pydantic_core import CoreConfig, CoreSchema, SchemaSerializer, SchemaValidator, core_schema

from restate_steps.codec._lossless import classes_in, lossless_schema

__all__ = ["CACHE", "PLAIN_JSON", "Adapter", "adapter_for", "is_plain", "part_serializer"]

_log: Final = logging.getLogger(__name__)


class _PlainJson:
    """The type of :data:`PLAIN_JSON`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "PLAIN_JSON"

    def __reduce__(self) -> str:
        return "PLAIN_JSON"


PLAIN_JSON: Final = _PlainJson()
"""Stands for "no declared type": values are decoded as dicts, lists, strings, numbers, booleans and ``None``."""

CONFIG: Final = CoreConfig(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
"""The lossless configuration, also for classes that configure nothing themselves."""

_CACHE_LIMIT: Final = 4096


class Adapter:
    """Encodes and decodes values of one type.

    Attributes:
        type: The type; the reference keeps its ``id`` from being reused.
        plain: True if the type is :data:`PLAIN_JSON`.
        to_json: ``SchemaSerializer.to_json``, bound once because it is called for every value.
        to_python: ``SchemaSerializer.to_python``.
        validate_json: ``SchemaValidator.validate_json``.
        schema: The core schema that both were built from.
    """

    __slots__ = ("plain", "schema", "to_json", "to_python", "type", "validate_json")

    def __init__(
        self, type_: Any, schema: CoreSchema, serializer: SchemaSerializer, validator: Any, *, plain: bool
    ) -> None:
        self.type = type_
        self.schema = schema
        self.to_json: Callable[..., bytes] = serializer.to_json
        self.to_python: Callable[..., Any] = serializer.to_python
        self.validate_json: Callable[..., Any] = validator.validate_json
        self.plain = plain


CACHE: Final[dict[int, Adapter]] = {}
_by_key: dict[Any, Adapter] = {}
# Two levels, by identity and by structure, because hashing the structure of list[Order] takes longer than encoding a
# small value. Both are emptied when full: a program that keeps making types pays in time, not in memory.


def is_plain(type_: Any) -> bool:
    """Return whether a type declares nothing: :data:`PLAIN_JSON`, ``Any``, or ``inspect.Parameter.empty``."""
    return type_ is PLAIN_JSON or type_ is Any or type_ is inspect.Parameter.empty


def adapter_for(type_: Any) -> Adapter:
    """Return the adapter of a type, from the cache if possible.

    Args:
        type_: Any type that pydantic accepts, or one for which :func:`is_plain` is True.

    Returns:
        The adapter.

    Raises:
        PydanticUndefinedAnnotation: The type refers to a name that is not defined (yet).
        Exception: Pydantic cannot handle the type.
    """
    adapter = CACHE.get(id(type_))
    if adapter is not None:
        return adapter
    key = _key(type_)
    adapter = _by_key.get(key)
    if adapter is None:
        adapter = _build(type_)
    if len(CACHE) >= _CACHE_LIMIT:
        CACHE.clear()
        _by_key.clear()
    _by_key[key] = adapter
    if adapter.type is type_:
        CACHE[id(type_)] = adapter
    else:
        CACHE[id(type_)] = alias = _renamed(adapter, type_)
        return alias
    return adapter


def part_serializer(schema: CoreSchema, config: CoreConfig | None) -> SchemaSerializer:
    """Build a serializer for a part of :attr:`Adapter.schema`, with the configuration of its class."""
    return cast(SchemaSerializer, _unshared(SchemaSerializer, schema, CONFIG if config is None else config))


def _renamed(adapter: Adapter, type_: Any) -> Adapter:
    twin = Adapter.__new__(Adapter)
    for name in Adapter.__slots__:
        setattr(twin, name, getattr(adapter, name))
    twin.type = type_
    return twin


def _key(type_: Any) -> Any:
    """Return a cache key that is stricter than ``==``: it includes union order, ``1`` or ``True``, and metadata."""
    origin = get_origin(type_)
    if origin is None:
        # By identity, because a metaclass or a special form may define equality in its own way.
        return id(type_)
    args = get_args(type_)
    if origin is Annotated:
        return (id(origin), _key(args[0]), *map(id, args[1:]))
    if origin is Literal:
        return (id(origin), *((type(arg).__name__, arg) for arg in args))
    # The parameters of a Callable are a list.
    return (id(origin), *(tuple(map(_key, cast("list[object]", a))) if isinstance(a, list) else _key(a) for a in args))


def _build(type_: Any) -> Adapter:
    if is_plain(type_):
        schema, _ = lossless_schema(core_schema.any_schema(), _as_plain)
        return Adapter(type_, schema, SchemaSerializer(schema, CONFIG), SchemaValidator(schema, CONFIG), plain=True)
    adapter: TypeAdapter[Any] = TypeAdapter(type_)
    if not adapter.pydantic_complete:
        # A forward reference or defer_build deferred it. Complete it, or raise an error that names what is missing.
        adapter.rebuild(force=True, raise_errors=True)
    try:
        schema, changed = lossless_schema(adapter.core_schema, _as_plain)
        if changed:
            return Adapter(
                type_, schema, _unshared(SchemaSerializer, schema), _unshared(SchemaValidator, schema), plain=False
            )
    except Exception:
        _log.warning("cannot copy pydantic's schema of %r: bytes, NaN or aliases may be rejected", type_, exc_info=True)
    return Adapter(type_, adapter.core_schema, adapter.serializer, adapter.validator, plain=False)


def _unshared(factory: Callable[..., Any], schema: CoreSchema, config: CoreConfig = CONFIG) -> Any:
    """Build a serializer or validator without reusing those of the classes in the schema."""
    if _CAN_UNSHARE:
        return factory(schema, config, _use_prebuilt=False)
    # Older versions reuse the serializer of a class that is marked complete, so remove the mark meanwhile. Only code
    # that builds other schemas looks at it, and then does a little extra work.
    with _unshare_lock:
        complete = [cls for cls in classes_in(schema) if cls.__dict__.get("__pydantic_complete__") is True]
        try:
            for cls in complete:
                cls.__pydantic_complete__ = False
            return factory(schema, config)
        finally:
            for cls in complete:
                cls.__pydantic_complete__ = True


def _can_unshare() -> bool:
    try:
        cast(Any, SchemaSerializer)(core_schema.none_schema(), None, _use_prebuilt=False)
    except TypeError:
        return False
    return True


_CAN_UNSHARE: Final = _can_unshare()
_unshare_lock: Final = threading.Lock()


def _as_plain(value: Any) -> Any:
    """Encode the models in a value without a declared type losslessly.

    By itself, pydantic would use each model's own serializer, which turns NaN into null.
    """
    try:
        return _without_models(value) if _has_model(value) else value
    except RecursionError:
        # It refers to itself; the encoder raises a clear error for that.
        return value


def _has_model(value: object) -> bool:
    if type(value) in _LEAVES:
        return False
    if isinstance(value, dict):
        parts: Iterable[object] = cast("dict[object, object]", value).values()
    elif isinstance(value, _PARTS):
        parts = cast("Iterable[object]", value)
    elif hasattr(type(value), "__pydantic_serializer__"):
        return True
    elif dataclasses.is_dataclass(type(value)):
        parts = _fields(value).values()
    else:
        return False
    return not _LEAVES.issuperset(map(type, parts)) and any(map(_has_model, parts))


def _without_models(value: object) -> object:
    if hasattr(type(value), "__pydantic_serializer__"):
        # Computed fields are included: this is for readers, and is never decoded to a model.
        return adapter_for(type(value)).to_python(value, mode="json", by_alias=True, warnings="error")
    if isinstance(value, _PARTS):
        return [_without_models(item) for item in cast("Iterable[object]", value)]
    if isinstance(value, dict):
        return {key: _without_models(item) for key, item in cast("dict[object, object]", value).items()}
    if dataclasses.is_dataclass(type(value)):
        return {name: _without_models(item) for name, item in _fields(value).items()}
    return value


def _fields(value: Any) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


_LEAVES: Final[frozenset[type]] = frozenset({str, int, float, bool, NoneType, bytes})
_PARTS: Final = (list, tuple, set, frozenset, deque)
