"""Find the user's global variables that have changed, without running the user's code."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from restate_steps.testing._determinism.image import variables

__all__ = ["Memory", "changed", "changed_generators", "remember"]

Memory: TypeAlias = dict[str, Any]
"""A snapshot of each variable, by its module-qualified name."""

_DEPTH: Final = 3
_WIDTH: Final = 100
_VALUES: Final = (str, bytes, int, float, complex, bool, type(None), date, timedelta, Decimal, UUID)
_COLLECTIONS: Final[tuple[type[Any], ...]] = (list, tuple, deque, set, frozenset)
_COUNTERS: Final[tuple[type[Any], ...]] = (itertools.count, itertools.cycle)


def remember() -> Memory:
    """Return a snapshot of the global variables of the user's modules, and of their functions and classes."""
    return {each.path: _seen(each.value, _DEPTH) for each in variables()}


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


def _seen(value: Any, depth: int) -> Any:
    """Return a snapshot of a value: snapshots are equal as long as the value has not changed."""
    kind: type[Any] = value.__class__
    if issubclass(kind, _VALUES):
        return value
    if issubclass(kind, _COUNTERS):
        # Reading the next number would consume it.
        return repr(value)
    if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
        return _GeneratorState(hash(value.getstate()))
    if depth == 0:
        return id(value)
    if issubclass(kind, dict):
        return "dict", len(value), [(_seen(key, 0), _seen(inner, depth - 1)) for key, inner in _some(value.items())]
    if issubclass(kind, _COLLECTIONS):
        return kind.__name__, len(value), [_seen(inner, depth - 1) for inner in _some(value)]
    own: dict[str, Any] = getattr(value, "__dict__", {})
    return id(value), [(name, _seen(inner, depth - 1)) for name, inner in _some(own.items())]


def _some(values: Iterable[Any]) -> list[Any]:
    return list(itertools.islice(values, _WIDTH))
