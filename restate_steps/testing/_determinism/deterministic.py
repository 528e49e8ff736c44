"""Check that a handler is deterministic, and locate the cause if it is not.

C1. A handler is recorded once. It is then replayed from the whole journal, and reads the recorded values outside of
    steps too: the same times, the same random numbers. If it diverges anyway, the cause is something else.
C2. Then a single line reads a different value. If the handler diverges now, this line is the cause.
C3. The check ignores what a run does after it has diverged from the recorded one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from restate_steps.testing._determinism.audit_hook import listen
from restate_steps.testing._determinism.elsewhere import Elsewhere, call_of, named, read_once
from restate_steps.testing._determinism.find_app import app_of, name_of
from restate_steps.testing._determinism.interpreters import IS_OTHER_INTERPRETER
from restate_steps.testing._determinism.memory import Memory, changed, changed_generators, remember
from restate_steps.testing._determinism.rerun import (
    Divergence,
    Recording,
    Rerun,
    Scenario,
    contradiction,
    describe_operation,
    journal_of,
    record_runs,
    rerun,
)
from restate_steps.testing._determinism.sources import SHIFTS, watched_sources
from restate_steps.testing._determinism.user_code import Place
from restate_steps.testing._determinism.watch import CauseKind, ExternalAccess, Reading
from restate_steps.testing._errors import NotDeterministicError, SimulationError
from restate_steps.testing._simulation.application import ASGIApp, read_manifest
from restate_steps.testing._simulation.calls import NOTHING, A, HandlerOf, HandlerRef
from restate_steps.testing._simulation.journal import Journal
from restate_steps.testing._simulation.simulator import Simulator

__all__ = ["DeterminismReport", "Nondeterminism", "check_deterministic"]

_MOST_READINGS: Final = 64
# A value in memory may come from a source of another kind, which then is the cause.
_LAST: Final = ("memory", "unknown")

_FIX: Final[dict[CauseKind, str]] = {
    "clock": "Get the time with `await ctx.time()`, or read the clock in a step; both are recorded.",
    "randomness": (
        "Use ctx.random() and ctx.uuid(), which return the same values on every attempt, or draw the number in a step."
    ),
    "hash order": "Iterate over sorted(...) of the set, or use a list or a dict, which keep insertion order.",
    "memory address": "Use a name, a number or an id of your own that is the same in every process.",
    "environment": (
        "Read it in a step, so that an invocation keeps the value that it started with. If the value never changes "
        'during an invocation, pass ignore=("environment",).'
    ),
    "memory": (
        "Memory that outlives an attempt is lost or different after a crash. Keep the value in the state of a Virtual "
        "Object (ctx.set), pass it as an argument, or read it in a step."
    ),
    "outside I/O": (
        "Do it in a step, so that its result is recorded. Outside of a step, every attempt does it again, and may get "
        "a different result."
    ),
    "unknown": (
        "The cause is not a clock, Python's random numbers, or visible I/O. Check what the line depends on, and move "
        "whatever can differ into a step."
    ),
}


@dataclass(frozen=True, slots=True)
class Nondeterminism:
    """One cause of nondeterminism in a handler.

    Attributes:
        kind: The kind of cause: ``"clock"``, ``"randomness"``, ``"hash order"`` (of sets), ``"memory address"``
            (``id()``), ``"environment"`` (variables, the process), ``"memory"`` (values that outlive an attempt, such
            as a global variable), ``"outside I/O"``, or ``"unknown"``.
        cause: The call or the variables that cause it.
        handler: The handler, and its key if it has one.
        location: The line of the user's code that causes it, as ``file:line``. If that is not known, the line at which
            the runs diverge.
        after: A description of the last command that both runs issued; for a step, ``step 'charge'``.
        after_index: The index of that command in the journal.
        recorded: A description of what the recorded run did next.
        replayed: A description of what the other run did instead.
        diverged_at: The line of the user's code where the other run did it.
        fix: How to fix it.
    """

    kind: CauseKind
    cause: str
    handler: str
    location: Place | None
    after: str
    after_index: int
    recorded: str
    replayed: str
    diverged_at: Place | None
    fix: str

    def __str__(self) -> str:
        where = (
            f"\n             at {self.diverged_at}" if self.diverged_at and self.diverged_at != self.location else ""
        )
        return (
            f"{self.kind}: {self.cause}\n"
            f"  at         {self.location or 'an unknown line'}\n"
            f"  handler    {self.handler}\n"
            f"  after      {self.after} (entry {self.after_index} of the journal)\n"
            f"  recorded   {self.recorded}\n"
            f"  replayed   {self.replayed}{where}\n"
            f"  fix        {self.fix}"
        )


@dataclass(slots=True)
class DeterminismReport:
    """The result of a check.

    Attributes:
        findings: The causes of nondeterminism; empty if there are none.
        not_checked: What could not be checked, and why.
        journal: The journal of the recorded run; of the first invocation, if there were several.
        runs: The number of times that handlers ran again.
        seconds: The duration of the check.
    """

    findings: list[Nondeterminism] = field(default_factory=list[Nondeterminism])
    not_checked: list[str] = field(default_factory=list[str])
    journal: Journal = field(default_factory=lambda: Journal(()))
    runs: int = 0
    seconds: float = 0.0

    def assert_deterministic(self) -> None:
        """Fail if there are findings.

        Raises:
            NotDeterministicError: There are findings; the message names each cause, its place, and the fix.
        """
        if self.findings:
            raise NotDeterministicError(str(self))

    def summary(self) -> str:
        """Return a summary of a few lines."""
        found = f"{len(self.findings)} causes" if len(self.findings) != 1 else "one cause"
        says = f"found {found} of nondeterminism" if self.findings else "found nothing"
        lines = [f"replayed {self.runs:,} times from the whole journal in {self.seconds:.1f} s: {says}"]
        return "\n".join([*lines, *(f"not checked: {what}" for what in self.not_checked)])

    def __str__(self) -> str:
        return "\n\n".join([self.summary(), *map(str, self.findings)])


def check_deterministic(
    handler: HandlerOf[A] | None = None,
    arg: A = NOTHING,
    *,
    app: ASGIApp | None = None,
    key: str | None = None,
    scenario: Scenario | None = None,
    runs: int = len(SHIFTS),
    interpreters: int = 4,
    ignore: Collection[str] = (),
    max_seconds: float = 60.0,
    version: int = 6,
) -> DeterminismReport:
    """Check that a handler is deterministic, and locate the causes if it is not.

    The check finds nondeterminism without waiting for the crash that would reveal it. The handler runs once,
    in-process and in virtual time, and its journal is recorded. It is then replayed from the whole journal, so no body
    of a step runs and every result is the recorded one. What it reads outside of steps is played back too, and changed
    line by line: clocks are shifted, and random numbers are drawn again. If the handler then issues another command,
    or returns another answer, the changed line is the cause. To change the order of sets, the handler runs in other
    interpreters. Files, connections, programs and threads are detected when they are used.

    A value that stays in memory, in a cache or a global variable, is traced to the clock or the random number that it
    came from. Other interpreters lack what the test has replaced, such as a client. This is not a finding;
    :attr:`DeterminismReport.not_checked` mentions it.

    The check sees only the code that a run executes. To reach another branch, check with another argument.

    Args:
        handler: The handler's function, or ``"Service/handler"``.
        arg: The handler's argument; omit it for a handler without one.
        app: The application, as ``restate_steps.app(...)`` returns it. By default, it is made of the services in the
            handler's module.
        key: The key, for a handler of a Virtual Object or a workflow.
        scenario: Used instead of an argument: a coroutine function that takes a :class:`Simulator` and acts as the
            client. For example, it sends a request and resolves an awakeable. Every handler that runs is checked.
        runs: The number of other values that each line reads, until one makes a difference.
        interpreters: The number of other interpreters, with other hash seeds, that run the handler again; 0 for none.
            They are started on first use, and then reused. They have the environment, the working directory and the
            import path of this process. Four of them miss the order of a set of two strings once in 16 times, and that
            of three strings once in 1,296.
        ignore: Kinds of findings to ignore; see :attr:`Nondeterminism.kind`.
        max_seconds: The number of seconds after which to stop; the report lists what was not checked.
        version: The version of the service protocol, 6 or 7.

    Returns:
        The report; see :meth:`DeterminismReport.assert_deterministic`.

    Raises:
        SimulationError: There is no such handler, its application cannot be found, or it does not end.
        TypeError: ``app`` is not a Restate application.

    Example:
        >>> import restate, restate_steps, time
        >>> shop = restate.Service("Shop")
        >>> @shop.handler()
        ... async def checkout(ctx: restate.Context, item: str) -> str:
        ...     price = await ctx.run_typed("quote", lambda: 3)
        ...     if time.time() % 2 < 1:
        ...         return await ctx.run_typed("charge", lambda: f"{item} for {price}")
        ...     return await ctx.run_typed("wait for luck", lambda: item)
        >>> report = check_deterministic(checkout, "tea", app=restate_steps.app([shop]), interpreters=0)
        >>> [finding] = report.findings
        >>> finding.kind, finding.cause, finding.after
        ('clock', 'time.time()', "step 'quote'")
    """
    if IS_OTHER_INTERPRETER in os.environ:
        raise SimulationError(
            "check_deterministic was called while the handler's module is imported. Other interpreters import it too, "
            'and would start the check again. Call it in a test, or under `if __name__ == "__main__":`.'
        )
    found = app_of(handler) if app is None else app
    if scenario is None and handler is None:
        raise SimulationError("there is nothing to check: pass a handler or a scenario.")
    if unknown := sorted(set(ignore) - _FIX.keys()):
        raise SimulationError(f"{unknown[0]!r} is not a kind of finding. The kinds are {', '.join(map(repr, _FIX))}.")
    began = time.perf_counter()
    check = _Check(found, app, runs, interpreters, frozenset(ignore), began + max_seconds)
    listen()
    with _one_at_a_time, watched_sources():
        check.run(scenario or _call(handler, arg, key), version)
    check.report.seconds = time.perf_counter() - began
    return check.report


_one_at_a_time: Final = threading.Lock()


def _call(handler: HandlerRef | None, arg: Any, key: str | None) -> Scenario:
    assert handler is not None

    async def scenario(simulator: Simulator) -> Any:
        given = () if arg is NOTHING else (arg,)
        await simulator.send(handler, *given, key=key)
        # The returned handle would decode the answer, which may be encrypted and is not needed.
        await simulator.invocations[0].result()

    return scenario


class _Check:
    """One check of one scenario."""

    def __init__(
        self,
        app: ASGIApp,
        given_app: ASGIApp | None,
        runs: int,
        interpreters: int,
        ignore: frozenset[str],
        deadline: float,
    ) -> None:
        self.report = DeterminismReport()
        self._deadline = deadline
        self._app, self._given_app = app, given_app
        self._runs, self._interpreters, self._ignore = runs, interpreters, ignore

    def run(self, scenario: Scenario, version: int) -> None:
        before = remember()
        recordings, left_out = record_runs(self._app, read_manifest(self._app), scenario, version, self._deadline)
        after = remember()
        self.report.not_checked += left_out
        if recordings:
            self.report.journal = journal_of(recordings[0])
        for recording in recordings:
            if self._is_out_of_time(recording.target):
                break
            self._check(recording, before, after)

    def _is_out_of_time(self, what: str) -> bool:
        if time.perf_counter() < self._deadline:
            return False
        self._not_checked(f"{what} and everything after it, because the time was used up (max_seconds)")
        return True

    def _check(self, recording: Recording, before: Memory, after: Memory) -> None:
        outside = list(_by_place(recording.outside))
        if recording.contradicted is not None:
            divergence = contradiction(recording)
            if divergence is not None:
                self._found("unknown", "two attempts of the same run diverge", recording, divergence)
            return
        plain = self._rerun(recording)
        already = len(self.report.findings)
        if plain.divergence is not None:
            self._blame(recording, plain, outside, before, after)
        for each in outside:
            self._outside(recording, each)
        self._change_readings(recording, plain)
        self._elsewhere(recording, plain)
        self.report.findings[already:] = sorted(self.report.findings[already:], key=lambda each: each.kind in _LAST)

    def _rerun(self, recording: Recording, changed: Reading | CauseKind | None = None, variant: int = 0) -> Rerun:
        self.report.runs += 1
        return rerun(recording, self._app, changed, variant)

    # --- what is found --------------------------------------------------------------------------------------------

    def _blame(
        self, recording: Recording, plain: Rerun, outside: list[ExternalAccess], before: Memory, after: Memory
    ) -> None:
        """Report the cause when a run diverges although nothing was changed."""
        divergence = plain.divergence
        assert divergence is not None
        names, generators = changed(before, after), changed_generators(before, after)
        earlier = [each for each in outside if each.after <= divergence.index]
        if earlier:
            # The result of the I/O is not known, but it is the most likely cause.
            culprit = earlier[-1]
            outside.remove(culprit)
            self._found("outside I/O", culprit.what, recording, divergence, culprit.place)
        elif generators:
            cause = f"a random generator in memory, which continues from its last state: {named(generators)}"
            self._found("randomness", cause, recording, divergence)
        elif names:
            cause = f"something in memory; changed during the recorded run: {named(names)}"
            self._found("memory", cause, recording, divergence)
        else:
            self._found(
                "unknown", "the run diverges with the same journal and the same readings", recording, divergence
            )

    def _outside(self, recording: Recording, outside: ExternalAccess) -> None:
        does = f"{outside.what}, outside of a step"
        divergence = Divergence(outside.after, does, "the same again, because its result is not in the journal", None)
        self._found("outside I/O", outside.what, recording, divergence, outside.place)

    def _change_readings(self, recording: Recording, plain: Rerun) -> None:
        """Let each line in turn read another value (C2)."""
        self._change_addresses(recording, plain)
        readings = [each for each in recording.tape if each.kind not in {*self._ignore, "memory address"}]
        for reading in readings[_MOST_READINGS:]:
            self._not_checked(f"{reading.kind}: {reading}, because there are too many readings before it")
        for reading in readings[:_MOST_READINGS]:
            if self._is_out_of_time(f"{reading.kind}: {reading}"):
                return
            if (changed := self._change_reading(recording, plain, reading)) is not None:
                variant, divergence = changed
                self._found(
                    reading.kind, call_of(reading), recording, divergence, reading.place, _how(reading, variant)
                )

    def _change_reading(self, recording: Recording, plain: Rerun, reading: Reading) -> tuple[int, Divergence] | None:
        """Return the first variant of a value that makes the handler diverge, and where; None if there is none.

        An attempt that fails by chance is retried, and the next one draws again. So a failure counts only if every
        draw fails.
        """
        failed: tuple[int, Divergence] | None = None
        passes = False
        for variant in range(self._runs):
            divergence = self._difference(recording, plain, reading, variant)
            if divergence is None:
                passes = True
            elif not (divergence.failed and reading.kind == "randomness"):
                return variant, divergence
            else:
                failed = failed or (variant, divergence)
        return None if passes else failed

    def _difference(self, recording: Recording, plain: Rerun, reading: Reading, variant: int) -> Divergence | None:
        """Return where a run diverges if one line reads another value; None if the line makes no difference."""
        if plain.divergence is None:
            return self._rerun(recording, reading, variant).divergence
        # Memory makes a difference too. Blame the line only if the run without a change stays the same.
        before = self._rerun(recording).divergence
        found = self._rerun(recording, reading, variant).divergence
        if found is not None and found.index < plain.divergence.index:
            return found
        if before is None or before.way != plain.divergence.way or (found is not None and found.way == before.way):
            return None
        return found or plain.divergence

    def _change_addresses(self, recording: Recording, plain: Rerun) -> None:
        """Change all addresses at once, because an object must have the same address everywhere."""
        if any(reading.kind == "memory address" for reading in recording.tape):
            again = self._rerun(recording, "memory address")
            if again.divergence is not None and again.divergence.index < _earliest(recording, plain):
                last = [reading for reading in again.tape if reading.kind == "memory address"][-1]
                self._found(last.kind, f"{last.what}()", recording, again.divergence, last.place)

    def _elsewhere(self, recording: Recording, plain: Rerun) -> None:
        """Run the handler again in interpreters where strings have other hashes, and objects other addresses."""
        if "hash order" in self._ignore and "memory" in self._ignore:
            return
        if not self._interpreters:
            self._not_checked("hash order, because interpreters=0")
            for once in read_once(recording, plain.tape):
                self._not_checked(f"{once.kind}: {once}, whose value stays in memory, because interpreters=0")
            return
        service = recording.origin.target.service
        name = name_of(self._given_app, service, recording.definition, recording.defined_in)
        if isinstance(name, str):
            self._not_checked(f"hash order: {name}")
            return
        earliest = _earliest(recording, plain)
        elsewhere = Elsewhere(recording, name, self._interpreters, plain.tape, earliest, self._is_out_of_time)
        for verdict in elsewhere.verdicts():
            found = verdict.reading
            place, how = (None, "") if found is None else (found.place, _how(found, verdict.variant))
            self._found(verdict.kind, verdict.cause, recording, verdict.divergence, place, how)
        self.report.runs += elsewhere.runs
        for what in elsewhere.not_checked:
            self._not_checked(what)

    def _not_checked(self, what: str) -> None:
        if what not in self.report.not_checked:
            self.report.not_checked.append(what)

    def _found(
        self,
        kind: CauseKind,
        cause: str,
        recording: Recording,
        divergence: Divergence,
        location: Place | None = None,
        how: str = "",
    ) -> None:
        known = {(each.kind, each.location) for each in self.report.findings if location is not None}
        if kind in self._ignore or (kind, location) in known:
            return
        last = divergence.index - 1
        self.report.findings.append(
            Nondeterminism(
                kind=kind,
                cause=cause,
                handler=recording.target,
                location=location or divergence.place,
                after=describe_operation(recording.operations[last]) if last >= 0 else "the beginning",
                after_index=recording.entry_of(last) if last >= 0 else 0,
                recorded=divergence.recorded,
                replayed=f"{divergence.rerun}{how}",
                diverged_at=divergence.place,
                fix=_FIX[kind],
            )
        )


def _by_place(outside: Iterable[ExternalAccess]) -> Iterable[ExternalAccess]:
    """Return one event for each line: opening a connection, for example, looks up a name as well."""
    seen: dict[Place | None, ExternalAccess] = {}
    for each in outside:
        before = seen.setdefault(each.place, each)
        if _rank(each) > _rank(before):
            seen[each.place] = each._replace(after=before.after)
    return seen.values()


def _rank(outside: ExternalAccess) -> int:
    """Return how specific the description of an event is."""
    return 2 if "connection to" in outside.what else int("'" in outside.what)


def _how(reading: Reading, variant: int) -> str:
    if reading.kind != "clock":
        return ""
    shift = SHIFTS[variant % len(SHIFTS)] * (1 + variant // len(SHIFTS))
    return f", with the clock shifted by {'-' if shift < 0 else ''}{timedelta(seconds=abs(shift))}"


def _earliest(recording: Recording, plain: Rerun) -> int:
    """Return the index of the operation at which a run diverges although nothing was changed."""
    return len(recording.operations) + 1 if plain.divergence is None else plain.divergence.index
