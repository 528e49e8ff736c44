"""Compare a value with its round-tripped copy and report the first difference.

The comparison runs on every result of every step, so the likeliest cases come first: the same object, then types whose
``==`` is exact. For the rest there is one function per class, chosen once and cached.

The rules of equality:

* The types are the same at every level. ``True`` is not ``1``, ``1`` is not ``1.0``, a subclass is not its base.
* NaN equals NaN, and ``0.0`` does not equal ``-0.0``.
* Two aware datetimes are equal when instant and UTC offset are: a ``ZoneInfo`` may come back as a fixed offset.
  ``fold`` is ignored.
* The order of dictionaries and sets has no meaning; the types of their keys and members have.
* Dataclasses and models are compared by their fields, and models by their extra fields too. Private attributes, cached
  properties and ``model_fields_set`` are not data.
* Other objects are compared by ``==`` if their class defines it, else by their attributes.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from math import copysign
from types import NoneType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast
from uuid import UUID

from pydantic import BaseModel

from restate_steps.codec._paths import Element, format_path, shorten

__all__ = ["Difference", "DifferenceKind", "find_difference"]

DifferenceKind: TypeAlias = Literal["type", "subclass", "value", "missing", "excluded", "iterator", "opaque", "depth"]
"""The kind of a difference; it decides which fix to suggest."""


class Difference(NamedTuple):
    """A place where a decoded value differs from the value that was encoded.

    Attributes:
        path: The place, for example ``$.items[3].price``.
        reason: The change.
        kind: The kind of change.
    """

    path: str
    reason: str
    kind: DifferenceKind


class _Found:
    """A difference on its way up; each level adds its segment, so that equal values pay nothing for paths."""

    __slots__ = ("kind", "reason", "segments")

    def __init__(self, kind: DifferenceKind, reason: str) -> None:
        self.kind: DifferenceKind = kind
        self.reason = reason
        self.segments: list[Any] = []

    def under(self, segment: Any) -> _Found:
        self.segments.append(segment)
        return self


class _Walk:
    """The state of one comparison: whether to widen, and in a cyclic value, the pairs seen."""

    __slots__ = ("seen", "widen")

    def __init__(self, widen: bool, seen: set[tuple[int, int]] | None) -> None:
        self.widen = widen
        self.seen = seen


_Comparator: TypeAlias = Callable[[Any, Any, _Walk], _Found | None]

_MISSING: Final = object()
_EXACT: Final[frozenset[type]] = frozenset({str, int, bool, NoneType, bytes, bytearray, date, timedelta})
"""Types whose ``==`` is exact between two instances of the same type."""

_LONG: Final = 32
"""The number of elements from which comparing without a loop is worth trying."""

_CACHE_LIMIT: Final = 4096
_flat: Final = chain.from_iterable
_comparators: dict[type, _Comparator] = {}
_columns: dict[type, tuple[str, ...]] = {}
# Replay-safe: the entries are functions of the class alone. Bounded, because a program may keep creating classes.


def find_difference(original: object, decoded: object, *, widen: bool = False) -> Difference | None:
    """Find the first place where ``decoded`` is not equal to ``original``, in value and in type.

    Args:
        original: The value that was encoded.
        decoded: The value that was decoded from it.
        widen: Accept an ``int`` that came back as the ``float`` of the same value. A type checker lets a function
            declared ``-> float`` return ``1``, and the declared type is what its caller expects.

    Returns:
        The first difference, or ``None`` if there is none.

    Example:
        >>> find_difference({"price": 1}, {"price": True})
        Difference(path='$.price', reason='the value is an int, but it comes back as a bool', kind='type')
    """
    try:
        found = _compare(original, decoded, _Walk(widen, None))
    except RecursionError:
        # Only a value that refers to itself, or one of extreme depth, pays for the bookkeeping.
        try:
            found = _compare(original, decoded, _Walk(widen, set()))
        except RecursionError:
            found = _Found("depth", "the value is nested too deeply to be compared")
    if found is None:
        return None
    return Difference(format_path(reversed(found.segments)), found.reason, found.kind)


def _compare(a: object, b: object, walk: _Walk) -> _Found | None:
    cls = type(a)
    if cls is not type(b):
        return _mismatch(a, b, walk)
    if cls in _EXACT:
        return None if a == b else _changed(a, b)
    if walk.seen is not None:
        pair = (id(a), id(b))
        if pair in walk.seen:
            return None
        walk.seen.add(pair)
    comparator = _comparators.get(cls)
    if comparator is None:
        comparator = _remember(cls)
    return comparator(a, b, walk)


def _compare_items(keys: Iterable[Any], a: Any, b: Any, walk: _Walk) -> _Found | None:
    """Compare ``a[key]`` with ``b[key]`` for every key; most of the time is spent here."""
    for key in keys:
        x: object = a[key]
        y: object = b[key]
        if x is y:
            continue
        cls = type(x)
        # Name the most common types, which is faster than looking them up. Only a zero's sign needs a comparison.
        if cls is type(y) and (cls is str or cls is int or (cls is float and x) or cls in _EXACT) and x == y:
            continue
        found = _compare(x, y, walk)
        if found is not None:
            return found.under(key)
    return None


def _remember(cls: type) -> _Comparator:
    if len(_comparators) >= _CACHE_LIMIT:
        _comparators.clear()
        _columns.clear()
    comparator = _comparators[cls] = _comparator_for(cls)
    return comparator


def _comparator_for(cls: type[Any]) -> _Comparator:
    """Choose how to compare two instances of ``cls``; the order matters, from the most specific to the least."""
    if issubclass(cls, Enum):
        return _compare_identity
    if issubclass(cls, BaseModel):
        return _model_comparator(cls)
    if dataclasses.is_dataclass(cls):
        return _attributes_comparator(cls, tuple(field.name for field in dataclasses.fields(cls)))
    if issubclass(cls, Iterator | AsyncIterator):
        return _compare_iterators
    for base, comparator in _BY_BASE:
        if issubclass(cls, base):
            return comparator
    if issubclass(cast("Any", cls), tuple):
        names: tuple[str, ...] | None = getattr(cast("Any", cls), "_fields", None)
        return _compare_sequences if names is None else _attributes_comparator(cls, names)
    inherits_eq = cast("object", cls.__eq__) is object.__eq__
    return _compare_objects if inherits_eq else _compare_by_eq


# --- single values ----------------------------------------------------------------------------------------------


def _compare_identity(a: Any, b: Any, walk: _Walk) -> _Found | None:
    return None if a is b else _changed(a, b)


def _compare_floats(a: float, b: float, walk: _Walk) -> _Found | None:
    if a == b:
        return None if a or copysign(1.0, a) == copysign(1.0, b) else _changed(a, b)
    return None if a != a and b != b else _changed(a, b)


def _compare_datetimes(a: datetime, b: datetime, walk: _Walk) -> _Found | None:
    if a.tzinfo is b.tzinfo:
        return None if a == b else _changed(a, b)
    # Compare clock reading and offset: == is slower, and never true for two zones inside a repeated hour.
    same = a.date() == b.date() and a.time() == b.time() and a.utcoffset() == b.utcoffset()
    return None if same else _changed(a, b)


def _compare_uuids(a: UUID, b: UUID, walk: _Walk) -> _Found | None:
    return None if a.int == b.int else _changed(a, b)


def _compare_times(a: time, b: time, walk: _Walk) -> _Found | None:
    return None if a == b and a.utcoffset() == b.utcoffset() else _changed(a, b)


def _compare_decimals(a: Decimal, b: Decimal, walk: _Walk) -> _Found | None:
    # Unlike ==, the total order knows NaN, the sign of zero and trailing zeros.
    return _changed(a, b) if a.compare_total(b) else None


def _compare_complex(a: complex, b: complex, walk: _Walk) -> _Found | None:
    found = _compare_floats(a.real, b.real, walk) or _compare_floats(a.imag, b.imag, walk)
    return None if found is None else _changed(a, b)


def _compare_by_eq(a: Any, b: Any, walk: _Walk) -> _Found | None:
    try:
        equal = bool(a == b)
    except RecursionError:
        raise
    except Exception as error:
        return _Found("opaque", f"two instances of {type(a).__name__} cannot be compared: {error}")
    return None if equal else _changed(a, b)


def _compare_iterators(a: object, b: object, walk: _Walk) -> _Found | None:
    return _Found("iterator", f"the value is {_an(type(a))}: its elements can be read only once")


# --- containers -------------------------------------------------------------------------------------------------


def _compare_sequences(a: Sequence[object], b: Sequence[object], walk: _Walk) -> _Found | None:
    if len(a) != len(b):
        return _Found("value", f"{len(a)} elements come back as {len(b)}")
    if len(a) >= _LONG and _surely_equal(a, b):
        return None
    return _compare_items(range(len(a)), a, b, walk)


def _compare_mappings(a: Mapping[Any, object], b: Mapping[Any, object], walk: _Walk) -> _Found | None:
    if len(a) != len(b):
        return _compare_mappings_by_key(a, b, walk)
    if len(a) >= _LONG and _common_type(a, b) in _EXACT:
        common = _common_type(a.values(), b.values())
        if (common in _EXACT or (common is float and _same_bits(a.values(), b.values()))) and a == b:
            return None
    for key, other in zip(a, b, strict=True):
        if key is not other and (type(key) is not type(other) or type(key) not in _EXACT or key != other):
            # The encoded form keeps the order, so this is rare.
            return _compare_mappings_by_key(a, b, walk)
    return _compare_items(a, a, b, walk)


def _common_type(a: Iterable[object], b: Iterable[object]) -> type | None:
    types = set(map(type, a))
    return next(iter(types)) if len(types) == 1 and types.issuperset(map(type, b)) else None


def _same_bits(a: Iterable[Any], b: Iterable[Any]) -> bool:
    # Bits tell 0.0 from -0.0, which == does not.
    return array("d", a).tobytes() == array("d", b).tobytes()


def _surely_equal(a: Collection[Any], b: Collection[Any]) -> bool:
    """Compare many values of one simple class, or of one class of models, column by column, at the speed of C.

    Returns:
        ``True`` if they are equal; ``False`` if they have to be compared one by one.
    """
    types = set(map(type, a))
    if not types.issuperset(map(type, b)):
        return False
    if not types:
        return not b
    if len(types) > 1:
        return types <= _EXACT and list(map(type, a)) == list(map(type, b)) and list(a) == list(b)
    only = next(iter(types))
    if only in _EXACT:
        return list(a) == list(b)
    if only is float:
        return _same_bits(a, b)
    if only is Decimal:
        return list(map(str, a)) == list(map(str, b))
    if only is list:
        return list(map(len, a)) == list(map(len, b)) and _surely_equal(list(_flat(a)), list(_flat(b)))
    columns = _columns.get(only)
    if columns is None:
        return False
    mine: list[Any] = list(map(vars, a))
    theirs: list[Any] = list(map(vars, b))
    try:
        return all(_surely_equal([x[name] for x in mine], [y[name] for y in theirs]) for name in columns)
    except KeyError:
        return False


def _compare_mappings_by_key(a: Mapping[Any, Any], b: Mapping[Any, Any], walk: _Walk) -> _Found | None:
    keys, found = _pair_up("key", a, b, walk)
    if found is not None:
        return found
    for key, other in keys:
        found = _compare(a[key], b[other], walk)
        if found is not None:
            return found.under(key)
    return None


def _compare_sets(a: AbstractSet[Any], b: AbstractSet[Any], walk: _Walk) -> _Found | None:
    _, found = _pair_up("member", a, b, walk)
    if found is not None and found.segments:
        found.segments = [Element(found.segments[0])]
    return found


def _pair_up(noun: str, a: Any, b: Any, walk: _Walk) -> tuple[list[tuple[Any, Any]], _Found | None]:
    """Match the keys of two mappings, or the members of two sets, whatever their order."""
    rest: dict[Any, Any] = {key: key for key in b}
    pairs: list[tuple[Any, Any]] = []
    unmatched: list[Any] = []
    for key in a:
        other = rest.get(key, _MISSING)
        if other is not _MISSING and _compare(key, other, walk) is None:
            del rest[key]
            pairs.append((key, other))
        else:
            unmatched.append(key)
    # The rest has no equal by hash: NaN, values that contain NaN, and real differences.
    left = list(rest.values())
    for key in unmatched:
        for index, other in enumerate(left):
            if _compare(key, other, walk) is None:
                pairs.append((key, other))
                del left[index]
                break
        else:
            return pairs, _lost(noun, key, left)
    if left:
        return pairs, _Found("value", f"the {noun} {shorten(left[0])} would be added")
    return pairs, None


def _lost(noun: str, key: Any, left: list[Any]) -> _Found:
    twin = next((other for other in left if type(other) is not type(key) and str(other) == str(key)), _MISSING)
    if twin is _MISSING:
        return _Found("missing", f"the {noun} {shorten(key)} would be dropped").under(key)
    return _Found("type", f"the {noun} {shorten(key)} comes back as {shorten(twin)}").under(key)


# --- objects with fields ----------------------------------------------------------------------------------------


def _model_comparator(cls: type[BaseModel]) -> _Comparator:
    fields = cls.model_fields
    names = tuple(fields)
    keeps_extra = cls.model_config.get("extra") == "allow"
    if not keeps_extra:
        _columns[cls] = names

    def compare(a: BaseModel, b: BaseModel, walk: _Walk) -> _Found | None:
        try:
            found = _compare_items(names, a.__dict__, b.__dict__, walk)
        except KeyError:
            # model_construct may leave out a field.
            found = _compare_items(names, _lookup(a, names), _lookup(b, names), walk)
        if found is not None:
            if len(found.segments) == 1 and fields[found.segments[0]].exclude:
                found.kind = "excluded"
                found.reason = f"the field is excluded from the encoded form: {found.reason}"
            return found
        if keeps_extra:
            return _compare_mappings(a.__pydantic_extra__ or {}, b.__pydantic_extra__ or {}, walk)
        return None

    return compare


def _attributes_comparator(cls: type, names: tuple[str, ...]) -> _Comparator:
    if issubclass(cls, tuple):
        return lambda a, b, walk: _named(names, _compare_items(range(len(names)), a, b, walk))
    has_slots = any("__slots__" in base.__dict__ for base in cls.__mro__[:-1])
    if not has_slots:
        _columns[cls] = names

    def compare(a: object, b: object, walk: _Walk) -> _Found | None:
        if not has_slots:
            try:
                return _compare_items(names, a.__dict__, b.__dict__, walk)
            except KeyError:
                # A field may be a class attribute or a property.
                pass
        return _compare_items(names, _lookup(a, names), _lookup(b, names), walk)

    return compare


def _named(names: tuple[str, ...], found: _Found | None) -> _Found | None:
    if found is not None:
        found.segments[-1] = names[found.segments[-1]]
    return found


def _lookup(value: object, names: tuple[str, ...]) -> dict[str, object]:
    return {name: getattr(value, name, _MISSING) for name in names}


def _compare_objects(a: Any, b: Any, walk: _Walk) -> _Found | None:
    mine, theirs = _attributes(a), _attributes(b)
    if not mine and not theirs:
        return _Found("opaque", f"{_an(a.__class__)} has no attributes to compare and does not define __eq__")
    return _compare_mappings(mine, theirs, walk)


def _attributes(value: object) -> dict[str, Any]:
    attributes = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                attributes[name] = getattr(value, name)
    return attributes


# --- reports ----------------------------------------------------------------------------------------------------


def _changed(a: object, b: object) -> _Found:
    before, after = shorten(a), shorten(b)
    if before == after:
        return _Found("value", f"the {type(a).__name__} {before} comes back as one that is not equal to it")
    return _Found("value", f"{before} comes back as {after}")


def _mismatch(a: object, b: object, walk: _Walk) -> _Found | None:
    if isinstance(a, Iterator | AsyncIterator):
        return _compare_iterators(cast("object", a), b, walk)
    if walk.widen and type(a) is int and type(b) is float and a == b:
        return None
    if a is _MISSING:
        return _Found("value", f"it was not set, and comes back as {shorten(b)}")
    if b is _MISSING:
        return _Found("missing", f"{shorten(a)} would be dropped")
    if isinstance(b, Iterator):
        return _Found("iterator", f"{_an(type(a))} comes back as a lazy iterator, which can be read only once")
    reason = f"the value is {_an(type(a))}, but it comes back as {_an(type(b))}"
    if type(a).__name__ == type(b).__name__:
        reason += f" of another class ({type(a).__module__}.{type(a).__qualname__} and "
        reason += f"{type(b).__module__}.{type(b).__qualname__})"
    kept = set(_field_names(b))
    # A class that came back as a dict with all its fields has lost only its type.
    dropped = [name for name in _field_names(a) if name not in kept]
    if dropped:
        fields = "field" if len(dropped) == 1 else "fields"
        reason += f": {fields} {', '.join(map(repr, dropped))} would be dropped"
    derived = isinstance(a, type(b)) and not isinstance(a, dict) and bool(_field_names(b))
    return _Found("subclass" if derived else "type", reason)


def _field_names(value: object) -> list[str]:
    if isinstance(value, BaseModel):
        return [*type(value).model_fields, *(value.__pydantic_extra__ or {})]
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return list(map(str, cast("dict[object, object]", value)))
    return list(getattr(type(value), "_fields", ()))


def _an(cls: type) -> str:
    if cls is NoneType:
        return "None"
    return f"{'an' if cls.__name__[0].lower() in 'aeiou' else 'a'} {cls.__name__}"


_BY_BASE: Final[tuple[tuple[type, _Comparator], ...]] = (
    (float, _compare_floats),
    (datetime, _compare_datetimes),
    (time, _compare_times),
    (UUID, _compare_uuids),
    (Decimal, _compare_decimals),
    (complex, _compare_complex),
    (list, _compare_sequences),
    (deque, _compare_sequences),
    (dict, _compare_mappings),
    (set, _compare_sets),
    (frozenset, _compare_sets),
)
