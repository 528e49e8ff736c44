"""Copy a type's core schema so that encoding loses nothing.

Pydantic's defaults lose three things that JSON can hold: bytes that are not UTF-8, NaN and the infinities, and fields
whose output name their own validator rejects. They also write sets in an order that differs between processes.
Configuration fixes only part of this, because the configuration of a ``TypeAdapter`` does not reach into classes. So
this module copies the schema and completes it. A class's own settings stay.

Only this module and ``_error_paths`` know the layout of a core schema. If it changes, building from the copy fails, and
the original schema is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from pydantic_core import CoreSchema, PydanticSerializationUnexpectedValue, core_schema

__all__ = ["Infer", "classes_in", "lossless_schema", "union_choices"]

Infer = Callable[[Any], Any]
"""Prepares a value without a declared type for encoding."""

_CLASS_TYPES: Final = frozenset({"model", "dataclass", "typed-dict"})
_LOSSY_TYPES: Final = frozenset({"any", "bytes", "float", "is-instance", "json", "complex", "decimal"})
_NOT_SCHEMAS: Final = frozenset({"config", "default", "expected", "members", "metadata"})


def lossless_schema(schema: CoreSchema, infer: Infer) -> tuple[CoreSchema, bool]:
    """Copy a core schema so that encoding loses nothing.

    Args:
        schema: The schema of a type.
        infer: Called with values that have no declared type.

    Returns:
        The copy, and whether it behaves differently from the original.
    """
    copier = _Copier(schema, infer)
    copy = copier.copy(schema)
    return copy, copier.changed


class _Copier:
    def __init__(self, schema: CoreSchema, infer: Infer) -> None:
        self.changed = False
        self._infer = infer
        self._definitions: dict[str, Any] = {item["ref"]: item for item in _schemas(schema) if "ref" in item}

    def copy(self, schema: CoreSchema) -> CoreSchema:
        return cast(CoreSchema, self._copy(schema))

    def _copy(self, node: Any) -> Any:
        if isinstance(node, dict):
            return self._copy_mapping(cast("dict[str, object]", node))
        if isinstance(node, list):
            return [self._copy(item) for item in cast("list[object]", node)]
        if isinstance(node, tuple):
            return tuple(self._copy(item) for item in cast("tuple[object, ...]", node))
        return node

    def _copy_mapping(self, node: dict[str, Any]) -> dict[str, Any]:
        schema_type = node.get("type")
        if not isinstance(schema_type, str):
            # Not a schema but a mapping of names (of fields, of tags) to schemas.
            return {key: self._copy(value) for key, value in node.items()}
        copy = {key: value if key in _NOT_SCHEMAS else self._copy(value) for key, value in node.items()}
        if schema_type in _LOSSY_TYPES or "serialization" in node:
            self.changed = True
        if schema_type in _CLASS_TYPES:
            config: dict[str, Any] = node.get("config") or {}
            copy["config"] = _completed(config)
            if config.get("validate_by_alias") is False:
                self.changed = True
        if schema_type in ("model-fields", "typed-dict"):
            for name, field in copy["fields"].items():
                self._accept_own_output(field, name)
        elif schema_type == "dataclass-args":
            for field in copy["fields"]:
                self._accept_own_output(field, field["name"])
        elif schema_type == "tagged-union":
            self._accept_own_tags(copy, node)
        elif schema_type == "any" and "serialization" not in node:
            self._prepare(copy, core_schema.any_schema())
        elif schema_type == "dict" and _is_any(node.get("values_schema")) and "serialization" not in node:
            # Preparing a whole dict or list at once is faster than preparing each element.
            self._prepare(copy, core_schema.dict_schema(copy.get("keys_schema")), dict)
        elif schema_type == "list" and _is_any(node.get("items_schema")) and "serialization" not in node:
            self._prepare(copy, core_schema.list_schema(), list)
        elif schema_type in ("set", "frozenset") and "serialization" not in node:
            copy["serialization"] = core_schema.plain_serializer_function_ser_schema(
                _in_order, return_schema=core_schema.list_schema(copy.get("items_schema"))
            )
            self.changed = True
        return copy

    def _prepare(self, copy: dict[str, Any], schema: CoreSchema, expected: type | None = None) -> None:
        infer = self._infer

        def prepare(value: Any) -> Any:
            if expected is not None and not isinstance(value, expected):
                raise _misfit(expected, value)
            return infer(value)

        function = infer if expected is None else prepare
        copy["serialization"] = core_schema.plain_serializer_function_ser_schema(function, return_schema=schema)
        self.changed = True

    def _accept_own_output(self, field: dict[str, Any], name: str) -> None:
        """Let a field also be read from the key that it is written under."""
        paths = _paths(field.get("validation_alias", name))
        written = [field.get("serialization_alias", name)]
        if written not in paths:
            field["validation_alias"] = [*paths, written]
            self.changed = True

    def _accept_own_tags(self, union: dict[str, Any], original: Mapping[str, Any]) -> None:
        """Let a discriminated union also find its tag under the key that the tag is written under."""
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
            self.changed = True

    def _fields(self, schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the fields of a union member's class, looking through validators around it."""
        while schema is not None:
            schema_type = schema["type"]
            if schema_type == "definition-ref":
                schema = self._definitions.get(schema["schema_ref"])
            elif schema_type in ("model-fields", "typed-dict"):
                yield from schema["fields"].items()
                return
            elif schema_type == "dataclass-args":
                yield from ((field["name"], field) for field in schema["fields"])
                return
            elif schema_type == "tagged-union":
                for choice in union_choices(schema):
                    yield from self._fields(choice)
                return
            else:
                schema = schema.get("schema")


