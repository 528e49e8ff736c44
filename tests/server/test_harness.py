"""The harness of the other tests, on real servers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import restate

from tests.support.harness import Env, Harness, InvocationFailed, eventually

Serve = Callable[..., Env]


def greeter(name: str) -> restate.Service:
    service = restate.Service(name)

    @service.handler()
    async def greet(ctx: restate.Context, who: str) -> str:
        async def shout() -> str:
            return who.upper()

        return f"hello {await ctx.run_typed('shout', shout)}"

    @service.handler()
    async def nothing(ctx: restate.Context) -> None:
        return None

    @service.handler()
    async def fail(ctx: restate.Context, why: str) -> None:
        raise restate.TerminalError(why, status_code=418)

    @service.handler()
    async def sleep(ctx: restate.Context, seconds: float) -> str:
        await ctx.sleep(timedelta(seconds=seconds))
        return "slept"

    return service


def test_call_returns_the_decoded_answer(env_factory: Serve) -> None:
    """A call sends JSON and decodes JSON."""
    env = env_factory(greeter("HarnessCall"))

    assert env.call("HarnessCall", "greet", "world") == "hello WORLD"


def test_call_without_an_argument(env_factory: Serve) -> None:
    """A handler that takes and returns nothing can be called."""
    env = env_factory(greeter("HarnessNothing"))

    assert env.call("HarnessNothing", "nothing") is None


def test_call_raw_takes_and_returns_bytes(env_factory: Serve) -> None:
    """Bytes pass through unchanged."""
    env = env_factory(greeter("HarnessRaw"))

    assert env.call_raw("HarnessRaw", "greet", b'"bytes"') == b'"hello BYTES"'


def test_a_failed_call_has_status_message_and_body(env_factory: Serve) -> None:
    """A terminal error reaches the test with all its parts."""
    env = env_factory(greeter("HarnessFail"))

    with pytest.raises(InvocationFailed) as caught:
        env.call("HarnessFail", "fail", "teapot")

    assert (caught.value.status, caught.value.message) == (418, "teapot")
    assert caught.value.body["code"] == 418


def test_send_and_attach(env_factory: Serve) -> None:
    """An invocation can be started, and waited for later."""
    env = env_factory(greeter("HarnessSend"))

    invocation_id = env.send("HarnessSend", "sleep", 0.01)

    assert env.attach(invocation_id) == "slept"


def test_attach_gives_up_in_time(env_factory: Serve) -> None:
    """Waiting for an invocation has a limit."""
    env = env_factory(greeter("HarnessAttach"))
    invocation_id = env.send("HarnessAttach", "sleep", 1000)

    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        env.attach(invocation_id, timeout=0.1)


def test_an_idempotency_key_names_one_invocation(env_factory: Serve) -> None:
    """The same key gives the same invocation."""
    env = env_factory(greeter("HarnessKey"))

    first = env.send("HarnessKey", "greet", "a", idempotency_key="k")
    second = env.send("HarnessKey", "greet", "b", idempotency_key="k")

    assert first == second
    assert env.attach(second) == "hello A"


def test_a_key_may_hold_any_character(env_factory: Serve) -> None:
    """The key of a virtual object is escaped in the URL."""
    thing = restate.VirtualObject("HarnessObject")

    @thing.handler()
    async def name(ctx: restate.ObjectContext) -> str:
        return ctx.key()

    env = env_factory(thing)

    assert env.call("HarnessObject", "name", key="a/b c?%é") == "a/b c?%é"


def test_an_awakeable_is_resolved_from_outside(env_factory: Serve) -> None:
    """A handler that waits for an awakeable continues when the test resolves it."""
    service = restate.Service("HarnessAwakeable")
    ids: list[str] = []

    @service.handler()
    async def wait(ctx: restate.Context) -> dict[str, int]:
        name, future = ctx.awakeable(type_hint=dict[str, int])
        ids.append(name)
        value: dict[str, int] = await future
        return value

    env = env_factory(service)
    invocation_id = env.send("HarnessAwakeable", "wait")
    env.resolve_awakeable(eventually(lambda: ids)[0], {"n": 1})

    assert env.attach(invocation_id) == {"n": 1}


def test_open_invocations_are_killed_at_the_end(normal_harness: Harness) -> None:
    """Invocations that a test leaves running end together with its application."""
    with normal_harness.serve(restate.app([greeter("HarnessCleanup")])) as env:
        invocation_id = env.send("HarnessCleanup", "sleep", 1000)
        eventually(lambda: env.server.admin.journal(invocation_id)[1:])

    row = normal_harness.server.admin.invocation(invocation_id)
    assert (row["status"], row["completion_result"]) == ("completed", "failure")


def test_request_response_mode(env_factory: Serve) -> None:
    """An application can be served over HTTP/1.1."""
    env = env_factory(greeter("HarnessHttp1"), http1=True)

    assert env.call("HarnessHttp1", "greet", "one") == "hello ONE"
    assert env.call("HarnessHttp1", "sleep", 0.01) == "slept"


def test_always_replay_runs_a_handler_once_per_wait(replay_harness: Harness, normal_harness: Harness) -> None:
    """One of the two servers replays the handler at every wait, the other does not."""
    attempts: list[str] = []
    service = restate.Service("HarnessModes")

    @service.handler()
    async def naps(ctx: restate.Context, mode: str) -> None:
        attempts.append(mode)
        await ctx.sleep(timedelta(milliseconds=1))
        await ctx.sleep(timedelta(milliseconds=1))

    for mode, harness in (("normal", normal_harness), ("replay", replay_harness)):
        with harness.serve(restate.app([service])) as env:
            env.call("HarnessModes", "naps", mode)

    assert attempts == ["normal"] + ["replay"] * 3
