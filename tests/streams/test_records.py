"""Records as JSON, and the ids of events as text."""

from __future__ import annotations

import json
import random
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from restate_steps.streams import EventId, StreamEnd, StreamEvent, StreamRecordError, StreamReset
from restate_steps.streams._records import (
    BodyEvents,
    Commit,
    End,
    HandlerEvents,
    Native,
    Record,
    Request,
    decode,
    encode,
)
from tests.streams.logs import random_log
from tests.streams.test_fold_model import random_plan

EVENTS = HandlerEvents(
    "run",
    3,
    (
        Native({"kind": "tool", "args": [1, 2.5, None, True, "x"]}),
        Native(None),
        Request("call-1", "sign_1token", {"question": "pay?"}),
        Commit("step", "attempt", 7),
        Commit("step", "attempt", 7, ()),
        Commit("step", "attempt", 7, ({"text": "whole"}, None)),
        Commit("step", None),
        End("failure", {"message": "no"}),
        End("killed"),
    ),
)
BODY = BodyEvents("step", "attempt", 12, ("text", 1, None, {"a": {"b": []}}, ["x"], True))


@pytest.mark.parametrize(
    "record",
    [Record(5, EVENTS, BODY), Record(5, EVENTS), Record(5, body=BODY), Record(5), Record(0, HandlerEvents("r", 0, ()))],
    ids=["both", "handler", "body", "neither", "dependency"],
)
def test_a_record_comes_back(record: Record) -> None:
    assert record == decode(encode(record))


def test_the_form_in_the_log() -> None:
    """It is stored, so it must not change: readers may be older than publishers."""
    assert (
        '{"t":5,"h":{"p":"run","s":3,"e":[{"event":{"kind":"tool","args":[1,2.5,null,true,"x"]}},{"event":null},'
        '{"request":"call-1","token":"sign_1token","data":{"question":"pay?"}},'
        '{"commit":"step","attempt":"attempt","count":7,"parts":null},'
        '{"commit":"step","attempt":"attempt","count":7,"parts":[]},'
        '{"commit":"step","attempt":"attempt","count":7,"parts":[{"text":"whole"},null]},'
        '{"commit":"step","attempt":null,"count":0,"parts":null},'
        '{"end":"failure","data":{"message":"no"}},{"end":"killed","data":null}]},'
        '"b":{"p":"step","a":"attempt","s":12,"e":["text",1,null,{"a":{"b":[]}},["x"],true]}}'
    ) == encode(Record(5, EVENTS, BODY)).decode()


@pytest.mark.parametrize("text", ["ü€😀", "\ud83d", "\u2028\x00"])
def test_any_text_comes_back(text: str) -> None:
    """A delta may end in the middle of an emoji, as a surrogate without its partner."""
    record = Record(0, body=BodyEvents("step", "a", 0, (text,)))

    assert record == decode(encode(record))


def test_text_is_stored_as_utf_8() -> None:
    """Escapes would make Chinese text twice as long."""
    assert "中文" in encode(Record(0, body=BodyEvents("step", "a", 0, ("中文",)))).decode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_browsers_cannot_parse_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(Record(0, body=BodyEvents("step", "a", 0, (value,))))


def test_random_records_come_back() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        for record in random_log(rng, random_plan(rng).items):
            assert record == decode(encode(record))


RECORD = json.loads(encode(Record(5, HandlerEvents("run", 0, (Commit("step", "a", 1, ("x",)),)), BODY)))


