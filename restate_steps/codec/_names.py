"""Write types as they appear in source code."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from restate_steps.codec._adapters import is_plain

__all__ = ["type_name"]


def type_name(type: Any) -> str:
    """Write a type the way it appears in source code.

    Args:
        type: Any type or annotation.

    Returns:
        For example ``list[Order]`` or ``Order | None``.

    Example:
        >>> type_name(dict[str, int | None])
        'dict[str, int | None]'
    """
    if type is None or type is types.NoneType:
        return "None"
    if type is Any:
        return "Any"
    if is_plain(type):
        return "plain JSON"
    if type is Ellipsis:
        return "..."
    if isinstance(type, str):
        return type
    if isinstance(type, list):
        return f"[{', '.join(map(type_name, cast('list[object]', type)))}]"
    origin = get_origin(type)
    if origin is None:
        if isinstance(type, TypeVar):
            return type.__name__
        name = getattr(type, "__name__", None) or getattr(type, "__forward_arg__", None)
        return name if isinstance(name, str) else repr(type)
    args = get_args(type)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is Union or origin is types.UnionType:
        return " | ".join(map(type_name, args))
    return f"{type_name(origin)}[{', '.join(map(type_name, args))}]"
