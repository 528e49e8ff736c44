"""The kit finds the faults of public programs, and raises no false alarm.

G1. Each shape is explored with two crashes, without and with cancellations, and checked for determinism.
G2. The table in ``docs/testing.md`` says what was found.
G3. A real server agrees: it gives the same answers, and fails or waits where the kit says so.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
from typing import Any

import pytest

from restate_steps.testing import (
    InvocationPausedError,
    StuckError,
    check_deterministic,
    explore,
    on_both,
    restate_server,
)
from tests.support import ROOT
from tests.testing.public_shapes.shape import SHAPES, Shape, table

MODULES = ("sdk_examples", "sdk_test_services", "basics", "patterns", "tours", "applications", "agents")

for module in MODULES:
    importlib.import_module(f"{__package__}.public_shapes.{module}")

RAISED: dict[str, type[Exception]] = {
    "stuck": StuckError,
    "paused": InvocationPausedError,
    "assertion": AssertionError,
}
"""Exceptions that a scenario with such a problem raises even without a crash."""

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def shapes_with(problem: str | None) -> list[Shape]:
    return [shape for shape in SHAPES if shape.problem == problem and shape.on_server]


# --- the kit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel", [False, True], ids=["calm", "cancelled"])
@every_shape
def test_what_explore_finds(shape: Shape, cancel: bool) -> None:
    """Exactly what the table says, or nothing (G1)."""
    report = explore(
        shape.app,
        scenario=shape.scenario,
        before_each=shape.setup,
        check=shape.check,
        crashes=2,
        cancel=cancel,
        max_runs=shape.runs,
        progress=False,
    )

    found = [finding.problem for finding in report.findings]
    expected = shape.problem_when_cancelled if cancel else shape.problem
    assert found == ([] if expected is None else [expected]), str(report)
    assert shape.unread == tuple(sorted(report.unread_failures)) or cancel or expected is not None


@every_shape
def test_what_check_deterministic_finds(shape: Shape) -> None:
    """The kinds that the table names; what does not end cannot be compared (G1)."""
    shape.setup()
    if (raised := RAISED.get(shape.problem or "")) is not None:
        with pytest.raises(raised):
            check_deterministic(app=shape.app, scenario=shape.scenario, interpreters=0)
        return

    report = check_deterministic(app=shape.app, scenario=shape.scenario, interpreters=0)

    assert shape.kinds == tuple(finding.kind for finding in report.findings), str(report)


def test_the_table_says_what_was_found() -> None:
    """Row by row (G2)."""
    page = (ROOT / "docs" / "testing.md").read_text()
    _, _, rest = page.partition("| public program | shape | what the kit found |\n|---|---|---|\n")

    assert table() == rest.partition("\n\n")[0].splitlines()


# --- a real server -------------------------------------------------------------------------------------------------


class Cut:
    """An application whose first attempt of each invocation ends after some messages, as in a crash."""

    def __init__(self, app: Any, after: int) -> None:
        self._app, self._after = app, after
        self._seen: set[bytes] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        invocation = dict(scope.get("headers", ())).get(b"x-restate-invocation-id")
        if invocation is None or invocation in self._seen:
            await self._app(scope, receive, send)
            return
        self._seen.add(invocation)
        left, is_cut = self._after, False

        async def send_some(message: Any) -> None:
            nonlocal left, is_cut
            whole, at = message.get("body", b""), 0
            while at < len(whole) and left:
                at += 8 + int.from_bytes(whole[at + 4 : at + 8])
                left -= 1
            if at < len(whole) and not is_cut:
                is_cut = True
                await send({**message, "body": whole[:at], "more_body": False})
            elif not is_cut:
                await send(message)

        async def receive_until_cut() -> Any:
            return {"type": "http.disconnect"} if is_cut else await receive()

        await self._app(scope, receive_until_cut, send_some)


async def failures(world: Any) -> str:
    """Return what the invocations last failed with."""
    rows = [await world.invocation(each) for each in await world.find_invocations()]
    return "\n".join(str(row["last_failure"]) for row in rows if row.get("last_failure"))


async def fails_on_server(shape: Shape, app: Any, expected: str, *, http1: bool = False) -> bool:
    """Return whether an invocation fails as expected before the client has its answer."""
    shape.setup()
    async with restate_server(app, http1=http1) as world:
        client = asyncio.ensure_future(shape.scenario(world))
        try:
            while not client.done():
                if expected in await failures(world):
                    return True
                await asyncio.wait([client], timeout=0.02)
            return False
        finally:
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)


@pytest.mark.parametrize("shape", shapes_with(None), ids=str)
async def test_the_server_gives_the_same_answer(shape: Shape) -> None:
    """No shape that the kit finds right fails there (G3)."""
    outcomes = await on_both(shape.app, shape.scenario, before_each=shape.setup)

    outcomes.assert_same()


@pytest.mark.parametrize("shape", shapes_with("mismatch"), ids=str)
async def test_the_server_finds_the_mismatch(shape: Shape) -> None:
    """Some crash leads to 570 there as well (G3).

    Over HTTP/1.1 each attempt has a connection of its own, so that a cut ends no other; but each step suspends.
    """
    for http1, after in itertools.product((True, False), (5, 4, 3, 2)):
        if await fails_on_server(shape, Cut(shape.app, after), "570 Journal mismatch", http1=http1):
            return
    pytest.fail("no crash leads to a mismatch on the server")


@pytest.mark.parametrize("shape", shapes_with("paused"), ids=str)
async def test_the_server_retries_in_vain(shape: Shape) -> None:
    """With the error that the kit names (G3)."""
    shape.setup()
    [finding] = explore(shape.app, scenario=shape.scenario, crashes=0, progress=False).findings
    error = finding.why.rpartition("failed with 500: ")[2].splitlines()[0]

    assert await fails_on_server(shape, shape.app, error)


@pytest.mark.parametrize("shape", shapes_with("stuck"), ids=str)
async def test_the_server_waits_as_well(shape: Shape) -> None:
    """No invocation runs: each is suspended, or waits for its turn (G3)."""
    async with restate_server(shape.app, always_replay=True) as world:
        client = asyncio.ensure_future(shape.scenario(world))
        try:
            found: set[str] = set()
            while "suspended" not in found or not found <= {"suspended", "pending", "completed"}:
                assert not client.done()
                await asyncio.sleep(0.02)
                found = {(await world.invocation(each))["status"] for each in await world.find_invocations()}
        finally:
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)
