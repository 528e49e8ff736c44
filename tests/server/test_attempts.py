"""Watching the attempts of an application on their connections."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import encode, make
from restate_steps.server._attempts import AttemptEnd, Scanner, watch_attempts
from restate_steps.testing import simulate

svc = restate.Service("Watched")


@restate_steps.durable_step
async def double(number: int) -> int:
    if number < 0:
        raise ValueError(f"no {number}")
    return 2 * number


@svc.handler()
async def works(ctx: restate.Context, number: int) -> int:
    await double(1)
    _, promise = ctx.awakeable()
    await promise
    return await double(number)


@svc.handler()
async def refuses(ctx: restate.Context) -> None:
    raise restate.TerminalError("no", 410)


async def test_each_attempt_ends_once() -> None:
    """A suspension, a retry, a success, and a failure."""
    ends: list[AttemptEnd] = []
    async with simulate(watch_attempts(restate_steps.app([svc]), ends.append), always_replay=True) as sim:
        invocation = await sim.send(works, -3)
        await sim.resolve_awakeable(await sim.awakeable(invocation))
        await sim.until(lambda: invocation.last_failure is not None)
        await invocation.kill()
        await sim.send(refuses)
        await sim.run_until_idle()

    assert {"suspended", "retried", "failed"} == {end.outcome for end in ends}
    first, *_, refused = ends
    failed = next(end for end in ends if end.outcome == "retried")
    assert (first.invocation, first.target, first.known_entries, first.steps) == (invocation.id, "Watched/works", 1, 1)
    assert (failed.message, failed.step, failed.steps) == ("ValueError('no -3')", "double", 2)
    assert 'raise ValueError(f"no {number}")' in failed.traceback
    assert (refused.outcome, refused.code, refused.message, refused.steps) == ("failed", 410, "no", 0)


async def test_a_failed_body_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK logs nothing about it, and the server has the stack trace."""
    async with simulate(restate_steps.app([svc]), disable_retries=True) as sim:
        invocation = await sim.send(works, -3)
        await sim.resolve_awakeable(await sim.awakeable(invocation))
        await sim.run_until_idle()

    [record] = [each for each in caplog.records if each.name == "restate_steps"]
    assert record.getMessage() == "the attempt failed, Restate will retry it: (500) ValueError('no -3') in run [double]"


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000, 10**9], ids=str)
async def test_messages_arrive_in_any_parts(size: int) -> None:
    """The borders of chunks are not those of messages."""
    sent = [
        make(MessageType.RUN, completion_id=1, name="a" * 50),
        make(MessageType.PROPOSE_RUN_COMPLETION, completion_id=1, value=b"x" * 500),
        make(MessageType.RUN, completion_id=2),
        make(MessageType.OUTPUT, failure={"code": 418, "message": "tea"}),
        make(MessageType.END),
    ]
    state = [{"key": b"k" * 300}]
    start = make(MessageType.START, debug_id="inv_1", known_entries=1, retry_count=4, state_map=state, key="alice")

    [end] = await watched(size, b"".join(map(encode, [start])), b"".join(map(encode, sent)))

    assert (end.invocation, end.target, end.attempt, end.steps) == ("inv_1", "Watched/alice/works", 5, 2)
    assert (end.outcome, end.code, end.message) == ("failed", 418, "tea")


def test_large_values_are_not_collected() -> None:
    """A result may have many megabytes."""
    data = encode(make(MessageType.OUTPUT, value={"content": b"x" * 8_000_000}))
    scanner = Scanner()
    tracemalloc.start()

    found = [frame for at in range(0, len(data), 16_384) for frame in scanner.feed(data[at : at + 16_384])]

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [MessageType.OUTPUT] == [frame.type for frame in found]
    assert peak < 1_000_000


async def watched(size: int, received: bytes, sent: bytes) -> list[AttemptEnd]:
    """Return the ends that are reported if an application receives and sends chunks of a size."""
    incoming = [received[at : at + size] for at in range(0, len(received), size)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for _ in range(len(incoming)):
            await receive()
        for at in range(0, len(sent), size):
            await send({"type": "http.response.body", "body": sent[at : at + size], "more_body": True})

    async def receive() -> Any:
        return {"type": "http.request", "body": incoming.pop(0)}

    async def send(event: Any) -> None:
        pass

    ends: list[AttemptEnd] = []
    await watch_attempts(app, ends.append)({"type": "http", "path": "/invoke/Watched/works"}, receive, send)
    return ends


@pytest.mark.parametrize("path", ["/discover", "/health"])
async def test_other_requests_pass(path: str) -> None:
    """They are no attempts."""
    ends: list[AttemptEnd] = []
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    await watch_attempts(app, ends.append)({"type": "http", "path": path}, None, None)

    assert (seen, ends) == ([path], [])
