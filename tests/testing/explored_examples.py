"""The examples as they stand, each with what may come of it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from restate_steps.testing import Simulator
from tests.support.exploration import Subject, explored

with pytest.MonkeyPatch.context() as without_key:
    # A key would make the examples call real models.
    without_key.delenv("OPENAI_API_KEY", raising=False)
    payments: Any = importlib.import_module("examples.payments")
    APP: Any = importlib.import_module("examples.app").app
    LANGGRAPH: Any = importlib.import_module("examples.langgraph_agent").app
    OPENAI: Any = importlib.import_module("examples.openai_agent").app

ORDER = {"id": "order-7", "card": "4242", "prices": ["10.00", "0.50"], "placed_at": "2026-03-01T12:00:00Z"}
RECEIPT = {
    "order_id": "order-7",
    "payment_id": "payment-1",
    "total": "10.50",
    "delivered_on": "2026-03-04T12:00:00Z",
}
PLAN = "Lisbon will be sunny; the 9:40 to Lisbon is reserved"


def begin(seed: int) -> None:
    payments._in_memory.clear()


def recorded(sim: Simulator) -> list[str]:
    """The steps of the only invocation that have returned something."""
    [invocation] = sim.invocations
    return [
        str(entry.name) for entry in invocation.journal if entry.type == "Notification: Run" and entry.failure is None
    ]


def is_charged_once(sim: Simulator) -> None:
    """However often the payment service was asked: it knows the key."""
    assert len(payments._in_memory) <= 1
    if "send_receipt" in recorded(sim):
        assert list(payments._in_memory.values()) == ["payment-1"]


def is_given_back(sim: Simulator) -> None:
    """Nothing is charged, and what was reserved is released, unless an operator has cancelled the checkout."""
    assert payments._in_memory == {}
    [invocation] = sim.invocations
    failure = invocation.journal[-1].failure
    assert failure is not None
    if failure.code == 402:
        assert "release" in recorded(sim)


explored(
    Subject("examples/greeting_agent", APP, "Greeter/greet", arg="Ada", answers=["Hello Ada!"], setup=begin, runs=20)
)
explored(
    Subject(
        "examples/langgraph_agent", LANGGRAPH, "LangGraphTrips/plan", arg="Lisbon", answers=[PLAN], setup=begin, runs=20
    )
)
explored(
    Subject("examples/openai_agent", OPENAI, "OpenAITrips/plan", arg="Lisbon", answers=[PLAN], setup=begin, runs=20)
)
explored(
    Subject(
        "examples/checkout",
        APP,
        "Shop/checkout",
        arg=ORDER,
        answers=[RECEIPT],
        setup=begin,
        check=is_charged_once,
        runs=40,
    )
)
explored(
    Subject(
        "examples/checkout_with_a_declined_card",
        APP,
        "Shop/checkout",
        arg={**ORDER, "card": "0000"},
        answers=[],
        failures=[402],
        setup=begin,
        check=is_given_back,
        runs=40,
    )
)
