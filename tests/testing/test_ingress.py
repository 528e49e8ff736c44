"""What the manifest says of a handler decides which calls a server takes, from a client and from a handler."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import restate

import restate_steps
from restate_steps.testing import SimulationError, simulate
from tests.support.harness import Env, Harness

plain = restate.Service("Plain")
hidden = restate.Service("Hidden", ingress_private=True)
box = restate.VirtualObject("Box")
flow = restate.Workflow("Flow")


@plain.handler()
async def nothing(ctx: restate.Context) -> str:
    return "took nothing"


@plain.handler()
async def something(ctx: restate.Context, what: str) -> str:
    return f"took {what}"


@plain.handler()
async def calls(ctx: restate.Context, how: str) -> Any:
    """Call another handler, as a client could not."""
    if how == "private":
        return await ctx.service_call(secret, None)
    if how == "body":
        return json.loads(await ctx.generic_call("Plain", "nothing", b'"unasked"'))
    assert how == "no key"
    return json.loads(await ctx.generic_call("Box", "key", b""))


@hidden.handler()
async def secret(ctx: restate.Context) -> str:
    return "told"


@box.handler()
async def key(ctx: restate.ObjectContext) -> str:
    ctx.set("seen", True)
    return f"key {ctx.key()!r}"


@flow.main()
async def run(ctx: restate.WorkflowContext) -> str:
    return "ran"


APP = restate_steps.app([plain, hidden, box, flow])

REFUSED = [
    ("Plain/nothing", {"arg": "unasked"}, "takes no argument"),
    ("Hidden/secret", {}, "not public"),
    ("Flow/run", {"key": "a", "idempotency_key": "once"}, "takes no idempotency key"),
]


@pytest.fixture(scope="module")
def env(normal_harness: Harness) -> Any:
    with normal_harness.serve(APP) as env:
        yield env


@pytest.mark.parametrize(("handler", "options", "reason"), REFUSED)
async def test_what_the_ingress_refuses(env: Env, handler: str, options: dict[str, Any], reason: str) -> None:
    """A server answers it with 400; here it is an error that says so."""
    service, name = handler.split("/")
    path = "/".join(part for part in (service, options.get("key"), name) if part)
    headers = {"idempotency-key": options["idempotency_key"]} if "idempotency_key" in options else {}
    given = {"json": options["arg"]} if "arg" in options else {}
    async with httpx.AsyncClient(base_url=env.server.ingress_url, trust_env=False) as client:
        answered = await client.post(path, headers=headers, **given)
    assert answered.status_code == 400

    async with simulate(APP) as sim:
        with pytest.raises(SimulationError, match=f"rejects this call of .* with 400: .*{reason}"):
            await sim.call(handler, **options)
        assert sim.invocations == []


@pytest.mark.parametrize(("how", "answer"), [("private", "told"), ("body", "took nothing"), ("no key", "key ''")])
async def test_what_only_handlers_may_call(env: Env, how: str, answer: str) -> None:
    """Calls of handlers do not go through the ingress."""
    assert env.call("Plain", "calls", how) == answer
    async with simulate(APP) as sim:
        assert (await sim.call(calls, how)).value == answer


async def test_a_call_without_a_key_reaches_the_object_with_an_empty_one() -> None:
    """Its state is that of this key."""
    async with simulate(APP) as sim:
        await sim.call(calls, "no key")
        assert sim.state("Box", "") == {"seen": True}
