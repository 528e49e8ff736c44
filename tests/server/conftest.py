"""What the tests of the command line share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Run, Running


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start commands in the test's own folder, and kill those still running after the test."""
    started: list[Running] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Running:
        started.append(Running(tmp_path, *arguments, env=env))
        return started[-1]

    yield start
    for command in started:
        command.end(signal.SIGKILL)
