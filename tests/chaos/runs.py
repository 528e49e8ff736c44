"""Calls of handlers, and their expected results."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.chaos.agent_workload import price_of
from tests.chaos.checkout_workload import APPROVED

__all__ = ["Run", "make_runs"]

_CITIES = ("Berlin", "Lima", "Oslo", "Quito", "Riga", "Sofia")


@dataclass(frozen=True)
class Run:
    """One call of a handler.

    Attributes:
        id: The idempotency key.
        target: The service and the handler.
        argument: The handler's argument.
        value: The expected value in the answer; ``None`` if the run must fail.
        failure: The status with which the run must fail; ``None`` if it must succeed.
        effects: The effects that the run must have on the external service, each exactly once, and no others.
        steps: The number of steps whose results the answer contains.
    """

    id: str
    target: str
    argument: Mapping[str, Any]
    value: list[Any] | None
    failure: int | None
    effects: frozenset[str]
    steps: int


def make_runs(count: int, rng: random.Random) -> list[Run]:
    """Create checkouts and agent runs alternately."""
    return [
        _checkout(f"order-{number}", rng) if number % 2 else _trip(f"trip-{number}", rng) for number in range(count)
    ]


def _receipt(what: str) -> str:
    # The first receipt that the payment service returns for an effect.
    return f"receipt 0 for {what}"


def _trip(name: str, rng: random.Random) -> Run:
    cities = rng.sample(_CITIES, 2)
    booking = f"book {name}"
    return Run(
        id=name,
        target="Travel/plan",
        argument={"id": name, "cities": cities},
        value=[name, sum(map(price_of, cities)), _receipt(booking)],
        failure=None,
        effects=frozenset({booking}),
        steps=6,
    )


def _checkout(name: str, rng: random.Random) -> Run:
    prices = [rng.randrange(100, 10_000) for _ in range(3)]
    wait = rng.choice(("nothing", "timer", "approval"))
    declined = rng.random() < 0.25
    effects = {f"reserve {name}", f"label {name}", *([f"ask {name}"] if wait == "approval" else [])}
    total, reserved, label = sum(prices), _receipt(f"reserve {name}"), _receipt(f"label {name}")
    paid = [name, total, reserved, label, APPROVED, _receipt(f"charge {name}"), prices, "wrapped"]
    return Run(
        id=name,
        target="Shop/checkout",
        argument={"id": name, "card": "0666" if declined else "4242", "prices": prices, "wait": wait},
        value=None if declined else paid,
        failure=402 if declined else None,
        effects=frozenset(effects | {f"release {name}" if declined else f"charge {name}"}),
        steps=9 + (wait == "approval"),
    )
