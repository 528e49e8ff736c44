"""Pydantic serializers and validators that lose nothing, built once per type.

Pydantic's defaults lose three things that JSON can hold: bytes that are not UTF-8, NaN and the infinities, and fields
whose name in the output is not one their own validator accepts. And they write sets in an order that changes from one
process to the next. Configuration mends some of it, but the one given to a ``TypeAdapter`` stops at the border of every
class. So the type's core schema is copied and completed, and serializer and validator are built from the copy. A choice
a class makes itself is kept.

The rest of the package sees :class:`Adapter` only. What pydantic does not document is used here and nowhere else: the
layout of a core schema, and how to keep pydantic-core from taking the serializer a nested class has already instead of
building the amended one (``_use_prebuilt``, and ``__pydantic_complete__`` before that existed). If any of it changes,
the plain adapter is used, and the comparison of every step's result still guards against losses.

The cache is safe on replay: an adapter is a function of the type alone, so it makes no difference which invocation
built it, or whether it had to be built again. That is also why equal types do not always share one: ``int | str`` and
``str | int`` compare equal, but pydantic may prefer the first member.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast, get_args, get_origin

from pydantic import TypeAdapter
from pydantic_core import (
    CoreConfig,
    CoreSchema,
    PydanticSerializationUnexpectedValue,
    SchemaSerializer,
    SchemaValidator,
    core_schema,
)

__all__ = ["CACHE", "PLAIN_JSON", "Adapter", "adapter_for", "is_plain", "part_serializer", "union_choices"]

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

_CLASS_KINDS: Final = frozenset({"model", "dataclass", "typed-dict"})
_LOSSY_KINDS: Final = frozenset({"any", "bytes", "float", "is-instance", "json", "complex", "decimal"})
_NOT_SCHEMAS: Final = frozenset({"config", "default", "expected", "members", "metadata"})
_CACHE_LIMIT: Final = 4096


class Adapter:
    """How values of one type are encoded and decoded.

    Attributes:
        type: The type; holding it keeps its ``id`` from being used for another.
        plain: Whether there is no declared type.
        to_json: ``SchemaSerializer.to_json`` of the serializer, bound once because it is called for every value.
        validate_json: ``SchemaValidator.validate_json`` of the validator.
        schema: The core schema both were built from.
    """

    __slots__ = ("plain", "schema", "to_json", "type", "validate_json")

    def __init__(
        self, type_: Any, schema: CoreSchema, serializer: SchemaSerializer, validator: Any, *, plain: bool
    ) -> None:
        self.type = type_
        self.schema = schema
        self.to_json: Callable[..., bytes] = serializer.to_json
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
        schema: CoreSchema = core_schema.any_schema()
        return Adapter(type_, schema, SchemaSerializer(schema, CONFIG), SchemaValidator(schema, CONFIG), plain=True)
    adapter: TypeAdapter[Any] = TypeAdapter(type_)
    if not adapter.pydantic_complete:
        # Deferred by a forward reference or by defer_build; this either completes it or says what is missing.
        adapter.rebuild(force=True, raise_errors=True)
    try:
        amendment = _Amendment(adapter.core_schema)
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
        classes: set[Any] = {item["cls"] for item in _schemas(schema) if "cls" in item}
        complete = [cls for cls in classes if cls.__dict__.get("__pydantic_complete__") is True]
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


class _Amendment:
    """A copy of a core schema in which nothing is lost.

    Attributes:
        schema: The copy.
        needed: Whether it differs from the original in effect.
    """

    def __init__(self, schema: CoreSchema) -> None:
        self.needed = False
        self._definitions: dict[str, Any] = {item["ref"]: item for item in _schemas(schema) if "ref" in item}
        self.schema = cast(CoreSchema, self._copy(schema))

    def _copy(self, node: Any) -> Any:
        if isinstance(node, dict):
            return self._copy_mapping(cast("dict[str, object]", node))
        if isinstance(node, list):
            return [self._copy(item) for item in cast("list[object]", node)]
        if isinstance(node, tuple):
            return tuple(self._copy(item) for item in cast("tuple[object, ...]", node))
        return node

    def _copy_mapping(self, node: dict[str, Any]) -> dict[str, Any]:
        kind = node.get("type")
        if not isinstance(kind, str):
            # Not a schema but a mapping of names (of fields, of tags) to schemas.
            return {key: self._copy(value) for key, value in node.items()}
        copy = {key: value if key in _NOT_SCHEMAS else self._copy(value) for key, value in node.items()}
        if kind in _LOSSY_KINDS or "serialization" in node:
            self.needed = True
        if kind in _CLASS_KINDS:
            config: dict[str, Any] = node.get("config") or {}
            copy["config"] = _completed(config)
            if config.get("validate_by_alias") is False:
                self.needed = True
        if kind in ("model-fields", "typed-dict"):
            for name, field in copy["fields"].items():
                self._accept_own_output(field, name)
        elif kind == "dataclass-args":
            for field in copy["fields"]:
                self._accept_own_output(field, field["name"])
        elif kind == "tagged-union":
            self._accept_own_tags(copy, node)
        elif kind in ("set", "frozenset") and "serialization" not in node:
            copy["serialization"] = core_schema.plain_serializer_function_ser_schema(
                _in_order, return_schema=core_schema.list_schema(copy.get("items_schema"))
            )
            self.needed = True
        return copy

    def _accept_own_output(self, field: dict[str, Any], name: str) -> None:
        """Add the key a field is written under to those it is read from."""
        paths = _paths(field.get("validation_alias", name))
        written = [field.get("serialization_alias", name)]
        if written not in paths:
            field["validation_alias"] = [*paths, written]
            self.needed = True

    def _accept_own_tags(self, union: dict[str, Any], original: Mapping[str, Any]) -> None:
        """Let a discriminated union find its tag under the key the tag is written under."""
        if callable(union["discriminator"]):
            return
        paths = _paths(union["discriminator"])
        for choice in union_choices(original):
            for name, field in self._fields(choice):
                read = [[name], *_paths(field.get("validation_alias", name))]
                written = [field.get("serialization_alias", name)]
                if written not in paths and any(path in read for path in paths):
                    paths.append(written)
        if len(paths) > len(_paths(union["discriminator"])):
            union["discriminator"] = paths
            self.needed = True

    def _fields(self, schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """The fields of the class a member of a union is, through any validators around it."""
        while schema is not None:
            kind = schema["type"]
            if kind == "definition-ref":
                schema = self._definitions.get(schema["schema_ref"])
            elif kind in ("model-fields", "typed-dict"):
                yield from schema["fields"].items()
                return
            elif kind == "dataclass-args":
                yield from ((field["name"], field) for field in schema["fields"])
                return
            elif kind == "tagged-union":
                for choice in union_choices(schema):
                    yield from self._fields(choice)
                return
            else:
                schema = schema.get("schema")


def _schemas(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema within a schema."""
    if isinstance(node, dict):
        mapping = cast("dict[str, object]", node)
        is_schema = isinstance(mapping.get("type"), str)
        if is_schema:
            yield mapping
        for key, value in mapping.items():
            if not (is_schema and key in _NOT_SCHEMAS):
                yield from _schemas(value)
    elif isinstance(node, list | tuple):
        for item in cast("Sequence[object]", node):
            yield from _schemas(item)


