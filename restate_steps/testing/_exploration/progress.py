"""A progress line on stderr."""

from __future__ import annotations

import sys
import time
from typing import Final

from restate_steps.testing._exploration.report import Report

__all__ = ["Progress"]

_PROGRESS_AFTER: Final = 2.0
_PROGRESS_EVERY: Final = 0.2


class Progress:
    """A progress line on stderr that is overwritten."""

    def __init__(self, wanted: bool | None, of: int) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._of = of
        self._next = time.perf_counter() + (0.0 if wanted else _PROGRESS_AFTER)
        self._shown = False

    def show(self, report: Report) -> None:
        if not self._wanted or time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + _PROGRESS_EVERY
        self._shown = True
        done = min(1.0, report.runs / self._of)
        bar = "█" * int(20 * done) + "░" * (20 - int(20 * done))
        sys.stderr.write(
            f"\r{bar} {report.schedules:,} schedules, {report.prefixes:,} prefixes, {report.rate:,.0f} a second "
        )
        sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._shown = False
