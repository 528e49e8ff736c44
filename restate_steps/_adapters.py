"""Pydantic serializers and validators that lose nothing, built once per type.

The rest of the package sees :class:`Adapter` only. They are built from an amended copy of the type's core schema
(see ``_amend``), which takes keeping pydantic-core from using the serializers that nested classes have already:
``_use_prebuilt``, and ``__pydantic_complete__`` before that existed, are used here and nowhere else. If any of it
changes, the plain adapter is used, and the comparison of every step's result still guards against losses.

The cache is safe on replay: an adapter is a function of the type alone, so it makes no difference which invocation
built it, or whether it had to be built again. That is also why equal types do not always share one: ``int | str`` and
``str | int`` compare equal, but pydantic may prefer the first member.
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

from restate_steps._amend import Amendment, classes_in

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
"""Stands for "no declared type": what is decoded is dicts, lists, strings, numbers, booleans and ``None``."""

CONFIG: Final = CoreConfig(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
"""The configuration under which nothing is lost; classes that say nothing themselves get it too."""

_CACHE_LIMIT: Final = 4096


class Adapter:
    """How values of one type are encoded and decoded.

    Attributes:
        type: The type; holding it keeps its ``id`` from being used for another.
        plain: Whether there is no declared type.
        to_json: ``SchemaSerializer.to_json`` of the serializer, bound once because it is called for every value.
        to_python: ``SchemaSerializer.to_python``.
        validate_json: ``SchemaValidator.validate_json`` of the validator.
        schema: The core schema both were built from.
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
# Two levels, by identity and by structure, because the structure of list[Order] takes longer to look at than a small
# value to encode. Both are bounded by emptying them: a program that makes up types for ever pays for building them
# again, not with its memory.


def is_plain(type_: Any) -> bool:
    """Whether ``type_`` declares nothing: :data:`PLAIN_JSON`, ``Any``, or ``inspect``'s mark for "no annotation"."""
    return type_ is PLAIN_JSON or type_ is Any or type_ is inspect.Parameter.empty


def adapter_for(type_: Any) -> Adapter:
    """Return the adapter of a type, from the cache if possible.

    Args:
        type_: Anything pydantic takes, or one of the marks :func:`is_plain` knows.

    Returns:
        The adapter.

    Raises:
        PydanticUndefinedAnnotation: The type refers to a name that is not defined (yet).
        Exception: Whatever else pydantic raises for a type it cannot handle.
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
    """Build a serializer for a part of :attr:`Adapter.schema`, under the configuration of the class it is in."""
    return cast(SchemaSerializer, _unshared(SchemaSerializer, schema, CONFIG if config is None else config))


def _renamed(adapter: Adapter, type_: Any) -> Adapter:
    twin = Adapter.__new__(Adapter)
    for name in Adapter.__slots__:
        setattr(twin, name, getattr(adapter, name))
    twin.type = type_
    return twin


def _key(type_: Any) -> Any:
    """A cache key that keeps apart what ``==`` does not: the order of a union, ``1`` and ``True``, metadata."""
    origin = get_origin(type_)
    if origin is None:
        # By identity: nothing here may depend on how a metaclass or a special form defines equality.
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
        schema = Amendment(core_schema.any_schema(), _as_plain).schema
        return Adapter(type_, schema, SchemaSerializer(schema, CONFIG), SchemaValidator(schema, CONFIG), plain=True)
    adapter: TypeAdapter[Any] = TypeAdapter(type_)
    if not adapter.pydantic_complete:
        # Deferred by a forward reference or by defer_build; this either completes it or says what is missing.
        adapter.rebuild(force=True, raise_errors=True)
    try:
        amendment = Amendment(adapter.core_schema, _as_plain)
        if amendment.needed:
            schema = amendment.schema
            return Adapter(
                type_, schema, _unshared(SchemaSerializer, schema), _unshared(SchemaValidator, schema), plain=False
            )
    except Exception:
        _log.warning("cannot amend pydantic's schema of %r: bytes, NaN or aliases may be refused", type_, exc_info=True)
    return Adapter(type_, adapter.core_schema, adapter.serializer, adapter.validator, plain=False)


def _unshared(factory: Callable[..., Any], schema: CoreSchema, config: CoreConfig = CONFIG) -> Any:
    """Build a serializer or validator without the ones that the classes in the schema have already."""
    if _CAN_UNSHARE:
        return factory(schema, config, _use_prebuilt=False)
    # Older versions take what a class has if the class is marked complete, so the mark is removed meanwhile. Only the
    # building of other schemas looks at it, and for those its absence means no more than a little extra work.
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
    """Encode the models in a value of no declared type in our way.

    Left to itself, pydantic would use the serializer each model has, which turns NaN into null.
    """
    try:
        return _without_models(value) if _has_model(value) else value
    except RecursionError:
        # It refers to itself; the encoder knows how to say so.
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
        # For a reader, since nothing will make a model of it again: computed fields are included.
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
