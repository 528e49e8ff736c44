"""Fit text into the columns of a terminal, where a character may take none or two."""

from __future__ import annotations

import itertools
import unicodedata

__all__ = ["columns", "cut", "middle_cut", "pad"]


def columns(text: str) -> int:
    """Return the number of columns that a text takes.

    Example:
        >>> columns("abc"), columns("日本"), columns("e\u0301")
        (3, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def pad(text: str, width: int) -> str:
    """Return a text, with spaces up to a width."""
    return text + " " * (width - columns(text))


def cut(text: str, width: int) -> str:
    """Return a text that fits a width, with an ellipsis if something is left out."""
    return text if columns(text) <= width else f"{_beginning(text, width - 1)}…"


def middle_cut(text: str, width: int) -> str:
    """Return a text that fits a width, with its end: that of a target is the handler's name.

    Example:
        >>> middle_cut("Desk/a-long-key/review", 15)
        'Desk/a-…/review'
    """
    if columns(text) <= width:
        return text
    left = _beginning(text, (width - 1) // 2)
    right = _beginning(text[::-1], width - 1 - columns(left))[::-1]
    return f"{left}…{right}"


def _beginning(text: str, width: int) -> str:
    ends = itertools.accumulate(map(_columns_of, text))
    return text[: sum(1 for _ in itertools.takewhile(lambda end: end <= width, ends))]


def _columns_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