def _in_order(value: Any) -> Any:
    """The members of a set in an order that every process agrees on.

    The order of a set of strings differs from process to process, and Restate compares what a replay sends (a new
    state, the argument of a call) with what was sent before.
    """
    if not isinstance(value, set | frozenset):
        raise PydanticSerializationUnexpectedValue(f"Expected `set` but got `{type(value).__name__}`")
    members = cast("Iterable[Any]", value)
    kinds = set(map(type, members))
    return sorted(members, key=None if len(kinds) == 1 and kinds <= _ORDERED else _sort_key)


_ORDERED: Final[frozenset[type]] = frozenset({str, int, bytes})


def _sort_key(member: Any) -> str:
    if isinstance(member, frozenset):
        return repr(sorted(map(_sort_key, cast("Iterable[Any]", member))))
    return f"{type(member).__name__}:{member!r}"


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a class, with what it leaves open filled in."""
    config = dict(config)
    if "ser_json_bytes" not in config and "val_json_bytes" not in config:
        config["ser_json_bytes"] = config["val_json_bytes"] = "base64"
    config.setdefault("ser_json_inf_nan", "constants")
    # Fields are written under their aliases, so they have to be found there, too.
    if config.get("validate_by_alias") is False:
        config["validate_by_alias"] = True
    return config


def union_choices(schema: Any) -> list[Any]:
    """The schemas of the members of a union, tagged or not."""
    choices = schema["choices"]
    if schema["type"] == "tagged-union":
        return list(choices.values())
    # A member may come with a label for error messages.
    return [choice[0] if isinstance(choice, tuple) else choice for choice in choices]  # pyright: ignore


def _paths(alias: Any) -> list[list[Any]]:
    """An alias as a list of paths, whichever of its three forms it has."""
    if isinstance(alias, str):
        return [[alias]]
    if alias and not isinstance(alias[0], list):
        return [list(alias)]
    return [list(path) for path in alias]
