"""The options of an exploration, in one place for ``explore`` and for the pytest marker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from restate_steps.testing._errors import SimulationError
from restate_steps.testing._simulation.application import Mode

__all__ = ["ExplorationOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplorationOptions:
    """The limits and variations of an exploration; see :func:`restate_steps.testing.explore` for each option.

    Raises:
        SimulationError: An option is not valid.
    """

    crashes: int = 1
    cancel: bool = False
    orders: Literal["all"] | int = "all"
    max_runs: int = 2_000
    max_seconds: float = 60.0
    seed: int = 0
    before_each: Callable[[], object] | None = None
    on_crash: Callable[[], object] | None = None
    version: int = 6
    mode: Mode = "bidirectional"

    def __post_init__(self) -> None:
        """Check the options at runtime, because the arguments of a pytest mark are untyped."""
        for name, value, least in (("crashes", self.crashes, 0), ("max_runs", self.max_runs, 1)):
            _check_count(name, value, least)
        if self.orders != "all":
            _check_count("orders", self.orders, 1, also="'all' or ")
        if self.mode not in get_args(Mode):
            raise SimulationError(f"mode must be 'bidirectional' or 'request_response', not {self.mode!r}.")
        if self.version not in (6, 7):
            raise SimulationError(f"the version of the service protocol must be 6 or 7, not {self.version!r}.")
        for name, function in (("before_each", self.before_each), ("on_crash", self.on_crash)):
            if function is not None and not callable(function):
                raise SimulationError(f"{name} must be a function without arguments, not {function!r}.")


def _check_count(name: str, value: object, least: int, also: str = "") -> None:
    if not isinstance(value, int) or value < least:
        raise SimulationError(f"{name} must be {also}an integer of at least {least}, not {value!r}.")
