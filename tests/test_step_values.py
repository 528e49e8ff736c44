"""What a step returns is what every replay gets: equal values of equal type, or an error that tells the loss."""

from __future__ import annotations

import enum
import math
import threading
import typing
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import httpx
import pytest
import restate
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from restate.exceptions import RetryableError
from typing_extensions import TypedDict

from restate_steps import DurableStep, durable_step
from restate_steps.server import AppServer, RestateServer
from restate_steps.step import MAX_RESULT_BYTES
from tests.support.harness import Env, InvocationFailed, eventually

Serve = Callable[..., Env]
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Line(BaseModel):
    item: str
    price: Decimal
    note: str | None = None


class Order(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: UUID
    lines: tuple[Line, ...] = ()
    placed: datetime
    labels: frozenset[str] = frozenset()


class Rush(Order):
    """A subclass with a field that the declared class does not have."""

    by: date


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    customer_id: int = Field(alias="customerId")
    blob: bytes = b""


class Card(BaseModel):
    kind: Literal["card"] = "card"
    number: str


class Transfer(BaseModel):
    kind: Literal["transfer"] = "transfer"
    iban: str


Payment = Annotated[Card | Transfer, Field(discriminator="kind")]


class Page(BaseModel, Generic[T]):
    items: list[T]
    following: int | None = None


@dataclass
class Point:
    x: float
    y: float
    tags: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Tree:
    value: int
    children: tuple[Tree, ...] = ()


@dataclass
class Box(Generic[T]):
    content: T


class Place(NamedTuple):
    name: str
    at: Point | None
    since: datetime


class Options(TypedDict, total=False):
    colour: Colour
    limit: Decimal


ID = UUID("0190163d-8694-739b-aea5-966c26f8ad90")
MOMENT = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
ELSEWHERE = datetime(2024, 2, 29, 12, 30, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
ORDER = Order(id=ID, lines=(Line(item="tea", price=Decimal("9.50")),), placed=MOMENT, labels=frozenset({"a", "b"}))

VALUES: dict[str, tuple[Any, Any]] = {
    "None": (None, None),
    "int": (int, 2**70),
    "bool": (bool, True),
    "str": (str, "naïve \U0001f9ea \x00 \u2028"),
    "float": (float, 0.1),
    "float that is whole": (float, 3.0),
    "negative zero": (float, -0.0),
    "infinity": (float, -math.inf),
    "not a number": (float, math.nan),
    "bytes": (bytes, bytes(range(256))),
    "no bytes": (bytes, b""),
    "model": (Order, ORDER),
    "model with aliases": (Aliased, Aliased(customer_id=7, blob=b"\xff\xfe")),
    "generic model": (Page[Line], Page[Line](items=list(ORDER.lines), following=2)),
    "model with a number that is none": (Page[float], Page[float](items=[math.nan, math.inf])),
    "dataclass": (Point, Point(1.0, -2.5, {"a"})),
    "frozen dataclass that contains itself": (Tree, Tree(1, (Tree(2), Tree(3, (Tree(4),))))),
    "generic dataclass": (Box[Decimal], Box(Decimal("1.50"))),
    "TypedDict": (Options, Options(colour=Colour.RED, limit=Decimal("0.10"))),
    "NamedTuple": (Place, Place("Lisbon", Point(0.0, 1.0), MOMENT)),
    "enum": (Colour, Colour.BLUE),
    "IntEnum": (Level, Level.HIGH),
    "Flag": (Access, Access.READ | Access.WRITE),
    "Literal": (Literal["a", 1], 1),
    "Decimal": (Decimal, Decimal("1.500")),
    "Decimal that is no number": (Annotated[Decimal, Field(allow_inf_nan=True)], Decimal("NaN")),
    "Fraction": (Fraction, Fraction(1, 3)),
    "UUID": (UUID, ID),
    "datetime": (datetime, MOMENT),
    "datetime elsewhere": (datetime, ELSEWHERE),
    "datetime without a zone": (datetime, MOMENT.replace(tzinfo=None)),
    "date": (date, date(2024, 2, 29)),
    "time": (time, time(12, 30, 15)),
    "timedelta": (timedelta, timedelta(days=-3, microseconds=1)),
    "set": (set[int], {3, 1, 2}),
    "frozenset": (frozenset[str], frozenset({"a", "b"})),
    "set of enums": (set[Colour], {Colour.RED, Colour.BLUE}),
    "tuple": (tuple[int, str, None], (1, "a", None)),
    "tuple of any length": (tuple[Order, ...], (ORDER, ORDER)),
    "empty tuple": (tuple[()], ()),
    "list of models": (list[Order], [ORDER]),
    "deque": (deque[int], deque([1, 2])),
    "dict": (dict[str, Decimal], {"a": Decimal(1)}),
    "dict with other keys": (dict[UUID, dict[int, date]], {ID: {1: date(2024, 1, 1)}}),
    "OrderedDict": (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    "defaultdict": (defaultdict[str, list[int]], defaultdict(list, a=[1])),
    "Optional, something": (typing.Optional[Order], ORDER),  # noqa: UP045
    "Optional, nothing": (Order | None, None),
    "union": (int | str | list[bytes], [b"\xff"]),
    "union, the text": (int | str, "1"),
    "union, the number": (int | str, 1),
    "union of models": (Card | Transfer, Transfer(iban="PT50")),
    "discriminated union": (list[Payment], [Card(number="4242"), Transfer(iban="PT50")]),
    "annotated": (Annotated[int, Field(ge=0)], 5),
    "IP address": (IPv4Address, IPv4Address("127.0.0.1")),
    "path": (PurePosixPath, PurePosixPath("/a/b")),
}


def step_returning(value: Any, declared: Any, ran: list[Any], **options: Any) -> DurableStep[[], Any]:
    """A step whose body notes that it ran and returns ``value``, with ``declared`` as its annotation."""

    async def produce() -> Any:
        ran.append(value)
        return value

    produce.__annotations__["return"] = declared
    return durable_step(**options)(produce)


def service_with(step: DurableStep[[], Any], seen: list[Any], name: str = "Values") -> restate.Service:
    """A service whose handler notes what the step gives on the first run, then asks for a replay."""
    service = restate.Service(name)

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        seen.append(await step())
        if len(seen) == 1:
            raise RetryableError("once more, as a replay", retry_after=timedelta(milliseconds=1))

    return service


def shape(value: Any) -> Any:
    """A value as its types and its contents, so that equal shapes mean equal values of equal types, all the way in."""
    kind = type(value)
    if isinstance(value, BaseModel):
        return kind, {name: shape(item) for name, item in value}
    if hasattr(kind, "__dataclass_fields__"):
        return kind, {name: shape(getattr(value, name)) for name in kind.__dataclass_fields__}
    if isinstance(value, dict):
        return kind, [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return kind, [shape(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(shape(item)) for item in value)
    if isinstance(value, datetime):
        return kind, value.isoformat()
    return kind, repr(value)


@pytest.mark.parametrize("name", VALUES)
def test_the_first_run_and_every_replay_give_equal_values_of_equal_type(env_factory: Serve, name: str) -> None:
    """Whatever the type, the handler sees what the body returned, and it cannot tell a replay from the first run."""
    declared, value = VALUES[name]
    seen: list[Any] = []
    ran: list[Any] = []

    env_factory(service_with(step_returning(value, declared, ran), seen)).call("Values", "run")

    assert 1 == len(ran)
    assert len(seen) >= 2
    for got in seen:
        assert shape(value) == shape(got)


def test_the_handler_never_holds_the_bodys_own_object(env_factory: Serve) -> None:
    """The result is decoded on the first run too, so nobody comes to rely on an object that a replay would not have."""
    value = Point(1.0, 2.0)
    seen: list[Any] = []

    env_factory(service_with(step_returning(value, Point, []), seen)).call("Values", "run")

    assert all(value == got and value is not got for got in seen)


PLAIN: dict[str, tuple[Any, Any]] = {
    "model": (
        ORDER,
        {
            "id": str(ID),
            "lines": [{"item": "tea", "price": "9.50", "note": None}],
            "placed": "2024-02-29T12:30:15.123456Z",
            "labels": ["a", "b"],
        },
    ),
    "dataclass": (Point(1.0, 2.0), {"x": 1.0, "y": 2.0, "tags": []}),
    "tuple": ((1, (2, 3)), [1, [2, 3]]),
    "set": ({1, 2}, [1, 2]),
    "keys that are no text": ({1: "a", None: "b"}, {"1": "a", "None": "b"}),
    "datetime": (MOMENT, "2024-02-29T12:30:15.123456Z"),
    "bytes": (b"\xff", "_w=="),
    "enum": (Colour.RED, "red"),
    "not a number": ([math.inf], [math.inf]),
    "plain already": ({"a": [1, 2.5, None, True]}, {"a": [1, 2.5, None, True]}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_without_a_type_it_is_plain_json_on_the_first_run_too(env_factory: Serve, name: str) -> None:
    """A step without an annotation gives dicts, lists, text and numbers, from the very first run on."""
    value, expected = PLAIN[name]
    seen: list[Any] = []
    ran: list[Any] = []
    step = durable_step(lambda: (ran.append(1), value)[1])

    env_factory(service_with(step, seen)).call("Values", "run")

    assert 1 == len(ran)
    assert len(seen) >= 2
    for got in seen:
        assert shape(expected) == shape(got)


@pytest.mark.parametrize("declared", [Any, object], ids=["Any", "object"])
def test_a_type_that_says_nothing_is_none(env_factory: Serve, declared: Any) -> None:
    """A step annotated with ``Any`` gives plain JSON too."""
    value, expected = PLAIN["model"]
    seen: list[Any] = []

    env_factory(service_with(step_returning(value, declared, []), seen)).call("Values", "run")

    assert all(shape(expected) == shape(got) for got in seen)


def test_what_is_recorded_can_be_read(env_factory: Serve) -> None:
    """The journal has JSON, as an operator and services in other languages expect."""
    env = env_factory(service_with(step_returning(ORDER, Order, []), []))
    invocation = env.send("Values", "run")
    env.attach(invocation)
    [recorded] = [entry for entry in env.server.admin.journal(invocation) if entry.type == "Command: Run"]

    assert PLAIN["model"][1] == recorded.value


# --- nothing is lost in silence ---------------------------------------------------------------------------------


class NullsForNaN(BaseModel):
    """A class that chose to write NaN as null."""

    model_config = ConfigDict(ser_json_inf_nan="null")

    rate: float


class Utf8Only(BaseModel):
    """A class that chose to write bytes as text."""

    model_config = ConfigDict(ser_json_bytes="utf8", val_json_bytes="utf8")

    data: bytes


class Forgetful(BaseModel):
    id: int
    secret: int = Field(default=0, exclude=True)


@dataclass
class Base:
    items: list[Any]


@dataclass
class Derived(Base):
    more: int = 0


class Opaque:
    """An object that JSON cannot keep."""


def circular() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


LOST: dict[str, tuple[Any, Any, str]] = {
    "NaN turned null": (list[NullsForNaN], [NullsForNaN(rate=math.nan)], r"list\[NullsForNaN\]: at \$\[0\]\.rate: "),
    "fields of a subclass": (
        dict[str, Order],
        {"a": Rush(id=ID, placed=MOMENT, by=date(2024, 3, 1))},
        r"dict\[str, Order\]: at \$\.a: .*Rush.* Declare the subclass",
    ),
    "fields of a derived dataclass": (Base, Derived([], more=1), r"Base: at \$: .*Derived.* Declare the subclass"),
    "non-UTF-8 bytes": (
        Utf8Only,
        Utf8Only(data=b"\xff"),
        r"Utf8Only: at \$\.data: invalid utf-8 .*ser_json_bytes='base64'",
    ),
    "text that is no Unicode": (
        list[str],
        ["a", "\ud800"],
        r"list\[str\]: at \$\[1\]: .*surrogates not allowed.* bytes",
    ),
    "an excluded field": (Forgetful, Forgetful(id=1, secret=2), r"Forgetful: at \$\.secret: .* exclude=True"),
    "a wrong type": (list[int], [1, "2"], r"list\[int\]: at \$\[1\]: .* declare"),
    "nothing instead of something": (Order, None, r"Order: at \$: .*should be an object.* return a value that"),
    "a Decimal that is no number": (Decimal, Decimal("NaN"), r"Decimal: at \$: .*finite number.*allow_inf_nan=True"),
    "an object": (Any, {"a": [Opaque()]}, r"plain JSON: at \$\.a\[0\]: Unable to serialize unknown type: .*Opaque"),
    "an object deep inside": (Page[Any], Page[Any](items=[Opaque()]), r"Page\[Any\]: at \$\.items\[0\]: Unable to "),
    "a circle": (list[Any], circular(), r"list\[Any\]: at \$.*: Circular reference .* hold a reference cycle"),
    "keys that would meet": (Any, {1: "a", "1": "b"}, r"plain JSON: at \$: the keys 1 and '1' become the same text"),
    "a secret": (SecretStr, SecretStr("hunter2"), r"SecretStr: at \$: .* secret is masked"),
    "a tuple in a list of anything": (list[Any], [(1, 2)], r"list\[Any\]: at \$\[0\]: .*tuple.*list.* declare"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_ends_the_step_at_once(env_factory: Serve, name: str) -> None:
    """The error names step, type, path and fix, ends the invocation, and the body has run exactly once."""
    declared, value, message = LOST[name]
    ran: list[Any] = []
    env = env_factory(service_with(step_returning(value, declared, ran), []))

    with pytest.raises(InvocationFailed, match=r"step 'produce' ran, .* cannot encode a value as " + message) as caught:
        env.call("Values", "run", timeout=20)

    assert 1 == len(ran)
    assert 500 == caught.value.status


def test_a_loss_can_be_handled(env_factory: Serve) -> None:
    """It is a terminal error, which a handler may catch to undo what the step did; a replay gives it again."""
    service = restate.Service("Compensated")
    ran: list[Any] = []
    seen: list[str] = []
    step = step_returning(Opaque(), Any, ran)

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        try:
            await step()
        except restate.TerminalError as error:
            seen.append(error.message)
        if len(seen) == 1:
            raise RetryableError("once more, as a replay", retry_after=timedelta(milliseconds=1))

    env_factory(service).call("Compensated", "run")

    assert 1 == len(ran)
    assert len(seen) >= 2
    assert 1 == len(set(seen))


def test_the_comparison_can_be_switched_off(env_factory: Serve) -> None:
    """With ``verify=False`` what does not survive is the author's business."""
    seen: list[Any] = []
    step = step_returning(Forgetful(id=1, secret=2), Forgetful, [], verify=False)

    env_factory(service_with(step, seen)).call("Values", "run")

    assert all(Forgetful(id=1) == got for got in seen)


def test_the_comparison_can_be_switched_off_for_one_call(env_factory: Serve) -> None:
    """A copy of a step may skip the comparison that the step itself makes."""
    seen: list[Any] = []
    step = step_returning(Forgetful(id=1, secret=2), Forgetful, []).with_options(verify=False)

    env_factory(service_with(step, seen)).call("Values", "run")

    assert all(Forgetful(id=1) == got for got in seen)


def test_a_codec_of_ones_own(env_factory: Serve) -> None:
    """Bytes are what another codec makes of a value, on both sides; it may keep what JSON cannot."""

    @dataclass
    class Handle:
        lock: Any

    kept = {"front door": Handle(threading.Lock())}

    class ByName:
        def dump(self, type: Any, value: Any) -> bytes:
            return next(name for name, item in kept.items() if item is value).encode()

        def load(self, type: Any, data: bytes) -> Any:
            return kept[data.decode()]

    seen: list[Any] = []
    step = step_returning(kept["front door"], Handle, [], codec=ByName())
    env = env_factory(service_with(step, seen))
    invocation = env.send("Values", "run")
    env.attach(invocation)

    assert all(kept["front door"] is got for got in seen)
    assert [b"front door"] == [e.value for e in env.server.admin.journal(invocation) if e.type == "Command: Run"]


@pytest.mark.parametrize("answer", [None, "text", b"", ValueError("no idea")], ids=repr)
def test_a_codec_that_fails_ends_the_step_at_once(env_factory: Serve, answer: Any) -> None:
    """A codec that raises, or gives no bytes, is an error of the program: terminal, and the body runs once."""
    ran: list[Any] = []

    class Broken:
        def dump(self, type: Any, value: Any) -> bytes:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

        def load(self, type: Any, data: bytes) -> Any:
            return 1

    env = env_factory(service_with(step_returning(1, int, ran, codec=Broken()), []))

    with pytest.raises(InvocationFailed, match=r"step 'produce' ran, .* its codec (failed|returned)"):
        env.call("Values", "run", timeout=20)
    assert 1 == len(ran)


# --- too large --------------------------------------------------------------------------------------------------


def test_a_result_that_is_too_large_ends_the_step_at_once(env_factory: Serve) -> None:
    """The server would refuse it and the body would run again and again; the error has the size and the step."""
    ran: list[Any] = []
    value = "x" * (MAX_RESULT_BYTES - 1)
    env = env_factory(service_with(step_returning(value, str, ran), []))

    message = rf"step 'produce' ran, .* it has {MAX_RESULT_BYTES + 1:,} bytes encoded, .* at most {MAX_RESULT_BYTES:,}"
    with pytest.raises(InvocationFailed, match=message):
        env.call("Values", "run", timeout=20)
    assert 1 == len(ran)


def test_the_largest_result_works(env_factory: Serve) -> None:
    """A result of exactly the limit is recorded and replayed by the real server."""
    ran: list[Any] = []
    seen: list[Any] = []
    value = "x" * (MAX_RESULT_BYTES - 2)

    env_factory(service_with(step_returning(value, str, ran), seen)).call("Values", "run", timeout=60)

    assert 1 == len(ran)
    assert all(value == got for got in seen)


# --- after a deploy ---------------------------------------------------------------------------------------------


class OrderV2(BaseModel):
    id: UUID
    currency: str


class OrderV3(BaseModel):
    id: UUID
    currency: str = "EUR"


class Deployed:
    """An application that can be replaced behind its URL, as a deploy does."""

    def __init__(self, step: DurableStep[[], Any]) -> None:
        self.awakeables: list[str] = []
        self.deploy(step)

    def deploy(self, step: DurableStep[[], Any]) -> None:
        service = restate.Service("Deployed")

        @service.handler()
        async def run(ctx: restate.Context) -> str:
            result = await step()
            name, approved = ctx.awakeable(type_hint=str)
            self.awakeables.append(name)
            return f"{await approved}: {result!r}"

        self._app = restate.app([service])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


def redeploy(served: AppServer, application: Deployed, step: DurableStep[[], Any]) -> None:
    """Put a new version in the place of the one that is served; attempts that run are cut off."""
    served.stop()
    application.deploy(step)
    served.start()


def last_failure_about(what: str, server: RestateServer, invocation: str) -> str:
    """What the operator sees, once it is about that."""
    failure = str(server.admin.invocation(invocation).get("last_failure"))
    return failure if what in failure else ""


@pytest.mark.parametrize("mode", ["normal_server", "replay_server"])
def test_a_recorded_value_that_no_longer_fits_waits_for_a_deploy(request: pytest.FixtureRequest, mode: str) -> None:
    """The invocation is kept and says what does not fit; code that accepts the value takes it up, and the body
    has run once."""
    server: RestateServer = request.getfixturevalue(mode)
    ran: list[Any] = []
    first = step_returning(ORDER, Order, ran)
    application = Deployed(first)

    with AppServer(application) as served, httpx.Client(trust_env=False) as client:
        env = Env(server, served, client)
        invocation = env.send("Deployed", "run")
        eventually(lambda: application.awakeables)

        redeploy(served, application, step_returning(None, OrderV2, ran))
        env.resolve_awakeable(application.awakeables[0], "yes")
        failure = eventually(lambda: last_failure_about("OrderV2", server, invocation))
        assert "the journaled result of step 'produce' does not fit OrderV2: at $.currency: Field required" in failure
        assert "The recorded value is intact: deploy code whose type accepts it" in failure
        assert server.admin.invocation(invocation)["status"] in ("backing-off", "running", "ready")

        redeploy(served, application, step_returning(None, OrderV3, ran))
        assert f"yes: OrderV3(id={ID!r}, currency='EUR')" == env.attach(invocation)

    assert 1 == len(ran)
