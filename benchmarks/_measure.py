"""What the scripts share: measuring by turns, medians with their spread, verdicts, tables.

A machine gets faster and slower while it measures. So the candidates of a comparison take turns, a ratio is one of
neighbours in time, and what is shown is the median of these ratios with the quartiles. A verdict is given only if it
would have come out the same in nearly every run: the interval that holds the true median with 95 % must lie on one
side of the goal.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

__all__ = ["Ratio", "Spread", "by_turns", "machine", "print_table", "ratio", "spread"]

Measurement = Callable[[], float]
"""Measures once."""


@dataclass(frozen=True)
class Spread:
    """The middle of some samples, and how far they lie apart.

    Attributes:
        median: Their median.
        low: The lower quartile.
        high: The upper quartile.
        least: What the true median is not below, with a confidence of 95 %.
        most: What it is not above.
    """

    median: float
    low: float
    high: float
    least: float
    most: float

    @property
    def quartiles(self) -> str:
        return f"{self.low:.2f} … {self.high:.2f}"


class Ratio(Spread):
    """How many times as much one candidate takes as another."""

    def verdict(self, goal: float) -> str:
        if self.most <= goal:
            return "met"
        if self.least > goal:
            return "missed"
        return "met, just" if self.median <= goal else "missed, just"


def by_turns(candidates: Mapping[str, Measurement], *, seconds: float, least: int = 7) -> dict[str, list[float]]:
    """Measure each candidate in turn, again and again.

    Args:
        candidates: What to measure.
        seconds: For how long.
        least: How many rounds there are, however long they take.

    Returns:
        As many samples of each candidate; those at the same place were taken one after another.
    """
    for measure in candidates.values():
        measure()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    turns = list(candidates.items())
    deadline = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < deadline:
        for name, measure in turns:
            samples[name].append(measure())
        # Whoever comes after another finds the machine as that one left it.
        turns.append(turns.pop(0))
        rounds += 1
    return samples


def spread(samples: Sequence[float]) -> Spread:
    return Spread(*_summary(samples))


def ratio(ours: Sequence[float], base: Sequence[float]) -> Ratio:
    """Compare samples that were taken by turns."""
    return Ratio(*_summary([one / other for one, other in zip(ours, base, strict=True)]))


def _summary(samples: Sequence[float]) -> tuple[float, float, float, float, float]:
    ordered = sorted(samples)
    count = len(ordered)
    low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
    # How many of `count` samples lie below the true median is a throw of as many coins.
    aside = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return median, low, high, ordered[aside], ordered[-1 - aside]


def machine() -> str:
    """Say what was measured, on what, and how busy that was with other things."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("restate-sdk", "pydantic"))
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"Python {platform.python_version()}, {packages}; {system}{load}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are numbers and the like."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    print(line(head))
    print("  ".join("-" * width for width in widths))
    for row in rows:
        print(line(row))
