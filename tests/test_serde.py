"""Serdes, typed handlers, and what they publish, without a server."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
import restate
from pydantic import BaseModel, ConfigDict, Field, computed_field
from restate import TerminalError
from restate.discovery import compute_discovery_json
from restate.serde import Serde
from typing_extensions import TypedDict

from restate_steps import TypedSerde, json_schema, publish_schemas, serde, typed_handler
from restate_steps import serdes as serde_module
from restate_steps.codec import DEFAULT_CODEC, PLAIN_JSON
from restate_steps.errors import DecodeError, EncodeError, StepDefinitionError, TerminalEncodeError


class Line(BaseModel):
    sku: str
    blob: bytes = b"\xff"
    count: int = Field(alias="Count", default=1)

    @computed_field
    def double(self) -> int:
        return self.count * 2


class Base(BaseModel):
    a: int


class Derived(Base):
    b: int = 0


class Window(TypedDict):
    start: datetime
    tags: set[str]


class Reversing:
    """A codec of one's own, which knows nothing of types."""

    def dump(self, type: Any, value: Any) -> bytes:
        return json.dumps(value).encode()[::-1]

    def load(self, type: Any, data: bytes) -> Any:
        return json.loads(data[::-1])


class Handle:
    pass


def handlers_of(*services: Any) -> dict[str, Any]:
    """The handlers that discovery announces, by name."""
    endpoint = restate.endpoint.Endpoint().bind(*services)
    found = json.loads(compute_discovery_json(endpoint, 5, "bidi"))
    return {handler["name"]: handler for service in found["services"] for handler in service["handlers"]}


# --- serde ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "value", "data"),
    [
        (list[Base], [Base(a=1)], b'[{"a":1}]'),
        (Base | None, None, b"null"),
        (int | str, "1", b'"1"'),
        (float, math.inf, b"Infinity"),
        (bytes, b"\xff", b'"_w=="'),
        (
            Window,
            {"start": datetime(2020, 1, 1, tzinfo=UTC), "tags": {"b", "a"}},
            b'{"start":"2020-01-01T00:00:00Z","tags":["a","b"]}',
        ),
        (PLAIN_JSON, {"a": [1, None]}, b'{"a":[1,null]}'),
    ],
)
def test_a_serde_keeps_values_of_its_type(type_: Any, value: Any, data: bytes) -> None:
    """It is one of the SDK's serdes, over the default codec."""
    made = serde(type_)

    assert isinstance(made, Serde)
    assert data == made.serialize(value)
    assert value == made.deserialize(data)


def test_no_bytes_are_none_where_the_type_allows_it() -> None:
    """A client that posts no body means None, and not a broken value."""
    assert serde(Base | None).deserialize(b"") is None
    assert serde(PLAIN_JSON).deserialize(b"") is None
    with pytest.raises(DecodeError, match="an empty body does not fit list"):
        serde(list[Base]).deserialize(b"")


def test_a_value_that_cannot_be_encoded_is_terminal() -> None:
    """As the serde of a ctx.run, a retryable error would run the body again."""
    with pytest.raises(TerminalEncodeError, match=r"at \$\[0\]: Expected `int`") as caught:
        serde(list[int]).serialize(["a"])  # type: ignore[list-item]

    assert isinstance(caught.value, TerminalError)
    assert "$[0]" == caught.value.error.path


def test_a_value_that_cannot_be_encoded_is_retryable_on_request() -> None:
    """Where nothing is repeated, a redeploy should be able to fix it."""
    with pytest.raises(EncodeError) as caught:
        serde(int, terminal=False).serialize("a")

    assert not isinstance(caught.value, TerminalError)


def test_a_serde_compares_on_request() -> None:
    """With verify, what would be lost is refused."""
    assert serde(Base).serialize(Derived(a=1, b=2)) == b'{"a":1}'
    with pytest.raises(TerminalEncodeError, match="the value is a Derived, but it comes back as a Base"):
        serde(Base, verify=True).serialize(Derived(a=1, b=2))


def test_bytes_that_do_not_fit_are_retryable() -> None:
    """State written by an older deployment must not end an invocation."""
    with pytest.raises(DecodeError, match=r"at \$\[0\]\.a: Field required") as caught:
        serde(list[Base]).deserialize(b"[{}]")

    assert not isinstance(caught.value, TerminalError)


def test_a_serde_takes_another_codec() -> None:
    """Any object with dump and load will do."""
    made = serde(list[int], codec=Reversing())

    assert made.serialize([1, 2]) == b"]2 ,1["
    assert made.deserialize(b"]2 ,1[") == [1, 2]


def test_a_serde_of_an_impossible_type_is_refused() -> None:
    """The error comes when the serde is made."""
    with pytest.raises(StepDefinitionError, match="Handle cannot be encoded"):
        serde(Handle)


def test_a_serde_shows_its_type() -> None:
    """Its repr is what one would write to make it."""
    assert repr(serde(list[Base])) == "serde(list[Base])"


# --- handlers ---------------------------------------------------------------------------------------------------


