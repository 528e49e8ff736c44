"""Serve the measured handlers, and call them through a real restate-server."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import httpx

from benchmarks._handlers import SERVICE, application
from restate_steps.server import RestateServer, serve_app

__all__ = ["served"]


@contextmanager
def served() -> Generator[Callable[[str, int], float], None, None]:
    """Yield a function that calls a handler with a number of steps, and returns the time they took in seconds."""
    # Ignore the environment's proxy settings: the server is on loopback.
    with (
        RestateServer() as server,
        serve_app(application(), server),
        httpx.Client(trust_env=False, timeout=120) as client,
    ):

        def call(handler: str, count: int) -> float:
            answer = client.post(f"{server.ingress_url}/{SERVICE}/{handler}", json=count)
            answer.raise_for_status()
            return float(answer.json())

        yield call
