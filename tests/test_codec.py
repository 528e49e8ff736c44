"""The codec: what survives, what is refused, and what the errors say."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import math
import pathlib
import re
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from inspect import Parameter
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Json,
    PlainSerializer,
    RootModel,
    SecretStr,
    Tag,
    computed_field,
    field_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypeAliasType, TypedDict

from restate_steps.codec import (
    DEFAULT_CODEC,
    PLAIN_JSON,
    JsonCodec,
    _adapters,
    _strict_json,
    is_plain,
    type_name,
    verify,
)
from restate_steps.codec._compare import find_difference
from restate_steps.errors import DecodeError, EncodeError, StepDefinitionError

NAN = math.nan
INF = math.inf
T = TypeVar("T")


class Color(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    LOW = 1


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float


class Blob(BaseModel):
    data: bytes
    weight: float = 0.0


@dataclass
class Parcel:
    data: bytes
    weight: float = NAN


class Options(TypedDict, total=False):
    data: bytes
    weight: float


class Nested(BaseModel):
    blob: Blob
    parcel: Parcel
    options: Options
    blobs: list[Blob]
    by_name: dict[str, Blob | None]


class NamesThatMeanSomething(BaseModel):
    config: bytes
    default: float
    metadata: bytes
    type: bytes
    fields: bytes
    schema_: bytes


class Tree(BaseModel):
    value: float
    children: list[Tree] = []


@dataclass(slots=True, frozen=True, kw_only=True)
class Link:
    value: bytes
    next: Optional[Link] = None  # noqa: UP045 - the old spelling is to work, too


@dataclass
class WithoutInit:
    a: int
    b: int = field(init=False, default=3)


class Box(BaseModel, Generic[T]):
    content: T


@dataclass
class Crate(Generic[T]):
    content: T


class Chunks(RootModel[list[bytes]]):
    pass


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")
    first_name: str
    last_name: str


class Aliased(BaseModel):
    a: int = Field(alias="A")
    b: int = Field(validation_alias="read_b", serialization_alias="written_b")
    c: int = Field(validation_alias=AliasChoices("x", AliasPath("y", 0)))


class Swapped(BaseModel):
    a: int = Field(alias="b")
    b: int = Field(alias="a")


class ByNameOnly(BaseModel):
    model_config = ConfigDict(validate_by_alias=False, validate_by_name=True)
    a: int = Field(alias="A")


@dataclass
class AliasedParcel:
    a: Annotated[int, Field(validation_alias="in", serialization_alias="out")]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = Field(alias="A")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime
    data: bytes
    members: set[int]
    pair: tuple[int, float]


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int
    listing: Json[list[int]]

    @computed_field
    def double(self) -> int:
        return self.a * 2


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: bytes


class CatByAlias(BaseModel):
    kind: Literal["cat"] = Field("cat", alias="KIND")
    lives: int


class DogByAlias(BaseModel):
    kind: Literal["dog"] = Field("dog", alias="KIND")
    tricks: bytes


class CatWrittenByAlias(BaseModel):
    kind: Literal["cat"] = Field("cat", serialization_alias="KIND")
    lives: int


class DogWrittenByAlias(BaseModel):
    kind: Literal["dog"] = Field("dog", serialization_alias="KIND")
    tricks: bytes


def tag_of(value: Any) -> str:
    return str(value["kind"] if isinstance(value, dict) else value.kind)


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
PetByAlias = Annotated[CatByAlias | DogByAlias, Field(discriminator="kind")]
PetWrittenByAlias = Annotated[CatWrittenByAlias | DogWrittenByAlias, Field(discriminator="kind")]
PetByFunction = Annotated[
    Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")],
    Discriminator(tag_of),
]
Recursive = TypeAliasType("Recursive", "dict[str, Recursive] | float")


class Hex(BaseModel):
    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")
    data: bytes


class Utf8(BaseModel):
    model_config = ConfigDict(ser_json_bytes="utf8")
    data: bytes


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    names: frozenset[str]


class Base(BaseModel):
    a: int


class Derived(Base):
    x: int
    y: int


def nested() -> Nested:
    blob = Blob(data=b"\xff\x00", weight=NAN)
    return Nested(
        blob=blob,
        parcel=Parcel(b"\xfe", INF),
        options={"data": b"\xfd", "weight": -INF},
        blobs=[blob, blob],
        by_name={"a": blob, "b": None},
    )


SURVIVORS: list[tuple[Any, Any]] = [
    (None, None),
    (bool, True),
    (int, 10**40),
    (int, -(2**63)),
    (float, NAN),
    (float, -INF),
    (float, -0.0),
    (float, 5e-324),
    (str, "naïve ☃ \x00 \U0001f600"),
    (bytes, b"\xff\x00"),
    (bytes, b""),
    (complex, 1 - 2j),
    (Decimal, Decimal("-1.10")),
    (Decimal, Decimal("1E+400")),
    (Annotated[Decimal, Field(allow_inf_nan=True)], Decimal("NaN")),
    (Fraction, Fraction(1, 3)),
    (UUID, UUID(int=1)),
    (date, date(2020, 2, 29)),
    (datetime, datetime(2020, 1, 1, 2, 3, 4, 5)),
    (datetime, datetime(2020, 1, 1, tzinfo=UTC)),
    (datetime, datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
    (datetime, datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))),
    (datetime, datetime.max),
    (datetime, datetime.min),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta.max),
    (timedelta, timedelta.min),
    (ipaddress.IPv4Address, ipaddress.ip_address("127.0.0.1")),
    (pathlib.PurePosixPath, pathlib.PurePosixPath("/a/b")),
    (re.Pattern, re.compile("a+")),
    (AnyUrl, AnyUrl("https://example.com/")),
    (Color, Color.RED),
    (Level, Level.LOW),
    (Permission, Permission.READ | Permission.WRITE),
    (Literal["a", 1, True], True),
    (list[int | None], [1, None]),
    (tuple[int, bytes], (1, b"\xff")),
    (tuple[float, ...], (NAN, INF)),
    (Point, Point(1, 2.0)),
    (set[int], {3, 1}),
    (set[float], {NAN, 1.0}),
    (set[Point], {Point(1, 2.0)}),
    (frozenset[frozenset[str]], frozenset({frozenset({"a", "b"}), frozenset()})),
    (deque[bytes], deque([b"\xff"])),
    (dict[str, float], {"a": NAN}),
    (dict[int, str], {1: "a"}),
    (dict[bool, int], {True: 1}),
    (dict[float, int], {NAN: 1, INF: 2}),
    (dict[bytes, bytes], {b"\xff": b"\xfe"}),
    (dict[Color, UUID], {Color.RED: UUID(int=0)}),
    (dict[date, timedelta], {date(2020, 1, 1): timedelta(1)}),
    (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    (defaultdict[str, list[int]], defaultdict(list, a=[1])),
    (Counter[str], Counter("aab")),
    (int | str, "1"),
    (int | str, 1),
    (list[int] | dict[str, int], {"a": 1}),
    (Base | Parcel | None, Parcel(b"\xff", 1.5)),
    (Nested, nested()),
    (list[Nested], [nested()]),
    (dict[str, Nested | None], {"a": nested(), "b": None}),
    (Parcel, Parcel(b"\xff")),
    (Options, {"data": b"\xff"}),
    (
        NamesThatMeanSomething,
        NamesThatMeanSomething.model_construct(
            config=b"\xff", default=NAN, metadata=b"\xff", type=b"\xff", fields=b"\xff", schema_=b"\xff"
        ),
    ),
    (Tree, Tree(value=NAN, children=[Tree(value=-0.0)])),
    (Link, Link(value=b"\xff", next=Link(value=b""))),
    (WithoutInit, WithoutInit(1)),
    (Box[bytes], Box[bytes](content=b"\xff")),
    (Box[Box[Blob]], Box[Box[Blob]](content=Box[Blob](content=Blob(data=b"\xff")))),
    (Crate[bytes], Crate(b"\xff")),
    (Chunks, Chunks([b"\xff"])),
    (Recursive, {"a": {"b": NAN}}),
    (Camel, Camel(firstName="A", lastName="B")),
    (Aliased, Aliased(A=1, read_b=2, x=3)),
    (Swapped, Swapped(b=1, a=2)),
    (ByNameOnly, ByNameOnly(a=1)),
    (AliasedParcel, AliasedParcel(1)),
    (Open, Open(A=1, a=2, more=[1])),
    (Strict, Strict(when=datetime(2020, 1, 1, tzinfo=UTC), data=b"\xff", members={1}, pair=(1, 2.0))),
    (Computed, Computed(a=1, listing="[1, 2]")),
    (Pet, Dog(tricks=b"\xff")),
    (PetByAlias, DogByAlias(tricks=b"\xff")),
    (PetWrittenByAlias, DogWrittenByAlias(tricks=b"\xff")),
    (list[PetByFunction], [Dog(tricks=b"\xff"), Cat(lives=9)]),
    (Hex, Hex(data=b"\xff")),
    (Frozen, Frozen(names=frozenset("hello"))),
    (TypeVar("Bound", bound=Base), Base(a=1)),
    (Annotated[int, Field(gt=0), {"unhashable": []}], 1),
    (float, 1),
]


@pytest.mark.parametrize(
    ("type_", "value"), SURVIVORS, ids=[f"{type_name(t)}-{i}" for i, (t, _) in enumerate(SURVIVORS)]
)
def test_a_value_comes_back_as_it_was(type_: Any, value: Any) -> None:
    """A value of any type pydantic takes survives, and needs no configuration for it."""
    DEFAULT_CODEC.check(type_)

    data = DEFAULT_CODEC.dump(type_, value)

    assert data
    assert find_difference(value, DEFAULT_CODEC.load(type_, data), widen=True) is None
    verify(DEFAULT_CODEC, type_, value, data)


@pytest.mark.parametrize(
    ("type_", "value", "data"),
    [
        (None, None, b"null"),
        (int | None, None, b"null"),
        (bytes, b"\xff", b'"_w=="'),
        (float, NAN, b"NaN"),
        (float, -INF, b"-Infinity"),
        (datetime, datetime(2020, 1, 1, tzinfo=UTC), b'"2020-01-01T00:00:00Z"'),
        (Point, Point(1, 2.0), b"[1,2.0]"),
        (Camel, Camel(firstName="A", lastName="B"), b'{"firstName":"A","lastName":"B"}'),
        (Computed, Computed(a=1, listing="[1]"), b'{"a":1,"listing":"[1]"}'),
        (set[str], set("hello"), b'["e","h","l","o"]'),
    ],
)
def test_the_encoded_form_is_readable_json(type_: Any, value: Any, data: bytes) -> None:
    """What is written is the JSON a reader of Restate's UI would expect."""
    assert data == DEFAULT_CODEC.dump(type_, value)


