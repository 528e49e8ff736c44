"""Exceptions that a step declares come back as themselves; all others keep Restate's meaning."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
import restate
from pydantic import BaseModel
from restate.exceptions import RetryableError

from restate_steps import DecodeError, StepResultError, StepTimeoutError, durable_step, gather
from restate_steps.failures import decode_failure, encode_failure
from tests.support.harness import Env, InvocationFailed
from tests.support.stable_ids import stable_id

Serve = Callable[..., Env]


class Reason(Enum):
    LIMIT = "limit"


class Card(BaseModel):
    number: str
    limit: Decimal


class Declined(Exception):
    """The usual shape: a message of its own, and data in attributes."""

    def __init__(self, order_id: str, *, code: int) -> None:
        super().__init__(f"order {order_id} was declined with code {code}")
        self.order_id = order_id
        self.code = code


class Expired(Declined):
    """A subclass that nobody declares."""


class Plain(Exception):
    pass


class AnnotatedFields(Exception):
    amount: Decimal
    at: datetime
    reason: Reason
    cards: tuple[Card, ...]

    def __init__(self, amount: Any, at: Any, reason: Any, cards: Any) -> None:
        super().__init__(str(amount))
        self.amount, self.at, self.reason, self.cards = amount, at, reason, cards


class AnnotatedInit(Exception):
    def __init__(self, amount: Decimal, at: datetime, data: bytes = b"") -> None:
        super().__init__(amount, at)
        self.total = amount
        self.data = data

    def __str__(self) -> str:
        return f"{self.total} at {self.args[1]}"


@dataclass
class AsDataclass(Exception):
    amount: Decimal
    code: str = "none"


@dataclass(frozen=True)
class AsFrozenDataclass(Exception):
    amount: Decimal
    code: str = "none"


class WithSlots(Exception):
    __slots__ = ("amount", "missing")
    amount: Decimal

    def __init__(self, amount: Decimal) -> None:
        self.amount = amount


class WithNew(Exception):
    def __new__(cls, *, code: int) -> WithNew:
        return super().__new__(cls, "made by __new__")

    def __init__(self, *, code: int) -> None:
        self.code = code


class Reduced(Exception):
    """An exception that takes care of being pickled, which has nothing to do with the journal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> Any:
        return (Reduced, (self.code,))


class OutOfStock(restate.TerminalError):
    def __init__(self, item: str) -> None:
        super().__init__(f"no {item} left", status_code=409, metadata={"item": item})
        self.item = item


class MissingFile(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "No such file", path)


def noted(error: Exception) -> Exception:
    error.add_note("after the third item")
    return error


MOMENT = datetime(2024, 2, 29, 12, tzinfo=UTC)
CARDS = (Card(number="4242", limit=Decimal("9.50")),)

SURVIVES: list[Exception] = [
    Plain(),
    Plain("a message"),
    Plain("several", 2, None, [1.5, {"a": True}]),
    Declined("o1", code=51),
    Expired("o1", code=54),
    noted(Plain("annotated")),
    AnnotatedFields(Decimal("1.50"), MOMENT, Reason.LIMIT, CARDS),
    AnnotatedInit(Decimal("1.50"), MOMENT, b"\xff"),
    AsDataclass(Decimal("1.50"), code="x"),
    AsDataclass(amount=Decimal("1.50")),
    AsFrozenDataclass(Decimal("1.50")),
    WithSlots(Decimal("1.50")),
    WithNew(code=5),
    Reduced(5),
    OutOfStock("tea"),
    ValueError("not a number: 'x'"),
    KeyError("missing"),
    FileNotFoundError(2, "No such file", "a.txt"),
    OSError(18, "Cross-device link", "a", None, "b"),
    MissingFile("a.txt"),
    ImportError("no module", name="nothing", path="nowhere"),
    StepTimeoutError("charge", 1.5),
]


def contents(error: Exception) -> dict[str, Any]:
    """Everything an exception holds, by name, but for what the interpreter keeps of the place it was raised at."""
    interpreter = {"__cause__", "__context__", "__suppress_context__", "__traceback__", "__weakref__"}
    names = {name for name in dir(error) if not name.startswith("__") or name == "__notes__"} - interpreter
    values = {name: getattr(error, name, "not set") for name in names}
    return {name: value for name, value in values.items() if not callable(value)}


