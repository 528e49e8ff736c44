"""The result of an exploration: the problems found, and what was tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from restate_steps.testing._errors import NotReplaySafeError
from restate_steps.testing._exploration.run import Problem
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.schedule import Schedule
from restate_steps.testing._simulation.timeline import shortened

__all__ = ["Finding", "Report"]

_SHOWN_FINDINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and the shortest schedule found that reproduces it.

    Attributes:
        problem: The kind of problem: ``"mismatch"`` (a replay does not match the journal), ``"stuck"``, ``"paused"``,
            ``"step-rerun"`` (a recorded step ran again), ``"answer-changed"`` (a crash changed the answer),
            ``"not-reproducible"`` (the same schedule led to a different run), ``"assertion"`` or ``"error"`` (from the
            scenario or the check).
        why: The problem as a sentence, with details.
        schedule: The schedule; ``explore(..., schedule=str(finding.schedule))`` runs exactly this one.
        timeline: The events of the run, line by line.
        error: The exception, if there was one.
    """

    problem: Problem
    why: str
    schedule: Schedule
    timeline: str
    error: BaseException | None

    def __str__(self) -> str:
        return f"{self.problem}: {self.why}\nschedule {str(self.schedule)!r}\n{shortened(self.timeline)}"


@dataclass(slots=True)
class Report:
    """The result of an exploration.

    Attributes:
        schedules: The number of runs without a crash.
        prefixes: The number of distinct journal prefixes that were resumed after a crash.
        cancellations: The number of these runs in which the handler was cancelled.
        seconds: The duration of the exploration.
        complete: True if every order and every crash within the limits was tried, and not only a sample.
        left_out: What was not tried, one line each; empty if the exploration is complete.
        outcomes: The distinct outcomes for the client, each with a schedule that leads to it.
        findings: The problems found, each with its shortest schedule; empty if there are none.
        max_body_runs: The largest number of times that the body of each step ran in one run, by name. More than once
            means at-least-once.
        repeated_steps: A schedule for each step whose body ran more than once after a crash.
        seed: The seed of the exploration.
        unread_failures: Steps and calls that failed in some run, and whose results the handler never read.
        random_steps: The steps whose results differ from run to run, so that some orders could not be tried.
    """

    schedules: int = 0
    prefixes: int = 0
    cancellations: int = 0
    seconds: float = 0.0
    complete: bool = False
    left_out: list[str] = field(default_factory=list[str])
    outcomes: list[tuple[Outcome, Schedule]] = field(default_factory=list[tuple[Outcome, Schedule]])
    findings: list[Finding] = field(default_factory=list[Finding])
    max_body_runs: dict[str, int] = field(default_factory=dict[str, int])
    repeated_steps: dict[str, Schedule] = field(default_factory=dict[str, Schedule])
    seed: int = 0
    random_steps: set[str] = field(default_factory=set[str])
    unread_failures: set[str] = field(default_factory=set[str])

    @property
    def runs(self) -> int:
        """The number of runs."""
        return self.schedules + self.prefixes

    @property
    def rate(self) -> float:
        """The number of runs per second."""
        return self.runs / self.seconds if self.seconds else 0.0

    def assert_replay_safe(self) -> None:
        """Fail unless every run succeeded.

        That is: every replay matched the journal, nothing hung, no recorded step ran again, no crash changed an
        answer, and neither the scenario nor the check failed.

        Raises:
            NotReplaySafeError: There are findings; the message has the shortest schedules and their timelines.
        """
        __tracebackhide__ = True
        if self.findings:
            shown = "\n\n".join(str(finding) for finding in self.findings[:_SHOWN_FINDINGS])
            first = self.findings[0]
            # The message already has the simulator's own errors.
            cause = None if first.problem in ("mismatch", "stuck") else first.error
            raise NotReplaySafeError(f"{self.summary()}\n\n{shown}") from cause

    def assert_one_answer(self) -> None:
        """Fail unless every run gave the same answer, regardless of the order of events.

        For a handler that races, several answers may be correct.

        Raises:
            NotReplaySafeError: There are several answers; the message has a schedule for each.
        """
        __tracebackhide__ = True
        if len(self.outcomes) > 1:
            lines = "\n".join(f"  {outcome} with schedule {str(schedule)!r}" for outcome, schedule in self.outcomes)
            raise NotReplaySafeError(f"there are {len(self.outcomes)} answers:\n{lines}")

    def summary(self) -> str:
        """Return a summary of a few lines."""
        covered = "all there are" if self.complete else "a sample"
        lines = [
            f"explored {self.schedules:,} schedules and {self.prefixes:,} resumed prefixes, {covered}, "
            f"in {self.seconds:.1f} s ({self.rate:,.0f} a second, seed {self.seed})"
        ]
        if self.cancellations:
            lines.append(f"cancelled in {self.cancellations:,} of these runs")
        if len(self.outcomes) > 1:
            lines.append(f"answers: {len(self.outcomes)}")
        again = sorted(name for name, runs in self.max_body_runs.items() if runs > 1)
        if again:
            shown = ", ".join(f"{name} (up to {self.max_body_runs[name]} times)" for name in again)
            lines.append(f"bodies that may run again after a crash: {shown}")
        lines += [f"left out: {what}" for what in self.left_out]
        if self.unread_failures:
            lines.append(f"failures that the handler never read: {', '.join(sorted(self.unread_failures))}")
        found = len(self.findings)
        lines.append(f"found {found or 'no'} problem{'s' if found > 1 else ''}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n\n".join([self.summary(), *map(str, self.findings)])
