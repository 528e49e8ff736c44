"""A pytest plugin that adds up what the tests have explored, whichever worker ran them.

The run of the tests fails if all that explore something have passed, and have explored too little together.
"""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["PROPERTY", "pytest_configure"]

PROPERTY = "explored"
"""The property of a test that explores: its runs, the number of such tests, and the runs they need together."""


class _Total:
    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._found.update((report.nodeid, value) for name, value in report.user_properties if name == PROPERTY)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._of_all() and self._is_too_little() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._of_all():
            line = f"{self._runs():,} schedules and prefixes explored; at least {self._needed():,} are needed"
            terminalreporter.section("explored", red=self._is_too_little())
            terminalreporter.line(line)

    def _of_all(self) -> bool:
        return any(len(self._found) >= tests for _, tests, _ in self._found.values())

    def _is_too_little(self) -> bool:
        return self._runs() < self._needed()

    def _runs(self) -> int:
        return sum(runs for runs, _, _ in self._found.values())

    def _needed(self) -> int:
        return max(needed for _, _, needed in self._found.values())


def pytest_configure(config: pytest.Config) -> None:
    """Add up where all reports arrive, and not in a worker."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Total())
