"""An external service that performs an effect once per idempotency key, and counts every request.

It runs in the process that is never killed. It waits a while between the effect and its response, so that the caller is
often killed in between. That is the worst moment: the effect has happened, but the caller does not know.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast

import httpx

from restate_steps import step_info

__all__ = ["PAYMENT_SERVICE", "PaymentService", "act"]

PAYMENT_SERVICE = "CHAOS_PAYMENT_SERVICE"
"""The environment variable with the URL of the payment service."""

_SLOWNESS = (0.03, 0.2)
_WITHIN = 30.0


class PaymentService:
    """The external service, on loopback.

    Args:
        acted: A callback that receives an effect and its detail when the effect happens. It can run in any thread.

    Attributes:
        requests: The number of requests for each effect, with any key.
        receipts: The receipts for each effect, by idempotency key. A second key means that the effect happened twice.
    """

    def __init__(self, *, acted: Callable[[str, str], None] = lambda what, detail: None) -> None:
        self.requests: Counter[str] = Counter()
        self.receipts: dict[str, dict[str, str]] = {}
        self._acted = acted
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="chaos-payment-service", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def act(self, what: str, key: str, detail: str) -> str:
        """Perform an effect, unless it already happened with this key, and return its receipt."""
        with self._lock:
            self.requests[what] += 1
            given = self.receipts.setdefault(what, {})
            known = given.get(key)
            if known is None:
                given[key] = f"receipt {len(given)} for {what}"
        if known is None:
            self._acted(what, detail)
        return known or given[key]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, payment_service: PaymentService) -> None:
        self.payment_service = payment_service
        super().__init__(("127.0.0.1", 0), _Request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: killed clients leave broken connections behind."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Send small responses immediately.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        receipt = cast("_Server", self.server).payment_service.act(
            asked["what"], self.headers["idempotency-key"], asked["detail"]
        )
        time.sleep(random.uniform(*_SLOWNESS))
        body = json.dumps(receipt).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


async def act(what: str, detail: str = "") -> str:
    """Request an effect from a step's body, with the step's idempotency key, and return the receipt."""
    headers = {"idempotency-key": step_info().idempotency_key}
    answer = await _client().post(os.environ[PAYMENT_SERVICE], json={"what": what, "detail": detail}, headers=headers)
    return str(answer.raise_for_status().json())


@cache
def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=_WITHIN)
