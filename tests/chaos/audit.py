"""Find errors by comparing what the clients, the event log, the payment service and the journals say.

A step was *seen twice* if any of these holds:

1. Handlers saw the results of two of its bodies, on any attempts. The run's final answer counts too.
2. Its body started after a handler had seen its result.
3. Its body started after its result had been in the journal while the service was down.
4. The journal holds a different result than the one a handler saw.

A body that runs again because its process was killed before a result was recorded is not an error: steps run at least
once. The audit still counts such bodies, because they show that the kills hit something.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tests.chaos.clients import Outcome
from tests.chaos.event_log import Entry
from tests.chaos.monkey import Snapshot

__all__ = ["Audit", "Violation", "audit"]


@dataclass(frozen=True)
class Violation:
    """A violation.

    Attributes:
        invocation: The id of the invocation, or an empty string if it is unknown.
        what: A description of the violation.
    """

    invocation: str
    what: str


@dataclass
class Audit:
    """The counts of one campaign.

    Attributes:
        runs: The number of runs.
        finished: The runs that ended, correctly or not.
        lost: The runs that did not end.
        wrong: Wrong endings, invocations that no client knows, results without a body, and missing effects.
        bodies: The bodies that started.
        bodies_again: The bodies that started for a step whose body had started before.
        at_risk: The results in the journals of open invocations at each kill, summed over all kills.
        seen_twice: The steps that were seen twice.
        effects: The effects that all runs must have, in total.
        repeated_requests: Repeated requests for an effect. Without idempotency keys, each would double the effect.
        doubled: The effects that happened more often than they must, despite the idempotency keys.
        violations: All violations.
    """

    runs: int
    finished: int = 0
    lost: int = 0
    wrong: int = 0
    bodies: int = 0
    bodies_again: int = 0
    at_risk: int = 0
    seen_twice: int = 0
    effects: int = 0
    repeated_requests: int = 0
    doubled: int = 0
    violations: list[Violation] = field(default_factory=list[Violation])


def audit(
    outcomes: Sequence[Outcome],
    events: Sequence[Entry],
    snapshots: Sequence[Snapshot],
    recorded: Mapping[str, Sequence[str]],
    requests: Mapping[str, int],
    receipts: Mapping[str, Mapping[str, str]],
) -> Audit:
    """Count the results and the violations of a campaign.

    Args:
        outcomes: The outcomes that the clients saw.
        events: The events in the killed processes.
        snapshots: The recorded results at each kill.
        recorded: The nonces in each invocation's journal at the end, for every invocation of the handlers.
        requests: The number of requests for each effect.
        receipts: The receipts for each effect, by idempotency key.
    """
    found = Audit(runs=len(outcomes))
    _check_outcomes(found, outcomes, recorded)
    _check_steps(found, outcomes, events, snapshots, recorded)
    _check_effects(found, outcomes, requests, receipts)
    return found


def _check_outcomes(found: Audit, outcomes: Sequence[Outcome], recorded: Mapping[str, Sequence[str]]) -> None:
    for outcome in outcomes:
        if outcome.status is None:
            found.lost += 1
            found.violations.append(
                Violation(outcome.invocation, f"{outcome.run.id} was lost; last error: {outcome.trouble}")
            )
            continue
        found.finished += 1
        if wrong := _wrong(outcome):
            found.wrong += 1
            found.violations.append(Violation(outcome.invocation, f"{outcome.run.id} ended incorrectly: {wrong}"))
    for invocation in sorted(set(recorded) - {outcome.invocation for outcome in outcomes}):
        found.wrong += 1
        found.violations.append(Violation(invocation, "no client knows this invocation: a run was started twice"))


def _wrong(outcome: Outcome) -> str | None:
    run, body = outcome.run, outcome.body
    if run.failure is not None:
        expected = f"declined: {run.id}"
        right = outcome.status == run.failure and isinstance(body, dict) and expected in str(cast("Any", body))
        return None if right else f"expected {run.failure} ({expected}), got {outcome.status}: {body!r}"
    if outcome.status != 200 or not isinstance(body, dict):
        return f"expected an answer, got {outcome.status}: {body!r}"
    answer = cast("dict[str, Any]", body)
    if answer.get("value") != run.value:
        return f"expected {run.value!r}, got {answer.get('value')!r}"
    steps = len(set(answer.get("nonces", ())))
    return None if steps == run.steps else f"expected the results of {run.steps} steps, got {steps}"


@dataclass
class _Step:
    invocation: str
    name: str
    starts: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    seen: dict[str, int] = field(default_factory=dict[str, int])
    recorded_at: dict[str, int] = field(default_factory=dict[str, int])
    recorded: set[str] = field(default_factory=set[str])

    def problem(self) -> str | None:
        if len(self.seen) > 1:
            return f"handlers saw {len(self.seen)} results of it"
        if self.seen and self.starts[-1][0] > min(self.seen.values()):
            return "its body started after a handler had seen its result"
        if self.recorded_at and self.starts[-1][0] >= min(self.recorded_at.values()):
            return "its body started although its result was in the journal"
        if self.recorded and self.seen and self.recorded != set(self.seen):
            return "the journal holds a different result than the handler saw"
        return None


def _check_steps(
    found: Audit,
    outcomes: Sequence[Outcome],
    events: Sequence[Entry],
    snapshots: Sequence[Snapshot],
    recorded: Mapping[str, Sequence[str]],
) -> None:
    steps: dict[str, _Step] = {}
    key_of: dict[str, str] = {}
    strangers: Counter[str] = Counter()

    def find(nonce: str) -> _Step | None:
        if nonce not in key_of:
            strangers[nonce] += 1
            return None
        return steps[key_of[nonce]]

    for place, entry in enumerate(events):
        if entry.key:
            step = steps.setdefault(entry.key, _Step(entry.invocation, entry.step))
            step.starts.append((place, entry.nonces[0]))
            key_of[entry.nonces[0]] = entry.key
            continue
        for nonce in entry.nonces:
            if known := find(nonce):
                known.seen.setdefault(nonce, place)
    for outcome in outcomes:
        body: Any = outcome.body
        if isinstance(body, dict):
            for nonce in cast("dict[str, list[str]]", body).get("nonces", ()):
                if known := find(nonce):
                    known.seen.setdefault(nonce, len(events))
    for snapshot in snapshots:
        for nonce in snapshot.recorded:
            if known := find(nonce):
                known.recorded_at.setdefault(nonce, snapshot.entries)
    for nonces in recorded.values():
        for nonce in nonces:
            if known := find(nonce):
                known.recorded.add(nonce)

    found.bodies = sum(len(step.starts) for step in steps.values())
    found.bodies_again = found.bodies - len(steps)
    found.at_risk = sum(len(snapshot.recorded) for snapshot in snapshots)
    by_invocation: defaultdict[str, list[str]] = defaultdict(list)
    for key, step in steps.items():
        if problem := step.problem():
            found.seen_twice += 1
            bodies = ", ".join(f"{nonce} (line {place})" for place, nonce in step.starts)
            by_invocation[step.invocation].append(
                f"step {step.name!r} ({key}): {problem}. Bodies started: {bodies}; seen: {step.seen}; "
                f"in the journal: {sorted(step.recorded)}, and at kills: {step.recorded_at}"
            )
    for invocation, problems in by_invocation.items():
        found.violations += [Violation(invocation, problem) for problem in problems]
    for nonce in strangers:
        found.wrong += 1
        found.violations.append(Violation("", f"{nonce} was seen, but no body that started had this nonce"))


def _check_effects(
    found: Audit,
    outcomes: Sequence[Outcome],
    requests: Mapping[str, int],
    receipts: Mapping[str, Mapping[str, str]],
) -> None:
    expected = {effect: outcome for outcome in outcomes for effect in outcome.run.effects}
    found.effects = len(expected)
    found.repeated_requests = sum(requests.values()) - len(requests)
    for effect, given in receipts.items():
        superfluous = len(given) - (effect in expected)
        if superfluous:
            found.doubled += superfluous
            invocation = next(iter(given)).partition("/")[0]
            found.violations.append(
                Violation(invocation, f"{effect!r} happened {len(given)} times, for {sorted(given)}")
            )
    for effect, outcome in expected.items():
        if effect not in receipts and outcome.status is not None:
            found.wrong += 1
            found.violations.append(Violation(outcome.invocation, f"{effect!r} never happened"))
