"""Count how often the bodies of steps ran, and report which ones ran again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from restate_steps.testing._simulation.trace import BodyRun

__all__ = ["Effects"]


class Effects(Mapping[str, int]):
    """The number of times that the body of each step ran, by the step's name.

    Restate records what a body returned, but not that a body has started. So a body runs again if its attempt ended
    before the result was stored: steps run *at least once*. An effect that must not be repeated needs an idempotency
    key (:attr:`restate_steps.StepInfo.idempotency_key`).

    Example:
        >>> effects = Effects([BodyRun("inv_1", "charge", 1, 1), BodyRun("inv_1", "charge", 2, 1, True, True)])
        >>> effects["charge"], effects.repeated_steps
        (2, ["'charge' ran in attempt 1, which ended before a result was stored, and again in attempt 2"])
    """

    def __init__(self, runs: Sequence[BodyRun]) -> None:
        self.runs = tuple(runs)
        self._counts: dict[str, int] = {}
        for run in runs:
            self._counts[run.name] = self._counts.get(run.name, 0) + 1

    def __getitem__(self, name: str) -> int:
        """Return how often the body ran; 0 if it never did."""
        return self._counts.get(name, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def max_body_runs(self) -> dict[str, int]:
        """The largest number of runs of a single step, by name; more than one only if the step ran *again*."""
        most: dict[str, int] = {}
        for runs in self._by_step().values():
            most[runs[0].name] = max(len(runs), most.get(runs[0].name, 0))
        return most

    def _by_step(self) -> dict[tuple[str, int], list[BodyRun]]:
        by_step: dict[tuple[str, int], list[BodyRun]] = {}
        for run in self.runs:
            by_step.setdefault((run.invocation, run.completion_id), []).append(run)
        return by_step

    @property
    def repeated_steps(self) -> list[str]:
        """A description of each time that a body ran again."""
        found: list[str] = []
        for runs in self._by_step().values():
            for earlier, later in pairwise(runs):
                found.append(
                    f"{earlier.name!r} ran in attempt {earlier.attempt}, which ended before a result was stored, "
                    f"and again in attempt {later.attempt}"
                )
        return found

    def __repr__(self) -> str:
        return f"Effects({self._counts!r})"
