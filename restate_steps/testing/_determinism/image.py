"""Pack the global variables of the user's modules as plain data, to send them to another interpreter.

I1. Only data is packed: values, collections of them, random generators, and the attributes of objects of the user's
    classes. Functions, classes and everything else are represented by their type, and are never set.
I2. Collections and objects are changed in place, because other modules may hold them too.
"""

from __future__ import annotations

import dis
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from restate_steps._user_code import is_user_code
from restate_steps.testing._determinism.user_code import COPY_OF_MAIN, MAIN, file_of

__all__ = ["Image", "Variable", "differing", "give", "is_set_by_code", "take_image", "variables"]

Image: TypeAlias = dict[str, Any]
"""The packed values of variables, by module-qualified name."""

_DEPTH: Final = 6
_MOST_ITEMS: Final = 10_000
_VALUES: Final = frozenset(
    {str, bytes, int, float, complex, bool, type(None), date, datetime, time, timedelta, Decimal, UUID}
)
_COLLECTIONS: Final[dict[str, Callable[[Iterable[Any]], Any]]] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "set": set,
    "frozenset": frozenset,
}
_DEFAULTS: Final = ("__defaults__", "__kwdefaults__")
_MAKERS: Final = frozenset({"__init__", "__new__", "__post_init__"})
_ASSIGNS: Final = frozenset({"STORE_GLOBAL", "STORE_ATTR", "DELETE_GLOBAL", "DELETE_ATTR"})
_CHANGES: Final = frozenset({"STORE_SUBSCR", "STORE_SLICE", "DELETE_SUBSCR"})
_CHANGING_METHODS: Final = frozenset(
    {"add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "insert"}
    | {"intersection_update", "pop", "popitem", "popleft", "remove", "reverse", "rotate", "setdefault", "sort"}
    | {"symmetric_difference_update", "update"}
)


class Variable(NamedTuple):
    """A global variable, an attribute of a class or a function, or the defaults of a function."""

    path: str
    owner: Any
    attribute: str
    value: Any


class _Packed(NamedTuple):
    """The packed form of a value that is not plain.

    Attributes:
        kind: The name of the type.
        content: The packed content; None for an object, or if it is not data.
        attributes: The packed attributes of an object.
    """

    kind: str
    content: Any = None
    attributes: dict[str, Any] | None = None


_ABSENT: Final = _Packed("absent")


def variables() -> Iterator[Variable]:
    """Yield the variables of the user's modules, and of their classes and functions."""
    for name, module in list(sys.modules.items()):
        file = file_of(module) if isinstance(module, ModuleType) else None
        if file is None or module.__name__ != name or not is_user_code(file):
            continue
        for variable, value in list(vars(module).items()):
            if variable.startswith("__"):
                continue
            path = f"{MAIN if name == COPY_OF_MAIN else name}.{variable}"
            if isinstance(value, type):
                if value.__module__ == name:
                    for attribute, inner in list(vars(value).items()):
                        if not attribute.startswith("__") and not callable(inner):
                            yield Variable(f"{path}.{attribute}", value, attribute, inner)
            elif isinstance(value, FunctionType):
                for attribute, inner in list(vars(value).items()):
                    if not attribute.startswith("_"):
                        yield Variable(f"{path}.{attribute}", value, attribute, inner)
                for attribute in _DEFAULTS:
                    if value.__module__ == name and getattr(value, attribute):
                        yield Variable(f"{path}.{attribute}", value, attribute, getattr(value, attribute))
            elif not isinstance(value, ModuleType):
                yield Variable(path, module, variable, value)


def take_image() -> Image:
    """Return the values of all variables."""
    return {each.path: _pack(each.value, _DEPTH) for each in variables()}


def differing(image: Image) -> Image:
    """Return the local values of the variables that differ from another process's image and can be set from it."""
    here = take_image()
    modules = {path.rpartition(".")[0] for path in here}
    found: Image = {}
    for path, there in image.items():
        own = here.get(path, _ABSENT)
        if own != there and _is_data(there) and _is_data(own, or_absent=True) and path.rpartition(".")[0] in modules:
            found[path] = own
    return found


def give(image: Image, paths: Collection[str]) -> None:
    """Set variables to their values in an image."""
    known = {each.path: each for each in variables()}
    for path in paths:
        variable = known.get(path)
        if variable is not None:
            _give(variable.owner, variable.attribute, variable.value, image[path])
            continue
        module, _, attribute = path.rpartition(".")
        found = sys.modules.get(COPY_OF_MAIN if module == MAIN else module)
        if found is not None:
            _give(found, attribute, None, image[path])


def is_set_by_code(path: str, packed: Any, other: Any) -> bool:
    """Return whether functions of the user's modules may have changed a variable from one value to another.

    If no function can have changed it, the test has patched it.
    """
    kind = packed.kind if isinstance(packed, _Packed) else ""
    names = {path.rpartition(".")[2]}
    if kind == "Random":
        return True
    if (here := _attributes(packed)) is not None:
        there = _attributes(other) or {}
        names = {name for name in here.keys() | there.keys() if here.get(name, ...) != there.get(name, ...)}
    return any(_sets(code, names) for code in _functions())


def _functions() -> Iterator[CodeType]:
    """Yield the code of the user's functions, except those that only construct an object."""
    for name, module in list(sys.modules.items()):
        file = file_of(module) if isinstance(module, ModuleType) else None
        if file is None or not is_user_code(file):
            continue
        for value in list(vars(module).values()):
            inner = list(vars(value).values()) if isinstance(value, type) and value.__module__ == name else [value]
            for each in inner:
                code = _code_of(each)
                if code is not None and is_user_code(code.co_filename) and code.co_name not in _MAKERS:
                    yield code


def _code_of(value: Any) -> CodeType | None:
    for attribute in ("__func__", "fget", "func", "__wrapped__"):
        value = getattr(value, attribute, value)
    code = getattr(value, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _sets(code: CodeType, names: Collection[str]) -> bool:
    """Return whether code assigns one of the names, or mentions one of them and changes a collection."""
    mentions = changes = False
    for each in dis.get_instructions(code):
        name = each.argval if isinstance(each.argval, str) else ""
        if name in names and each.opname in _ASSIGNS:
            return True
        mentions = mentions or name in names
        changes = changes or each.opname in _CHANGES or name in _CHANGING_METHODS
    return (mentions and changes) or any(_sets(each, names) for each in code.co_consts if isinstance(each, CodeType))


# --- packing ----------------------------------------------------------------------------------------------------


def _pack(value: Any, depth: int) -> Any:
    kind = _type_of(value)
    if kind in _VALUES:
        return value
    name = kind.__name__
    if kind is random.Random:
        return _Packed("Random", value.getstate())
    if depth == 0:
        return _Packed(name)
    if kind is dict and len(value) <= _MOST_ITEMS:
        return _Packed(name, [(_pack(key, depth - 1), _pack(inner, depth - 1)) for key, inner in list(value.items())])
    if name in _COLLECTIONS and kind is _COLLECTIONS[name] and len(value) <= _MOST_ITEMS:
        items = [_pack(inner, depth - 1) for inner in list(value)]
        return _Packed(name, sorted(items, key=repr) if "set" in name else items)
    if is_user_code(getattr(sys.modules.get(kind.__module__), "__file__", None) or "<unknown>"):
        own: dict[str, Any] = getattr(value, "__dict__", {})
        packed = {attribute: _pack(inner, depth - 1) for attribute, inner in list(own.items())}
        return _Packed(_name_of(kind), attributes=packed)
    return _Packed(name)


def _type_of(value: object) -> type[Any]:
    return type(value)


def _name_of(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _attributes(packed: Any) -> dict[str, Any] | None:
    return packed.attributes if isinstance(packed, _Packed) else None


def _is_data(packed: Any, *, or_absent: bool = False) -> bool:
    """Return whether a value can be set; for an object, whether any of its attributes can."""
    if not isinstance(packed, _Packed):
        return True
    if packed is _ABSENT or packed == _ABSENT:
        return or_absent
    if packed.attributes is not None:
        return any(map(_is_data, packed.attributes.values()))
    if packed.content is None:
        return False
    if packed.kind == "dict":
        return all(_is_whole(key) and _is_whole(inner) for key, inner in packed.content)
    return packed.kind == "Random" or all(map(_is_whole, packed.content))


def _is_whole(packed: Any) -> bool:
    """Return whether a value can be unpacked; an object cannot, and is changed in place."""
    return _attributes(packed) is None and _is_data(packed)


def _unpack(packed: Any) -> Any:
    if not isinstance(packed, _Packed):
        return packed
    if packed.kind == "Random":
        made = random.Random()
        made.setstate(packed.content)
        return made
    if packed.kind == "dict":
        return {_unpack(key): _unpack(inner) for key, inner in packed.content}
    return _COLLECTIONS[packed.kind](map(_unpack, packed.content))


def _give(owner: Any, attribute: str, value: Any, packed: Any) -> None:
    if packed == _ABSENT:
        delattr(owner, attribute)
        return
    kind = packed.kind if isinstance(packed, _Packed) else ""
    if (attributes := _attributes(packed)) is not None:
        if _name_of(_type_of(value)) == kind:
            _give_attributes(value, attributes)
        return
    made = _unpack(packed)
    if type(value) is not type(made) or kind not in ("list", "dict", "set", "deque", "Random"):
        setattr(owner, attribute, made)
    elif kind == "Random":
        value.setstate(packed.content)
    elif kind == "list":
        value[:] = made
    else:
        value.clear()
        value.extend(made) if kind == "deque" else value.update(made)


def _give_attributes(thing: object, attributes: dict[str, Any]) -> None:
    own = thing.__dict__
    for name in own.keys() - attributes.keys():
        del own[name]
    for name, given in attributes.items():
        if _is_data(given):
            _give(thing, name, own.get(name), given)
