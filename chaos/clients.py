"""Clients that lose nothing because a connection breaks.

1. A call is sent with an idempotency key, again and again, until a server has accepted it. Sent twice, it runs once.
2. The client then attaches to the invocation, again and again, until it has ended. Any node may be asked.
3. An approval is sent until it is accepted; to accept it twice changes nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from chaos.runs import Run
from chaos.shop import APPROVED

__all__ = ["Clients", "Outcome"]

_WITHIN = 10.0
# What a server says while it, or the node that it needs, is away. (404: an invocation that is not known yet.)
_LATER = frozenset({404, 408, 425, 429, *range(500, 600)})


@dataclass
class Outcome:
    """What a client knows of its run.

    Attributes:
        run: The run.
        invocation: The id of the invocation, once it is accepted.
        status: The HTTP status that it ended with; ``None`` if it has not ended.
        body: What it answered.
        trouble: What went wrong on the way, last.
    """

    run: Run
    invocation: str = ""
    status: int | None = None
    body: Any = None
    trouble: str = ""


class Clients:
    """Carries runs out.

    Args:
        ingress_urls: Where calls go.
        failed: Asked for the failure that an invocation has ended with, if it has: from the answer alone it cannot be
            told from that of a server in trouble.
    """

    def __init__(self, ingress_urls: list[str], failed: Callable[[str], str | None]) -> None:
        self._urls = ingress_urls
        self._failed = failed
        self._http = httpx.AsyncClient(trust_env=False, timeout=_WITHIN, limits=httpx.Limits(max_connections=None))

    async def close(self) -> None:
        await self._http.aclose()

    async def carry_out(self, outcome: Outcome) -> None:
        """Send a run, and wait for its end; the outcome is filled in as it becomes known."""
        run = outcome.run
        headers = {"idempotency-key": run.id}
        while not outcome.invocation:
            answer = await self._try(outcome, "POST", f"/{run.target}/send", json=run.argument, headers=headers)
            if answer is not None and answer.is_success:
                outcome.invocation = answer.json()["invocationId"]
        while outcome.status is None:
            answer = await self._try(outcome, "GET", f"/restate/invocation/{outcome.invocation}/attach")
            if answer is None:
                continue
            if answer.status_code not in _LATER:
                outcome.body = answer.json()
                outcome.status = answer.status_code
            elif (failure := await asyncio.to_thread(self._failed, outcome.invocation)) is not None:
                outcome.body = failure
                outcome.status = answer.status_code

    async def approve(self, approval: str) -> None:
        """Say yes to what an order waits for."""
        await asyncio.sleep(random.uniform(0, 0.5))
        nothing = Outcome(Run("", "", {}, None, None, frozenset(), 0))
        while True:
            answer = await self._try(nothing, "POST", f"/restate/awakeables/{approval}/resolve", json=APPROVED)
            if answer is not None and answer.is_success:
                return

    async def _try(self, outcome: Outcome, method: str, path: str, **options: Any) -> httpx.Response | None:
        """Make a request to some node; after one that did not help, wait a moment."""
        url = random.choice(self._urls) + path
        try:
            answer = await self._http.request(method, url, **options)
        except httpx.HTTPError as error:
            outcome.trouble = f"{method} {path}: {error!r}"
        else:
            if answer.status_code not in _LATER:
                return answer
            outcome.trouble = f"{method} {path}: {answer.status_code} {answer.text}"
            await asyncio.sleep(0.1)
            return answer
        await asyncio.sleep(random.uniform(0.1, 0.4))
        return None
