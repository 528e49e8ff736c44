"""Recorded model responses: without nulls, and without loss."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pydantic_ai.messages
import pytest
import typing_extensions
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_ai.messages import (
    BinaryContent,
    BinaryImage,
    Citation,
    CompactionPart,
    ContentCitationAnchor,
    DocumentCitationSource,
    FilePart,
    LoadCapabilityCallPart,
    ModelRequestAttempt,
    ModelResponse,
    ModelResponsePart,
    NativeToolCallPart,
    NativeToolReturnPart,
    NativeToolSearchCallPart,
    NativeToolSearchReturnPart,
    SpeechPart,
    SpeechTimestamp,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolSearchCallPart,
    WebCitationSource,
    WorkspaceRef,
)
from pydantic_ai.usage import RequestUsage

from restate_steps.agents._codec import _WITHOUT_NULLS, UNIT_CODEC, VALUES

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
DETAILS: dict[str, Any] = {"nothing": None, "list": [None, {"deep": None}], "number": 1.5}


class Finding(BaseModel):
    """An object that a program may put into a free-form field."""

    place: str
    score: int | None


@dataclasses.dataclass
class Note:
    """The same, as a dataclass."""

    text: str | None


PARTS: dict[str, list[ModelResponsePart]] = {
    "text": [TextPart("ä\n"), TextPart("", id="t1", provider_name="openai", provider_details=DETAILS)],
    "citations": [
        TextPart(
            "cited",
            citations=[
                Citation([WebCitationSource("https://example.org"), WebCitationSource("https://a.b", title="A")]),
                Citation(
                    [DocumentCitationSource(document_id="d", excerpts=["x"])],
                    anchor=ContentCitationAnchor(start=0, end=5),
                ),
            ],
        )
    ],
    "thinking": [
        ThinkingPart("hm"),
        ThinkingPart("", id="th", signature="s", provider_name="anthropic", provider_details=DETAILS),
    ],
    "tool call": [
        ToolCallPart("look", {"where": None, "deep": [{"none": None}]}, tool_call_id="1"),
        ToolCallPart("look", '{"where": null}', tool_call_id="2", id="c", provider_name="x", provider_details=DETAILS),
        ToolCallPart("look", None, tool_call_id="3"),
        ToolCallPart("look", {}, tool_call_id="4"),
        ToolCallPart("look", "", tool_call_id="5"),
    ],
    "native tool": [
        NativeToolCallPart("web_search", {"query": None}, tool_call_id="1", provider_name="openai"),
        NativeToolReturnPart(
            "web_search",
            {"sources": [None], "status": None},
            tool_call_id="1",
            metadata={"kept": None},
            timestamp=NOON,
            provider_name="openai",
            provider_details=DETAILS,
        ),
        NativeToolReturnPart(
            "draw", BinaryImage(data=b"\xff", media_type="image/png"), tool_call_id="3", timestamp=NOON
        ),
    ],
    "tool search": [
        ToolSearchCallPart(args={"queries": ["a"]}, tool_call_id="1"),
        NativeToolSearchCallPart(args={"queries": ["a"]}, tool_call_id="2", provider_name="openai"),
        NativeToolSearchReturnPart(
            content={"discovered_tools": [{"name": "a"}]}, tool_call_id="2", timestamp=NOON, provider_name="openai"
        ),
    ],
    "capability": [LoadCapabilityCallPart(args={"id": "x"}, tool_call_id="1")],
    "file": [
        FilePart(BinaryContent(b"\x00\xff", media_type="application/pdf", identifier="given")),
        FilePart(
            BinaryImage(data=b"GIF", media_type="image/gif", vendor_metadata={"detail": None}),
            id="f",
            provider_name="x",
        ),
    ],
    "compaction": [CompactionPart("so far"), CompactionPart(None, provider_name="openai", provider_details=DETAILS)],
    "speech": [
        SpeechPart(speaker="assistant"),
        SpeechPart(
            speaker="assistant",
            transcript="hello",
            audio=BinaryContent(b"RIFF", media_type="audio/wav"),
            interrupted_at_ms=0,
            timestamps=[SpeechTimestamp(text="hello", start_ms=0, duration_ms=7)],
        ),
    ],
}

FIELDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "usage": {
        "usage": RequestUsage(
            input_tokens=3,
            output_tokens=0,
            cache_read_tokens=2,
            details={"reasoning_tokens": 0, "other": 4},
            cost=Decimal("0.000123"),
        )
    },
    "usage without a cost": {"usage": RequestUsage(output_tokens=1, details={"zero": 0})},
    "free usage": {"usage": RequestUsage(input_tokens=1, cost=Decimal(0))},
    "usage that is unknown": {"usage": RequestUsage(unmeasured_requests=1)},
    "names": {
        "model_name": "gpt",
        "model_id": "openai:gpt",
        "provider_name": "openai",
        "provider_url": "https://example.org",
        "canonical_system": "azure",
        "provider_response_id": "r1",
        "run_id": "run",
        "conversation_id": "conversation",
        "history_digest": "d",
    },
    "provider_details": {"provider_details": DETAILS},
    "no provider_details": {"provider_details": {}},
    "metadata": {"metadata": {"__pydantic_ai__": {"pin": None}, **DETAILS}},
    "finish_reason": {"finish_reason": "length"},
    "state": {"state": "suspended"},
    "workspace_ref": {"workspace_ref": WorkspaceRef(provider="local", id="w")},
    "failed_attempts": {
        "failed_attempts": [
            ModelRequestAttempt(
                model_name="a", outcome="error", error="E: x", timestamp=NOON, duration=timedelta(seconds=0.25)
            ),
            ModelRequestAttempt(
                model_name="b",
                provider_name="p",
                outcome="rejected",
                timestamp=NOON,
                duration=timedelta(0),
                usage=RequestUsage(input_tokens=1, cost=Decimal("1.5")),
            ),
        ]
    },
    "no failed_attempts": {"failed_attempts": []},
}


def check(response: ModelResponse) -> bytes:
    """Encode and decode a response, expect that nothing is missing, and return what is recorded."""
    recorded = UNIT_CODEC.dump(ModelResponse, response)
    found = UNIT_CODEC.load(ModelResponse, recorded)

    assert response == found
    assert [type(part) for part in response.parts] == [type(part) for part in found.parts]
    # Fields that do not take part in a comparison, such as the identifier of a file.
    assert json.loads(VALUES.dump(ModelResponse, response)) == json.loads(VALUES.dump(ModelResponse, found))
    return recorded


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_every_kind_come_back(kind: str) -> None:
    """A part of each kind, with little in it and with much, comes back from what is recorded as it was."""
    check(ModelResponse(parts=PARTS[kind], timestamp=NOON))


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_fields_of_a_response_come_back(fields: dict[str, Any]) -> None:
    """Each field of a response, set or left out, comes back as it was."""
    check(ModelResponse(parts=[TextPart("hi")], timestamp=NOON, **fields))


def test_every_kind_of_part_is_tested() -> None:
    """No kind of part that a response can have, and no field of a response, is left out here."""
    tested = {type(part) for parts in PARTS.values() for part in parts}
    kinds = {typing.get_args(member)[0] for member in typing.get_args(typing.get_args(ModelResponsePart)[0])}
    fields = {name for fields in FIELDS.values() for name in fields}

    assert kinds == tested
    assert {field.name for field in dataclasses.fields(ModelResponse)} == fields | {"parts", "timestamp", "kind"}


def test_native_tool_that_returns_nothing_comes_back() -> None:
    """A tool of the provider that returned None has a part whose content is None, which has no default."""
    part = NativeToolReturnPart("code", None, tool_call_id="1", timestamp=NOON)

    check(ModelResponse(parts=[part], timestamp=NOON))


def test_more_arguments_of_a_tool_search_come_back() -> None:
    """Arguments that a provider adds to a tool search survive the round trip, nulls included."""
    arguments: Any = {"queries": ["a"], "limit": None}
    found: Any = {"discovered_tools": [{"name": "a"}], "cursor": None}
    parts = [
        NativeToolSearchCallPart(args=arguments, tool_call_id="1"),
        NativeToolSearchReturnPart(content=found, tool_call_id="1", timestamp=NOON),
    ]
    check(ModelResponse(parts=parts, timestamp=NOON))


@pytest.mark.parametrize(
    "free",
    [Finding(place="here", score=None), Note(None), {"found": [Finding(place="here", score=None)]}],
    ids=["model", "dataclass", "nested"],
)
def test_nulls_in_objects_of_the_program_are_kept(free: Any) -> None:
    """An object in a free-form field keeps its nulls, which may not be defaults there."""
    response = ModelResponse(
        parts=[NativeToolReturnPart("find", free, tool_call_id="1", metadata=free, timestamp=NOON)],
        timestamp=NOON,
        provider_details={"free": free},
    )
    whole = UNIT_CODEC.load(ModelResponse, VALUES.dump(ModelResponse, response))

    assert whole == UNIT_CODEC.load(ModelResponse, UNIT_CODEC.dump(ModelResponse, response))


def test_little_is_recorded() -> None:
    """Defaults that decoding restores are not written: nulls, and usage fields that are not set."""
    response = ModelResponse(
        parts=[TextPart("hi"), ToolCallPart("look", {"where": 1}, tool_call_id="1")],
        usage=RequestUsage(input_tokens=5),
        model_name="m",
        timestamp=NOON,
    )
    recorded = check(response)

    assert b"null" not in recorded
    assert {"input_tokens": 5} == json.loads(recorded)["usage"]
    assert 2 * len(recorded) < len(VALUES.dump(ModelResponse, response))


def test_whole_responses_are_understood() -> None:
    """A response that was recorded with all its nulls, or by hand with hardly anything, is decoded."""
    response = ModelResponse(parts=[TextPart("hi")], usage=RequestUsage(input_tokens=5), timestamp=NOON)
    by_hand = b'{"parts": [{"content": "hi", "part_kind": "text"}], "timestamp": "2026-03-01T12:00:00.123456Z"}'

    assert response == UNIT_CODEC.load(ModelResponse, VALUES.dump(ModelResponse, response))
    assert dataclasses.replace(response, usage=RequestUsage()) == UNIT_CODEC.load(ModelResponse, by_hand)


# --- why nothing is missing -------------------------------------------------------------------------------------


ALIASES = tuple({typing_extensions.TypeAliasType, getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType)})


def members(hint: Any) -> list[Any]:
    """The members of a union, through its aliases; of another annotation, itself."""
    if isinstance(hint, ALIASES):
        return members(hint.__value__)
    if typing.get_origin(hint) is typing.Annotated:
        return members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [found for member in typing.get_args(hint) for found in members(member)]
    return [hint]


def admits_none(hint: Any) -> bool:
    """Return whether an annotation allows None."""
    return any(member in (None, types.NoneType, Any) for member in members(hint))


def classes_in(hint: Any) -> Iterator[type]:
    """The classes of which an annotation is made, those in its containers included."""
    for member in members(hint):
        if typing.get_origin(member) is typing.Literal:
            continue
        for argument in typing.get_args(member):
            # What contains itself has no records of its own: it is JSON.
            if not isinstance(argument, (*ALIASES, typing.ForwardRef, str)):
                yield from classes_in(argument)
        found = typing.get_origin(member) or member
        if isinstance(found, type):
            yield found


def records(start: Any) -> dict[type, dict[str, Any]]:
    """The annotations of all dataclasses and typed dicts that a type is made of, by class."""
    found: dict[type, dict[str, Any]] = {}
    waiting = [start]
    while waiting:
        for one in classes_in(waiting.pop()):
            if one in found:
                continue
            if dataclasses.is_dataclass(one):
                names = {field.name for field in dataclasses.fields(one)}
            elif typing_extensions.is_typeddict(one):
                names = set(one.__annotations__)
            else:
                continue
            hints = typing_extensions.get_type_hints(one, None, vars(pydantic_ai.messages), include_extras=True)
            found[one] = {name: hint for name, hint in hints.items() if name in names}
            waiting.extend(found[one].values())
    return found


def default_of(cls: type, name: str) -> object:
    """The default of a dataclass's field; Ellipsis if it has none."""
    [field] = [field for field in dataclasses.fields(cls) if field.name == name]
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if isinstance(default, FieldInfo):
        return default.get_default(call_default_factory=True)
    return ... if default is dataclasses.MISSING else default


