"""Scopes and limit keys, as a server with flow control checks them.

A scope is a part of the target's identity. A limit key is not: it only names the limits that an operator's rules set.
The simulated server has no rules, like a new server, so a limit key reaches the handler and limits nothing.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["UNSUPPORTED_FEATURE", "normalized_limit_key", "refusal", "with_version_hint"]

UNSUPPORTED_FEATURE: Final = 573
"""The code with which the SDK refuses what the negotiated version of the protocol does not have."""

_MAX_BYTES: Final = 36
_MAX_PARTS: Final = 2
_ALLOWED: Final = re.compile(r"[a-zA-Z0-9_.-]*")
_FIX: Final = "Use 1 to 36 characters out of a-z, A-Z, 0-9, '_', '.' and '-'"


def normalized_limit_key(limit_key: str | None) -> str | None:
    """Return a valid limit key as the handler sees it: the server drops a slash at the end."""
    return None if limit_key is None else limit_key.removesuffix("/")


def refusal(scope: str | None, limit_key: str | None) -> str | None:
    """Return why the server refuses a handler's call, in its words, and how to fix it; None if it accepts the call."""
    if scope is None:
        if limit_key is None:
            return None
        return (
            "limit key was provided without a scope. Limit keys take effect only when used in combination with scope. "
            "Pass scope=... too, or call ctx.scope(...)."
        )
    if (fault := _fault(scope)) is not None:
        return f"the provided scope {scope!r} is invalid: {fault}. {_FIX}."
    if limit_key is not None and (fault := _limit_key_fault(limit_key)) is not None:
        return f"the provided limit key {limit_key!r} is invalid: {fault}. {_FIX} for each of one or two levels."
    return None


def with_version_hint(message: str) -> str:
    """Add to the SDK's refusal of a feature how to have it, on a server and here."""
    return (
        f"{message}. A server speaks version 7 only if RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7=true is set, and has "
        "scopes and limit keys only with RESTATE_EXPERIMENTAL_ENABLE_VQUEUES=true. Without them, no retry succeeds. "
        "To test for a server that has both, simulate or explore with version=7."
    )


def _limit_key_fault(limit_key: str) -> str | None:
    levels = limit_key.removesuffix("/").split("/")
    if len(levels) > _MAX_PARTS:
        return f"too many path components in the given limit-key (max {_MAX_PARTS})"
    for level in levels:
        if (fault := _fault(level)) is not None:
            return f"invalid limit-key component: {fault}"
    return None


def _fault(text: str) -> str | None:
    if not text:
        return "value cannot be empty"
    if (size := len(text.encode())) > _MAX_BYTES:
        return f"value too long: {size} bytes (max {_MAX_BYTES})"
    return None if _ALLOWED.fullmatch(text) else "value contains characters outside the allowed set [a-zA-Z0-9_.-]"
