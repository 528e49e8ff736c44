"""The invariants of the simulated server (W1 to W6), without an application: messages go in, messages come out."""

from __future__ import annotations

from typing import Any

import pytest

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import decode, make
from restate_steps.testing._simulation.invocation import Failure, Invocation, InvocationStatus
from restate_steps.testing._simulation.manifest import Manifest, Target
from restate_steps.testing._simulation.messages import receive
from restate_steps.testing._simulation.server_model import ServerModel

MANIFEST = Manifest(
    {
        "services": [
            {"name": "Office", "ty": "SERVICE", "handlers": [{"name": "work"}, {"name": "help"}]},
            {"name": "Desk", "ty": "VIRTUAL_OBJECT", "handlers": [{"name": "sit", "ty": "EXCLUSIVE"}]},
        ]
    }
)


@pytest.fixture
def model() -> ServerModel:
    return ServerModel(MANIFEST)


def begun(model: ServerModel, handler: str = "work") -> Invocation:
    """Return a new invocation with an open attempt."""
    invocation = model.submit(Target("Office", handler), b"")
    model.begin(invocation.id)
    return invocation


def send(model: ServerModel, invocation: Invocation, message_type: MessageType, **fields: Any) -> None:
    receive(model, invocation, make(message_type, **fields))


def called(model: ServerModel, caller: Invocation, number: int, **target: str) -> Invocation:
    """Call a handler, and return the invocation of the callee."""
    send(model, caller, MessageType.CALL, **target, invocation_id_completion_id=number, completion_id=number + 1)
    return model.invocations[caller.children[-1]]


def arrived(invocation: Invocation) -> list[MessageType]:
    return [frame.type for frame in invocation.journal]


def test_an_attempt_starts_with_the_whole_journal(model: ServerModel) -> None:
    """W1: a journal only grows, and an attempt that failed does not change it."""
    invocation = begun(model)
    send(model, invocation, MessageType.RUN, completion_id=1, name="step")
    send(model, invocation, MessageType.PROPOSE_RUN_COMPLETION, completion_id=1, value=b"1")
    before = list(invocation.journal)
    model.crash()

    start, *entries = model.begin(invocation.id)

    assert before == entries == invocation.journal
    assert [MessageType.INPUT, MessageType.RUN, MessageType.RUN_COMPLETION] == arrived(invocation)
    assert len(entries) == decode(start)["known_entries"]


def test_the_first_result_of_a_step_counts(model: ServerModel) -> None:
    """W2: a second result is an anomaly, and is not stored."""
    invocation = begun(model)
    send(model, invocation, MessageType.RUN, completion_id=1, name="pay")
    for value in (b"first", b"second"):
        send(model, invocation, MessageType.PROPOSE_RUN_COMPLETION, completion_id=1, value=value)

    assert ["step 'pay' of Office/work has a second result; the first one counts"] == model.anomalies
    assert b"first" == decode(invocation.journal[-1])["value"]["content"]
    assert [MessageType.INPUT, MessageType.RUN, MessageType.RUN_COMPLETION] == arrived(invocation)


def test_what_goes_between_invocations_waits_for_its_delivery(model: ServerModel) -> None:
    """W3: results and sleeps arrive only when the driver chooses them."""
    caller = begun(model)
    callee = called(model, caller, 1, service="Office", handler="help")
    send(model, caller, MessageType.SLEEP, completion_id=3, wake_up_time=model.now + 1000)
    model.begin(callee.id)
    send(model, callee, MessageType.OUTPUT, value={"content": b"done"})
    send(model, callee, MessageType.END)
    stored = len(caller.journal)

    model.deliver(0)

    assert MessageType.CALL_COMPLETION == caller.journal[stored].type
    assert model.now + 1000 == model.timers.next_due()
    model.advance(model.now + 999)
    assert stored + 1 == len(caller.journal)
    model.advance(model.now + 1)
    assert MessageType.SLEEP_COMPLETION == caller.journal[-1].type


def test_an_invocation_that_has_ended_never_changes(model: ServerModel) -> None:
    """W4: no signal, message or operator changes its result."""
    invocation = begun(model)
    send(model, invocation, MessageType.OUTPUT, value={"content": b"done"})
    send(model, invocation, MessageType.END)
    before = list(invocation.journal)

    model.cancel(invocation.id)
    model.kill(invocation.id)
    model.pause(invocation.id)
    model.resume(invocation.id)
    model.end_of_stream(invocation.id)
    send(model, invocation, MessageType.OUTPUT, failure=Failure(500, "late").fields())

    assert (InvocationStatus.COMPLETED, b"done", None) == (invocation.status, invocation.output, invocation.failure)
    assert before == invocation.journal
    assert [] == model.ready()


def test_an_invocation_that_has_not_begun_is_forgotten(model: ServerModel) -> None:
    """W4: those who wait for it fail, and those who come later do not find it."""
    caller, other = begun(model), begun(model)
    model.submit(Target("Desk", "sit", "a"), b"")
    queued = called(model, caller, 1, service="Desk", handler="sit", key="a")

    model.kill(queued.id)
    send(model, other, MessageType.ATTACH_INVOCATION, invocation_id=queued.id, completion_id=1)
    model.deliver(0)

    assert Failure(409, "killed") == Failure.of(decode(caller.journal[-1])["failure"])
    assert Failure(404, "not found") == Failure.of(decode(other.journal[-1])["failure"])


def test_exclusive_handlers_of_a_key_run_one_after_another(model: ServerModel) -> None:
    """W5: also if one in the queue is killed, and only within the key."""
    first, killed, third = (model.submit(Target("Desk", "sit", "a"), b"") for _ in range(3))
    elsewhere = model.submit(Target("Desk", "sit", "b"), b"")
    assert [first.id, elsewhere.id] == model.ready()
    model.begin(first.id)

    model.kill(killed.id)
    assert InvocationStatus.QUEUED == third.status
    with pytest.raises(AssertionError, match="cannot begin: it is queued"):
        model.begin(third.id)
    send(model, first, MessageType.END)

    assert [third.id, elsewhere.id] == model.ready()


def test_messages_between_two_invocations_keep_their_order(model: ServerModel) -> None:
    """W6: the second one arrives after the first; those of another sender may arrive at any time."""
    target, sender, other = begun(model), begun(model), begun(model)
    for who, word in ((sender, "first"), (sender, "second"), (other, "third")):
        send(model, who, MessageType.SEND_SIGNAL, target=target.id, signal_name=word, void={})

    assert [0, 2] == model.deliveries.arriving()
    model.deliver(2)
    assert [0] == model.deliveries.arriving()
    model.deliver(0)
    model.deliver(0)
    assert ["third", "first", "second"] == [decode(frame)["signal_name"] for frame in target.journal[1:]]