def test_an_answer_includes_what_decoding_does_not_need() -> None:
    """With ``round_trip=False`` the output is what the published schema promises."""
    assert (
        JsonCodec(round_trip=False).dump(Computed, Computed(a=1, listing="[1]")) == b'{"a":1,"listing":[1],"double":2}'
    )


def test_sets_are_written_in_the_same_order_by_every_process() -> None:
    """Restate compares what a replay sends with what was sent before, and a replay may be in another process."""
    program = "from restate_steps.codec import *; print(DEFAULT_CODEC.dump(set[str | int], {*'abcdefgh', 1, 2}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert outputs == {"""b'[1,2,"a","b","c","d","e","f","g","h"]'\n"""}


# --- plain JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [PLAIN_JSON, Any, Parameter.empty], ids=["PLAIN_JSON", "Any", "empty"])
def test_without_a_declared_type_values_become_plain_json(mark: Any) -> None:
    """Models, dates and sets are written as usual, and come back as what JSON has."""
    value = {"model": Base(a=1), "parcel": Parcel(b"abc", 1.0), "when": date(2020, 1, 1), "all": {1}, 2: (None, NAN)}

    data = DEFAULT_CODEC.dump(mark, value)
    loaded = verify(DEFAULT_CODEC, mark, value, data)

    assert is_plain(mark)
    expected = {"model": {"a": 1}, "parcel": {"data": "YWJj", "weight": 1.0}, "when": "2020-01-01", "all": [1]}
    assert find_difference({**expected, "2": [None, NAN]}, loaded) is None


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ([{"a": object()}], "$[0].a", "Unable to serialize unknown type: <class 'object'>"),
        ({"a": {1: "x", "1": "y"}}, "$.a", "the keys 1 and '1' become the same text"),
        ([({None: 1, "None": 2},)], "$[0][0]", "the keys None and 'None' become the same text"),
        (["\ud800"], "$[0]", "surrogates not allowed"),
        ({"\ud800": 1}, "$['\\ud800']", "surrogates not allowed"),
        ({"m": Utf8(data=b"\xff")}, "$.m.data", "invalid utf-8"),
        ([Blob.model_construct(data="x")], "$[0].data", "Expected `bytes`"),
    ],
)
def test_what_plain_json_cannot_hold_is_refused(value: Any, path: str, reason: str) -> None:
    """There is no type to tell what was meant, so it is an error."""
    with pytest.raises(EncodeError, match="plain JSON") as caught:
        DEFAULT_CODEC.dump(PLAIN_JSON, value)

    assert path == caught.value.path
    assert reason in caught.value.reason


@pytest.mark.parametrize("mark", [PLAIN_JSON, dict[str, Any], dict[str, list[Any]], dict[str, object]], ids=type_name)
def test_models_lose_nothing_where_no_type_is_declared(mark: Any) -> None:
    """Pydantic by itself would write NaN as null and refuse the bytes."""
    value = {"all": [Blob(data=b"\xff", weight=NAN), Parcel(b"\xfe"), Crate({1: Camel(firstName="A", lastName="B")})]}

    data = DEFAULT_CODEC.dump(mark, value)

    blob, parcel = b'{"data":"_w==","weight":NaN}', b'{"data":"_g==","weight":NaN}'
    camel = b'{"content":{"1":{"firstName":"A","lastName":"B"}}}'
    assert data == b'{"all":[' + b",".join([blob, parcel, camel]) + b"]}"


def test_a_value_of_no_type_that_refers_to_itself_is_refused() -> None:
    """It has no form in JSON."""
    value: list[Any] = [Base(a=1)]
    value.append(value)

    with pytest.raises(EncodeError, match="Circular reference"):
        DEFAULT_CODEC.dump(list[Any], value)


# --- refusals ---------------------------------------------------------------------------------------------------


class HexOneWay(BaseModel):
    model_config = ConfigDict(ser_json_bytes="hex")
    data: bytes


class Excluding(BaseModel):
    a: int = 0
    b: int = Field(0, exclude=True)


class ExcludingRequired(BaseModel):
    a: int
    b: int = Field(exclude=True)


class Login(BaseModel):
    password: SecretStr


class Counting(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def add_one(cls, n: int) -> int:
        return n + 1


class Row(TypedDict):
    a: int


def cyclic() -> Tree:
    tree = Tree(value=1.0)
    tree.children.append(tree)
    return tree


def misfit() -> Nested:
    value = nested()
    value.blobs[1] = Blob.model_construct(data=1, weight=1.0)
    return value


LOSSES: list[tuple[str, Any, Any, str, str, str]] = [
    (
        "subclass",
        list[Base],
        [Base(a=1), Derived(a=1, x=2, y=3)],
        "$[1]",
        "the value is a Derived, but it comes back as a Base: fields 'x', 'y' would be dropped",
        "Declare the subclass",
    ),
    ("misfit", list[int], [1, "a"], "$[1]", "Expected `int`", "Return a value of the declared type"),
    ("misfit-nested", Nested, misfit(), "$.blobs[1].data", "Expected `bytes`", "declare the type that is returned"),
    ("misfit-tuple", tuple[int, str], (1, 2), "$[1]", "Expected `str`", "Return a value"),
    ("misfit-key", dict[str, dict[int, int]], {"a": {"x": 1}}, "$.a.x", "Expected `int`", "Return a value"),
    ("misfit-member", list[set[int]], [{1}, {"a"}], "$[1]{'a'}", "Expected `int`", "Return a value"),
    ("misfit-top", Base, 5, "$", "Expected `Base`", "Return a value"),
    ("list-for-set", set[int], [1], "$", "Expected `set` but got `list`", "Return a value"),
    ("bool-for-int", int, True, "$", "the value is a bool, but it comes back as an int", "Convert the value"),
    ("enum-for-int", int, Level.LOW, "$", "the value is a Level, but it comes back as an int", "Convert the value"),
    ("tuple-for-sequence", Sequence[int], (1,), "$", "a tuple, but it comes back as a list", "Convert the value"),
    (
        "defaultdict",
        dict[str, int],
        defaultdict(int, a=1),
        "$",
        "a defaultdict, but it comes back as a dict",
        "Convert",
    ),
    ("ambiguous-union", bytes | str, "YWJj", "$", "a str, but it comes back as a bytes", "discriminator"),
    (
        "model-for-any",
        dict[str, Any],
        {"x": Base(a=1)},
        "$.x",
        "a Base, but it comes back as a dict",
        "declare the type",
    ),
    ("key-collision", dict[int | str, int], {1: 1, "1": 2}, "$[1]", "the key 1 would be dropped", "Declare what"),
    ("tuple-key", dict[tuple[int, int], int], {(1, 2): 3}, "$['1,2']", "valid array", "a list of pairs"),
    ("extra-key", Row, {"a": 1, "b": 2}, "$.b", "would be dropped", "Declare what is returned in full"),
    ("secret", Login, Login(password=SecretStr("x")), "$.password", "SecretStr", "A secret is masked"),
    ("excluded", Excluding, Excluding(b=2), "$.b", "excluded from the encoded form", "Remove exclude=True"),
    ("excluded-required", ExcludingRequired, ExcludingRequired(a=1, b=2), "$.b", "Field required", "left out"),
    ("no-init", WithoutInit, dataclasses.replace(WithoutInit(1)), "$.b", "5 comes back as 3", "verify=False"),
    ("validator", list[Counting], [Counting(n=1)], "$[0].n", "2 comes back as 3", "each other's inverse"),
    ("surrogate", list[str], ["\ud800"], "$[0]", "surrogates not allowed", "errors='replace'"),
    ("utf8-by-choice", list[Utf8], [Utf8(data=b"\xff")], "$[0].data", "invalid utf-8", "ser_json_bytes='base64'"),
    ("hex-one-way", HexOneWay, HexOneWay(data=b"\xff"), "$.data", "b'\\xff' comes back as b'ff'", "inverse"),
    ("decimal-nan", list[Decimal], [Decimal("NaN")], "$[0]", "finite number", "Field(allow_inf_nan=True)"),
    ("offset-seconds", datetime, datetime(2020, 1, 1, tzinfo=timezone(timedelta(seconds=5))), "$", "comes back", ""),
    ("pattern-flags", re.Pattern, re.compile("a", re.I), "$", "re.IGNORECASE", ""),
    ("cycle", Tree, cyclic(), "$.children[0]", "Circular reference", "an identifier"),
    ("object", list[Any], [1, object()], "$[1]", "Unable to serialize unknown type", "Return data"),
    ("generator", list[int], (i for i in [1]), "$", "Expected `list[int]`", "Return a value"),
    ("not-none", None, 5, "$", "Expected `none`", "Return a value"),
]
LOSSES[[name for name, *_ in LOSSES].index("no-init")][2].b = 5


@pytest.mark.parametrize(
    ("type_", "value", "path", "reason", "fix"), [row[1:] for row in LOSSES], ids=[r[0] for r in LOSSES]
)
def test_a_loss_is_reported_with_its_place_and_a_fix(type_: Any, value: Any, path: str, reason: str, fix: str) -> None:
    """What does not survive is an error that says where, why, and what to do."""
    with pytest.raises(EncodeError) as caught:
        verify(DEFAULT_CODEC, type_, value, DEFAULT_CODEC.dump(type_, value))

    assert type_name(type_) == caught.value.type_name
    assert path == caught.value.path
    assert reason in caught.value.reason
    assert fix in caught.value.fix
    assert "x" not in caught.value.reason or "password" not in path


def test_a_misfit_is_an_error_whatever_is_done_to_warnings() -> None:
    """Pydantic only warns of a misfit, and no filter may turn that into silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        with pytest.raises(EncodeError, match="Expected `int`"):
            DEFAULT_CODEC.dump(list[int], ["a"])


