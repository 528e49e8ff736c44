"""The comparison of a value with what it came back as."""

from __future__ import annotations

import copy
import enum
import math
import time as clock
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from restate_steps.codec._compare import Difference, find_difference

NAN = math.nan
BERLIN = ZoneInfo("Europe/Berlin")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Point(NamedTuple):
    x: int
    y: float


class Pair(tuple[int, int]):
    pass


class Name(str):
    pass


class Line(BaseModel):
    sku: str
    price: float = 0.0
    tags: list[str] = []


class DiscountLine(Line):
    rebate: int = 0
    reason: str = ""


class Order(BaseModel):
    lines: list[Line]
    by_sku: dict[str, Line] = {}
    note: str | None = None
    _seen: int = PrivateAttr(default=0)

    @cached_property
    def total(self) -> float:
        return sum(line.price for line in self.lines)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 0


class Hiding(BaseModel):
    a: int = Field(0, exclude=True)


class Empty(BaseModel):
    pass


@dataclass
class Parcel:
    weight: float
    inner: Parcel | None = None


@dataclass
class Padded(Parcel):
    padding: int = 0


@dataclass(slots=True, frozen=True)
class Slotted:
    weight: float


@dataclass(eq=False)
class Loose:
    weight: float
    cache: Any = dataclass_field(default=None, compare=False)


class WithEq:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithEq) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return 1


class WithDict:
    def __init__(self, value: Any) -> None:
        self.value = value


class WithSlots:
    __slots__ = ("other", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


class Unequal:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no order, no equality")

    def __hash__(self) -> int:
        return 1


def order(**changes: Any) -> Order:
    values = {"lines": [Line(sku="a", price=1.5, tags=["x", "y"])] * 3, "by_sku": {"a": Line(sku="a")}} | changes
    return Order(**copy.deepcopy(values))


EQUAL: list[tuple[Any, Any]] = [
    (None, None),
    (1, 1),
    (10**30, 10**30),
    (NAN, float("-nan")),
    (math.inf, math.inf),
    (-0.0, -0.0),
    ("a" * 100, "a" * 100),
    (b"\xff", b"\xff"),
    (bytearray(b"a"), bytearray(b"a")),
    (complex(1, NAN), complex(1, NAN)),
    (Decimal("1.10"), Decimal("1.10")),
    (Decimal("NaN"), Decimal("NaN")),
    (Fraction(1, 3), Fraction(1, 3)),
    (UUID(int=1), UUID(int=1)),
    (date(2020, 1, 1), date(2020, 1, 1)),
    (timedelta(1), timedelta(1)),
    (time(1, 2, tzinfo=UTC), time(1, 2, tzinfo=timezone(timedelta(0)))),
    (datetime(2020, 1, 1), datetime(2020, 1, 1, fold=1)),
    (datetime(2020, 7, 1, tzinfo=BERLIN), datetime(2020, 7, 1, tzinfo=timezone(timedelta(hours=2)))),
    (
        datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
        datetime(2020, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=1))),
    ),
    (Color.RED, Color.RED),
    (Name("a"), Name("a")),
    ([], []),
    ([1, "a", None, NAN], [1, "a", None, NAN]),
    ([float(i) for i in range(100)], [float(i) for i in range(100)]),
    ([NAN] * 100, [NAN] * 100),
    ([Line(sku=str(i)) for i in range(100)], [Line(sku=str(i)) for i in range(100)]),
    ([Loose(float(i)) for i in range(100)], [Loose(float(i)) for i in range(100)]),
    ([Slotted(float(i)) for i in range(100)], [Slotted(float(i)) for i in range(100)]),
    ([[i] for i in range(100)], [[i] for i in range(100)]),
    ([Decimal(i) for i in range(100)], [Decimal(i) for i in range(100)]),
    ([i if i % 2 else None for i in range(100)], [i if i % 2 else None for i in range(100)]),
    ((1, (2,)), (1, (2,))),
    (Pair((1, 2)), Pair((1, 2))),
    (Point(1, NAN), Point(1, NAN)),
    ({"a": 1, "b": NAN}, {"b": NAN, "a": 1}),
    ({NAN: 1, Point(1, NAN): 2}, {Point(1, NAN): 2, NAN: 1}),
    ({str(i): float(i) for i in range(100)}, {str(i): float(i) for i in range(100)}),
    (OrderedDict(a=1), OrderedDict(a=1)),
    (defaultdict(list, a=[1]), defaultdict(list, a=[1])),
    (Counter("aab"), Counter("aba")),
    (deque([1, [2]]), deque([1, [2]])),
    ({1, "a", None}, {"a", None, 1}),
    ({NAN, 1.0}, {1.0, float("nan")}),
    ({Point(1, NAN), Point(2, NAN)}, {Point(2, NAN), Point(1, NAN)}),
    (frozenset({frozenset({1})}), frozenset({frozenset({1})})),
    (order(), order()),
    (Empty(), Empty()),
    (Open(a=1, more=[NAN]), Open(a=1, more=[NAN])),
    (Line.model_construct(sku="a"), Line.model_construct(sku="a")),
    (Parcel(1.0, Parcel(NAN)), Parcel(1.0, Parcel(NAN))),
    (Slotted(1.0), Slotted(1.0)),
    (Loose(1.0), Loose(1.0)),
    (WithEq(1), WithEq(1)),
    (WithDict([NAN]), WithDict([NAN])),
    (WithSlots([NAN]), WithSlots([NAN])),
    (SecretStr("a"), SecretStr("a")),
]


