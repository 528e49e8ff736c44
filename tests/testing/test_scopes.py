"""Scopes and limit keys in the simulator, and on a server that has them enabled.

A server has them only in version 7 of the protocol, and with features that only new clusters can enable.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps.testing import InvocationPausedError, explore, simulate
from tests.support.harness import Env, Harness, eventually

service = restate.Service("Scopes")
counter = restate.VirtualObject("ScopedCounter")
flow = restate.Workflow("ScopedFlow")


@service.handler()
async def look(ctx: restate.Context) -> list[str | None]:
    return [ctx.request().scope, ctx.request().limit_key]


@counter.handler()
async def add(ctx: restate.ObjectContext) -> list[Any]:
    total = (await ctx.get("total", type_hint=int) or 0) + 1
    ctx.set("total", total)
    request = ctx.request()
    return [request.scope, request.limit_key, request.idempotency_key, total]


@flow.main()
async def wait_for_word(ctx: restate.WorkflowContext) -> list[str | None]:
    return [ctx.request().scope, await ctx.promise("word", type_hint=str).value()]


@flow.handler()
async def tell(ctx: restate.WorkflowSharedContext, word: str) -> None:
    await ctx.promise("word", type_hint=str).resolve(word)


@service.handler()
async def keys(ctx: restate.Context) -> list[Any]:
    return [
        await ctx.object_call(add, "a", None),
        await ctx.scope("tenant").object_call(add, "a", None, limit_key="one"),
        await ctx.scope("tenant").object_call(add, "a", None, limit_key="two/three", idempotency_key="once"),
        await ctx.scope("tenant").object_call(add, "a", None, limit_key="four/"),
        await ctx.scope("other").object_call(add, "a", None),
    ]


@service.handler()
async def idempotency(ctx: restate.Context) -> list[Any]:
    return [
        await ctx.service_call(look, None, idempotency_key="once"),
        await ctx.scope("tenant").service_call(look, None, limit_key="one", idempotency_key="once"),
        await ctx.scope("tenant").service_call(look, None, limit_key="two", idempotency_key="once"),
        await ctx.scope("other").service_call(look, None, limit_key="three", idempotency_key="once"),
    ]


@service.handler()
async def promises(ctx: restate.Context) -> list[Any]:
    scopes: list[Any] = [ctx, ctx.scope("tenant"), ctx.scope("other")]
    runs = [scope.workflow_call(wait_for_word, "a", None) for scope in scopes]
    # Twice "tenant" would fail if scopes shared their promises.
    for word, scope in zip(("none", "for tenant", "for other"), scopes, strict=True):
        await scope.workflow_call(tell, "a", word)
    return [await run for run in runs]


@service.handler()
async def calls(ctx: restate.Context, how: dict[str, Any]) -> Any:
    return json.loads(await ctx.generic_call("Scopes", "look", b"", **how))


@service.handler()
async def sends(ctx: restate.Context, how: dict[str, Any]) -> None:
    await ctx.generic_send("Scopes", "look", b"", **how).invocation_id()


@service.handler()
async def first_of_two(ctx: restate.Context) -> list[str | None]:
    scope = ctx.scope("tenant")
    runs = [scope.service_call(look, None, limit_key=key) for key in ("one", "two")]
    await restate.wait_completed(*runs)
    await ctx.sleep(timedelta(milliseconds=1))
    return [(await run)[1] for run in runs]


APP = restate_steps.app([service, counter, flow])

ANSWERS = {
    "keys": [
        [None, None, None, 1],
        ["tenant", "one", None, 1],
        ["tenant", "two/three", "once", 2],
        ["tenant", "four", None, 3],
        ["other", None, None, 1],
    ],
    "idempotency": [
        [None, None],
        ["tenant", "one"],
        ["tenant", "one"],
        ["other", "three"],
    ],
    "promises": [[None, "none"], ["tenant", "for tenant"], ["other", "for other"]],
}

LONG = "x" * 37
REFUSED = [
    ({"limit_key": "one"}, "limit key was provided without a scope. Limit keys take effect only when used in "),
    ({"scope": "a b"}, "the provided scope 'a b' is invalid: value contains characters outside the allowed set"),
    ({"scope": LONG}, f"the provided scope '{LONG}' is invalid: value too long: 37 bytes (max 36)"),
    ({"scope": "é", "limit_key": "/"}, "the provided scope 'é' is invalid: value contains characters outside"),
    ({"scope": "t", "limit_key": "a/b/c"}, "the provided limit key 'a/b/c' is invalid: too many path components in "),
    (
        {"scope": "t", "limit_key": "a b"},
        "the provided limit key 'a b' is invalid: invalid limit-key component: value ",
    ),
    ({"scope": "t", "limit_key": "/a"}, "the provided limit key '/a' is invalid: invalid limit-key component: "),
    ({"scope": "t", "limit_key": f"a/{LONG}"}, f"the provided limit key 'a/{LONG}' is invalid: invalid limit-key "),
]


@pytest.fixture(scope="module")
def env() -> Generator[Env, None, None]:
    """Serve the application to a server with everything that scopes need."""
    features = ("PROTOCOL_V7", "VQUEUES", "SCOPED_VIRTUAL_OBJECTS")
    env = {f"RESTATE_EXPERIMENTAL_ENABLE_{name}": "true" for name in features}
    with Harness(env=env) as harness, harness.serve(APP) as served:
        yield served


@pytest.mark.parametrize("handler", ANSWERS)
async def test_scopes_separate_and_limit_keys_do_not(env: Env, handler: str) -> None:
    """Each scope has its own keys, idempotency keys and promises; a limit key is only passed on."""
    assert env.call("Scopes", handler) == ANSWERS[handler]
    async with simulate(APP, version=7) as sim:
        assert (await sim.call(f"Scopes/{handler}")).value == ANSWERS[handler]


@pytest.mark.parametrize(("how", "reason"), REFUSED)
async def test_what_the_server_refuses(env: Env, how: dict[str, str], reason: str) -> None:
    """The server retries forever; the simulator stops at once, with the server's words and a remedy."""
    sent = env.send("Scopes", "calls", how)
    [failure] = eventually(
        lambda: [
            row["last_failure"]
            for row in env.server.admin.query(f"SELECT last_failure FROM sys_invocation_state WHERE id = '{sent}'")
            if row.get("last_failure")
        ]
    )
    assert reason in failure

    for handler in ("calls", "sends"):
        async with simulate(APP, version=7) as sim:
            with pytest.raises(InvocationPausedError, match=r"(Use 1 to 36 characters|Pass scope=)") as raised:
                await sim.call(f"Scopes/{handler}", how)
            assert reason in raised.value.reason
            assert (1, 1) == (len(sim.invocations), sim.invocations[0].attempts)


@pytest.mark.parametrize("how", [{"scope": "tenant"}, {"limit_key": "one"}])
async def test_an_older_protocol_has_none_of_them(how: dict[str, str]) -> None:
    """The SDK refuses them with 573, which no retry changes: the error says what to enable."""
    async with simulate(APP) as sim:
        with pytest.raises(InvocationPausedError, match=r"is not supported .* explore with version=7") as raised:
            await sim.call("Scopes/calls", how)
        assert (573, 1) == (raised.value.code, sim.invocations[0].attempts)
    report = explore(APP, "Scopes/calls", how)
    assert ["paused"] == [finding.problem for finding in report.findings]
    assert "version=7" in str(report)


def test_handlers_with_scopes_are_explored() -> None:
    report = explore(APP, first_of_two, version=7, crashes=1)

    assert report.complete
    report.assert_replay_safe()
    assert [["one", "two"]] == [outcome.value for outcome, _ in report.outcomes]
