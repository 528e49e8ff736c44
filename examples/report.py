"""Report, step by step, how an invocation survived a kill, and whether that is correct."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from examples.ledger import Started
from restate_steps.server import JournalEntry


@dataclass(frozen=True)
class StepReport:
    """One step of an invocation.

    Attributes:
        name: Its name in the journal.
        recorded: True if its result was in the journal when the process was killed.
        running: True if its body had started by then, but had no recorded result.
        runs_before: The number of times its body started before the kill.
        runs_after: The number of times its body started after the kill.
    """

    name: str
    recorded: bool
    running: bool
    runs_before: int
    runs_after: int

    @property
    def runs(self) -> int:
        """The total number of times its body started."""
        return self.runs_before + self.runs_after

    @property
    def problem(self) -> str | None:
        """The problem with the step, or None."""
        if self.recorded and self.runs_after:
            return f"{self.name!r} was recorded before the kill, but its body ran again"
        if not self.runs:
            return f"{self.name!r} is in the journal, but nothing shows that its body ran"
        return None


@dataclass(frozen=True)
class Report:
    """One invocation.

    Attributes:
        title: The service and the handler.
        steps: Its steps, in the order of the journal.
        answer: Its answer.
        wrong: The problem with the answer, or None.
    """

    title: str
    steps: Sequence[StepReport]
    answer: object
    wrong: str | None

    @property
    def problems(self) -> list[str]:
        """All problems of the invocation; the demo fails if there are any."""
        found = [step.problem for step in self.steps]
        return [f"{self.title}: {problem}" for problem in (*found, self.wrong) if problem]


def report_steps(
    journal: Iterable[JournalEntry],
    journal_at_kill: Iterable[JournalEntry],
    ledger: Iterable[Started],
    ledger_at_kill: Iterable[Started],
) -> list[StepReport]:
    """Compare the journal of one invocation with the ledger.

    Args:
        journal: The complete journal.
        journal_at_kill: The journal when the process was killed.
        ledger: All bodies of this invocation that started.
        ledger_at_kill: The bodies that started before the process was killed.

    Returns:
        One report per step.
    """
    recorded = dict(_steps(journal_at_kill))
    before, total = _runs(ledger_at_kill), _runs(ledger)
    return [
        StepReport(
            name=name,
            recorded=recorded.get((name, number), False),
            running=before.get((name, number), 0) > 0 and not recorded.get((name, number), False),
            runs_before=before.get((name, number), 0),
            runs_after=total.get((name, number), 0) - before.get((name, number), 0),
        )
        for (name, number), _ in _steps(journal)
    ]


def _steps(journal: Iterable[JournalEntry]) -> list[tuple[tuple[str, int], bool]]:
    """Return the steps of a journal, as name and number among steps of that name, and whether each has a result."""
    seen: dict[str, int] = {}
    steps: list[tuple[tuple[str, int], bool]] = []
    for entry in journal:
        if entry.type == "Command: Run" and entry.name:
            seen[entry.name] = number = seen.get(entry.name, -1) + 1
            steps.append(((entry.name, number), entry.completed))
    return steps


def _runs(ledger: Iterable[Started]) -> dict[tuple[str, int], int]:
    """Count how often each step's body started. Their order distinguishes steps with the same name."""
    keys: dict[str, list[str]] = {}
    runs: dict[tuple[str, int], int] = {}
    for started in ledger:
        of_this_name = keys.setdefault(started.step, [])
        if started.key not in of_this_name:
            of_this_name.append(started.key)
        place = (started.step, of_this_name.index(started.key))
        runs[place] = runs.get(place, 0) + 1
    return runs


def show(report: Report) -> None:
    """Print an invocation as a table."""
    headers = ("step", "recorded before the kill?", "its body ran")
    rows = [(step.name, _recorded(step), _ran(step)) for step in report.steps]
    print(f"\n{report.title}")
    _show_table(headers, rows)
    print(f"answer: {report.answer}")


def times(count: int) -> str:
    """Return a count in words."""
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _recorded(step: StepReport) -> str:
    if step.recorded:
        return "yes"
    return "no, it was running" if step.running else "no, not started yet"


def _ran(step: StepReport) -> str:
    again = step.running and step.runs_after > 0
    return f"{times(step.runs)}, because it had no result" if again else times(step.runs)


def _show_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
