"""Say which of the user's global variables have changed, as far as can be seen without running the user's code."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from types import FunctionType, ModuleType
from typing import Any, Final, TypeAlias
from uuid import UUID

from restate_steps.testing._determinism.user_code import file_of, is_user_code

__all__ = ["Memory", "changed", "remember"]

Memory: TypeAlias = dict[str, Any]
"""What was seen of each variable, by its name with that of its module."""

_DEPTH: Final = 3
_WIDTH: Final = 100
_VALUES: Final = (str, bytes, int, float, complex, bool, type(None), date, timedelta, Decimal, UUID)
_COLLECTIONS: Final[tuple[type[Any], ...]] = (list, tuple, deque, set, frozenset)
_COUNTERS: Final[tuple[type[Any], ...]] = (itertools.count, itertools.cycle)


def remember() -> Memory:
    """Look at the global variables of the user's modules, and at what their functions and classes keep."""
    seen: Memory = {}
    for name, module in list(sys.modules.items()):
        file = file_of(module) if isinstance(module, ModuleType) else None
        if file is None or module.__name__ != name or not is_user_code(file):
            continue
        for variable, value in list(vars(module).items()):
            if variable.startswith("__"):
                continue
            path = f"{name}.{variable}"
            if isinstance(value, type):
                if value.__module__ == name:
                    for attribute, inner in list(vars(value).items()):
                        if not attribute.startswith("__") and not callable(inner):
                            seen[f"{path}.{attribute}"] = _seen(inner, _DEPTH)
            elif isinstance(value, FunctionType):
                for attribute, inner in vars(value).items():
                    if not attribute.startswith("_"):
                        seen[f"{path}.{attribute}"] = _seen(inner, _DEPTH)
            elif not isinstance(value, ModuleType):
                seen[path] = _seen(value, _DEPTH)
    return seen


def changed(before: Memory, after: Memory) -> list[str]:
    """Return the names of what has changed, sorted."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name, ...) != after.get(name, ...))


def _seen(value: Any, depth: int) -> Any:
    """Return something that is equal as long as nothing has changed."""
    kind: type[Any] = value.__class__
    if issubclass(kind, _VALUES):
        return value
    if issubclass(kind, _COUNTERS):
        # Looking at the next number would take it.
        return repr(value)
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
