"""What the package assumes of restate-server beyond its documented API, and what happens without it.

``make matrix SERVER=1.8.0`` runs these tests on another server, and prints the line of each that fails: it begins with
"moved:", and says what the package needs, where, and what happens without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import httpx
import pytest
import restate

import restate_steps
from restate_steps import DecodeError, _sdk, durable_step
from restate_steps.context import current_invocation
from restate_steps.server import RestateServer
from tests.support.harness import Env, Harness, eventually

ROUTES = [
    ("get", "/version", "AdminClient.version", "It fails, and an unknown server is not warned about."),
    ("post", "/deployments", "AdminClient.register", "No application can be registered."),
    ("delete", "/deployments/{deployment}", "AdminClient.remove_deployment", "A test server keeps old deployments."),
    ("post", "/query", "AdminClient.query, _sql", "The server is never found ready, and no journal can be read."),
    ("get", "/health", "RestateServer.start", "The server is never found ready."),
    ("get", "/cluster-health", "RestateServer.start", "The server may be used before it is ready."),
    ("patch", "/invocations/{invocation_id}/cancel", "AdminClient.cancel", "Invocations cannot be cancelled."),
    ("patch", "/invocations/{invocation_id}/kill", "AdminClient.kill", "Invocations cannot be killed."),
    ("patch", "/invocations/{invocation_id}/purge", "AdminClient.purge", "Completed invocations stay."),
    ("patch", "/invocations/{invocation_id}/pause", "the tests of paused invocations", "Nothing can be paused."),
    ("patch", "/invocations/{invocation_id}/resume", "AdminClient.resume", "Paused invocations cannot continue."),
    ("post", "/services/{service}/state", "AdminClient.clear_state", "A test server keeps state."),
]

COLUMNS = [
    ("sys_invocation", "id", "_sql", "No invocation can be found."),
    ("sys_invocation", "status", "_sql, _real_server", "Nothing shows whether an invocation has ended."),
    ("sys_invocation", "target", "_sql.with_steps_named", "Approvals cannot be listed."),
    ("sys_invocation", "target_service_name", "_sql.invocations", "Invocations cannot be filtered."),
    ("sys_invocation", "target_handler_name", "_sql.invocations", "Invocations cannot be filtered."),
    ("sys_invocation", "target_service_key", "_sql.invocations", "Invocations cannot be filtered."),
    ("sys_invocation", "created_at", "_sql.invocations", "Invocations are in no order."),
    ("sys_invocation", "retry_count", "AdminClient.invocation", "Nothing shows the attempts of an invocation."),
    ("sys_invocation", "last_failure", "AdminClient.invocation", "Nothing shows why an invocation is retried."),
    ("sys_journal", "id", "_sql.entries_of", "No journal can be read."),
    ("sys_journal", "index", "_sql.entries_of", "The entries of a journal are in no order."),
    ("sys_journal", "entry_type", "_journal", "No journal can be read."),
    ("sys_journal", "name", "_journal", "Steps have no names."),
    ("sys_journal", "entry_json", "_journal", "Steps have no results."),
    ("sys_journal", "raw", "_sql.messages_of", "Journals cannot be exported and replayed."),
    ("sys_journal", "version", "_sql.messages_of", "Journals cannot be exported and replayed."),
    ("sys_service", "name", "_sql.services_of", "The services of a deployment cannot be listed."),
    ("sys_service", "deployment_id", "_sql.services_of", "The services of a deployment cannot be listed."),
    ("sys_deployment", "id", "testing/_real_server/cleaning.py", "A test server keeps old deployments."),
    ("sys_promise", "key", "testing/_real_server/cleaning.py", "A test server keeps promises."),
    ("state", "service_name", "_sql.state_of", "State cannot be read."),
    ("state", "service_key", "_sql.state_of", "State cannot be read."),
    ("state", "key", "_sql.state_of", "State cannot be read."),
    ("state", "value", "_sql.state_of", "State cannot be read."),
]


@pytest.fixture(scope="module")
def routes(normal_server: RestateServer) -> dict[str, dict[str, Any]]:
    """The server's own description of its admin API."""
    answer = httpx.get(f"{normal_server.admin_url}/openapi", trust_env=False)
    return cast("dict[str, dict[str, Any]]", answer.raise_for_status().json()["paths"])


@pytest.fixture(scope="module")
def columns(normal_server: RestateServer) -> set[tuple[str, str]]:
    """The columns of all tables, each with its table."""
    rows = normal_server.admin.query("SELECT table_name, column_name FROM information_schema.columns")
    return {(row["table_name"], row["column_name"]) for row in rows}


def moved(server: RestateServer, what: str, used_in: str, without: str) -> str:
    version = server.admin.version()["version"]
    return f"moved: restate-server {version} has no {what}. Used in: {used_in}. Without it: {without}"


@pytest.mark.parametrize(("method", "path", "used_in", "without"), ROUTES, ids=[" ".join(each[:2]) for each in ROUTES])
def test_a_route_of_the_admin_api(
    normal_server: RestateServer,
    routes: dict[str, dict[str, Any]],
    method: str,
    path: str,
    used_in: str,
    without: str,
) -> None:
    assert method in routes.get(path, {}), moved(normal_server, f"{method.upper()} {path}", used_in, without)


