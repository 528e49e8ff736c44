"""Schedules: which event happened at each choice, and where the process crashed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from restate_steps.testing._errors import SimulationError

__all__ = ["Crash", "Schedule"]

_REPLAY: Final = "replay:"
_LOST: Final = "~"
_CANCEL: Final = "x"


class Crash(NamedTuple):
    """A point at which the service's process is killed.

    Attributes:
        stored: The number of messages stored at that point.
        lost: True if the result of a step is in transit at that point, and is lost: its body has run, and runs again.
    """

    stored: int
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """The choices of one run, which repeat it exactly.

    A schedule is written as ``1.0.2!7!12``. The first part has the choices: at the first point where several events
    could happen, the second one did, then the first, then the third, and from then on always the first. ``!7!12``
    means that the process was killed when 7 messages were stored, and again at 12. ``!7~`` means that the result of a
    step was in transit at that moment, and was lost. ``x5`` before the crashes means that an operator cancelled the
    handler when it was idle for the fifth time. The prefix ``replay:`` means that the handler was suspended at every
    wait.

    Attributes:
        choices: The index of the chosen event, for each point where several events could happen.
        crashes: The points at which the process was killed, in ascending order.
        always_replay: True if the handler was suspended at every wait.
        cancel: The moment at which the handler was cancelled, counted from 1; None if it was not. A moment is a point
            at which every handler waits for the next event.

    Example:
        >>> Schedule.parse("1.0.2!7").crashes
        (Crash(stored=7, lost=False),)
        >>> str(Schedule((0, 1), (Crash(4, lost=True),), always_replay=True))
        'replay:0.1!4~'
    """

    choices: tuple[int, ...] = ()
    crashes: tuple[Crash, ...] = ()
    always_replay: bool = False
    cancel: int | None = None

    @classmethod
    def parse(cls, text: str | Schedule) -> Schedule:
        """Parse a printed schedule.

        Raises:
            SimulationError: The text is not a schedule.
        """
        if isinstance(text, Schedule):
            return text
        rest = text.strip().removeprefix(_REPLAY)
        choices, *crashes = rest.split("!")
        choices, cancelled, cancel = choices.partition(_CANCEL)
        try:
            return cls(
                choices=tuple(map(_number, choices.split("."))) if choices else (),
                crashes=tuple(Crash(_number(crash.removesuffix(_LOST)), crash.endswith(_LOST)) for crash in crashes),
                always_replay=text.strip().startswith(_REPLAY),
                cancel=_number(cancel) if cancelled else None,
            )
        except ValueError:
            raise SimulationError(
                f"{text!r} is not a schedule. Pass one that explore has printed, such as '0.1.0!7'."
            ) from None

    def trimmed(self) -> Schedule:
        """Return the schedule without trailing choices that are the default."""
        choices = self.choices
        while choices and choices[-1] == 0:
            choices = choices[:-1]
        return replace(self, choices=choices)

    def __str__(self) -> str:
        prefix = _REPLAY if self.always_replay else ""
        return (
            prefix
            + ".".join(map(str, self.choices))
            + ("" if self.cancel is None else f"{_CANCEL}{self.cancel}")
            + "".join(f"!{crash.stored}{_LOST if crash.lost else ''}" for crash in self.crashes)
        )


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError
    return int(text)
