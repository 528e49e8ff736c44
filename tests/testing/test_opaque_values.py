"""Ids and times that are new in each run make no difference to what is explored."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_DNS, uuid1, uuid4, uuid5

import pytest
import restate

import restate_steps
from restate_steps import durable_step
from restate_steps.testing import Report, explore
from restate_steps.testing._simulation.opaque import OpaqueValues


def renamed(*bodies: object) -> list[bytes]:
    """Return what becomes of the messages of one run."""
    values = OpaqueValues()
    return [values.renamed(str(body).encode()) for body in bodies]


NOW = datetime(2026, 5, 4, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    "make",
    [uuid4, uuid1, lambda: uuid4().hex, lambda: f"call_{uuid4().hex}"],
    ids=["random", "of the clock", "without dashes", "with a prefix"],
)
def test_ids_are_equal_or_not(make: object) -> None:
    """V1: what matters of an id is where it comes again."""
    assert callable(make)
    one, two, three, four = (make() for _ in range(4))

    assert renamed(one, two, one) == renamed(three, four, three)
    assert renamed(one, two, one) != renamed(three, four, four)


@pytest.mark.parametrize("form", [datetime.isoformat, str])
def test_times_are_in_order(form: object) -> None:
    """V2: what matters of a time is what comes before and after it."""
    assert callable(form)
    early, middle, late = (form(NOW + timedelta(seconds=seconds)) for seconds in (0, 100, 10_000))
    next_year = [form(NOW + timedelta(days=365, microseconds=number)) for number in (1, 2, 3)]

    assert renamed(early, late, middle) == renamed(next_year[0], next_year[2], next_year[1])
    assert renamed(early, late, middle) != renamed(*next_year)
    assert renamed(early, early) != renamed(early, late)


@pytest.mark.parametrize(
    "value",
    [
        uuid5(NAMESPACE_DNS, "example.org"),
        hashlib.sha256(b"content").hexdigest(),
        hashlib.md5(b"content").hexdigest() + "0",
        NOW.replace(microsecond=0).isoformat(),
        NOW.date(),
        "4111 1111 1111 1111",
        1764368920,
        "call 0.1",
        "2026-05-04T12:30:15.123",
    ],
)
def test_all_else_stays_as_it_is(value: object) -> None:
    """V3: a value that may mean something is compared as it is."""
    assert [str(value).encode()] == renamed(value)


def explored(*, new: bool) -> Report:
    service = restate.Service("Stamps")

    @durable_step(name="stamp {name}")
    async def stamp(name: str) -> str:
        return f"{name} {uuid4()}" if new else name

    @durable_step
    async def look_at_the_clock() -> str:
        return datetime.now(UTC).isoformat(timespec="microseconds") if new else ""

    @service.handler()
    async def handler(ctx: restate.Context) -> list[str]:
        await look_at_the_clock()
        stamps = await restate_steps.gather(stamp("a"), stamp("b"))
        await look_at_the_clock()
        return [each[0] for each in stamps]

    return explore(restate_steps.app([service]), handler, cancel=True, progress=False)


def test_they_are_not_explored_again_and_again() -> None:
    """A handler whose steps return ids and times is explored as fast as one whose steps do not, and completely."""
    same, new = explored(new=False), explored(new=True)

    new.assert_replay_safe()
    assert same.complete
    assert new.complete
    assert (same.schedules, same.prefixes, same.cancellations) == (new.schedules, new.prefixes, new.cancellations)