def classes_in(schema: CoreSchema) -> set[Any]:
    """Return the classes that a schema refers to."""
    return {item["cls"] for item in _schemas(schema) if "cls" in item}


def _schemas(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every schema inside a schema."""
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
    """Return the members of a set in the same order in every process.

    The order of a set of strings differs between processes, and Restate compares what a replay sends (new state, the
    argument of a call) with the journal.
    """
    if not isinstance(value, set | frozenset):
        raise _misfit(set, value)
    members = cast("Iterable[Any]", value)
    types = set(map(type, members))
    return sorted(members, key=None if len(types) == 1 and types <= _ORDERED else _sort_key)


def _misfit(expected: type, value: object) -> Exception:
    return PydanticSerializationUnexpectedValue(f"Expected `{expected.__name__}` but got `{type(value).__name__}`")


def _is_any(schema: Any) -> bool:
    return schema is None or (schema["type"] == "any" and "serialization" not in schema)


_ORDERED: Final[frozenset[type]] = frozenset({str, int, bytes})


def _sort_key(member: Any) -> str:
    if isinstance(member, frozenset):
        return repr(sorted(map(_sort_key, cast("Iterable[Any]", member))))
    return f"{type(member).__name__}:{member!r}"


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a class with its gaps filled in."""
    config = dict(config)
    if "ser_json_bytes" not in config and "val_json_bytes" not in config:
        config["ser_json_bytes"] = config["val_json_bytes"] = "base64"
    config.setdefault("ser_json_inf_nan", "constants")
    # Fields are written under their aliases, so they must be read from there as well.
    if config.get("validate_by_alias") is False:
        config["validate_by_alias"] = True
    return config


def union_choices(schema: Any) -> list[Any]:
    """Return the schemas of the members of a union, tagged or not."""
    choices = schema["choices"]
    if schema["type"] == "tagged-union":
        return list(choices.values())
    # A member may come with a label for error messages.
    return [choice[0] if isinstance(choice, tuple) else choice for choice in choices]  # pyright: ignore


def _paths(alias: Any) -> list[list[Any]]:
    """Return an alias, in any of its three forms, as a list of paths."""
    if isinstance(alias, str):
        return [[alias]]
    if alias and not isinstance(alias[0], list):
        return [list(alias)]
    return [list(path) for path in alias]
