"""A fake payment service that remembers its charges by idempotency key.

It stores them in memory, or in the file that ``RESTATE_STEPS_PAYMENTS`` names. Real payment services remember keys too,
so that a client that never received the answer can safely retry.
"""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path

from examples.ledger import append, pretend_to_work

_in_memory: dict[str, str] = {}


class CardDeclined(Exception):
    """The card cannot be charged.

    Attributes:
        card: The card's number.
        reason: The bank's reason.
    """

    def __init__(self, card: str, reason: str) -> None:
        super().__init__(f"card {card} was declined: {reason}")
        self.card = card
        self.reason = reason


async def charge(card: str, amount: Decimal, *, idempotency_key: str) -> str:
    """Charge a card once for each key, and return the id of the payment.

    Raises:
        CardDeclined: The card's number starts with 0.
    """
    if card.startswith("0"):
        raise CardDeclined(card, "insufficient funds")
    known = _in_memory if (path := _path()) is None else charges(path)
    payment = known.get(idempotency_key)
    if payment is None:
        payment = f"payment-{len(known) + 1}"
        if path is None:
            _in_memory[idempotency_key] = payment
        else:
            append(path, json.dumps({"key": idempotency_key, "payment": payment, "amount": str(amount)}))
    # The money has moved, but the answer has not arrived: the worst moment for a crash.
    await pretend_to_work(6)
    return payment


def charges(path: Path) -> dict[str, str]:
    """Return the payments in a file, by idempotency key."""
    if not path.exists():
        return {}
    made = [json.loads(line) for line in path.read_text().splitlines()]
    return {entry["key"]: entry["payment"] for entry in made}


def _path() -> Path | None:
    path = os.environ.get("RESTATE_STEPS_PAYMENTS")
    return Path(path) if path else None
