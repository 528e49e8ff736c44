"""What went wrong, from what the clients, the diary, the world outside and the journals say.

A step was *seen twice* if any of these holds:

1. Handlers, on whatever attempt, the final answer among them, saw results of two of its bodies.
2. Its body started although a handler had seen its result.
3. Its body started although its result had been in the journal at a moment when the service was dead.
4. The journal holds another result than a handler saw.

A body that runs again because nothing was recorded when its process was killed is none of these: steps run at least
once. It is counted all the same, as it shows that kills hit something.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from chaos.clients import Outcome
from chaos.diary import Entry
from chaos.monkey import Snapshot

__all__ = ["Audit", "Offence", "audit"]


@dataclass(frozen=True)
class Offence:
    """Something that must not be.

    Attributes:
        invocation: The invocation it happened in, if one is known.
        what: What happened.
    """

    invocation: str
    what: str


@dataclass
class Audit:
    """The counts of one campaign.

    Attributes:
        runs: How many runs there were.
        finished: Those that ended, well or as they had to fail.
        lost: Those that did not end.
        wrong: Those that ended otherwise than they had to, or twice.
        bodies: Bodies that were started.
        bodies_again: Those of them for steps whose body had started before, without a recorded result.
        at_risk: Results that were in the journals of open invocations at kills, all kills together.
        seen_twice: Steps that were seen twice.
        effects: Effects that the runs had to have, together.
        asked_again: Requests for an effect beyond the first: what would be doubled without a key.
        doubled: Effects that happened more than once, or need not have happened: what is doubled behind the key.
        offences: Everything that must not be.
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
    asked_again: int = 0
    doubled: int = 0
    offences: list[Offence] = field(default_factory=list[Offence])


def audit(
    outcomes: Sequence[Outcome],
    diary: Sequence[Entry],
    snapshots: Sequence[Snapshot],
    recorded: Mapping[str, Sequence[str]],
    requests: Mapping[str, int],
    receipts: Mapping[str, Mapping[str, str]],
) -> Audit:
    """Count.

    Args:
        outcomes: What the clients know.
        diary: What happened in the processes that were killed.
        snapshots: What was recorded at the kills.
        recorded: The nonces in each invocation's journal, at the end. Every invocation of the handlers is in it.
        requests: How often each effect was asked for.
        receipts: The receipts for each effect, by key.
    """
    found = Audit(runs=len(outcomes))
    _check_outcomes(found, outcomes, recorded)
    _check_steps(found, outcomes, diary, snapshots, recorded)
    _check_effects(found, outcomes, requests, receipts)
    return found


def _check_outcomes(found: Audit, outcomes: Sequence[Outcome], recorded: Mapping[str, Sequence[str]]) -> None:
    for outcome in outcomes:
        if outcome.status is None:
            found.lost += 1
            found.offences.append(Offence(outcome.invocation, f"{outcome.run.id} was lost; last: {outcome.trouble}"))
            continue
        found.finished += 1
        if wrong := _wrong(outcome):
            found.wrong += 1
            found.offences.append(Offence(outcome.invocation, f"{outcome.run.id} ended wrongly: {wrong}"))
    for invocation in sorted(set(recorded) - {outcome.invocation for outcome in outcomes}):
        found.wrong += 1
        found.offences.append(Offence(invocation, "nobody knows this invocation: a run was started twice"))


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
            return "its body started after its result had been seen"
        if self.recorded_at and self.starts[-1][0] >= min(self.recorded_at.values()):
            return "its body started although its result was in the journal"
        if self.recorded and self.seen and self.recorded != set(self.seen):
            return "the journal holds another result than the handler saw"
        return None


def _check_steps(
    found: Audit,
    outcomes: Sequence[Outcome],
    diary: Sequence[Entry],
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

    for place, entry in enumerate(diary):
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
                    known.seen.setdefault(nonce, len(diary))
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
        found.offences += [Offence(invocation, problem) for problem in problems]
    for nonce in strangers:
        found.wrong += 1
        found.offences.append(Offence("", f"{nonce} was seen, and no body that made it has started"))


def _check_effects(
    found: Audit,
    outcomes: Sequence[Outcome],
    requests: Mapping[str, int],
    receipts: Mapping[str, Mapping[str, str]],
) -> None:
    expected = {effect: outcome for outcome in outcomes for effect in outcome.run.effects}
    found.effects = len(expected)
    found.asked_again = sum(requests.values()) - len(requests)
    for effect, given in receipts.items():
        superfluous = len(given) - (effect in expected)
        if superfluous:
            found.doubled += superfluous
            invocation = next(iter(given)).partition("/")[0]
            found.offences.append(Offence(invocation, f"{effect!r} happened {len(given)} times, for {sorted(given)}"))
    for effect, outcome in expected.items():
        if effect not in receipts and outcome.status is not None:
            found.wrong += 1
            found.offences.append(Offence(outcome.invocation, f"{effect!r} never happened"))
