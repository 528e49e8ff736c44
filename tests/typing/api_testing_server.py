"""What the type checkers must make of a test's own server. Checked, never run."""

from __future__ import annotations

from typing import Any, assert_type

import restate
from restate.types import HarnessEnvironment

from restate_steps.server import JournalEntry, RestateServer
from restate_steps.testing import ServerEnvironment, close_servers, restate_server

greeter = restate.Service("Greeter")
app = restate.app([greeter])


@greeter.handler()
async def greet(ctx: restate.Context, name: str) -> str:
    return name


def written_for_the_sdk(env: HarnessEnvironment) -> restate.RestateClient:
    return env.client


async def in_a_test(codec: restate.JournalValueCodec) -> None:
    async with restate_server(app) as env:
        assert_type(env, ServerEnvironment)
        written_for_the_sdk(env)
        assert_type(await env.client.service_call(greet, "Ada"), str)
        assert_type(env.ingress_url, str)
        assert_type(env.admin_api_url, str)
        assert_type(env.app_url, str)
        assert_type(env.server, RestateServer)
        assert_type(await env.find_invocations("Greeter", "greet", key="k", status="running"), list[str])
        assert_type(await env.invocation("inv_1"), dict[str, Any])
        assert_type(await env.journal("inv_1"), list[JournalEntry])
        assert_type(await env.attach("inv_1", timeout=1), Any)
        await env.kill_app()
        await env.restart_app()
        await env.kill_server()
        await env.restart_server()
    async with (
        restate_server(app, True, None, True, True, codec, http1=True),
        restate_server("shop.main:app", always_replay=True),
    ):
        pass
    close_servers()