@pytest.mark.parametrize("error", SURVIVES, ids=repr)
def test_a_declared_exception_comes_back_with_everything_it_holds(error: Exception) -> None:
    """Class, text, arguments and attributes survive, and neither __init__ nor __new__ nor __reduce__ is called."""
    declared = tuple({type(error), Declined} if isinstance(error, Declined) else {type(error)})
    back = decode_failure("charge", encode_failure("charge", error), declared)

    assert type(error) is type(back)
    assert str(error) == str(back)
    assert contents(error) == contents(back)
    assert {name: type(value) for name, value in contents(error).items()} == {
        name: type(value) for name, value in contents(back).items()
    }


def test_the_failure_can_be_read_by_others() -> None:
    """What the journal keeps says in plain text what happened, with the status code of a terminal error."""
    assert "Declined: order o1 was declined with code 51" == encode_failure("charge", Declined("o1", code=51)).message
    assert 500 == encode_failure("charge", Declined("o1", code=51)).status_code
    assert 409 == encode_failure("charge", OutOfStock("tea")).status_code
    assert "tea" == (encode_failure("charge", OutOfStock("tea")).metadata or {})["item"]


class Opaque:
    """An object that JSON cannot keep."""


class OnlyInSlots(Exception):
    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing


LOST: list[tuple[Exception, str]] = [
    (Plain(Decimal("1.5")), r"Plain, .* but args\[0\] \(Decimal\) would not come back"),
    (Plain(("a", "tuple")), r"args\[0\] \(tuple\)"),
    (Declined("o1", code=Opaque()), r"Declined, .* but code \(Opaque\)"),  # type: ignore[arg-type]
    (Declined("o1", code=threading.Lock()), r"code \(lock\)"),  # type: ignore[arg-type]
    (AnnotatedFields(Decimal(1), datetime, Reason.LIMIT, ()), r"AnnotatedFields, .* but at \(type\)"),
    (OnlyInSlots(thing=Opaque()), r"OnlyInSlots, .* but thing \(Opaque\)"),
    (ExceptionGroup("several", [Plain("a")]), r"ExceptionGroup, .* but args\[1\] \(list\)"),
]


@pytest.mark.parametrize(("error", "message"), LOST, ids=stable_id)
def test_a_declared_exception_that_would_not_survive_is_refused(error: Exception, message: str) -> None:
    """Nothing is lost in silence: the error names the step, the exception, the attribute, its type, and the fix."""
    with pytest.raises(StepResultError, match=rf"step 'charge' ran.*{message}.* Annotate it in"):
        encode_failure("charge", error)


def test_what_a_class_keeps_out_of_sight_is_refused() -> None:
    """An exception that would come back with another text has lost something, wherever it keeps it."""
    hidden: dict[int, str] = {}

    class Hidden(Exception):
        def __init__(self, text: str) -> None:
            hidden[id(self)] = text

        def __str__(self) -> str:
            return hidden.get(id(self), "")

    with pytest.raises(StepResultError, match=r"it raised Hidden, .* but its text would come back as ''"):
        encode_failure("charge", Hidden("a"))


def test_a_failure_that_is_not_declared_stays_what_it_is() -> None:
    """A terminal error of another kind passes through."""
    failure = restate.TerminalError("cancelled", status_code=409)

    assert failure is decode_failure("charge", failure, (Declined,))


@pytest.mark.parametrize(
    ("tampered", "message"),
    [
        ({}, f"is a {__name__}:Declined, which is not among them"),
        ({"restate-steps-exception": f"{__name__}:Plain", "restate-steps-data": "{}"}, "does not fit Plain: 'args'"),
        ({"restate-steps-exception": f"{__name__}:Plain", "restate-steps-data": "?"}, "does not fit Plain: "),
        (
            {
                "restate-steps-exception": f"{__name__}:Plain",
                "restate-steps-data": '{"args": [{"as": "init:gone", "value": 1}], "state": {}}',
            },
            "does not fit Plain: 'init:gone'",
        ),
    ],
    ids=["no longer declared", "no data", "no JSON", "annotation gone"],
)
def test_a_failure_that_no_longer_fits_is_retryable(tampered: dict[str, str], message: str) -> None:
    """After a deploy the class may be gone: a redeploy can fix that, so the invocation must not end."""
    failure = encode_failure("charge", Declined("o1", code=51))
    failure.metadata = {**(failure.metadata or {}), **tampered}
    error = decode_failure("charge", failure, (Plain,))

    assert isinstance(error, DecodeError)
    assert not isinstance(error, restate.TerminalError)
    assert message in str(error)
    assert "'charge'" in str(error)


