"""Frames of suspended and running code, for error messages."""

from __future__ import annotations

import gc
import sys
from types import CoroutineType, FrameType
from typing import Any

from restate_steps._user_code import is_machinery, is_user_code

__all__ = ["describe", "frames_of", "user_line"]


def frames_of(awaitable: Any) -> list[FrameType]:
    """Return the frames of a suspended coroutine, outermost first, down to the one that waits.

    ``coroutine_wrapper`` (the result of ``coro.__await__()``) and the awaitables of async generators have no attribute
    for the next frame. The garbage collector's referents lead there, in constant time.
    """
    frames: list[FrameType] = []
    seen = 0
    while awaitable is not None and seen < 1000:
        seen += 1
        if isinstance(awaitable, CoroutineType):
            frame, following = awaitable.cr_frame, awaitable.cr_await
        elif hasattr(awaitable, "gi_frame"):
            frame, following = awaitable.gi_frame, awaitable.gi_yieldfrom
        elif hasattr(awaitable, "ag_frame"):
            frame, following = awaitable.ag_frame, awaitable.ag_await
        elif type(awaitable).__name__ in ("coroutine_wrapper", "async_generator_asend", "async_generator_athrow"):
            frame = None
            referents = gc.get_referents(awaitable)
            following = next((r for r in referents if hasattr(r, "cr_await") or hasattr(r, "ag_await")), None)
        else:
            break
        if frame is not None:
            frames.append(frame)
        awaitable = following
    return frames


def describe(awaitable: Any) -> str:
    """Describe where a suspended coroutine waits: `` for Event.wait in pay at app.py:31``."""
    frames = frames_of(awaitable)
    if not frames:
        return ""
    own = next((frame for frame in reversed(frames) if not is_machinery(frame)), frames[-1])
    where = f"{own.f_code.co_qualname} at {own.f_code.co_filename}:{own.f_lineno}"
    if frames[-1] is own:
        return f" in {where}"
    return f" for {frames[-1].f_code.co_qualname} in {where}"


def user_line() -> str:
    """Return the line of the user's code from which the caller was called: ``app.py:31 (pay)``."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    nearest: FrameType | None = None
    while frame is not None:
        if not is_machinery(frame):
            nearest = nearest or frame
            if is_user_code(frame.f_code.co_filename):
                return _line(frame)
        frame = frame.f_back
    return _line(nearest) if nearest is not None else "an unknown line"


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_qualname})"