@pytest.mark.parametrize(("a", "b"), EQUAL, ids=[f"{type(a).__name__}-{i}" for i, (a, _) in enumerate(EQUAL)])
def test_equal_values_of_equal_types_have_no_difference(a: Any, b: Any) -> None:
    """Equal means equal in value and in type, and NaN is itself."""
    assert find_difference(a, b) is None
    assert find_difference(b, a) is None


DIFFERENT: list[tuple[Any, Any, str, str]] = [
    (1, True, "$", "the value is an int, but it comes back as a bool"),
    (1, 1.0, "$", "the value is an int, but it comes back as a float"),
    (1, None, "$", "the value is an int, but it comes back as None"),
    (0.0, -0.0, "$", "0.0 comes back as -0.0"),
    (1.0, NAN, "$", "1.0 comes back as nan"),
    ("a", "b", "$", "'a' comes back as 'b'"),
    ("a" * 100, "b", "$", "'" + "a" * 56 + "... comes back as 'b'"),
    (Name("a"), "a", "$", "the value is a Name, but it comes back as a str"),
    (Decimal("1.0"), Decimal("1.00"), "$", "Decimal('1.0') comes back as Decimal('1.00')"),
    (Decimal("0"), Decimal("-0"), "$", "Decimal('0') comes back as Decimal('-0')"),
    (complex(0.0, 1), complex(-0.0, 1), "$", "1j comes back as (-0+1j)"),
    (UUID(int=1), UUID(int=2), "$", "comes back as UUID"),
    (datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), "$", "comes back as datetime.datetime"),
    (
        datetime(2020, 1, 1, tzinfo=UTC),
        datetime(2020, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        "$",
        "comes back as",
    ),
    (datetime(2020, 1, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC), "$", "comes back as"),
    (time(1, tzinfo=UTC), time(1), "$", "comes back as datetime.time(1, 0)"),
    (Color.RED, Color.BLUE, "$", "<Color.RED: 1> comes back as <Color.BLUE: 2>"),
    ([1, 2], [1], "$", "2 elements come back as 1"),
    ([1, 2], (1, 2), "$", "the value is a list, but it comes back as a tuple"),
    ([1, [True]], [1, [1]], "$[1][0]", "the value is a bool, but it comes back as an int"),
    ([0.0] * 99 + [-0.0], [0.0] * 100, "$[99]", "-0.0 comes back as 0.0"),
    ([1] * 99 + [True], [1] * 100, "$[99]", "the value is a bool"),
    ([1, None] * 50, [1, None] * 49 + [1, 0], "$[99]", "the value is None, but it comes back as an int"),
    (
        [Line(sku="a")] * 99 + [Line(sku="b")],
        [Line(sku="a")] * 99 + [Line(sku="c")],
        "$[99].sku",
        "'b' comes back as 'c'",
    ),
    (
        [Line(sku="a")] * 99 + [DiscountLine(sku="a")],
        [Line(sku="a")] * 100,
        "$[99]",
        "fields 'rebate', 'reason' would be",
    ),
    ([[1]] * 99 + [[1, 2]], [[1]] * 100, "$[99]", "2 elements come back as 1"),
    ([Decimal("1.0")] * 100, [Decimal("1.00")] * 100, "$[0]", "Decimal('1.0')"),
    (Point(1, 2.0), Point(1, 3.0), "$.y", "2.0 comes back as 3.0"),
    (
        Point(1, 2.0),
        (1, 2.0),
        "$",
        "the value is a Point, but it comes back as a tuple: fields 'x', 'y' would be dropped",
    ),
    (Pair((1, 2)), Pair((1, 3)), "$[1]", "2 comes back as 3"),
    ({"a": 1}, {"a": 2}, "$.a", "1 comes back as 2"),
    ({"a b": 1}, {"a b": 2}, "$['a b']", "1 comes back as 2"),
    ({"a": 1, "b": 2}, {"a": 1}, "$.b", "the key 'b' would be dropped"),
    ({"a": 1}, {"a": 1, "b": 2}, "$", "the key 'b' would be added"),
    ({1: "a"}, {"1": "a"}, "$[1]", "the key 1 comes back as '1'"),
    ({1: "a"}, {True: "a"}, "$[1]", "the key 1 would be dropped"),
    ({Color.RED: 1}, {"Color.RED": 1}, "$[<Color.RED: 1>]", "comes back as 'Color.RED'"),
    (
        {str(i): 0.0 for i in range(99)} | {"x": -0.0},
        {str(i): 0.0 for i in range(99)} | {"x": 0.0},
        "$.x",
        "-0.0 comes",
    ),
    (defaultdict(int, a=1), {"a": 1}, "$", "the value is a defaultdict, but it comes back as a dict"),
    ({1, 2}, {1}, "${2}", "the member 2 would be dropped"),
    ({1}, {1, 2}, "$", "the member 2 would be added"),
    ({1}, {True}, "${1}", "the member 1 would be dropped"),
    ([{Point(1, 2.0)}], [{Point(1, 3.0)}], "$[0]{Point(x=1, y=2.0)}", "would be dropped"),
    (order(), order(note="n"), "$.note", "the value is None, but it comes back as a str"),
    (order(), order(by_sku={"a": Line(sku="b")}), "$.by_sku.a.sku", "'a' comes back as 'b'"),
    (
        order(),
        order(lines=[Line(sku="a", price=1.5, tags=["x", "z"])] * 3),
        "$.lines[0].tags[1]",
        "'y' comes back as 'z'",
    ),
    (Open(a=1, more=1), Open(a=1), "$.more", "the key 'more' would be dropped"),
    (Hiding(a=1), Hiding(), "$.a", "the field is excluded from the encoded form: 1 comes back as 0"),
    (Line(sku="a"), Line.model_construct(), "$.sku", "'a' would be dropped"),
    (Line.model_construct(), Line(sku="a"), "$.sku", "it was not set, and comes back as 'a'"),
    (Parcel(1.0, Parcel(1.0)), Parcel(1.0, Parcel(2.0)), "$.inner.weight", "1.0 comes back as 2.0"),
    (
        Padded(1.0),
        Parcel(1.0),
        "$",
        "the value is a Padded, but it comes back as a Parcel: field 'padding' would be dropped",
    ),
    (Slotted(1.0), Slotted(2.0), "$.weight", "1.0 comes back as 2.0"),
    (Loose(1.0, cache=1), Loose(1.0, cache=2), "$.cache", "1 comes back as 2"),
    (WithEq(1), WithEq(2), "$", "comes back as"),
    (WithDict([1]), WithDict([2]), "$.value[0]", "1 comes back as 2"),
    (WithSlots([1]), WithSlots([2]), "$.value[0]", "1 comes back as 2"),
    (SecretStr("a"), SecretStr("b"), "$", "the SecretStr SecretStr('**********') comes back as one that is not equal"),
    (object(), object(), "$", "an object has no attributes to compare and does not define __eq__"),
    (Unequal(), Unequal(), "$", "two instances of Unequal cannot be compared: no order, no equality"),
    ((i for i in ()), [], "$", "the value is a generator: its elements can be read only once"),
    ([iter([])], [iter([])], "$[0]", "the value is a list_iterator: its elements can be read only once"),
    ([1], iter([1]), "$", "a list comes back as a lazy iterator"),
]