def changed(path: str, value: Any) -> bytes:
    """Return a record in which a value is another one; None removes it."""
    record = json.loads(json.dumps(RECORD))
    *parents, last = (int(each) if each.isdigit() else each for each in path.split("."))
    parent = record
    for each in parents:
        parent = parent[each]
    if value is None:
        del parent[last]
    else:
        parent[last] = value
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "it is not JSON: "),
        (b"\xff", "it is not JSON: "),
        (b"[]", "expected a record, and got a list"),
        (b"1", "expected a record, and got a int"),
        (changed("t", None), r"expected a record, and got fields \['b', 'h'\]"),
        (changed("v", 2), r"expected a record, and got fields \['b', 'h', 't', 'v'\]"),
        (changed("t", "now"), "expected a record"),
        (changed("b", []), "expected events of a body, and got a list"),
        (changed("b.a", None), r"expected events of a body, and got fields \['e', 'p', 's'\]"),
        (changed("b.s", -1), "expected events of a body"),
        (changed("b.e", "x"), "expected events of a body"),
        (changed("b.x", 1), "expected events of a body"),
        (changed("h.s", -1), "expected events of a handler"),
        (changed("h.p", 1), "expected events of a handler"),
        (changed("h.x", 1), "expected events of a handler"),
        (changed("h.e.0", "x"), "expected an event of a handler, and got a str"),
        (changed("h.e.0.count", -1), "expected an event of a handler"),
        (changed("h.e.0.attempt", 1), "expected an event of a handler"),
        (changed("h.e.0.parts", 1), "expected finished parts, and got a int"),
        (changed("h.e.0.x", 1), "expected an event of a handler"),
        (changed("h.e.0", {"event": 1, "x": 1}), r"expected an event of a handler, and got fields \['event', 'x'\]"),
        (changed("h.e.0", {"request": "a", "token": 1, "data": 1}), "expected an event of a handler"),
        (changed("h.e.0", {"end": "lost", "data": 1}), "expected an event of a handler"),
        (changed("h.e.0", {"pause": 1}), "expected an event of a handler"),
    ],
)
def test_what_a_reader_does_not_know_is_an_error(data: bytes, reason: str) -> None:
    """R6: a reader that skipped it would show something else than others. Values are not in the message."""
    with pytest.raises(StreamRecordError, match=f"^a record of a stream cannot be decoded: {reason}"):
        decode(data)


class TestEnvelope:
    """The form that clients get."""

    def test_an_event(self) -> None:
        view = StreamEvent(EventId(1, 2), "step", 3, {"text": "a"})

        assert {"producer": "step", "epoch": 3, "data": {"text": "a"}} == view.payload()

    def test_a_reset(self) -> None:
        assert {"producer": "step", "epoch": 3} == StreamReset(EventId(1, 2), "step", 3).payload()

    def test_the_end(self) -> None:
        assert {"status": "success", "data": 1} == StreamEnd(EventId(1, 2), "success", 1).payload()

    def test_values_do_not_change(self) -> None:
        view: Any = StreamReset(EventId(1, 2), "step", 3)

        with pytest.raises(FrozenInstanceError):
            view.epoch = 4


class TestIds:
    """R6: ids as text, as clients send them back."""

    @pytest.mark.parametrize("event_id", [EventId(0, 0), EventId(12, 3), EventId(10**17, 0, 0), EventId(1, 2, 30)])
    def test_an_id_comes_back(self, event_id: EventId) -> None:
        assert event_id == EventId.parse(str(event_id))

    @pytest.mark.parametrize(
        "text",
        ["", "1", "1.", ".1", "1.2.", "1.2.3.4", "-1.0", "1.-2", "01.0", "1.00", "1.0 ", "1.0\n", "a.b", "1,2"],
    )
    def test_other_text_is_refused(self, text: str) -> None:
        """R6: one event has one id."""
        with pytest.raises(ValueError, match=r"is not the id of an event: expected 'record\.index'"):
            EventId.parse(text)

    @pytest.mark.parametrize("text", ["\u0661.\u0662", f"{10**18}.0", "9" * 5000], ids=["arabic", "large", "long"])
    def test_a_client_may_send_anything(self, text: str) -> None:
        """R6: digits of other scripts and very large numbers are not ids, and the message stays short."""
        with pytest.raises(ValueError, match="is not the id of an event") as raised:
            EventId.parse(text)
        assert len(str(raised.value)) < 200
