"""Choose what to try next, and collect the results.

E1. Every run starts from scratch and follows a :class:`Schedule`, so it can be repeated and shortened.
E2. A crash is placed at every *distinct* prefix of the journals. Another crash at the same stored prefix would find
    nothing new, unless other bodies have run whose results are not stored: what they did is done twice. Prefixes that
    differ only in random ids and times are the same: see ``_simulation.opaque``. This finds bugs that random crashes
    miss.
E3. A cancellation is placed at every distinct moment at which the handler is idle, before and after a crash.
E4. A seeded generator draws what to try next, so a budget that runs out leaves a fair and repeatable sample.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from random import Random

from restate_steps.testing._exploration.options import ExplorationOptions
from restate_steps.testing._exploration.report import Report
from restate_steps.testing._exploration.run import Run
from restate_steps.testing._simulation.effects import Effects
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.schedule import Schedule

__all__ = ["Exploration", "Job"]


@dataclass(frozen=True, slots=True)
class Job:
    """A schedule to try, and what is known about it."""

    schedule: Schedule
    random: bool = False
    crash: bool = False
    before: Run | None = field(default=None, compare=False, repr=False)
    """The run that this job varies."""


class Exploration:
    """Choose the next schedule to try, and collect the results.

    Args:
        options: The options.
        stop_at: The number of findings after which to stop.
    """

    def __init__(self, options: ExplorationOptions, *, stop_at: int = 1) -> None:
        self.report = Report(seed=options.seed)
        self._options, self._stop_at = options, stop_at
        # Over HTTP/1.1, all running bodies end before the handler continues, so not every order of results can occur
        # without a crash: an answer that only a crash gives may be correct.
        self._every_order = options.mode == "bidirectional"
        self._random = Random(options.seed)
        self._began = time.perf_counter()
        self._seen: set[int] = set()
        # Other orders after a crash or a cancellation come last: there is no end of them for all but small handlers,
        # and they find the least.
        self._new_orders: list[Job] = []
        self._new_crashes: list[Job] = []
        self._new_cancellations: list[Job] = []
        self._later: list[Job] = []
        self._first = [Job(Schedule()), Job(Schedule(always_replay=True))]
        if options.orders != "all":
            self._new_orders = [Job(Schedule(), random=True) for _ in range(options.orders - 1)]
        self._turn = 0
        self._has_random_results = False
        self._crash_only: list[tuple[Outcome, Run]] = []
        self._calm: list[Outcome] = []

    def next(self) -> Job | None:
        """Return the next job; None if nothing is left, or the budget is used up."""
        report = self.report
        report.seconds = time.perf_counter() - self._began
        if len(report.findings) >= self._stop_at:
            self._leave_out("once there was a finding")
            return None
        heaps = [self._new_orders, self._new_crashes, self._new_cancellations]
        if not (self._first or self._later or any(heaps)):
            self._end()
            return None
        # Even the smallest budget gets one run: without any, nothing would have been explored.
        if report.runs and report.runs >= self._options.max_runs:
            self._leave_out(f"after {self._options.max_runs:,} runs (max_runs)")
            return None
        if report.runs and report.seconds > self._options.max_seconds:
            self.run_out_of_time()
            return None
        if self._first:
            return self._first.pop(0)
        self._turn += 1
        # Take turns among the heaps.
        filled = [heap for heap in heaps if heap] or [self._later]
        heap = filled[self._turn % len(filled)]
        index = self._random.randrange(len(heap))
        heap[index], heap[-1] = heap[-1], heap[index]
        return heap.pop()

    def random_for(self, job: Job) -> Random | None:
        """Return a generator for a job's choices; None if they are not random."""
        return Random(self._random.random()) if job.random else None

    def record(self, job: Job, run: Run) -> Run:
        """Record the run of a job, and return it, with a problem if there is one."""
        report = self.report
        if job.crash:
            report.prefixes += 1
        else:
            report.schedules += 1
        report.cancellations += run.schedule.cancel is not None
        self._judge(job, run)
        for name, count in Effects(run.trace.bodies).max_body_runs.items():
            report.max_body_runs[name] = max(count, report.max_body_runs.get(name, 0))
            if count > 1 and job.crash:
                report.repeated_steps.setdefault(name, run.schedule)
        if run.problem is None:
            self._plan(job, run)
        return run

    def does_not_fit(self, job: Job, run: Run) -> bool:
        """Return whether a schedule did not fit because a step returned a different result than in the run before.

        The result is recorded, so the handler may correctly take another path. Results that a crash of this run alone
        has lost do not count, because their bodies run again.
        """
        if job.before is None:
            return False
        # Up to a crash of its own, the run has to be the same as the run it varies.
        new_crashes = run.schedule.crashes[len(job.before.schedule.crashes) :]
        step = job.before.history.random_result_in(run.history, new_crashes[0].stored if new_crashes else None)
        if step is None:
            return False
        self._has_random_results = True
        if run.problem != "not-reproducible":
            return False
        self.report.random_steps.add(step)
        return True

    def run_out_of_time(self) -> None:
        """Record that the time is used up, perhaps in the middle of a run."""
        self.report.seconds = time.perf_counter() - self._began
        self._leave_out(f"after {self._options.max_seconds:g} s (max_seconds)")

    def _leave_out(self, when: str) -> None:
        """Record that the exploration stopped with work left."""
        heaps = {
            "other orders": self._new_orders,
            "crashes": self._new_crashes,
            "cancellations": self._new_cancellations,
            "other orders after a crash or a cancellation": self._later,
        }
        planned = [f"{len(jobs):,} {what}" for what, jobs in heaps.items() if jobs]
        self.report.left_out = [
            f"{', '.join([*planned, 'and what follows from what ran'])}: it stopped {when}",
            *self._random_orders(),
        ]

    def _end(self) -> None:
        """Record that no work is left."""
        report = self.report
        if self._options.orders != "all":
            report.left_out.append(f"every order but the {self._options.orders:,} that were drawn (orders)")
        report.left_out += self._random_orders()
        report.complete = not report.left_out

    def _random_orders(self) -> list[str]:
        names = ", ".join(sorted(self.report.random_steps))
        return [f"some orders, because the results of steps differ from run to run: {names}"] if names else []

    def finish(self) -> list[tuple[Outcome, Run]]:
        """Return the answers that only a crash gives, if every order without a crash was tried.

        If results of steps are random, a new answer proves nothing, so there are none.
        """
        if self._has_random_results or not (self.report.complete and self._every_order):
            return []
        return [(outcome, run) for outcome, run in self._crash_only if outcome not in self._calm]

    def _judge(self, job: Job, run: Run) -> None:
        outcome = run.outcome
        if run.problem is not None or outcome is None:
            return
        if all(outcome != known for known, _ in self.report.outcomes):
            self.report.outcomes.append((outcome, run.schedule))
        if not job.crash:
            if outcome not in self._calm:
                self._calm.append(outcome)
        elif all(outcome != known for known, _ in self._crash_only):
            self._crash_only.append((outcome, run))

    def _plan(self, job: Job, run: Run) -> None:
        """Plan the alternatives to a run: other orders, cancellations and crashes."""
        schedule, made = run.schedule, run.schedule.choices
        given = len(job.schedule.choices)
        if self._options.orders == "all":
            calm = not job.crash and not schedule.always_replay and schedule.cancel is None
            heap = self._new_orders if calm else self._later
            for at in range(given, len(made)):
                for other in range(1, run.trace.widths[at]):
                    heap.append(Job(replace(schedule, choices=(*made[:at], other)), crash=job.crash, before=run))
        for moment in run.trace.cancel_points:
            key = hash((moment.fingerprint, moment.crashes, schedule.always_replay))
            # Up to the last crash, the run is the same as without that crash.
            if moment.crashes == len(schedule.crashes) and key not in self._seen:
                self._seen.add(key)
                cancelled = replace(schedule, choices=made[: moment.choices], cancel=moment.number)
                self._new_cancellations.append(Job(cancelled, crash=job.crash, before=run))
        if len(schedule.crashes) >= self._options.crashes:
            return
        for point in run.trace.crash_points:
            # Up to the last crash, the run is the same as without that crash.
            if point.crashes < len(schedule.crashes) or not point.cancelled:
                continue
            # Losing a result twice differs from losing it once. After the crash, a handler that is suspended at every
            # wait continues differently from one that is not.
            key = hash((point.fingerprint, len(schedule.crashes), schedule.always_replay))
            if key in self._seen:
                continue
            self._seen.add(key)
            crashed = replace(schedule, choices=made[: point.choices], crashes=(*schedule.crashes, point.crash))
            self._new_crashes.append(Job(crashed, crash=True, before=run))
