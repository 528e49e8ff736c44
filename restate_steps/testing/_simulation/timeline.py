"""The timeline of a simulation, for people."""

from __future__ import annotations

from typing import Final

from restate_steps._protocol.types import is_notification
from restate_steps.testing._simulation.driver import Driver
from restate_steps.testing._simulation.journal import describe_frame

__all__ = ["shortened", "timeline"]

# A handler that fails on every attempt repeats the same lines hundreds of times.
_FIRST_LINES: Final = 60
_LAST_LINES: Final = 20


def timeline(driver: Driver) -> str:
    """Return the stored messages and the chosen events, in the order in which they happened.

    Lines with ``→`` are commands of the application, lines with ``←`` are notifications for it, and the others are
    events around it. The number is that of the stored messages so far; a schedule places crashes by this number.
    """
    several = len(driver.model.invocations) > 1
    lines: list[str] = []
    log = list(driver.trace.log)
    for number, (invocation, frame) in enumerate(driver.model.history, start=1):
        while log and log[0][0] < number:
            lines.append(_event(log.pop(0)[1]))
        arrow = "←" if is_notification(frame.type) else "→"
        whose = f"{invocation.target}: " if several else ""
        lines.append(f"{number:5}   {arrow} {whose}{describe_frame(frame)}")
    lines += [_event(what) for _, what in log]
    return "\n".join(lines)


def shortened(timeline: str) -> str:
    """Return the timeline, without its middle if it is long."""
    lines = timeline.splitlines()
    left_out = len(lines) - _FIRST_LINES - _LAST_LINES
    if left_out <= 1:
        return timeline
    return "\n".join([*lines[:_FIRST_LINES], f"        … {left_out} lines left out", *lines[-_LAST_LINES:]])


def _event(what: str) -> str:
    mark = "✂" if what == "crash" else "·"
    return f"        {mark} " + what.replace("\n", "\n          ")