@pytest.mark.parametrize(
    ("a", "b", "path", "reason"), DIFFERENT, ids=[f"{type(a[0]).__name__}-{i}" for i, a in enumerate(DIFFERENT)]
)
def test_a_difference_is_told_with_its_place(a: Any, b: Any, path: str, reason: str) -> None:
    """The first difference is reported with a path to it and what changed there."""
    found = find_difference(a, b)

    assert found is not None
    assert path == found.path
    assert reason in found.reason


def test_an_async_iterator_is_refused() -> None:
    """It cannot be read twice either."""

    async def numbers() -> AsyncIterator[int]:
        yield 1

    found = find_difference(numbers(), [1])

    assert found is not None
    assert found.kind == "iterator"


def test_two_classes_of_one_name_are_told_apart() -> None:
    """A module that was loaded twice makes for puzzling messages otherwise."""
    other = type("Line", (BaseModel,), {"__module__": "elsewhere"})

    found = find_difference(Line(sku="a"), other())

    assert found is not None
    assert "of another class" in found.reason
    assert "elsewhere.Line" in found.reason


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (DiscountLine(sku="a"), Line(sku="a"), "subclass"),
        (Padded(1.0), Parcel(1.0), "subclass"),
        (True, 1, "type"),
        (defaultdict(int), {}, "type"),
        ({"a": 1}, {}, "missing"),
        (Hiding(a=1), Hiding(), "excluded"),
        (1, 2, "value"),
        (object(), object(), "opaque"),
    ],
)
def test_the_kind_tells_which_remedy_fits(a: Any, b: Any, kind: str) -> None:
    """The advice in an error depends on the kind of the difference."""
    found = find_difference(a, b)

    assert found is not None
    assert kind == found.kind


