"""Clients that retry until they succeed, so that broken connections lose nothing.

1. A client sends a call with an idempotency key until a server accepts it. A call that is sent twice runs once.
2. It then attaches to the invocation until that has ended, through any node.
3. It sends an approval until a server accepts it. Sending it twice has no further effect.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.chaos.checkout_workload import APPROVED
from tests.chaos.runs import Run

__all__ = ["Clients", "Outcome"]

_WITHIN = 10.0
# Retry while the server, or a node that it needs, is down. 404 means that it does not know the invocation yet.
_LATER = frozenset({404, 408, 425, 429, *range(500, 600)})


@dataclass
class Outcome:
    """The outcome of a run, as its client knows it.

    Attributes:
        run: The run.
        invocation: The id of the invocation, once a server has accepted it.
        status: The HTTP status of the result; ``None`` if the run has not ended.
        body: The result.
        trouble: The last error before the result, such as a broken connection.
    """

    run: Run
    invocation: str = ""
    status: int | None = None
    body: Any = None
    trouble: str = ""


class Clients:
    """A client that executes runs.

    Args:
        ingress_urls: The URLs of the servers' ingresses.
        failed: A function that returns the failure of an invocation, or None if it has not failed. It is needed because
            the status of a failed invocation can also be that of a failing server.
    """

    def __init__(self, ingress_urls: list[str], failed: Callable[[str], str | None]) -> None:
        self._urls = ingress_urls
        self._failed = failed
        self._http = httpx.AsyncClient(trust_env=False, timeout=_WITHIN, limits=httpx.Limits(max_connections=None))

    async def close(self) -> None:
        await self._http.aclose()

    async def carry_out(self, outcome: Outcome) -> None:
        """Send a run and wait until it ends; update the outcome along the way."""
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
        """Approve the request that an order waits for."""
        await asyncio.sleep(random.uniform(0, 0.5))
        nothing = Outcome(Run("", "", {}, None, None, frozenset(), 0))
        while True:
            answer = await self._try(nothing, "POST", f"/restate/awakeables/{approval}/resolve", json=APPROVED)
            if answer is not None and answer.is_success:
                return

    async def _try(self, outcome: Outcome, method: str, path: str, **options: Any) -> httpx.Response | None:
        """Send a request to a random node; if it fails, wait a moment before returning."""
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
