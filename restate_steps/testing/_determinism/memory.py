"""Find the user's global variables that have changed, without running the user's code."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from restate_steps.testing._determinism.image import variables

__all__ = ["Memory", "changed", "changed_generators", "remember"]

Memory: TypeAlias = dict[str, Any]
"""A snapshot of each variable, by its module-qualified name."""

_DEPTH: Final = 3
_WIDTH: Final = 100
_VALUES: Final = (str, bytes, int, float, complex, bool, type(None), date, timedelta, Decimal, UUID)
_PLAIN: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})
# The attributes of the user's classes and functions are variables themselves.
_CODE: Final = frozenset({type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, CodeType})
# The built-in function, which a check replaces.
_address: Final = id
_COLLECTIONS: Final[tuple[type[Any], ...]] = (list, tuple, deque, set, frozenset)
_COUNTERS: Final[tuple[type[Any], ...]] = (itertools.count, itertools.cycle)


def remember() -> Memory:
    """Return a snapshot of the global variables of the user's modules, and of their functions and classes."""
    snapshots = _Snapshots()
    return {each.path: snapshots.of(each.value) for each in variables()}


def changed(before: Memory, after: Memory) -> list[str]:
    """Return the names of the changed variables, sorted."""
    # In lists, because NaN differs from itself, and a list that has it does not.
    return sorted(name for name in before.keys() | after.keys() if [before.get(name, ...)] != [after.get(name, ...)])


def changed_generators(before: Memory, after: Memory) -> list[str]:
    """Return the names of the random generators among the changed variables."""
    return [name for name in changed(before, after) if isinstance(after.get(name), _GeneratorState)]


class _GeneratorState(NamedTuple):
    """A snapshot of a random generator."""

    state: int


class _Snapshots:
    """Snapshots of values: two of them are equal as long as the value has not changed.

    Global variables share many objects, such as those of libraries, so each object is visited once per depth.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Any] = {}

    def of(self, value: Any, depth: int = _DEPTH) -> Any:
        """Return the snapshot of a value."""
        kind: type[Any] = value.__class__
        if kind in _PLAIN:
            return value
        if kind in _CODE:
            return _address(value)
        place = _address(value), depth
        if place not in self._known:
            # An object that contains itself is not visited again.
            self._known[place] = place[0]
            self._known[place] = self._of_object(value, kind, depth)
        return self._known[place]

    def _of_object(self, value: Any, kind: type[Any], depth: int) -> Any:
        if issubclass(kind, _VALUES):
            return value
        if issubclass(kind, _COUNTERS):
            # Reading the next number would consume it.
            return repr(value)
        if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
            return _GeneratorState(hash(value.getstate()))
        if depth == 0 or issubclass(kind, type):
            return _address(value)
        inner = depth - 1
        if issubclass(kind, dict):
            return "dict", len(value), [(self.of(key, 0), self.of(each, inner)) for key, each in _some(value.items())]
        if issubclass(kind, _COLLECTIONS):
            return kind.__name__, len(value), [self.of(each, inner) for each in _some(value)]
        own: dict[str, Any] = getattr(value, "__dict__", {})
        return _address(value), [(name, self.of(each, inner)) for name, each in _some(own.items())]


def _some(values: Iterable[Any]) -> list[Any]:
    return list(itertools.islice(values, _WIDTH))
