"""Find the user's line behind a call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType, ModuleType
from typing import Any, Final, TypeAlias

from restate_steps._user_code import is_standard_library, is_user_code

__all__ = [
    "COPY_OF_MAIN",
    "MAIN",
    "Place",
    "caller",
    "definition_of",
    "file_of",
    "is_infrastructure",
    "origin",
    "place_of",
    "user_frame",
    "user_places",
]

# What these modules read affects when something happens, but never what a handler does.
_INFRASTRUCTURE: Final = frozenset(
    {"_pytest", "asyncio", "concurrent", "logging", "queue", "restate", "restate_steps", "selectors", "threading"}
)

MAIN: Final = "__main__"

COPY_OF_MAIN: Final = "__restate_steps_main__"
"""The name that another interpreter gives to the module that is ``__main__`` here."""

Place: TypeAlias = str
"""A line of code: the path of its file, a colon, and the number."""


def is_infrastructure(module: str | None) -> bool:
    """Return whether a module only runs other code."""
    return (module or "").partition(".")[0] in _INFRASTRUCTURE


def caller(depth: int = 0) -> FrameType:
    """Return the frame of the caller's caller, or the frame ``depth`` calls further out."""
    return sys._getframe(2 + depth)  # pyright: ignore[reportPrivateUsage]


def user_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of user code within the running task; None if there is none."""
    while frame is not None and frame.f_globals.get("__name__") != "asyncio.events":
        if is_user_code(frame.f_code.co_filename):
            return frame
        frame = frame.f_back
    return None


def place_of(frame: FrameType) -> Place:
    """Return the line that a frame executes."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def definition_of(function: Callable[..., Any]) -> Place | None:
    """Return the first line of a function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else None


def user_places(frame: FrameType | None) -> tuple[Place, ...]:
    """Return the lines of user code on the stack of a frame, outermost first."""
    places: list[Place] = []
    while (frame := user_frame(frame)) is not None:
        places.append(place_of(frame))
        frame = frame.f_back
    return tuple(reversed(places))


def origin(name: str, frame: FrameType) -> tuple[str, Place] | None:
    """Return the function that code outside the standard library called, and the line of the call.

    For example, ``uuid.uuid4`` calls ``os.urandom``, but the user's code calls ``uuid.uuid4``.

    Args:
        name: The name of the function.
        frame: The frame that called it.

    Returns:
        The name and the line; None if infrastructure called it.
    """
    following: FrameType | None = frame
    while following is not None:
        module = following.f_globals.get("__name__")
        if is_infrastructure(module):
            return None
        if not is_standard_library(following.f_code.co_filename):
            return name, place_of(user_frame(following) or following)
        name = f"{module}.{following.f_code.co_qualname.removesuffix('.__init__')}"
        following = following.f_back
    return None


def file_of(module: ModuleType) -> str | None:
    """Return the file of a module; None if it has none."""
    return getattr(module, "__file__", None)
