"""Serving an application from a thread."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import restate

from restate_steps.errors import ServerError
from restate_steps.server import AppServer, RestateServer, _app, serve_app
from restate_steps.server._serving import listen
from tests.support.harness import Env, Harness, eventually

Serve = Callable[..., Env]


def test_a_stop_cuts_open_streams(env_factory: Serve) -> None:
    """A stop waits neither for a handler nor for the thread of a step."""
    service = restate.Service("AppHangs")
    began: list[str] = []
    release = threading.Event()

    @service.handler()
    async def waits(ctx: restate.Context) -> None:
        began.append("waits")
        await asyncio.Event().wait()

    @service.handler()
    async def works(ctx: restate.Context) -> None:
        def work() -> None:
            began.append("works")
            if not release.wait(60):
                began.append("gave up")

        await ctx.run_typed("work", work)

    env = env_factory(service)
    env.send("AppHangs", "waits")
    env.send("AppHangs", "works")
    eventually(lambda: {"waits", "works"} <= set(began))

    env.app_server.stop()

    assert ["waits", "works"] == sorted(began)
    release.set()


def test_a_restart_keeps_the_url_and_the_invocations(env_factory: Serve) -> None:
    """A handler that was cut off goes on when the application is served again, and repeats no step."""
    service = restate.Service("AppRestarts")
    ran: list[str] = []
    gate = threading.Event()

    @service.handler()
    async def steps(ctx: restate.Context) -> str:
        async def first() -> str:
            ran.append("first")
            return "1"

        async def second() -> str:
            await asyncio.to_thread(gate.wait, 60)
            ran.append("second")
            return "2"

        return await ctx.run_typed("first", first) + await ctx.run_typed("second", second)

    env = env_factory(service)
    sent = env.send("AppRestarts", "steps")
    eventually(lambda: any(entry.name == "second" for entry in env.server.admin.journal(sent)))
    url = env.app_server.url

    env.app_server.stop()
    gate.set()
    env.app_server.start()

    assert env.app_server.url == url
    assert env.attach(sent) == "12"
    assert ran == ["first", "second"]


def test_many_streams_are_open_at_once(normal_harness: Harness) -> None:
    """More than HTTP/2 servers allow by default."""
    service = restate.Service("AppMany")
    waiting: list[int] = []
    complete = asyncio.Event()

    @service.handler()
    async def waits(ctx: restate.Context, number: int) -> int:
        waiting.append(number)
        if len(waiting) == 150:
            complete.set()
        await complete.wait()
        return number

    with normal_harness.serve(restate.app([service])) as env:
        sent = [env.send("AppMany", "waits", number) for number in range(150)]

        assert list(range(150)) == [env.attach(invocation_id) for invocation_id in sent]


@pytest.mark.parametrize(("http1", "expected"), [(False, "2"), (True, "1.1")], ids=["HTTP/2", "HTTP/1.1"])
def test_the_protocol_is_the_one_that_was_asked_for(normal_server: RestateServer, http1: bool, expected: str) -> None:
    """Both discovery and calls use it."""
    seen: list[str] = []
    inner: Any = restate.app([restate.Service("AppProtocol")])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["http_version"])
        await inner(scope, receive, send)

    with serve_app(app, normal_server, http1=http1):
        pass

    assert set(seen) == {expected}


def test_an_application_over_http1_refuses_http2(normal_server: RestateServer) -> None:
    """The way out is in the message."""
    with (
        AppServer(restate.app([restate.Service("AppRefuses")]), http1=True) as served,
        pytest.raises(ServerError, match=r"HTTP/1\.1|http1"),
    ):
        normal_server.admin.register(served.url)


def test_messages_are_sent_at_once() -> None:
    """asyncio waits to fill a packet unless a connection names its protocol, and that costs 40 ms a round trip."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        connection, _ = listener.accept()
        with connection:
            assert connection.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_an_error() -> None:
    """It is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        with pytest.raises(ServerError, match=f"cannot serve on port {port} of 127.0.0.1: Address already in use"):
            AppServer(restate.app([]), port=port).start()


def test_an_application_that_fails_to_start_is_an_error() -> None:
    """Its own reason is shown."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database"})

    server = AppServer(app)
    with pytest.raises(ServerError, match=r"could not be served: .*no database"):
        server.start()
    server.stop()


def test_a_handler_that_blocks_the_loop_is_reported(monkeypatch: pytest.MonkeyPatch, env_factory: Serve) -> None:
    """A stop does not hang, and says what is wrong."""
    monkeypatch.setattr(_app, "_JOIN_WITHIN", 0.2)
    service = restate.Service("AppBlocks")
    began, release = threading.Event(), threading.Event()

    @service.handler()
    async def blocks(ctx: restate.Context) -> None:
        began.set()
        release.wait(60)

    env = env_factory(service)
    env.send("AppBlocks", "blocks")
    began.wait(60)

    with pytest.raises(ServerError, match="a handler blocks its event loop"):
        env.app_server.stop()
    release.set()


def test_misuse_is_refused() -> None:
    """Starting twice, and asking for a URL that is not known yet."""
    server = AppServer(restate.app([]))
    with pytest.raises(ServerError, match="no URL yet"):
        _ = server.url
    with server, pytest.raises(ServerError, match="already being served at http"):
        server.start()
    server.stop()


def test_without_hypercorn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One command mends it."""
    monkeypatch.setitem(sys.modules, "hypercorn.asyncio", None)

    with pytest.raises(ServerError, match=r"pip install 'restate-steps\[server\]'"):
        AppServer(restate.app([])).start()


def test_without_httpx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, normal_server: RestateServer) -> None:
    """For the admin API too."""
    monkeypatch.setitem(sys.modules, "httpx", None)

    with pytest.raises(ServerError, match=r"'httpx' is not installed.*pip install 'restate-steps\[server\]'"):
        normal_server.admin.query("SELECT 1")
