"""A schedule: which of several things happened at each point where there was a choice, and where the process died."""

from __future__ import annotations

from dataclasses import dataclass, replace

from restate_steps.testing._errors import SimulationError
from restate_steps.testing._simulation.driver import Crash

__all__ = ["Schedule"]

_REPLAY = "replay:"
_LOST = "~"
_CANCEL = "x"


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run, so that it can be had again exactly.

    It is written as ``1.0.2!7!12``: at the first point where more than one thing could happen the second one did, then
    the first, then the third, and the first one ever after; the process was killed when 7 messages were stored, and
    again at 12. ``!7~`` means that a step's result was on its way then, and got lost. ``x5`` before the crashes means
    that an operator cancelled the handler when it had come to a rest for the fifth time. ``replay:`` before it all
    means that the handler was suspended at every wait.

    Attributes:
        choices: The index of what was chosen, at each point where there was more than one thing to choose from.
        crashes: When the process was killed, in rising order.
        always_replay: Whether the handler was suspended at every wait.
        cancel: At which moment it was cancelled, counted from 1; None if it was not. A moment is when nothing can run
            by itself.

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
        """Read a schedule that was printed.

        Raises:
            SimulationError: It is no schedule.
        """
        if isinstance(text, Schedule):
            return text
        rest = text.strip().removeprefix(_REPLAY)
        choices, *crashes = rest.split("!")
        choices, cancelled, cancel = choices.partition(_CANCEL)
        try:
            return cls(
                choices=tuple(int(choice) for choice in choices.split(".")) if choices else (),
                crashes=tuple(Crash(int(crash.removesuffix(_LOST)), crash.endswith(_LOST)) for crash in crashes),
                always_replay=text.strip().startswith(_REPLAY),
                cancel=int(cancel) if cancelled else None,
            )
        except ValueError:
            raise SimulationError(
                f"{text!r} is no schedule. One looks like '0.1.0!7'; it is printed by explore."
            ) from None

    def trimmed(self) -> Schedule:
        """Return the same schedule without choices at its end that would be made anyway."""
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
