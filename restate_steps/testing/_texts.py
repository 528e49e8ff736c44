"""Shorten texts for comparison, leaving out what they share."""

from __future__ import annotations

from restate_steps._printable import cut

__all__ = ["cut_apart"]

_BEFORE = 20


def cut_apart(one: str, other: str, width: int) -> tuple[str, str]:
    """Return two texts, each at most ``width`` long, so that the first difference between them is visible.

    Example:
        >>> cut_apart("a" * 100 + "b", "a" * 100 + "c", 12)
        ('aaaaa…aaaaab', 'aaaaa…aaaaac')
    """
    if max(len(one), len(other)) <= width or one == other:
        return cut(one, width), cut(other, width)
    equal = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if equal < width - _BEFORE:
        return cut(one, width), cut(other, width)
    # Show the beginning, which says what the text is, and then what is just before the difference.
    head = max(min(width // 3, equal), 1) if width >= 3 * _BEFORE else width // 2 - 1
    tail = min(_BEFORE, width // 2 - 1)
    start = max(equal - tail, head)
    return tuple(cut(f"{text[:head]}…{text[start:]}", width) for text in (one, other))  # type: ignore[return-value]