def test_a_typed_handler_is_registered_and_described() -> None:
    """The schemas of list[Model], unions and TypedDicts appear in discovery."""
    shop = restate.Service("Shop")

    @typed_handler(shop, ingress_private=True)
    async def plan(ctx: restate.Context, lines: list[Line]) -> Window | None:
        """Plan it."""

    found = handlers_of(shop)["plan"]
    line = found["input"]["jsonSchema"]["$defs"]["Line"]
    assert found["input"]["jsonSchema"]["items"] == {"$ref": "#/$defs/Line"}
    assert set(line["properties"]) == {"sku", "blob", "Count"}
    assert line["required"] == ["sku"]
    assert line["properties"]["blob"] == {"title": "Blob", "type": "string", "format": "base64url", "default": "_w=="}
    assert found["output"]["jsonSchema"]["anyOf"] == [{"$ref": "#/$defs/Window"}, {"type": "null"}]
    assert found["output"]["jsonSchema"]["$defs"]["Window"]["properties"]["start"]["format"] == "date-time"
    assert found["documentation"] == "Plan it."
    assert found["ingressPrivate"] is True


def test_an_answer_has_what_its_schema_promises() -> None:
    """Computed fields are part of an answer, and what is answered can be decoded again."""
    shop = restate.Service("Shop")

    @typed_handler(shop)
    async def first(ctx: restate.Context) -> Line:
        return Line(sku="a")

    found = handlers_of(shop)["first"]
    answer = shop.handlers["first"].handler_io.output_serde
    data = answer.serialize(Line(sku="a"))
    assert found["input"] == {}
    assert found["output"]["jsonSchema"]["required"] == ["sku", "double"]
    assert data == b'{"sku":"a","blob":"_w==","Count":1,"double":2}'
    assert answer.deserialize(data) == Line(sku="a")


def test_without_annotations_a_handler_takes_plain_json() -> None:
    """Everything is allowed, and nothing but JSON arrives."""
    shop = restate.Service("Shop")

    @typed_handler(shop)
    async def echo(ctx, value):  # type: ignore[no-untyped-def]
        return value

    found = handlers_of(shop)["echo"]
    assert found["input"]["jsonSchema"] is True
    assert found["output"]["jsonSchema"] is True
    assert shop.handlers["echo"].handler_io.input_serde.deserialize(b'[{"a":1}]') == [{"a": 1}]


def test_a_handler_that_answers_nothing_stays_void() -> None:
    """There is no body, as with the SDK's own decorator."""
    shop = restate.Service("Shop")

    @typed_handler(shop)
    async def note(ctx: restate.Context, line: Line | None) -> None: ...

    assert "jsonSchema" not in handlers_of(shop)["note"]["output"]
    assert shop.handlers["note"].handler_io.output_serde.serialize(None) == b""


def test_a_typed_handler_stays_the_function_it_was() -> None:
    """Its name, docstring and signature survive, so that calls to it are typed."""
    shop = restate.Service("Shop")

    async def plan(ctx: restate.Context, lines: list[Line]) -> int:
        """Plan it."""
        return len(lines)

    registered = typed_handler(shop, "planning")(plan)

    assert registered.__name__ == "plan"
    assert registered.__doc__ == "Plan it."
    assert inspect.signature(registered) == inspect.signature(plan)
    assert list(shop.handlers) == ["planning"]
    assert asyncio.run(registered(None, [Line(sku="a")])) == 1  # type: ignore[arg-type]


