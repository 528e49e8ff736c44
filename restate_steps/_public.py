"""Show public classes under the path that users import them from."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, cast, is_typeddict

__all__ = ["publish"]


def publish(path: str, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
    """Show public classes under their public path, in tracebacks and reprs.

    Call it in the module that defines the classes: failures are recorded under the path of their class, which must not
    depend on what a process has imported. Dataclasses and typed dictionaries keep their module, because the names in
    their annotations are looked up there.

    Args:
        path: The package that users import from.
        namespace: The globals of the module or package.
        names: Its public names.
    """
    for name in names:
        value: Any = namespace[name]
        if inspect.isclass(value) and not dataclasses.is_dataclass(value) and not is_typeddict(cast(Any, value)):
            value.__module__ = path
