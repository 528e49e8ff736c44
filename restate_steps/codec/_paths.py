"""Write paths into a value, such as ``$.items[3].price``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Element", "format_path", "shorten"]


class Element:
    """A path segment for a set member, which has neither a name nor an index.

    Args:
        value: The member.
    """

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def format_path(segments: Iterable[Any]) -> str:
    """Write a path such as ``$.items[3].price``.

    Args:
        segments: Attribute names and text keys as ``str``, indexes as ``int``, set members as :class:`Element`,
            and other dictionary keys unchanged.

    Returns:
        The path, starting with ``$`` for the whole value.

    Example:
        >>> format_path(["items", 3, "price"])
        '$.items[3].price'
    """
    text = "$"
    for segment in segments:
        if isinstance(segment, Element):
            text += f"{{{shorten(segment.value)}}}"
        elif isinstance(segment, str) and segment.isidentifier():
            text += f".{segment}"
        else:
            text += f"[{shorten(segment)}]"
    return text


def shorten(value: object, limit: int = 60) -> str:
    """Return ``repr(value)``, cut to a length that fits into an error message.

    Args:
        value: Any object; a ``repr`` that fails is replaced by the name of the type.
        limit: The greatest number of characters.

    Returns:
        The text, ending in ``...`` where it was cut.
    """
    try:
        text = repr(value)
    except Exception:
        # An error message must not fail because of the object that it describes.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."
