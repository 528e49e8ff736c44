"""The shape of a public program, and the list of all shapes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from restate_steps.testing import Simulator

__all__ = ["SHAPES", "Scenario", "Shape", "add", "table"]

Scenario: TypeAlias = Callable[[Any], Coroutine[Any, Any, Any]]
"""The actions of a client, in the simulator or on a real server."""

SHAPES: list[Shape] = []
"""All shapes, in the order of the table in ``docs/testing.md``."""


def _nothing() -> None:
    return


@dataclass(frozen=True)
class Shape:
    """The shape of one or more public programs, and the findings of the kit.

    Attributes:
        programs: The programs that have it: their collection, and their names.
        shape: The shape, in a few words.
        app: The application.
        scenario: The actions of a client.
        problem: The problem that ``explore(crashes=2)`` finds; None for none.
        cancelled: The problem that it finds if the invocation may be cancelled as well; True for the same.
        kinds: The kinds of findings of ``check_deterministic``.
        unread: The failures that the handler never reads.
        setup: Called before every run.
        check: Called after every run.
        runs: How many runs the tests spend on it, with and without cancellations each.
        on_server: Whether a real server runs the scenario too; not if that takes long, or never ends.
    """

    programs: str
    shape: str
    app: Any
    scenario: Scenario
    problem: str | None = None
    cancelled: str | Literal[True] | None = True
    kinds: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    setup: Callable[[], object] = _nothing
    check: Callable[[Simulator], object] | None = None
    runs: int = 30
    on_server: bool = True

    @property
    def problem_when_cancelled(self) -> str | None:
        """The problem that ``explore(cancel=True)`` finds."""
        return self.problem if self.cancelled is True else self.cancelled

    @property
    def verdict(self) -> str:
        """The findings in words; empty if there are none."""
        found = [f"`{self.problem}`"] if self.problem else []
        if self.problem_when_cancelled != self.problem:
            found.append(f"`{self.problem_when_cancelled}` when cancelled")
        found += [_CAUSES[kind] for kind in self.kinds]
        if self.unread:
            found.append("a failure that is never read")
        return ", ".join(found)

    def __str__(self) -> str:
        return f"{self.programs}: {self.shape}"


_CAUSES: Final = {
    "clock": "a clock outside of steps",
    "randomness": "randomness outside of steps",
    "memory": "memory",
    "unknown": "a value that no replay repeats",
}


def table() -> list[str]:
    """Return the rows of the table: each shape in which something is found, then the programs of the others."""
    rows = [f"| {shape.programs} | {shape.shape} | {shape.verdict} |" for shape in SHAPES if shape.verdict]
    right: dict[str, list[str]] = {}
    for shape in SHAPES:
        if not shape.verdict:
            collection, _, programs = shape.programs.partition(": ")
            names = right.setdefault(collection, [])
            names += [name for name in programs.split(", ") if name not in names]
    return [*rows, *(f"| {collection}: {', '.join(names)} | | nothing |" for collection, names in right.items())]


def add(shape: Shape) -> Shape:
    """Add a shape to the list."""
    SHAPES.append(shape)
    return shape
