"""What exploring the examples shows, beyond that each survives (which is in ``tests/test_exploration.py``)."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from restate_steps.testing import explore
from tests.support.exploration import VARIANTS, Subject, subjects
from tests.testing import explored_examples


@pytest.fixture(autouse=True)
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charges are kept in memory, and bodies take the time that they take."""
    for name in [name for name in os.environ if name.startswith("RESTATE_STEPS_")]:
        monkeypatch.delenv(name)


def subject(name: str) -> Subject:
    return {each.name: each for each in subjects()}[name]


def test_every_example_is_explored() -> None:
    """Each handler of the application of the examples is in the list."""
    handlers = {each.handler for each in subjects() if each.name.startswith("examples/")}
    assert {"Greeter/greet", "LangGraphTrips/plan", "OpenAITrips/plan", "Shop/checkout"} == handlers


def test_a_charge_without_a_key_would_be_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a payment service that forgets the keys charges twice after a crash."""
    charge = explored_examples.payments.charge

    async def forgetful(card: str, amount: Any, *, idempotency_key: str) -> str:
        number = len(explored_examples.payments._in_memory)
        return str(await charge(card, amount, idempotency_key=f"{idempotency_key} {number}"))

    monkeypatch.setattr(explored_examples.payments, "charge", forgetful)
    report = subject("examples/checkout").explore(VARIANTS[0], max_runs=200)
    [finding] = report.findings
    assert finding.problem == "assertion"
    assert finding.schedule.crashes


def test_the_answers_are_looked_at() -> None:
    """An answer that is not among the right ones is a finding."""
    wrong = dataclasses.replace(subject("examples/greeting_agent"), answers=["Hello Bob!"])
    [finding] = wrong.explore(VARIANTS[0]).findings
    assert finding.problem == "assertion"
    assert "is not among the right answers" in finding.why


def test_every_order_of_the_checkout_gives_one_answer() -> None:
    """All orders and crashes of the example are tried, and there is no other answer than the receipt."""
    checkout = subject("examples/checkout")
    report = explore(
        checkout.app,
        checkout.handler,
        checkout.arg,
        before_each=lambda: explored_examples.begin(0),
        check=explored_examples.is_charged_once,
    )
    report.assert_replay_safe()
    report.assert_one_answer()
    assert report.complete
    assert {"charge order-7": 2, "send_receipt": 2}.items() <= report.max_body_runs.items()