def test_the_fast_way_to_refuse_misfits_works_here() -> None:
    """Should Python change, encoding falls back to the slow way: correct, but worth knowing."""
    assert _strict_json.encode is not _strict_json.encode_slowly


def test_what_a_serializer_raises_is_reported() -> None:
    """The user's own error is the cause, and its text is told."""

    def fail(value: int) -> int:
        raise LookupError("no such thing")

    with pytest.raises(EncodeError, match=r"at \$\[1\]: .*no such thing"):
        DEFAULT_CODEC.dump(tuple[str, Annotated[int, PlainSerializer(fail)]], ("a", 1))


# --- decoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": "x"}', "at $.a: Input should be a valid integer, unable to parse string as an integer"),
        (b"[]", "at $: Input should be an object"),
        (b'{"a', "at $: Invalid JSON: EOF while parsing a string at line 1 column 3"),
        (b"", "at $: Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b"\xff", "at $: Invalid JSON"),
    ],
)
def test_bytes_that_do_not_fit_are_a_retryable_error(data: bytes, reason: str) -> None:
    """The error tells the place, and that the recorded value is intact."""
    with pytest.raises(DecodeError, match="The recorded value is intact") as caught:
        DEFAULT_CODEC.load(Base, data)

    assert caught.value.reason.startswith(reason)
    assert caught.value.type_name == "Base"


