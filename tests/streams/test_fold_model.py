"""Every small log, and many random ones: readers end with what was recorded, wherever they resume."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import JsonValue

from restate_steps.streams import EventId, StreamView, _fold
from restate_steps.streams._records import Commit, EndStatus, Record
from tests.streams.logs import Attempt, Plan, Reader, Step, by_producer, interleavings, random_log, read

Resume = Callable[[list[Record], EventId | None], tuple[Any, list[StreamView]]]

# --- all interleavings ------------------------------------------------------------------------------------------------

ONE, BOTH = Attempt(landed=(0,)), Attempt(landed=(0, 1))
CRASHES: list[tuple[Attempt, ...]] = [(), (ONE,), (BOTH,), (ONE, ONE), (ONE, BOTH), (BOTH, ONE), (BOTH, BOTH)]
"""The attempts that crashed before the one that was recorded, each after one record or after both."""

LOST = [Attempt(landed=landed) for landed in [(), (0,), (1,), (0, 1)]]
"""The records of a recorded attempt that got to the log although the store did not acknowledge them in time."""


def small_plans() -> Iterator[Plan]:
    """Yield runs of two steps, with up to three attempts of one of them."""
    simple = Step("b")
    for dead in CRASHES:
        yield Plan([[Step("a", dead)], [Step("b", (ONE,))]])
        yield Plan([[Step("a", (ONE,))], [Step("b", dead)]])
        yield Plan([[Step("a", dead, winner=None)], [simple]])
        yield Plan([[simple], [Step("a", dead, is_open=True)]], ends="cancelled")
        yield Plan([[simple], [Step("a", dead)]], is_killed=True)
        for winner in LOST:
            yield Plan([[Step("a", dead, winner, is_acknowledged=False)], [simple]])
    for first, second in product(CRASHES[:3], CRASHES[:2]):
        yield Plan([[Step("a", first), Step("b", second)]])
    yield from repeated_plans()


def repeated_plans() -> Iterator[Plan]:
    """Yield runs in which one record is appended twice."""
    for dead in CRASHES[:3]:
        for number in range(len(Plan([[Step("a", dead)], [Step("b")]]).items)):
            plan = Plan([[Step("a", dead)], [Step("b")]])
            plan.repeat(number)
            yield plan


class Truth:
    """What a reader must see at each moment, said in other words than the fold's.

    Args:
        plan: The run, in which no record comes too early.
    """

    def __init__(self, plan: Plan) -> None:
        self.steps = {step.name: step for group in plan.groups for step in group}
        self.begun: dict[str, list[str]] = {name: [] for name in self.steps}
        self.events: dict[str, set[JsonValue]] = {name: set() for name in self.steps}
        self.final: dict[str, list[str]] = {}

    def add(self, record: Record) -> None:
        for event in record.handler.events if record.handler else ():
            if isinstance(event, Commit) and event.producer not in self.final:
                step = self.steps[event.producer]
                events = [data for _, data in step.events()]
                is_complete = self.events[step.name].issuperset(events)
                self.final[step.name] = events if is_complete else [data for _, data in step.recorded()]
        if (body := record.body) is not None:
            self.events[body.producer].update(body.events)
            if body.seq == 0 and body.attempt not in self.begun[body.producer]:
                self.begun[body.producer].append(body.attempt)

    def check(self, reader: Reader) -> None:
        shown = by_producer(reader.view)
        for name in self.steps:
            if name in self.final:
                # R5: from the commit on, it is what was recorded.
                assert self.final[name] == shown.get(name, [])
            elif reader.end is None:
                # R4: before, it is the attempt that was the last one to begin.
                assert all(data.startswith(f"{self.begun[name][-1]}.") for data in shown.get(name, []))


def check_every_moment(plan: Plan, log: list[Record], fold: Any) -> list[StreamView]:
    """Check the view after each record, and return all views."""
    reader, truth, views = Reader(), Truth(plan), list[StreamView]()
    for record in log:
        if reader.end is None:
            truth.add(record)
        for view in (added := fold.add(record)):
            reader.see(view)
        views += added
        truth.check(reader)
    check_final_view(plan, reader, is_in_order=len(plan.groups) == 2)
    return views


def check_final_view(plan: Plan, reader: Reader, *, is_in_order: bool) -> None:
    """Check that a reader ends with what the plan says."""
    assert reader.end is not None
    assert ("killed" if plan.is_killed else plan.ends) == reader.end.status
    view = plan.simplify(reader.view)
    assert by_producer(plan.order) == by_producer(view)
    if is_in_order:
        assert plan.order == view


def test_every_small_log() -> None:
    """R2, R4, R5, R9: all interleavings of crashes, zombies, repeated appends and late records of two steps."""
    count = 0
    for plan in small_plans():
        for log in interleavings(plan.items):
            check_every_moment(plan, log, _fold.Fold())
            count += 1

    assert 30_000 < count


def test_resume_at_every_id_of_every_small_log() -> None:
    """R7: what a reader has seen, and what it gets after it resumes, are the whole, at any time and any id."""
    for plan in repeated_plans():
        for log in interleavings(plan.items):
            _, views = _fold.resume(log, None)
            for cut in range(len(log) + 1):
                seen = [view for view in views if view.id.record < cut]
                for number, view in enumerate(seen):
                    fold, missed = _fold.resume(log[:cut], view.id)
                    later = [each for record in log[cut:] for each in fold.add(record)]
                    assert views == seen[: number + 1] + missed + later


# --- random logs ------------------------------------------------------------------------------------------------------


def random_plan(rng: random.Random) -> Plan:
    """Return a run of up to three groups of up to two steps, or two such runs in one stream."""
    plan = random_run(rng, "run")
    if not plan.is_killed and rng.random() < 0.1:
        plan.include(random_run(rng, "other"))
    for _ in range(rng.choice((0, 0, 1, 2))):
        plan.repeat(rng.randrange(len(plan.items)))
    return plan


def random_run(rng: random.Random, run: str) -> Plan:
    is_killed = run == "run" and rng.random() < 0.1
    is_open = rng.random() < 0.15
    groups: list[list[Step]] = []
    for number in range(count := rng.choice((1, 1, 1, 1, 1, 2, 2, 3))):
        is_last = number == count - 1
        steps = [
            random_step(rng, f"{run}-{number}-{index}", is_open=is_last and is_open and not is_killed)
            for index in range(rng.choice((1, 1, 1, 2)))
        ]
        if is_killed and is_last:
            # The handler has started it, or nothing would tell readers about the steps before.
            steps[0] = Step(steps[0].name, steps[0].dead)
        groups.append(steps)
    statuses: tuple[EndStatus, ...] = ("success", "failure", "cancelled", "timeout")
    ends = rng.choice(statuses) if run == "run" else None
    is_lean, is_scattered = rng.random() < 0.3, rng.random() < 0.2
    return Plan(groups, run, is_lean, is_scattered, ends, is_killed)


def random_step(rng: random.Random, name: str, *, is_open: bool) -> Step:
    dead = tuple(random_attempt(rng, is_dead=True) for _ in range(rng.choice((0, 0, 1, 1, 2))))
    if rng.random() < 0.1:
        return Step(name, dead, winner=None)
    if rng.random() < 0.7:
        return Step(name, dead, random_attempt(rng), is_open=is_open)
    winner = random_attempt(rng)
    landed = tuple(number for number in winner.landed if rng.random() < 0.6)
    return Step(name, dead, Attempt(winner.sizes, landed), is_acknowledged=False, is_open=is_open)


def random_attempt(rng: random.Random, *, is_dead: bool = False) -> Attempt:
    sizes = tuple(rng.choice((0, 1, 1, 1, 2)) for _ in range(rng.choice((1, 1, 2))))
    return Attempt(sizes, tuple(range(rng.randint(0, len(sizes)) if is_dead else len(sizes))))


def check_random_log(rng: random.Random, resume: Resume) -> None:
    """Check the final view of a random log, and resume at each of its ids."""
    plan = random_plan(rng)
    log = random_log(rng, plan.items)
    _, views = resume(log, None)
    is_in_order = (
        plan.is_killed is False
        and all(len(group) == 1 for group in plan.groups)
        and "other" not in (producer for producer, _ in plan.order)
    )
    check_final_view(plan, read(views), is_in_order=is_in_order)
    for number, view in enumerate(views):
        assert views[number + 1 :] == resume(log, view.id)[1]


@pytest.mark.parametrize("start", range(0, 50_000, 5_000))
def test_random_logs(start: int) -> None:
    """R2 to R7, R9: 50,000 random logs, and every id of each."""
    for seed in range(start, start + 5_000):
        try:
            check_random_log(random.Random(seed), _fold.resume)
        except AssertionError as error:
            error.add_note(f"random.Random({seed})")
            raise


# --- known defects ----------------------------------------------------------------------------------------------------

DEFECTS = {
    "F1: events of a record have the same id": ("EventId(self.record, len(self.views))", "EventId(self.record, 0)"),
    "F2: events do not wait": (
        "if not any(isinstance(event, End) for event in self.early.values()):",
        "if not self.early:",
    ),
    "F2: bodies do not wait": ("if handler is None or", "if True or"),
    "F3: an attempt does not replace another": ("if body.attempt != self.visible:\n", "if self.visible is None:\n"),
    "F3: nothing is taken back": ("            out.reset(self.name, self.epoch)\n", ""),
    "F3: a repeated record brings a zombie back": ("self.begun.add(body.attempt)", "pass"),
    "F3: an attempt begins in its middle": ("if body.seq == 0 and", "if"),
    "F4: repeated events are shown": (
        "events.setdefault(seq, data)",
        "events.setdefault(seq if seq not in events else max(events) + 1, data)",
    ),
    "F4: an attempt cannot have gaps": ("and self.shown in events:", "and events:"),
    "F5: what a commit says is ignored": ("self._step(event.producer).commit(event, out)", "pass"),
    "F5: the visible attempt stays": ("if attempt != self.visible or count < self.shown:", "if False:"),
    "F5: a zombie is shown after the commit": ("if self.limit != math.inf and body", "if False and body"),
    "F5: parts replace nothing": ("if commit.parts is not None and any(", "if False and any("),
    "F5: parts are shown in any case": ("any(seq not in events for seq in range(count))", "count"),
    "F5: parts are added to the events": ("attempt, count, events = None, len", "count, events = len"),
    "F5: events of replaced attempts are forgotten": (
        "                self.visible = body.attempt\n",
        "                self.attempts = {body.attempt: events}\n                self.visible = body.attempt\n",
    ),
    "F6: the end takes nothing back": ("                    step.end(out)\n", "                    pass\n"),
    "F6: the end takes back what was recorded": ("if self.limit == math.inf:\n", "if True:\n"),
    "F6: something follows the end": ("                self.has_ended = True\n", ""),
    "F7: the last event is sent again": ("views[index + (after.chunk is None) :]", "views[index:]"),
    "F7: a reader loses an event": ("views[index + (after.chunk is None) :]", "views[index + 2 :]"),
}
"""Mistakes in the fold: the invariant that each violates, the code, and the wrong code."""


def with_defect(old: str, new: str) -> ModuleType:
    """Return the fold with a defect."""
    source = Path(str(_fold.__file__)).read_text()
    assert source.count(old) == 1, source.count(old)
    module = ModuleType("_fold_with_defect")
    exec(compile(source.replace(old, new), "_fold_with_defect", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect: str) -> None:
    """The logs above are many enough: with a mistake in the fold, some reader sees something wrong."""
    fold = with_defect(*DEFECTS[defect])

    with pytest.raises((AssertionError, LookupError)):
        check_some_logs(fold)


def check_some_logs(fold: Any) -> None:
    for seed in range(2_000):
        check_random_log(random.Random(seed), fold.resume)
    for plan in small_plans():
        for _, log in zip(range(50), interleavings(plan.items), strict=False):
            check_every_moment(plan, log, fold.Fold())


def test_without_a_defect_nothing_is_found() -> None:
    """The same logs, and the fold as it is."""
    check_some_logs(_fold)
