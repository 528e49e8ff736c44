"""Plain asyncio and anyio handlers, as they are outside of Restate and on the real server.

That each survives every order, crash and cancellation is in ``tests/test_exploration.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from restate import TerminalError

from tests.loop import plain_handlers
from tests.support.exploration import Subject
from tests.support.harness import Env, Harness, InvocationFailed

AT_ONCE = 2


@pytest.fixture(scope="module", params=["normal", "always-replay"])
def env(request: pytest.FixtureRequest) -> Iterator[Env]:
    """All handlers, served to each of the two servers in turn; local work takes milliseconds, as it does for users."""
    name = {"normal": "normal_harness", "always-replay": "replay_harness"}[request.param]
    harness = request.getfixturevalue(name)
    assert isinstance(harness, Harness)
    plain_handlers.pace.milliseconds = 4.0
    try:
        with harness.serve(plain_handlers.APP.app) as env:
            yield env
    finally:
        plain_handlers.pace.milliseconds = 0.0


@pytest.mark.parametrize("name", plain_handlers.FUNCTIONS)
def test_outside_of_restate(name: str) -> None:
    """The code is right as plain asyncio, where steps are plain calls."""
    subject = plain_handlers.SCENARIOS[name]
    plain_handlers.begin(0)
    assert asyncio.run(_answer_or_status(name)) in [*(subject.answers or ()), *subject.failures]


async def _answer_or_status(name: str) -> object:
    try:
        return await plain_handlers.FUNCTIONS[name](None)
    except* TerminalError as errors:
        status = getattr(errors.exceptions[0], "status_code", None)
    return status


@pytest.mark.parametrize("subject", plain_handlers.SCENARIOS.values(), ids=lambda subject: subject.name)
def test_on_the_server(env: Env, subject: Subject) -> None:
    """Invocations at once come to a right answer each, without a retry."""
    service, handler = subject.handler.split("/")
    keys = [None if subject.key is None else f"{subject.key}{number}" for number in range(AT_ONCE)]
    invocations = [env.send(service, handler, key=key) for key in keys]
    for invocation in invocations:
        assert _ended(env, invocation) in [*(subject.answers or ()), *subject.failures]
    ids = ", ".join(f"'{invocation}'" for invocation in invocations)
    retried = env.server.admin.query(f"SELECT last_failure FROM sys_invocation WHERE id IN ({ids}) AND retry_count > 1")
    assert retried == []


def _ended(env: Env, invocation: str) -> object:
    """Return the answer, or the status of a failure; if there is neither, fail with what the server knows."""
    try:
        return env.attach(invocation, timeout=30)
    except InvocationFailed as error:
        return error.status
    except TimeoutError:
        row = env.server.admin.invocation(invocation)
        raise AssertionError(f"it did not end: {json.dumps(row, indent=1, default=str)}") from None