def test_an_int_may_widen_to_a_float_of_the_same_value() -> None:
    """A function declared to return float may return 1, if the caller of the comparison says so."""
    assert find_difference([1, {"a": 0}], [1.0, {"a": 0.0}], widen=True) is None
    assert find_difference(2**53 + 1, float(2**53), widen=True) is not None
    assert find_difference(True, 1.0, widen=True) is not None
    assert find_difference(1.0, 1, widen=True) is not None


def test_what_is_not_data_does_not_count() -> None:
    """Private attributes, cached properties and the record of set fields are left out of the comparison."""
    a, b = order(), order()
    a._seen = 1
    assert a.total
    a.note = None

    assert find_difference(a, b) is None


def test_a_value_that_refers_to_itself_can_be_compared() -> None:
    """The comparison ends, and still finds a difference."""
    a: list[Any] = [1]
    b: list[Any] = [1]
    a.append(a)
    b.append(b)
    first, second = Parcel(1.0), Parcel(1.0)
    first.inner, second.inner = first, second

    assert find_difference(a, b) is None
    assert find_difference(first, second) is None

    b.append(2)
    assert find_difference([a], [b]) == Difference("$[0]", "2 elements come back as 3", "value")


def test_a_value_of_extreme_depth_is_reported() -> None:
    """It is an error that can be acted on, not a crash."""
    a: list[Any] = []
    b: list[Any] = []
    for _ in range(100_000):
        a, b = [a], [b]

    found = find_difference(a, b)

    assert found is not None
    assert found.kind == "depth"


def test_many_classes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered per class is bounded."""
    from restate_steps.codec import _compare

    monkeypatch.setattr(_compare, "_CACHE_LIMIT", 3)

    for i in range(10):
        cls = type(f"Class{i}", (BaseModel,), {})
        assert find_difference(cls(), cls()) is None

    assert len(_compare._comparators) <= 3


def test_long_lists_are_compared_faster_than_they_are_decoded() -> None:
    """The comparison runs on every result, so it has to cost clearly less than the codec; the benchmark has numbers."""
    from restate_steps.codec import DEFAULT_CODEC

    lines = [Line(sku=str(i), price=i / 7, tags=["a", "b"]) for i in range(2000)]
    data = DEFAULT_CODEC.dump(list[Line], lines)
    decoded = DEFAULT_CODEC.load(list[Line], data)
    find_difference(lines, decoded)

    def best(call: Any) -> float:
        times = []
        for _ in range(10):
            start = clock.thread_time()
            call()
            times.append(clock.thread_time() - start)
        return min(times)

    codec = best(lambda: DEFAULT_CODEC.load(list[Line], DEFAULT_CODEC.dump(list[Line], lines)))
    assert best(lambda: find_difference(lines, decoded)) < codec


# What is to be found out here is not how busy the machine is.
unhurried = settings(deadline=None)

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.decimals(),
        st.datetimes(),
        st.sampled_from(Color),
        st.builds(Line, sku=st.text(), price=st.floats()),
        st.builds(Slotted, st.floats()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=50),
        st.dictionaries(st.text(), inner),
        st.tuples(inner, inner),
        st.builds(Parcel, st.floats(), inner),
        st.builds(WithDict, inner),
    ),
    max_leaves=30,
)


@unhurried
@given(values)
def test_a_copy_is_equal(value: Any) -> None:
    """Whatever the value is, a deep copy of it shows no difference."""
    assert find_difference(value, copy.deepcopy(value)) is None


@unhurried
@given(st.lists(values, min_size=1), st.data())
def test_a_change_is_found(value: list[Any], data: st.DataObject) -> None:
    """One changed element anywhere is reported at its index."""
    index = data.draw(st.integers(0, len(value) - 1))
    changed = copy.deepcopy(value)
    changed[index] = Fraction(1, 2)

    found = find_difference(value, changed)

    assert found is not None
    assert found.path == f"$[{index}]"


@unhurried
@given(st.sets(st.one_of(st.integers(), st.floats(), st.text())))
def test_sets_do_not_depend_on_order(value: set[Any]) -> None:
    """A set built in another order, with other NaNs, is the same set."""
    in_order = sorted((copy.copy(m) if m == m else float("nan") for m in value), key=repr)
    other = dict.fromkeys(in_order).keys() | set()

    assert find_difference(value, other) is None