def test_handlers_of_objects_and_workflows_have_kinds() -> None:
    """The kind is that of the SDK's decorators."""
    cart = restate.VirtualObject("Cart")
    delivery = restate.Workflow("Delivery")

    @typed_handler(cart)
    async def add(ctx: restate.ObjectContext, line: Line) -> None: ...

    @typed_handler(cart, kind="shared")
    async def show(ctx: restate.ObjectSharedContext) -> list[Line]:
        return []

    @typed_handler(delivery, kind="main")
    async def run(ctx: restate.WorkflowContext, line: Line) -> int:
        return 1

    @typed_handler(delivery)
    async def status(ctx: restate.WorkflowSharedContext) -> str:
        return ""

    kinds = {name: handler["ty"] for name, handler in handlers_of(cart, delivery).items()}
    assert kinds == {"add": "EXCLUSIVE", "show": "SHARED", "run": "WORKFLOW", "status": "SHARED"}


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        (restate.Service("S"), "shared"),
        (restate.VirtualObject("O"), "main"),
        (restate.Workflow("W"), "exclusive"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(service: Any, kind: Any) -> None:
    """The error lists what there is."""
    with pytest.raises(StepDefinitionError, match=f"a handler of .* cannot be '{kind}'"):
        typed_handler(service, kind=kind)


def test_annotations_that_cannot_work_are_refused() -> None:
    """The error comes at decoration, and says what to change."""
    shop = restate.Service("Shop")

    async def lazy(ctx: restate.Context, line: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    async def impossible(ctx: restate.Context, handle: Handle) -> None: ...

    async def two(ctx: restate.Context, a: int, b: int) -> None: ...

    with pytest.raises(StepDefinitionError, match="lazy cannot be resolved: name 'Missing' is not defined"):
        typed_handler(shop)(lazy)
    with pytest.raises(StepDefinitionError, match="Handle cannot be encoded"):
        typed_handler(shop)(impossible)
    with pytest.raises(StepDefinitionError, match="two takes 3 parameters"):
        typed_handler(shop)(two)


def test_bad_input_is_refused_as_a_bad_request() -> None:
    """The client is told what does not fit, with status 400, and the handler does not run."""
    shop = restate.Service("Shop")
    ran = []

    @typed_handler(shop)
    async def plan(ctx: restate.Context, lines: list[Line]) -> None:
        ran.append(lines)

    handler = shop.handlers["plan"]
    argument = handler.handler_io.input_serde.deserialize(b'[{"Count":"x"}]')
    with pytest.raises(TerminalError) as caught:
        asyncio.run(handler.fn(None, argument))  # type: ignore[arg-type]

    assert caught.value.status_code == 400
    assert caught.value.message.startswith(
        "the input does not fit list[Line]: at $[0].sku: Field required; at $[0].Count"
    )
    assert not ran


def test_describe_does_the_same_for_handlers_of_the_sdk() -> None:
    """A handler registered with serde(T) is treated like a typed one, however often it is described."""
    shop = restate.Service("Shop")

    @shop.handler(input_serde=serde(list[Line]), output_serde=serde(Line))
    async def pick(ctx: restate.Context, lines: list[Line]) -> Line:
        return lines[0]

    @shop.handler(output_serde=serde(list[int]))
    async def stock(ctx: restate.Context) -> list[int]:
        return []

    @shop.handler()
    async def other(ctx: restate.Context, name: str) -> str:
        return name

    publish_schemas(shop)
    publish_schemas(shop)

    found = handlers_of(shop)
    handler = shop.handlers["pick"]
    assert found["pick"]["input"]["jsonSchema"]["type"] == "array"
    assert "double" in found["pick"]["output"]["jsonSchema"]["properties"]
    assert found["stock"] == {"name": "stock", "input": {}, "output": found["stock"]["output"]}
    assert found["stock"]["output"]["jsonSchema"] == {"items": {"type": "integer"}, "type": "array"}
    assert found["other"]["input"]["jsonSchema"] == {"type": "string"}
    assert b'"double":2' in handler.handler_io.output_serde.serialize(Line(sku="a"))
    with pytest.raises(TerminalError, match="the input does not fit"):
        asyncio.run(handler.fn(None, handler.handler_io.input_serde.deserialize(b"{}")))  # type: ignore[arg-type]
    assert asyncio.run(handler.fn(None, [Line(sku="a")])) == Line(sku="a")  # type: ignore[arg-type]


def test_a_typed_handler_takes_another_codec() -> None:
    """Its codec is used both ways."""
    shop = restate.Service("Shop")

    @typed_handler(shop, codec=Reversing())
    async def echo(ctx: restate.Context, value: list[int]) -> list[int]:
        return value

    io = shop.handlers["echo"].handler_io
    assert io.input_serde.deserialize(b"]1[") == [1]
    assert io.output_serde.serialize([1]) == b"]1["


def test_a_type_without_a_schema_does_not_stop_a_deployment(caplog: pytest.LogCaptureFixture) -> None:
    """Its schema is left open."""

    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        handle: Handle

    assert json_schema(Odd, "validation") is True
    assert "there is no JSON schema for Odd" in caplog.text


def test_an_sdk_without_type_hints_still_gets_its_handlers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Should the SDK change, handlers work, and only their schemas are missing."""
    monkeypatch.delattr("restate.handler.TypeHint")
    shop = restate.Service("Shop")
    io = type("HandlerIO", (), {})()

    serde_module._publish(type("Handler", (), {"handler_io": io})(), list[int], int)

    assert "does not accept JSON schemas" in caplog.text
    assert not vars(io)
    assert serde_module._handlers(shop) == {}


def test_the_schema_follows_the_choices_of_a_class() -> None:
    """Where a class says how its bytes are written, its schema says so too."""

    class Text(BaseModel):
        model_config = ConfigDict(ser_json_bytes="utf8")
        data: bytes

    assert json_schema(Text, "validation")["properties"]["data"]["format"] == "binary"
    assert json_schema(bytes, "serialization") == {"type": "string", "format": "base64url"}


def test_the_answering_serde_is_a_typed_serde() -> None:
    """Its attributes say what it does."""
    made: TypedSerde[int] = serde(int)

    assert made.type is int
    assert made.codec is DEFAULT_CODEC


def test_a_default_that_json_has_no_number_for_does_not_block_registration() -> None:
    """NaN and the infinities stand in the schema as text, and discovery is answered."""

    class Item(BaseModel):
        weight: float = float("nan")
        limit: float = float("inf")

    schema = json_schema(list[Item], "validation")
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
