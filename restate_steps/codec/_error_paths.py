"""Find the part of a value that cannot be encoded; pydantic reports the problem, but seldom the path to it.

The search walks the core schema and the value together, down to the smallest part that still fails alone. It encodes
each part on the way, which is acceptable because it happens only before an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, cast

from pydantic import BaseModel
from pydantic_core import CoreSchema, SchemaSerializer, core_schema

from restate_steps.codec._adapters import PLAIN_JSON, adapter_for, part_serializer
from restate_steps.codec._lossless import union_choices
from restate_steps.codec._paths import Element, format_path
from restate_steps.codec._strict_json import encode_slowly

__all__ = ["colliding_keys", "locate"]

_ANY: Final = adapter_for(PLAIN_JSON).schema
_MAX_PARTS: Final = 10_000
# Beyond this, the path found so far is reported: building an error must not take minutes.

_Part: TypeAlias = tuple[Any, Any, Any]
"""A path segment, and the schema and the value of that part."""


def locate(schema: CoreSchema, value: object, error: Exception, round_trip: bool) -> tuple[str, Exception, Any]:
    """Find the smallest part of ``value`` that cannot be encoded.

    Args:
        schema: The core schema of the whole value.
        value: The value that failed to encode.
        error: The error that it raised.
        round_trip: The ``round_trip`` that the value was encoded with.

    Returns:
        The path of the part, the error that this part raises by itself, and the part.
    """
    search = _Search(schema, round_trip)
    try:
        return search.run(schema, value, error)
    except Exception:
        # Failing to find the path must not hide the error.
        return format_path(search.segments), error, None


def colliding_keys(value: object) -> tuple[str, tuple[Any, Any]] | None:
    """Find a dictionary with two keys that are the same text once encoded, such as ``1`` and ``"1"``.

    Args:
        value: A value without a declared type; the dictionaries, lists and tuples in it are searched.

    Returns:
        The path of the dictionary and its colliding keys, or ``None``.
    """
    stack: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while stack:
        segments, item = stack.pop()
        children: Iterable[tuple[Any, Any]] = ()
        if isinstance(item, dict):
            mapping = cast("dict[object, object]", item)
            keys = _collision(mapping)
            if keys is not None:
                return format_path(segments), keys
            children = mapping.items()
        elif isinstance(item, list | tuple):
            children = enumerate(cast("Sequence[Any]", item))
        stack.extend(((*segments, key), child) for key, child in children if type(child) in _NESTING)
    return None


def _collision(mapping: dict[object, object]) -> tuple[Any, Any] | None:
    if all(type(key) is str for key in mapping):
        return None
    texts: dict[bytes, Any] = {}
    for key in mapping:
        # Only the encoder knows what text a key becomes.
        text = _ENCODE({key: None})
        if text in texts:
            return texts[text], key
        texts[text] = key
    return None


_NESTING: Final = frozenset({dict, list, tuple})
_ENCODE: Final[Callable[[Any], bytes]] = adapter_for(PLAIN_JSON).to_json


class _Search:
    def __init__(self, schema: CoreSchema, round_trip: bool) -> None:
        self.segments: list[Any] = []
        self._round_trip = round_trip
        self._definitions: dict[str, Any] = {}
        self._define(schema)
        self._config: Any = None
        # Each schema is stored beside its serializer, so that its id is not reused for another one.
        self._serializers: dict[tuple[int, int], tuple[Any, SchemaSerializer]] = {}
        self._seen: set[int] = set()
        self._tried = 0

    def run(self, schema: Any, value: Any, error: Exception) -> tuple[str, Exception, Any]:
        while id(value) not in self._seen:
            self._seen.add(id(value))
            failing = self._failing_part(schema, value)
            if failing is None:
                break
            (segment, schema, value), error = failing
            if isinstance(segment, _Key):
                self.segments.append(segment.value)
                break
            self.segments.append(segment)
        return format_path(self.segments), error, value

    def _failing_part(self, schema: Any, value: Any) -> tuple[_Part, Exception] | None:
        for part in self._parts(schema, value):
            failure = self._failure(part[1], part[2])
            if failure is not None:
                return part, failure
        return None

    def _define(self, schema: Any) -> None:
        if schema["type"] == "definitions":
            self._definitions.update((item["ref"], item) for item in schema["definitions"])

    def _failure(self, schema: Any, value: Any) -> Exception | None:
        self._tried += 1
        if self._tried > _MAX_PARTS:
            raise RecursionError
        key = (id(schema), id(self._config))
        if key not in self._serializers:
            whole = core_schema.definitions_schema(schema, list(self._definitions.values()))
            self._serializers[key] = schema, part_serializer(whole if self._definitions else schema, self._config)
        try:
            encode_slowly(self._serializers[key][1].to_json, value, self._round_trip)
        except Exception as error:
            return error
        return None

    def _parts(self, schema: Any, value: Any) -> Iterable[_Part]:
        """Return the direct parts of a value, each with its schema."""
        schema = self._resolve(schema, value)
        schema_type = schema["type"]
        if schema_type in ("model", "dataclass", "typed-dict"):
            # As in pydantic, only a class's own configuration applies inside it.
            self._config = schema.get("config") or {}
            if schema.get("root_model"):
                return [("root", schema["schema"], value.root)]
            return self._field_parts(schema, value)
        if schema_type in ("list", "set", "frozenset"):
            return self._members(value, schema.get("items_schema", _ANY))
        if schema_type == "tuple":
            return self._tuple_parts(schema, value)
        if schema_type == "dict":
            return self._dict_parts(schema, value)
        if schema_type in ("any", "is-instance"):
            return self._inferred(value)
        return ()

    def _resolve(self, schema: Any, value: Any) -> Any:
        """Unwrap a schema, down to the one that describes the parts."""
        while True:
            schema_type = schema["type"]
            if schema_type == "definition-ref":
                schema = self._definitions[schema["schema_ref"]]
            elif schema_type in ("union", "tagged-union"):
                schema = self._choose(union_choices(schema), value)
            elif schema_type == "json-or-python":
                schema = schema["json_schema"]
            elif schema_type == "lax-or-strict":
                schema = schema["strict_schema"]
            elif schema_type == "chain":
                schema = schema["steps"][-1]
            elif schema_type in ("model", "dataclass") or "schema" not in schema:
                return schema
            else:
                schema = schema["schema"]

    def _choose(self, choices: list[Any], value: Any) -> Any:
        for choice in choices:
            resolved = self._resolve(choice, value)
            if isinstance(value, _CLASSES.get(resolved["type"], resolved.get("cls", ()))):
                return resolved
        return _ANY

    def _members(self, value: Any, schema: Any) -> Iterator[_Part]:
        if isinstance(value, set | frozenset):
            yield from ((Element(item), schema, item) for item in cast("Iterable[Any]", value))
        elif isinstance(value, list | tuple):
            yield from ((index, schema, item) for index, item in enumerate(cast("Sequence[Any]", value)))

    def _tuple_parts(self, schema: Any, value: tuple[Any, ...]) -> Iterator[_Part]:
        schemas = schema["items_schema"]
        variadic = schema.get("variadic_item_index")
        for index, item in enumerate(value):
            if variadic is not None and index >= variadic:
                yield index, schemas[variadic], item
            elif index < len(schemas):
                yield index, schemas[index], item

    def _dict_parts(self, schema: Any, value: dict[Any, Any]) -> Iterator[_Part]:
        values = schema.get("values_schema", _ANY)
        # Keys are encoded differently from values, so try each key as the only key of a dictionary.
        keys_only = core_schema.dict_schema(schema.get("keys_schema", _ANY), _ANY)
        for key, item in value.items():
            yield _Key(key), keys_only, {key: None}
            yield key, values, item

    def _field_parts(self, schema: Any, value: Any) -> Iterator[_Part]:
        # A dataclass lists its field names outside the schema that describes them.
        while schema["type"] not in ("model-fields", "typed-dict", "dataclass-args"):
            schema = schema["schema"]
        fields: Any = schema["fields"]
        # A dataclass has a list of fields.
        named: Any = fields.items() if hasattr(fields, "items") else ((field["name"], field) for field in fields)
        for name, field in named:
            item: Any = value.get(name, _ANY) if hasattr(value, "get") else getattr(value, name, _ANY)
            if item is not _ANY and not field.get("serialization_exclude"):
                yield name, field["schema"], item
        if isinstance(value, BaseModel):
            yield from ((name, _ANY, item) for name, item in (value.__pydantic_extra__ or {}).items())

    def _inferred(self, value: Any) -> Iterable[_Part]:
        """Yield the parts of a value without a declared type."""
        if isinstance(value, dict):
            return self._dict_parts({}, cast("dict[object, object]", value))
        if isinstance(value, BaseModel):
            schema = adapter_for(type(value)).schema
            self._define(schema)
            return self._parts(schema, value)
        if dataclasses.is_dataclass(value):
            return [(field.name, _ANY, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return self._members(value, _ANY)


class _Key(Element):
    """A path segment for a key that cannot be encoded."""


_CLASSES: Final[dict[str, Any]] = {
    "list": list,
    "set": set,
    "frozenset": frozenset,
    "tuple": tuple,
    "dict": dict,
    "typed-dict": dict,
}