def test_many_errors_are_cut_short() -> None:
    """Three places are enough to understand what changed."""
    with pytest.raises(DecodeError, match=r"at \$\[2\]: .*; and 2 more"):
        DEFAULT_CODEC.load(list[int], b'["a","b","c","d","e"]')


def test_what_a_validator_raises_is_reported() -> None:
    """Whatever goes wrong in a validator is a decode error."""

    def fail(value: Any) -> Any:
        raise KeyError("currency")

    with pytest.raises(DecodeError, match="KeyError: 'currency'"):
        DEFAULT_CODEC.load(Annotated[int, BeforeValidator(fail)], b"1")


# --- types ------------------------------------------------------------------------------------------------------


class Handle:
    pass


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (Handle, r"Handle cannot be encoded: .* Declare a type pydantic can handle"),
        (list[Handle], r"list\[Handle\] cannot be encoded"),
        (Iterable[int], r"Iterable\[int\] would be decoded as an iterator, .* Declare a list"),
        (int | Iterable[int], r"int \| Iterable\[int\] would be decoded as an iterator"),
        (Iterator[int], r"Iterator\[int\]"),
    ],
)
def test_a_type_that_can_never_work_is_refused_at_decoration(type_: Any, text: str) -> None:
    """The developer learns of it when the module is imported, not when the first step has run."""
    with pytest.raises(StepDefinitionError, match=text):
        DEFAULT_CODEC.check(type_)


