"""Remove everything from a server, so that another block can use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, TypeVar

from restate_steps.errors import ServerError
from restate_steps.server import AdminClient, RestateServer, _sql

__all__ = ["emptied"]

T = TypeVar("T")

_WITHIN = 5.0
_EVERY = 0.005
# Emptying a server takes about 2 ms for each invocation, and starting another takes half a second.
_AT_MOST = 250


def emptied(server: RestateServer) -> bool:
    """Remove everything from a server, and return whether that was possible in time.

    Each round queries first and then acts, so that the last round verifies that nothing is left.
    """
    admin = AdminClient(server.admin_url, timeout=_WITHIN)
    deadline = time.monotonic() + _WITHIN
    # Without an answer, the server is not reused.
    with suppress(ServerError):
        while time.monotonic() < deadline:
            if invocations := admin.query(_sql.invocations("id, status")):
                if len(invocations) > _AT_MOST:
                    return False
                for row in _until(deadline, invocations):
                    _try(admin.purge if row["status"] == "completed" else admin.kill, row["id"])
            elif state := admin.query(_sql.select("DISTINCT service_name, service_key", "state")):
                for row in _until(deadline, state):
                    _try(admin.clear_state, row["service_name"], row["service_key"])
            elif deployments := admin.query(_sql.select("id", "sys_deployment")):
                for row in _until(deadline, deployments):
                    _try(admin.remove_deployment, row["id"])
            else:
                # Promises are removed with their workflow; those of a workflow that never ran cannot be removed.
                return not admin.query(_sql.select("key", "sys_promise"))
            time.sleep(_EVERY)
    return False


def _until(deadline: float, rows: Sequence[T]) -> Iterator[T]:
    return takewhile(lambda _: time.monotonic() < deadline, rows)


def _try(remove: Callable[..., None], *what: Any) -> None:
    # A refusal means that it has just changed; the next round handles it.
    with suppress(ServerError):
        remove(*what)
