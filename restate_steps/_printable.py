"""Show text from elsewhere in one line of a terminal."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["cut", "printable"]

# C0 and C1 control characters, line and paragraph separators, and characters that change the direction of others.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return a text with its control characters escaped, because they could break lines and rewrite others.

    Example:
        >>> printable("a\nb")
        'a\\nb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cut(text: str, width: int) -> str:
    """Return the beginning of a text, with an ellipsis if it is longer than ``width``."""
    return text if len(text) <= width else text[: width - 1] + "…"