def test_a_type_that_cannot_be_handled_is_an_encode_error_too() -> None:
    """A serde may be made from a type nobody checked."""
    with pytest.raises(EncodeError, match="Unable to generate pydantic-core schema"):
        DEFAULT_CODEC.dump(Handle, Handle())
    with pytest.raises(DecodeError, match="Unable to generate pydantic-core schema"):
        DEFAULT_CODEC.load(Handle, b"1")


def test_a_forward_reference_is_resolved_on_first_use() -> None:
    """A class may be checked before the classes it refers to exist."""
    Later = dataclass(type("Later", (), {"__annotations__": {"content": "LaterStill"}, "__module__": __name__}))

    DEFAULT_CODEC.check(Later)
    with pytest.raises(EncodeError, match=r"name 'LaterStill' is not defined.* Define the name"):
        DEFAULT_CODEC.dump(Later, Later(b""))

    globals()["LaterStill"] = bytes
    try:
        assert DEFAULT_CODEC.dump(Later, Later(b"\xff")) == b'{"content":"_w=="}'
    finally:
        del globals()["LaterStill"]


def test_equal_types_share_an_adapter_only_if_they_mean_the_same() -> None:
    """Which of two unions was seen first must not decide how the other is decoded."""
    assert date | str == str | date

    first = DEFAULT_CODEC.load(date | str, b'"2020-01-01"')
    second = DEFAULT_CODEC.load(str | date, b'"2020-01-01"')

    assert (date(2020, 1, 1), "2020-01-01") == (first, second)
    assert _adapters.adapter_for(list[Base]).to_json is _adapters.adapter_for(list[Base]).to_json


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes up types for ever does not fill its memory."""
    monkeypatch.setattr(_adapters, "_CACHE_LIMIT", 5)

    for _ in range(20):
        assert DEFAULT_CODEC.dump(list[Base], [Base(a=1)]) == b'[{"a":1}]'

    assert len(_adapters.CACHE) <= 5


def test_classes_are_left_as_they_were() -> None:
    """Building an adapter does not change what pydantic itself does with a class."""
    DEFAULT_CODEC.dump(Nested, nested())

    assert Blob.__pydantic_complete__
    assert Blob(data=b"a", weight=NAN).model_dump_json() == '{"data":"a","weight":null}'
    assert "ser_json_bytes" not in Blob.model_config


def test_an_unknown_core_schema_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Should pydantic change, values go on being encoded, and verified."""

    def fail(schema: Any, infer: Any) -> Any:
        raise KeyError("schema")

    class Fresh(BaseModel):
        data: bytes

    monkeypatch.setattr(_adapters, "lossless_schema", fail)

    assert DEFAULT_CODEC.dump(Fresh, Fresh(data=b"a")) == b'{"data":"a"}'
    assert "cannot copy pydantic's schema" in caplog.text


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        (None, "None"),
        (type(None), "None"),
        (Any, "Any"),
        (PLAIN_JSON, "plain JSON"),
        (Base, "Base"),
        (list[Base], "list[Base]"),
        (Base | None, "Base | None"),
        (Optional[Base], "Base | None"),  # noqa: UP045
        (dict[str, tuple[int, ...]], "dict[str, tuple[int, ...]]"),
        (Annotated[int, Field(gt=1)], "int"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Box[int], "Box[int]"),
        (Crate[int], "Crate[int]"),
        (T, "T"),
        ("Order", "Order"),
        (Recursive, "Recursive"),
    ],
)
def test_types_are_named_as_in_source_code(type_: Any, name: str) -> None:
    """Error messages show a type the way its user wrote it."""
    assert name == type_name(type_)


