"""Shared by the benchmarks: interleaved measurements, medians with their spread, verdicts, and tables.

A machine gets faster and slower during a measurement. So the candidates of a comparison take turns, each ratio compares
samples of the same round, and the result is the median of these ratios with the quartiles. A verdict gets a "just"
unless the 95 % confidence interval of the median lies on one side of the goal.
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
"""A function that takes one sample."""


@dataclass(frozen=True)
class Spread:
    """The median of some samples, and their spread.

    Attributes:
        median: The median.
        low: The lower quartile.
        high: The upper quartile.
        least: The lower end of the median's 95 % confidence interval.
        most: The upper end of the median's 95 % confidence interval.
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
    """The ratio of one candidate's samples to another's."""

    def verdict(self, goal: float) -> str:
        if self.most <= goal:
            return "met"
        if self.least > goal:
            return "missed"
        return "met, just" if self.median <= goal else "missed, just"


def by_turns(candidates: Mapping[str, Measurement], *, seconds: float, least: int = 7) -> dict[str, list[float]]:
    """Measure the candidates in turn, in rounds.

    Args:
        candidates: The candidates to measure.
        seconds: The minimum duration, in seconds.
        least: The minimum number of rounds.

    Returns:
        The samples of each candidate. Samples at the same index are from the same round.
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
        # Rotate the order, because each candidate affects the one after it.
        turns.append(turns.pop(0))
        rounds += 1
    return samples


def spread(samples: Sequence[float]) -> Spread:
    return Spread(*_summary(samples))


def ratio(ours: Sequence[float], base: Sequence[float]) -> Ratio:
    """Compare samples that were taken in turn."""
    return Ratio(*_summary([one / other for one, other in zip(ours, base, strict=True)]))


def _summary(samples: Sequence[float]) -> tuple[float, float, float, float, float]:
    ordered = sorted(samples)
    count = len(ordered)
    low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
    # The number of samples below the true median has a binomial distribution with p = 1/2.
    aside = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return median, low, high, ordered[aside], ordered[-1 - aside]


def machine() -> str:
    """Describe the machine: versions, hardware and load."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("restate-sdk", "pydantic"))
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"Python {platform.python_version()}, {packages}; {system}{load}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with the first column aligned left and the others aligned right."""
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
