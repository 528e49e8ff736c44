"""Queries on the server's tables.

Only :func:`select` and :func:`quoted` put values into a query.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

__all__ = [
    "ANY_INVOCATION",
    "deployments",
    "endpoint_of",
    "entries_of",
    "holder_of",
    "invocation_of",
    "invocations",
    "messages_of",
    "pauses_of",
    "quoted",
    "select",
    "services_of",
    "signals_of",
    "starting_with",
    "state_of",
    "waiting_for_signals",
    "with_steps_named",
]


ANY_INVOCATION: Final = "SELECT id FROM sys_invocation LIMIT 1"
"""A query that only a server with a running worker answers."""


def quoted(text: str) -> str:
    """Return a text as an SQL string literal.

    Example:
        >>> quoted("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def select(
    columns: str,
    table: str,
    *conditions: str,
    order_by: str = "",
    limit: int | None = None,
    **values: str | Collection[str] | None,
) -> str:
    """Return a query for the rows that meet all conditions.

    Args:
        columns: The columns.
        table: The table, or a join of tables.
        conditions: Conditions, as SQL.
        order_by: The columns to sort by.
        limit: The maximum number of rows.
        values: The value of a column, or a collection of possible values. None stands for any value.

    Example:
        >>> select("id", "sys_invocation", "retry_count > 1", status=["ready", "running"], target=None)
        "SELECT id FROM sys_invocation WHERE retry_count > 1 AND status IN ('ready', 'running')"
    """
    where = [*conditions, *(_matches(column, value) for column, value in values.items() if value is not None)]
    parts = [f"SELECT {columns} FROM {table}", *([f"WHERE {' AND '.join(where)}"] if where else [])]
    parts += [f"ORDER BY {order_by}"] if order_by else []
    return " ".join([*parts, *([f"LIMIT {limit}"] if limit is not None else [])])


def _matches(column: str, value: str | Collection[str]) -> str:
    if isinstance(value, str):
        return f"{column} = {quoted(value)}"
    return f"{column} IN ({', '.join(map(quoted, value))})"


def invocation_of(invocation_id: str) -> str:
    """Return a query for everything about an invocation."""
    return select("*", "sys_invocation", id=invocation_id)


def invocations(
    columns: str = "id",
    *conditions: str,
    service: str | Collection[str] | None = None,
    handler: str | None = None,
    key: str | None = None,
    status: str | Collection[str] | None = None,
    limit: int | None = None,
) -> str:
    """Return a query for invocations: all of them, the oldest first; with a limit, the newest, the newest first."""
    return select(
        columns,
        "sys_invocation",
        *conditions,
        order_by="created_at, id" if limit is None else "created_at DESC, id DESC",
        limit=limit,
        target_service_name=service,
        target_handler_name=handler,
        target_service_key=key,
        status=status,
    )


def entries_of(invocation_id: str) -> str:
    """Return a query for the rows that :func:`restate_steps.server._journal.read_journal` converts."""
    return select('"index", entry_type, name, entry_json', "sys_journal", id=invocation_id, order_by='"index"')


def pauses_of(invocation_ids: Collection[str]) -> str:
    """Return a query for the events in which invocations were paused, the oldest first."""
    return select(
        "id, event_json", "sys_journal_events", id=invocation_ids, event_type="Paused", order_by="id, appended_at"
    )


def starting_with(beginnings: Collection[str]) -> str:
    """Return a condition for ids that start with one of several texts."""
    return f"({' OR '.join(f'starts_with(id, {quoted(each)})' for each in beginnings)})"


def holder_of(service: str, key: str) -> str:
    """Return a query for the invocation that runs exclusively on a key."""
    return select("invocation_id", "sys_keyed_service_status", service_name=service, service_key=key)


def endpoint_of(deployment_id: str) -> str:
    """Return a query for the address of a deployment."""
    return select("endpoint", "sys_deployment", id=deployment_id)


def deployments() -> str:
    """Return a query for the ids of all deployments."""
    return select("id", "sys_deployment")


def waiting_for_signals(first: int) -> str:
    """Return a query for invocations that wait for signals with a number, the oldest first."""
    return invocations(
        "id, target, suspended_waiting_for_signals",
        f"array_max(suspended_waiting_for_signals) >= {first}",
        status="suspended",
    )


def messages_of(invocation_id: str | Collection[str]) -> str:
    """Return a query for the entries of one or several journals, with the bytes that the handler sent or received."""
    return select('id, "index", entry_type, raw, version', "sys_journal", id=invocation_id, order_by='id, "index"')


def signals_of(invocation_id: str) -> str:
    """Return a query for the signals that an invocation has received."""
    return select("entry_json", "sys_journal", id=invocation_id, entry_type="Notification: Signal")


def with_steps_named(part: str) -> str:
    """Return a query for the open invocations that have a step with a text in its name, the oldest first."""
    return select(
        "DISTINCT i.id, i.target, i.created_at",
        "sys_invocation i JOIN sys_journal j ON j.id = i.id",
        "i.status != 'completed'",
        f"strpos(j.name, {quoted(part)}) > 0",
        order_by="i.created_at",
    )


def services_of(deployment_id: str) -> str:
    """Return a query for the services that a deployment currently serves."""
    return select("name", "sys_service", deployment_id=deployment_id, order_by="name")


def state_of(service: str, key: str) -> str:
    """Return a query for the state of a key of a Virtual Object or workflow."""
    return select("key, value", "state", service_name=service, service_key=key, order_by="key")
