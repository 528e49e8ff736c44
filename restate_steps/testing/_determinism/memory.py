"""Say which of the user's global variables have changed, as far as can be seen without running the user's code."""

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
"""What was seen of each variable, by its name with that of its module."""

_DEPTH: Final = 3
_WIDTH: Final = 100
_VALUES: Final = (str, bytes, int, float, complex, bool, type(None), date, timedelta, Decimal, UUID)
_COLLECTIONS: Final[tuple[type[Any], ...]] = (list, tuple, deque, set, frozenset)
_COUNTERS: Final[tuple[type[Any], ...]] = (itertools.count, itertools.cycle)


def remember() -> Memory:
    """Look at the global variables of the user's modules, and at what their functions and classes keep."""
    return {each.path: _seen(each.value, _DEPTH) for each in variables()}


def changed(before: Memory, after: Memory) -> list[str]:
    """Return the names of what has changed, sorted."""
    # In lists, because NaN differs from itself, and a list that has it does not.
    return sorted(name for name in before.keys() | after.keys() if [before.get(name, ...)] != [after.get(name, ...)])


def changed_generators(before: Memory, after: Memory) -> list[str]:
    """Return the names of the generators of random numbers among what has changed."""
    return [name for name in changed(before, after) if isinstance(after.get(name), _GeneratorState)]


class _GeneratorState(NamedTuple):
    """What was seen of a generator of random numbers."""

    state: int


def _seen(value: Any, depth: int) -> Any:
    """Return something that is equal as long as nothing has changed."""
    kind: type[Any] = value.__class__
    if issubclass(kind, _VALUES):
        return value
    if issubclass(kind, _COUNTERS):
        # Looking at the next number would take it.
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
