"""Tell the code of users from everybody else's, by where it lies, and find the line of it that does something."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Final, TypeAlias

__all__ = [
    "COPY_OF_MAIN",
    "MAIN",
    "Place",
    "caller",
    "definition_of",
    "file_of",
    "is_infrastructure",
    "is_standard_library",
    "is_user_code",
    "origin",
    "place_of",
    "user_frame",
    "user_places",
]

_PATHS: Final = sysconfig.get_paths()
_STANDARD: Final = tuple({str(Path(_PATHS[name]).resolve()) for name in ("stdlib", "platstdlib")})
_INSTALLED: Final = tuple({str(Path(_PATHS[name]).resolve()) for name in ("purelib", "platlib")})
_OURS: Final = str(Path(__file__).resolve().parents[2])
_PACKAGES: Final = ("site-packages", "dist-packages")
# What is typed in has no file.
_TYPED_IN: Final = ("<stdin>", "<doctest", "<ipython", "<input>", "<python-input", "<console>")

# What they read decides when something happens, but never what a handler does.
_INFRASTRUCTURE: Final = frozenset(
    {"_pytest", "asyncio", "concurrent", "logging", "queue", "restate", "restate_steps", "selectors", "threading"}
)

MAIN: Final = "__main__"

COPY_OF_MAIN: Final = "__restate_steps_main__"
"""The name that another interpreter gives to the module that is ``__main__`` here."""

Place: TypeAlias = str
"""A line of code: the path of its file, a colon, and the number."""


@lru_cache(maxsize=4096)
def is_standard_library(file: str) -> bool:
    """Whether a file belongs to Python itself."""
    if file.startswith("<"):
        return not file.startswith(_TYPED_IN)
    path = str(Path(file).resolve())
    return path.startswith(_STANDARD) and not any(part in path for part in _PACKAGES)


@lru_cache(maxsize=4096)
def is_user_code(file: str) -> bool:
    """Whether a file belongs to the user: not to Python, to an installed package, or to this one."""
    if file.startswith("<"):
        return file.startswith(_TYPED_IN)
    path = str(Path(file).resolve())
    return not path.startswith((*_INSTALLED, _OURS)) and not is_standard_library(file) and _outside_packages(path)


def _outside_packages(path: str) -> bool:
    return not any(part in path for part in _PACKAGES)


def is_infrastructure(module: str | None) -> bool:
    """Whether a module only runs what others have written."""
    return (module or "").partition(".")[0] in _INFRASTRUCTURE


def caller(depth: int = 0) -> FrameType:
    """Return the frame of whoever has called the function that calls this, or of one that many calls further out."""
    return sys._getframe(2 + depth)  # pyright: ignore[reportPrivateUsage]


def user_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of the user's code, as far as the running task goes; None if there is none."""
    while frame is not None and frame.f_globals.get("__name__") != "asyncio.events":
        if is_user_code(frame.f_code.co_filename):
            return frame
        frame = frame.f_back
    return None


def place_of(frame: FrameType) -> Place:
    """Return the line that a frame executes."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def definition_of(function: Callable[..., Any]) -> Place | None:
    """Return the line that a function begins at."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else None


def user_places(frame: FrameType | None) -> tuple[Place, ...]:
    """Return the lines of the user's code that a frame was called from, outermost first."""
    places: list[Place] = []
    while (frame := user_frame(frame)) is not None:
        places.append(place_of(frame))
        frame = frame.f_back
    return tuple(reversed(places))


def origin(name: str, frame: FrameType) -> tuple[str, Place] | None:
    """Return who has called a function: its name as the caller knows it, and the caller's line.

    ``uuid.uuid4`` calls ``os.urandom``, and what the user has written is ``uuid.uuid4``.

    Args:
        name: The function.
        frame: The frame that has called it.

    Returns:
        The name and the line; None if infrastructure has called it.
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
    """Return the file of a module; None for one that has none."""
    return getattr(module, "__file__", None)
