"""Find invocations: by the beginning of an id, or by service, handler, key and status."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from restate_steps._ids import beginning_of, is_invocation_id
from restate_steps._printable import printable
from restate_steps.errors import ServerError
from restate_steps.server import _sql
from restate_steps.server._admin import AdminClient, add_reasons_of_pauses

__all__ = ["OPEN", "STATUSES", "Filters", "find_invocations", "id_of", "short_ids"]

OPEN: Final = ("pending", "scheduled", "ready", "running", "suspended", "backing-off", "paused")
"""The statuses of an invocation that has not ended."""

_GROUPS: Final = {"failing": ("backing-off", "paused"), "open": OPEN}
_RESULTS: Final = {"succeeded": "success", "failed": "failure"}

STATUSES: Final = (*OPEN, "completed", *_GROUPS, *_RESULTS)
"""The statuses to filter by: those of the server, groups of them, and the results of completed invocations."""

_SHORTEST: Final = 16
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Filters:
    """The invocations to find. None stands for any value.

    Attributes:
        service: The service's name.
        handler: The handler's name.
        key: The key of a Virtual Object or workflow.
        statuses: Names in :data:`STATUSES`; an invocation matches one of them. Empty for any status.
    """

    service: str | None = None
    handler: str | None = None
    key: str | None = None
    statuses: Sequence[str] = ()

    def __bool__(self) -> bool:
        return any(each is not None for each in (self.service, self.handler, self.key)) or bool(self.statuses)


def find_invocations(
    admin: AdminClient, filters: Filters, *, among: Sequence[str] = (), limit: int | None = None
) -> list[dict[str, Any]]:
    """Return rows of ``sys_invocation``, the oldest first.

    Args:
        admin: A client for the server.
        filters: The invocations to find.
        among: Names in :data:`STATUSES`; an invocation also has to match one of them. Empty for any status.
        limit: The maximum number of rows; the oldest are left out.

    Raises:
        ServerError: If the server cannot be reached.
    """
    conditions = [_has_status(statuses) for statuses in (filters.statuses, among) if statuses]
    query = _sql.invocations(
        "*", *conditions, service=filters.service, handler=filters.handler, key=filters.key, limit=limit
    )
    rows = admin.query(query)
    add_reasons_of_pauses(admin, rows)
    return rows if limit is None else rows[::-1]


def id_of(admin: AdminClient, name: str) -> str:
    """Return the id of the only invocation that a name stands for.

    Args:
        admin: A client for the server.
        name: An id, or the beginning of one. An ellipsis at its end is ignored.

    Raises:
        ServerError: If no invocation has such an id, or several have, or the server cannot be reached.
    """
    beginning = beginning_of(name)
    if is_invocation_id(beginning):
        return beginning
    if not beginning.startswith("inv_"):
        raise ServerError(f"{name!r} is not the id of an invocation, or its beginning. An id starts with 'inv_1'.")
    columns = "id, target, status"
    rows = admin.query(_sql.invocations(columns, _sql.starting_with([beginning]), limit=_SHOWN + 1))
    if not rows:
        raise ServerError(
            f"the server at {admin.admin_url} has no invocation whose id starts with {beginning!r}. To see those it "
            "has, run: restate-steps invocations list --all"
        )
    if len(rows) > 1:
        count = str(len(rows)) if len(rows) <= _SHOWN else f"more than {_SHOWN}"
        listed = "".join(f"\n  {row['id']}  {printable(row['target'])}  {row['status']}" for row in rows[:_SHOWN])
        raise ServerError(f"{count} invocations have ids that start with {beginning!r}. Write more of the id:{listed}")
    return str(rows[0]["id"])


def short_ids(admin: AdminClient, ids: Sequence[str]) -> dict[str, str]:
    """Return the shortest beginning of each id that no other invocation of the server has, with an ellipsis.

    An id begins with the same 16 characters as those of all invocations with the same key.

    Args:
        admin: A client for the server.
        ids: The ids.

    Raises:
        ServerError: If the server cannot be reached.
    """
    if not ids:
        return {}
    beginnings = sorted({each[:_SHORTEST] for each in ids})
    known = sorted({row["id"] for row in admin.query(_sql.invocations("id", _sql.starting_with(beginnings)))} | {*ids})
    shorts: dict[str, str] = {}
    for before, each, after in zip(["", *known], known, [*known[1:], ""], strict=False):
        length = max(_SHORTEST, 1 + max(_shared(each, before), _shared(each, after)))
        shorts[each] = f"{each[:length]}…" if length < len(each) else each
    return {each: shorts[each] for each in ids}


def _shared(one: str, other: str) -> int:
    """Return the number of characters at the beginning that two texts share."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _has_status(names: Sequence[str]) -> str:
    """Return a condition for invocations that match one of several names in :data:`STATUSES`."""
    statuses = {status for name in names if name not in _RESULTS for status in _GROUPS.get(name, (name,))}
    results = [_RESULTS[name] for name in names if name in _RESULTS]
    columns = [("status", sorted(statuses)), ("completion_result", results)]
    found = [f"{column} IN ({', '.join(map(_sql.quoted, values))})" for column, values in columns if values]
    return f"({' OR '.join(found)})"