def test_what_may_be_none_is_none_by_default() -> None:
    """In all that is written without its nulls, a field that may be None is None if it is left out."""
    own = records(ModelResponse)[ModelResponse]
    found = {ModelResponse: own}
    for part in _WITHOUT_NULLS:
        found |= records(part)
    for name, hint in own.items():
        found |= {} if name == "parts" else records(hint)
    optional = [(cls, name) for cls, hints in found.items() for name, hint in hints.items() if admits_none(hint)]

    assert {ModelResponse, RequestUsage, ModelRequestAttempt, WorkspaceRef, Citation, *_WITHOUT_NULLS} <= found.keys()
    assert (ModelResponse, "finish_reason") in optional
    assert (TextPart, "id") in optional
    assert (RequestUsage, "cost") in optional
    # A typed dict has no defaults, so a None in it would be missing.
    assert [] == [f"{cls.__name__}.{name}" for cls, name in optional if not dataclasses.is_dataclass(cls)]
    assert [] == [f"{cls.__name__}.{name}" for cls, name in optional if default_of(cls, name) is not None]


def test_usage_that_is_left_out_is_the_default() -> None:
    """The omitted usage fields are those with their default values."""
    usage = RequestUsage()

    assert {field.name: getattr(usage, field.name) for field in dataclasses.fields(usage)} == {
        field.name: default_of(RequestUsage, field.name) for field in dataclasses.fields(usage)
    }
    assert b'"usage":{}' in check(ModelResponse(parts=[], timestamp=NOON))