# --- on the server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [SURVIVES[3], SURVIVES[4], *SURVIVES[6:9], OutOfStock("tea")], ids=lambda error: type(error).__name__
)
def test_a_typed_failure_is_raised_on_the_first_run_and_on_replay(env_factory: Serve, error: Exception) -> None:
    """The handler catches the class that the step declares, with its data, and the body has run once."""
    seen: list[Exception] = []
    ran: list[int] = []
    service = restate.Service("Typed")
    declared = Declined if isinstance(error, Declined) else type(error)

    @durable_step(raises=(Plain, declared))
    async def body() -> None:
        ran.append(1)
        raise error

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        try:
            await body()
        except declared as caught:
            seen.append(caught)
        if len(seen) == 1:
            raise RetryableError("once more, as a replay", retry_after=timedelta(milliseconds=1))

    env_factory(service).call("Typed", "run")

    assert [1] == ran
    assert len(seen) >= 2
    for caught in seen:
        assert type(error) is type(caught)
        assert caught is not error
        assert contents(error) == contents(caught)


def test_a_typed_failure_in_a_group_is_the_users_own_exception(env_factory: Serve) -> None:
    """A branch that fails with a declared exception fails the group with it."""
    service = restate.Service("TypedGroup")

    @durable_step(raises=(Declined,))
    def charge(order_id: str) -> str:
        raise Declined(order_id, code=51)

    @durable_step
    async def other() -> None:
        return None

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        try:
            await gather(other(), charge("o1"))
        except Declined as error:
            return error.order_id
        return ""

    assert "o1" == env_factory(service).call("TypedGroup", "run")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Declined("o1", code=51), 500, "Declined: order o1 was declined with code 51"),
        (OutOfStock("tea"), 409, "no tea left"),
    ],
    ids=["exception", "terminal error"],
)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a group"])
def test_a_typed_failure_that_nobody_catches_ends_the_invocation(
    env_factory: Serve, error: Exception, status: int, message: str, together: bool
) -> None:
    """The body is not run again for it, and the caller sees its text."""
    ran: list[int] = []
    service = restate.Service("Uncaught")

    @durable_step(raises=(Declined, OutOfStock))
    async def body() -> None:
        ran.append(1)
        raise error

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        if together:
            await gather(body())
        await body()

    with pytest.raises(InvocationFailed) as caught:
        env_factory(service).call("Uncaught", "run", timeout=20)

    assert [1] == ran
    assert status == caught.value.status
    assert message in caught.value.message


def test_a_typed_failure_that_would_not_survive_ends_the_invocation(env_factory: Serve) -> None:
    """The body ran and is not run again; the error says what to annotate."""
    ran: list[int] = []
    service = restate.Service("Unannotated")

    @durable_step(raises=(Plain,))
    async def body() -> None:
        ran.append(1)
        raise Plain(Decimal("1.5"))

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        await body()

    with pytest.raises(InvocationFailed, match=r"step 'body' ran.* it raised Plain.*args\[0\] \(Decimal\).*Annotate"):
        env_factory(service).call("Unannotated", "run")
    assert [1] == ran


def test_an_undeclared_exception_does_not_become_typed(env_factory: Serve) -> None:
    """Only what is declared is recorded; the rest is retried until the body succeeds."""
    ran: list[int] = []
    service = restate.Service("Undeclared")

    @durable_step(raises=(Declined,))
    async def body() -> int:
        ran.append(1)
        if len(ran) < 3:
            raise Plain("not declared")
        return len(ran)

    @service.handler()
    async def run(ctx: restate.Context) -> int:
        return await body()

    assert 3 == env_factory(service).call("Undeclared", "run")
