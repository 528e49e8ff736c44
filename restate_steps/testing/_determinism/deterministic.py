"""Find out whether a handler always does the same with the same journal, and if not, what makes the difference.

C1. A handler is recorded once. It is run again from the whole journal, and reads what it has read then: the same times,
    the same random numbers. If it does otherwise all the same, something else makes the difference.
C2. Then one line that reads something reads something else. If the handler does otherwise now, this line makes the
    difference, and nothing else.
C3. What a run does after it has parted from the recorded one is not looked at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from restate_steps.testing._determinism.elsewhere import Elsewhere, call_of, named, read_once
from restate_steps.testing._determinism.find_app import app_of, name_of
from restate_steps.testing._determinism.interpreters import IS_OTHER_INTERPRETER
from restate_steps.testing._determinism.memory import Memory, changed, changed_generators, remember
from restate_steps.testing._determinism.outside import listen
from restate_steps.testing._determinism.rerun import (
    Parting,
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
from restate_steps.testing._determinism.watch import Kind, Outside, Reading
from restate_steps.testing._errors import NotDeterministicError, SimulationError
from restate_steps.testing._simulation.driver import ASGIApp, read_manifest
from restate_steps.testing._simulation.journal import Journal
from restate_steps.testing._simulation.simulator import NOTHING, A, HandlerOf, HandlerRef, Simulator

__all__ = ["DeterminismReport", "Nondeterminism", "check_deterministic"]

_MOST_READINGS: Final = 64
# A value in memory may come from one of the others, which then is the cause.
_LAST: Final = ("memory", "unknown")

_MEND: Final[dict[Kind, str]] = {
    "clock": "Ask for the time with `await ctx.time()`, or read the clock in a step; both are recorded.",
    "randomness": (
        "Draw from ctx.random(), make ids with ctx.uuid(), which give the same on every attempt; or draw in a step."
    ),
    "hash order": "Go through sorted(...) of the set, or keep a list or a dict, which stay in the order of insertion.",
    "memory address": "Use a name, a number or an id of your own that is the same in every process.",
    "environment": (
        "Read it in a step, so that an invocation goes on with what it has begun with. If it has the same value for as "
        'long as an invocation lasts, pass ignore=("environment",).'
    ),
    "memory": (
        "What outlives an attempt is not there after a crash, or is another one by then. Keep it in the state of a "
        "Virtual Object (ctx.set), hand it on as a value, or read it in a step."
    ),
    "outside I/O": (
        "Do it in a step: it is done once then, and its result is recorded. Outside of one it is done again by every "
        "attempt, and may come out otherwise."
    ),
    "unknown": (
        "Neither a clock, nor random numbers of Python's, nor I/O that can be seen makes the difference. Look at what "
        "the line depends on, and do in a step what is not the same every time."
    ),
}


@dataclass(frozen=True, slots=True)
class Nondeterminism:
    """One thing that makes a handler do otherwise with the same journal.

    Attributes:
        kind: What makes the difference: ``"clock"``, ``"randomness"``, ``"hash order"`` (of sets), ``"memory address"``
            (``id()``), ``"environment"`` (variables, the process), ``"memory"`` (what outlives an attempt, such as a
            global variable), ``"outside I/O"``, or ``"unknown"``.
        cause: The same, in particular: the call or the variables.
        handler: The handler, and its key if it has one.
        location: The line of the user's code that does it, as ``file:line``; the line after which the runs part, where
            it is not known which one is to blame.
        after: The last thing that both runs have asked for, in words; for a step, ``step 'charge'``.
        after_index: Its index in the journal.
        recorded: What the recorded run did next, in words.
        replayed: What the other run did.
        parted_at: The line of the user's code where the other run did it.
        mend: What to do about it.
    """

    kind: Kind
    cause: str
    handler: str
    location: Place | None
    after: str
    after_index: int
    recorded: str
    replayed: str
    parted_at: Place | None
    mend: str

    def __str__(self) -> str:
        where = f"\n             at {self.parted_at}" if self.parted_at and self.parted_at != self.location else ""
        return (
            f"{self.kind}: {self.cause}\n"
            f"  at         {self.location or 'a line that is not known'}\n"
            f"  handler    {self.handler}\n"
            f"  after      {self.after} (entry {self.after_index} of the journal)\n"
            f"  recorded   {self.recorded}\n"
            f"  replayed   {self.replayed}{where}\n"
            f"  mend       {self.mend}"
        )


@dataclass(slots=True)
class DeterminismReport:
    """What a check has found.

    Attributes:
        findings: What makes the handler do otherwise; empty if nothing does.
        not_checked: What could not be looked at, and why.
        journal: The journal of the recorded run; of the first invocation, if there were several.
        runs: How often handlers were run again.
        seconds: How long it took.
    """

    findings: list[Nondeterminism] = field(default_factory=list[Nondeterminism])
    not_checked: list[str] = field(default_factory=list[str])
    journal: Journal = field(default_factory=lambda: Journal(()))
    runs: int = 0
    seconds: float = 0.0

    def assert_deterministic(self) -> None:
        """Fail if anything was found.

        Raises:
            NotDeterministicError: Something was; the message says what, where, and how to mend it.
        """
        if self.findings:
            raise NotDeterministicError(str(self))

    def summary(self) -> str:
        """Return the report in a few lines."""
        found = f"{len(self.findings)} things" if len(self.findings) != 1 else "one thing"
        says = f"found {found} that a replay may do otherwise" if self.findings else "found nothing"
        lines = [f"ran again {self.runs:,} times from the whole journal in {self.seconds:.1f} s: {says}"]
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
    """Find what makes a handler do otherwise when it is replayed, without waiting for the crash that shows it.

    The handler is run once, in-process and in virtual time, and its journal is recorded. It is then run again from the
    whole journal, so that no body of a step runs and every result is the recorded one. What it reads outside of steps
    is played back as well, and changed line by line: clocks are moved, random numbers drawn anew. If the handler then
    asks for something else, or answers otherwise, the line that was changed is to blame. The order of sets is changed
    by running it again in other interpreters. Files, connections, programs and threads are noticed as they are used.

    A value that stays in memory, in a cache or a global variable, is traced to the clock or the random number that it
    came from. What other interpreters lack because the test has replaced it, such as a client, is not a finding:
    :attr:`DeterminismReport.not_checked` mentions it.

    It looks at what a run does. What is behind an ``if`` that the run does not take is found by another argument.

    Args:
        handler: The handler's function, or ``"Service/handler"``.
        arg: Its argument; leave it out for a handler that takes none.
        app: The application, as ``restate_steps.app(...)`` returns it. Left out, it is made of the services in the
            module.
        key: The key, for a handler of a Virtual Object or a workflow.
        scenario: Instead of an argument: a coroutine function that is given a :class:`Simulator` and does what a client
            does, for example send, and resolve an awakeable. Every handler that runs then is checked.
        runs: How many other values each line is given to read, until one makes a difference.
        interpreters: In how many other interpreters, with other hash seeds, to run the handler again; 0 for none. They
            are started when they are first needed, and kept. They have the environment, the folder and the import path
            of this process. The order of a set of two strings is missed by 4 of them
            once in 16 times, that of three once in 1,296.
        ignore: Kinds of findings that do not matter here; see :attr:`Nondeterminism.kind`.
        max_seconds: After how many seconds to stop; the report says what was not checked then.
        version: The version of the service protocol, 6 or 7.

    Returns:
        What was found; see :meth:`DeterminismReport.assert_deterministic`.

    Raises:
        SimulationError: There is no such handler, its application cannot be found, or it does not come to an end.
        TypeError: ``app`` is no Restate application.

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
            "check_deterministic is called while the handler's module is imported, which other interpreters do too. "
            'Call it in a test, or behind `if __name__ == "__main__":`.'
        )
    found = app_of(handler) if app is None else app
    if scenario is None and handler is None:
        raise SimulationError("there is nothing to check: give a handler, or a scenario.")
    if unknown := sorted(set(ignore) - _MEND.keys()):
        raise SimulationError(f"{unknown[0]!r} is no kind of finding. There are {', '.join(map(repr, _MEND))}.")
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
        # Not the handle that was returned: it would decode the answer, which may be encrypted and is of no interest.
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
        self._not_checked(f"{what}, and what comes after it, since the time was used up (max_seconds)")
        return True

    def _check(self, recording: Recording, before: Memory, after: Memory) -> None:
        outside = list(_by_place(recording.outside))
        if recording.contradicted is not None:
            parting = contradiction(recording)
            if parting is not None:
                self._found("unknown", "two attempts of the same run go different ways", recording, parting)
            return
        plain = self._rerun(recording)
        already = len(self.report.findings)
        if plain.parting is not None:
            self._blame(recording, plain, outside, before, after)
        for each in outside:
            self._outside(recording, each)
        self._change_readings(recording, plain)
        self._elsewhere(recording, plain)
        self.report.findings[already:] = sorted(self.report.findings[already:], key=lambda each: each.kind in _LAST)

    def _rerun(self, recording: Recording, changed: Reading | Kind | None = None, variant: int = 0) -> Rerun:
        self.report.runs += 1
        return rerun(recording, self._app, changed, variant)

    # --- what is found --------------------------------------------------------------------------------------------

    def _blame(self, recording: Recording, plain: Rerun, outside: list[Outside], before: Memory, after: Memory) -> None:
        """Say what makes the difference when nothing was changed."""
        parting = plain.parting
        assert parting is not None
        names, generators = changed(before, after), changed_generators(before, after)
        earlier = [each for each in outside if each.after <= parting.index]
        if earlier:
            # What was read is not known, but nothing else is at hand.
            culprit = earlier[-1]
            outside.remove(culprit)
            self._found("outside I/O", culprit.what, recording, parting, culprit.place)
        elif generators:
            cause = f"a generator in memory, whose numbers continue where they were: {named(generators)}"
            self._found("randomness", cause, recording, parting)
        elif names:
            cause = f"something in memory; what has changed during the recorded run: {named(names)}"
            self._found("memory", cause, recording, parting)
        else:
            self._found("unknown", "the same journal and the same readings lead elsewhere", recording, parting)

    def _outside(self, recording: Recording, outside: Outside) -> None:
        does = f"{outside.what}, outside of a step"
        parting = Parting(outside.after, does, "the same again: no result of it is in the journal", None)
        self._found("outside I/O", outside.what, recording, parting, outside.place)

    def _change_readings(self, recording: Recording, plain: Rerun) -> None:
        """Give each line something else to read (C2)."""
        self._change_addresses(recording, plain)
        readings = [each for each in recording.tape if each.kind not in {*self._ignore, "memory address"}]
        for reading in readings[_MOST_READINGS:]:
            self._not_checked(f"{reading.kind}: {reading}, since there are many readings before it")
        for reading in readings[:_MOST_READINGS]:
            if self._is_out_of_time(f"{reading.kind}: {reading}"):
                return
            if (changed := self._change_reading(recording, plain, reading)) is not None:
                variant, parting = changed
                self._found(reading.kind, call_of(reading), recording, parting, reading.place, _how(reading, variant))

    def _change_reading(self, recording: Recording, plain: Rerun, reading: Reading) -> tuple[int, Parting] | None:
        """Return which other value makes a difference, and which; None if none does.

        An attempt that fails by chance is retried, and the next one draws again: that makes no difference, unless
        every draw fails.
        """
        failed: tuple[int, Parting] | None = None
        passes = False
        for variant in range(self._runs):
            parting = self._difference(recording, plain, reading, variant)
            if parting is None:
                passes = True
            elif not (parting.failed and reading.kind == "randomness"):
                return variant, parting
            else:
                failed = failed or (variant, parting)
        return None if passes else failed

    def _difference(self, recording: Recording, plain: Rerun, reading: Reading, variant: int) -> Parting | None:
        """Return where a run parts that reads something else at one line; None if the line makes no difference."""
        if plain.parting is None:
            return self._rerun(recording, reading, variant).parting
        # Something in memory makes a difference too. It has to stay as it is, or the line is not to blame.
        before = self._rerun(recording).parting
        found = self._rerun(recording, reading, variant).parting
        if found is not None and found.index < plain.parting.index:
            return found
        if before is None or before.way != plain.parting.way or (found is not None and found.way == before.way):
            return None
        return found or plain.parting

    def _change_addresses(self, recording: Recording, plain: Rerun) -> None:
        """Give all lines that look at addresses others at once: the same thing has to have the same one everywhere."""
        if any(reading.kind == "memory address" for reading in recording.tape):
            again = self._rerun(recording, "memory address")
            if again.parting is not None and again.parting.index < _earliest(recording, plain):
                last = [reading for reading in again.tape if reading.kind == "memory address"][-1]
                self._found(last.kind, f"{last.what}()", recording, again.parting, last.place)

    def _elsewhere(self, recording: Recording, plain: Rerun) -> None:
        """Run it again where strings have other hashes, and objects other addresses."""
        if "hash order" in self._ignore and "memory" in self._ignore:
            return
        if not self._interpreters:
            self._not_checked("hash order: no other interpreters are asked for")
            for once in read_once(recording, plain.tape):
                what = f"{once.kind}: {once}, whose value stays in memory"
                self._not_checked(f"{what}, since no other interpreters are asked for")
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
            self._found(verdict.kind, verdict.cause, recording, verdict.parting, place, how)
        self.report.runs += elsewhere.runs
        for what in elsewhere.not_checked:
            self._not_checked(what)

    def _not_checked(self, what: str) -> None:
        if what not in self.report.not_checked:
            self.report.not_checked.append(what)

    def _found(
        self,
        kind: Kind,
        cause: str,
        recording: Recording,
        parting: Parting,
        location: Place | None = None,
        how: str = "",
    ) -> None:
        known = {(each.kind, each.location) for each in self.report.findings if location is not None}
        if kind in self._ignore or (kind, location) in known:
            return
        last = parting.index - 1
        self.report.findings.append(
            Nondeterminism(
                kind=kind,
                cause=cause,
                handler=recording.target,
                location=location or parting.place,
                after=describe_operation(recording.operations[last]) if last >= 0 else "the beginning",
                after_index=recording.entry_of(last) if last >= 0 else 0,
                recorded=parting.recorded,
                replayed=f"{parting.rerun}{how}",
                parted_at=parting.place,
                mend=_MEND[kind],
            )
        )


def _by_place(outside: Iterable[Outside]) -> Iterable[Outside]:
    """Return one thing that was done by each line: to open a connection is to look up a name as well, for example."""
    seen: dict[Place | None, Outside] = {}
    for each in outside:
        before = seen.setdefault(each.place, each)
        if _rank(each) > _rank(before):
            seen[each.place] = each._replace(after=before.after)
    return seen.values()


def _rank(outside: Outside) -> int:
    """Return how much what was done tells."""
    return 2 if "connection to" in outside.what else int("'" in outside.what)


def _how(reading: Reading, variant: int) -> str:
    if reading.kind != "clock":
        return ""
    shift = SHIFTS[variant % len(SHIFTS)] * (1 + variant // len(SHIFTS))
    return f", with the clock moved by {'-' if shift < 0 else ''}{timedelta(seconds=abs(shift))}"


def _earliest(recording: Recording, plain: Rerun) -> int:
    """Return from which operation on a run does otherwise although nothing was changed."""
    return len(recording.operations) + 1 if plain.parting is None else plain.parting.index