# --- properties -------------------------------------------------------------------------------------------------

# Building the adapter of a type takes long enough to fail a deadline on a busy machine.
unhurried = settings(deadline=None)

text = st.text(st.characters(exclude_categories=["Cs"]))
zones = st.one_of(st.none(), st.builds(timezone, st.integers(-1439, 1439).map(lambda m: timedelta(minutes=m))))
typed: st.SearchStrategy[tuple[Any, Any]] = st.one_of(
    st.tuples(st.just(int), st.integers()),
    st.tuples(st.just(float), st.floats()),
    st.tuples(st.just(str), text),
    st.tuples(st.just(bytes), st.binary()),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(Decimal), st.decimals(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just(UUID), st.uuids()),
    st.tuples(st.just(date), st.dates()),
    st.tuples(st.just(datetime), st.datetimes(timezones=zones)),
    st.tuples(st.just(timedelta), st.timedeltas()),
    st.tuples(st.just(time), st.times()),
    st.tuples(st.just(Blob), st.builds(Blob, data=st.binary(), weight=st.floats())),
    st.tuples(st.just(Point), st.builds(Point, st.integers(), st.floats())),
    st.tuples(st.just(Options), st.fixed_dictionaries({}, optional={"data": st.binary(), "weight": st.floats()})),
)


