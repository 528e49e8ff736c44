"""Tell what has happened in a simulation, line by line."""

from __future__ import annotations

from typing import Final

from restate_steps.testing._simulation.driver import Driver
from restate_steps.testing._simulation.journal import describe_frame
from restate_steps.testing._simulation.wire import is_notification

__all__ = ["shortened", "timeline"]

# A handler that fails at every attempt has some hundred lines of the same.
_FIRST_LINES: Final = 60
_LAST_LINES: Final = 20


def timeline(driver: Driver) -> str:
    """Return what was stored and what was chosen, in the order in which it happened.

    A line with ``→`` is what the application asked for, one with ``←`` is what it was told, and the others are what
    happened around it. The number is how many messages were stored by then, which is where a crash can be placed.
    """
    several = len(driver.world.invocations) > 1
    lines: list[str] = []
    log = list(driver.log)
    for number, (invocation, frame) in enumerate(driver.world.history, start=1):
        while log and log[0][0] < number:
            lines.append(_event(log.pop(0)[1]))
        arrow = "←" if is_notification(frame.kind) else "→"
        whose = f"{invocation.target}: " if several else ""
        lines.append(f"{number:5}   {arrow} {whose}{describe_frame(frame)}")
    lines += [_event(what) for _, what in log]
    return "\n".join(lines)


def shortened(timeline: str) -> str:
    """Leave the middle out of a long timeline."""
    lines = timeline.splitlines()
    left_out = len(lines) - _FIRST_LINES - _LAST_LINES
    if left_out <= 1:
        return timeline
    return "\n".join([*lines[:_FIRST_LINES], f"        … {left_out} lines are left out", *lines[-_LAST_LINES:]])


def _event(what: str) -> str:
    mark = "✂" if what == "crash" else "·"
    return f"        {mark} " + what.replace("\n", "\n          ")