@pytest.mark.parametrize(
    ("table", "column", "used_in", "without"), COLUMNS, ids=[".".join(each[:2]) for each in COLUMNS]
)
def test_a_column(
    normal_server: RestateServer, columns: set[tuple[str, str]], table: str, column: str, used_in: str, without: str
) -> None:
    assert (table, column) in columns, moved(normal_server, f"column {table}.{column}", used_in, without)


# --- how it behaves ---------------------------------------------------------------------------------------------

QUICKLY = restate.InvocationRetryPolicy(initial_interval=timedelta(milliseconds=10))
MUCH_LATER = restate.InvocationRetryPolicy(initial_interval=timedelta(minutes=10))

service = restate.Service("ServerSeam", invocation_retry_policy=QUICKLY)
later = restate.Service("ServerSeamLater", invocation_retry_policy=MUCH_LATER)
headers: dict[str, str] = {}
counts: list[int | None] = []


@durable_step
async def echo(value: str) -> str:
    return value


@durable_step
async def fail_twice() -> str:
    if len(counts) < 3:
        raise ValueError("busy")
    return "free"


@service.handler()
async def steps(ctx: restate.Context, value: str) -> str:
    headers.update(ctx.request().attempt_headers)
    return await echo(value)


@service.handler()
async def counted(ctx: restate.Context) -> str:
    invocation = current_invocation()
    assert invocation is not None
    counts.append(_sdk.retry_count(invocation.context))
    return await fail_twice()


@service.handler()
async def waiting(ctx: restate.Context) -> str:
    _, answer = ctx.awakeable(type_hint=str)
    return await answer


@service.handler()
async def pausing(ctx: restate.Context) -> None:
    invocation = current_invocation()
    assert invocation is not None
    error = DecodeError("int", "no number", where="the journaled result of step 'echo'")
    invocation.fail(error, pause=True)
    raise error


@later.handler()
async def failing(ctx: restate.Context) -> None:
    raise ValueError("busy")


@pytest.fixture(scope="module")
def env(replay_harness: Harness) -> Iterator[Env]:
    """The services, on the server that suspends at every wait."""
    with replay_harness.serve(restate_steps.app([service, later])) as served:
        yield served


def status(env: Env, invocation_id: str, expected: str, used_in: str, without: str) -> Any:
    """Wait until an invocation has a status, and return its row."""

    def row() -> Any:
        found = env.server.admin.invocation(invocation_id)
        return found if found["status"] == expected else None

    try:
        return eventually(row)
    except AssertionError:
        found = env.server.admin.invocation(invocation_id)["status"]
        raise AssertionError(moved(env.server, f"status {expected!r} here, but {found!r}", used_in, without)) from None


def test_an_attempt_names_its_protocol_and_its_invocation(env: Env) -> None:
    """The simulator speaks the protocols 6 and 7, and journals are recorded in the one that is named here."""
    env.call("ServerSeam", "steps", "a")

    spoken = headers["content-type"]
    assert spoken in [f"application/vnd.restate.invocation.v{number}" for number in (6, 7)], moved(
        env.server, f"protocol 6 or 7, but {spoken}", "the simulator", "It tests another protocol than the server's."
    )


def test_the_first_message_counts_the_retries(env: Env) -> None:
    counts.clear()
    env.call("ServerSeam", "counted")

    assert [0, 1, 2] == counts[:3], moved(
        env.server, "retry count in field 7 of its first message", "_sdk/_start.py", "Spans have no attempt number."
    )


def test_the_types_of_entries(env: Env) -> None:
    invocation = env.send("ServerSeam", "steps", "a")
    env.attach(invocation)

    found = [(entry.type, entry.value) for entry in env.server.admin.journal(invocation)]
    assert [
        ("Command: Input", "a"),
        ("Command: Run", "a"),
        ("Notification: Run", "a"),
        ("Command: Output", "a"),
    ] == found, moved(env.server, f"journal as before, but {found}", "_journal", "Journals are shown incompletely.")


def test_the_statuses_of_an_invocation(env: Env) -> None:
    """They are compared as texts."""
    suspended = env.send("ServerSeam", "waiting")
    status(env, suspended, "suspended", "testing/_real_server", "Nothing shows that a handler waits.")
    env.server.admin.kill(suspended)
    status(env, suspended, "completed", "_sql, testing/_real_server", "Nothing shows that an invocation has ended.")
    retried = env.send("ServerSeamLater", "failing")

    row = status(env, retried, "backing-off", "testing/_real_server", "Nothing shows that an attempt has failed.")
    assert "busy" in row["last_failure"]


def test_an_attempt_can_ask_to_be_paused(env: Env) -> None:
    """The request is field 9 of the error message."""
    paused = env.send("ServerSeam", "pausing")
    status(env, paused, "paused", "_sdk/_guard.py", "An error that only new code can fix is retried before it pauses.")
