"""Classify files and frames: the user's code, a library's, or the machinery around handlers."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final

__all__ = ["MACHINERY", "is_machinery", "is_standard_library", "is_user_code", "module_of"]

MACHINERY: Final = frozenset({"anyio", "asyncio", "pydantic_ai", "pydantic_graph", "restate", "restate_steps"})
"""The packages that run handlers. A handler that fails in one of them fails because of a line elsewhere."""

_PATHS: Final = sysconfig.get_paths()
_STANDARD: Final = tuple({str(Path(_PATHS[name]).resolve()) for name in ("stdlib", "platstdlib")})
_INSTALLED: Final = tuple({str(Path(_PATHS[name]).resolve()) for name in ("purelib", "platlib")})
_OURS: Final = str(Path(__file__).resolve().parent)
_PACKAGES: Final = ("site-packages", "dist-packages")
# Code that is typed in has no file.
_TYPED_IN: Final = ("<stdin>", "<doctest", "<ipython", "<input>", "<python-input", "<console>")


@cache
def is_standard_library(file: str) -> bool:
    """Return whether a file belongs to Python itself."""
    if file.startswith("<"):
        return not file.startswith(_TYPED_IN)
    path = str(Path(file).resolve())
    return path.startswith(_STANDARD) and not any(part in path for part in _PACKAGES)


@cache
def is_user_code(file: str) -> bool:
    """Return whether a file is user code: not part of Python, of an installed package, or of this package."""
    if file.startswith("<"):
        return file.startswith(_TYPED_IN)
    path = str(Path(file).resolve())
    is_packaged = path.startswith((*_INSTALLED, _OURS)) or any(part in path for part in _PACKAGES)
    return not is_packaged and not is_standard_library(file)


def is_machinery(frame: FrameType) -> bool:
    """Return whether a frame belongs to the packages that run handlers."""
    return module_of(frame) in MACHINERY


def module_of(frame: FrameType) -> str:
    """Return the top-level package of a frame's module; empty if it has none."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
