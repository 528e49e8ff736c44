"""The names that examples in docstrings may use without making them: a small shop, outside any handler."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import restate

from restate_steps import durable_step


@dataclass(frozen=True)
class Order:
    """What is ordered."""

    id: str
    total: Decimal


@dataclass(frozen=True)
class Quote:
    """What it would cost."""

    price: Decimal


@dataclass(frozen=True)
class Receipt:
    """What was paid."""

    id: str


class CardDeclined(Exception):
    """The payment was refused."""


async def quote(order: Order) -> Quote:
    return Quote(order.total)


async def reserve(order: Order) -> int:
    return len(order.id)


async def charge(order: Order) -> Receipt:
    return Receipt(order.id)


async def fetch_prices() -> list[int]:
    return [1, 2]


async def remind() -> None:
    pass


async def book_flight(trip: str) -> str:
    return f"flight to {trip}"


async def book_hotel(trip: str) -> str:
    return f"hotel in {trip}"


async def ask(model: str) -> str:
    return f"{model} answers"


async def fetch(url: str) -> str:
    return f"page at {url}"


async def fetch_user(user_id: int) -> str:
    return f"user {user_id}"


async def pay(total: Decimal, *, idempotency_key: str) -> str:
    return f"paid {total}"


def names() -> dict[str, Any]:
    """The names, with values of their own for each docstring; call it on the event loop that runs the examples."""
    approval: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    approval.set_result("approved")
    return {
        "CardDeclined": CardDeclined,
        "Order": Order,
        "Quote": Quote,
        "Receipt": Receipt,
        "answers": [],
        "approval": approval,
        "ask": ask,
        "asyncio": asyncio,
        "book_flight": book_flight,
        "book_hotel": book_hotel,
        "charge": durable_step(charge),
        "client": SimpleNamespace(fetch_user=fetch_user),
        "fetch": fetch,
        "fetch_prices": fetch_prices,
        "models": ["first", "second"],
        "order": Order("a1", Decimal("9.50")),
        "payments": SimpleNamespace(charge=pay),
        "primary": "primary",
        "quote": quote,
        "remind": remind,
        "reserve": reserve,
        "restate": restate,
        "secondary": "secondary",
        "shop": restate.Service("shop"),
        "svc": restate.Service("shop"),
        "timedelta": timedelta,
        "trip": "Lisbon",
        "user_id": 7,
        "urls": ["/a", "/b"],
    }