def wrapped(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.one_of(
        inner.map(lambda p: (list[p[0]], [p[1], p[1]])),
        inner.map(lambda p: (tuple[p[0], ...], (p[1],))),
        inner.map(lambda p: (p[0] | None if p[0] is not Any else Any, p[1])),
        st.tuples(text, inner).map(lambda p: (dict[str, p[1][0]], {p[0]: p[1][1]})),
        inner.map(lambda p: (Crate[p[0]], Crate(p[1]))),
    )


@unhurried
@given(st.recursive(typed, wrapped, max_leaves=4))
def test_random_values_of_random_types_survive(pair: tuple[Any, Any]) -> None:
    """Whatever is built of types that pydantic takes comes back equal, level by level."""
    type_, value = pair

    verify(DEFAULT_CODEC, type_, value, DEFAULT_CODEC.dump(type_, value))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)


@unhurried
@given(json_values)
def test_json_values_survive_as_plain_json(value: Any) -> None:
    """What JSON can hold needs no declared type."""
    assert find_difference(value, DEFAULT_CODEC.load(PLAIN_JSON, DEFAULT_CODEC.dump(PLAIN_JSON, value))) is None


@unhurried
@given(st.dictionaries(st.one_of(st.integers(0, 3), st.sampled_from("0123"), st.booleans(), st.none()), st.integers()))
def test_no_key_of_plain_json_is_ever_lost(value: dict[Any, int]) -> None:
    """Either every key comes back as its text, or the value is refused."""
    try:
        data = DEFAULT_CODEC.dump(PLAIN_JSON, value)
    except EncodeError:
        return

    assert len(value) == len(DEFAULT_CODEC.load(PLAIN_JSON, data))


def test_the_path_goes_through_dataclasses() -> None:
    """What cannot be encoded inside a dataclass is found, not just the dataclass."""

    @dataclasses.dataclass
    class Cart:
        items: list[str]

    with pytest.raises(EncodeError) as failure:
        DEFAULT_CODEC.dump(Cart, Cart(["fine", chr(0xD800)]))
    assert failure.value.path == "$.items[1]"
