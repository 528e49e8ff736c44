"""A test's own server: `restate_steps.testing.restate_server`."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import restate
from restate.types import HarnessEnvironment

from restate_steps import durable_step, gather
from restate_steps.errors import ServerError
from restate_steps.server import AdminClient, AppServer, JournalEntry
from restate_steps.testing import InvocationEndedError, ServerEnvironment, close_servers, restate_server
from restate_steps.testing._real_server import cleaning, pool
from tests.support import ROOT
from tests.support.harness import eventually

# An application that is killed leaves its connections to the garbage collector, which tells whichever test runs then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PROCESS_APP = "tests.support.process_app:app"

both_modes = pytest.mark.parametrize("always_replay", [False, True], ids=["normal", "always-replay"])


async def seen(look: Callable[[], Awaitable[Any]], *, within: float = 30.0) -> Any:
    """Look again and again until what is seen is true in a boolean sense, and return it."""
    deadline = time.monotonic() + within
    while not (found := await look()):
        assert time.monotonic() < deadline, f"it did not happen within {within:g} s"
        await asyncio.sleep(0.01)
    return found


class _Half:
    """Passes queries on to a server, and leaves all other requests without an answer."""

    def __init__(self, admin_url: str) -> None:
        self.unanswered: list[str] = []
        self._over = threading.Event()
        half = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {"accept": "application/json", "content-type": "application/json"}
                answer = httpx.post(admin_url + self.path, content=body, headers=headers, trust_env=False)
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

            def do_PATCH(self) -> None:
                half.unanswered.append(self.path)
                half._over.wait()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> _Half:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# A service as the SDK's documentation has it, with nothing of this package.
greeter = restate.Service("Greeter")


@greeter.handler()
async def greet(ctx: restate.Context, name: str) -> str:
    async def shout() -> str:
        return name.upper()

    shouted = await ctx.run_typed("shout", shout)
    await ctx.sleep(timedelta(milliseconds=1))
    return f"hello {shouted}"


@greeter.handler()
async def fail(ctx: restate.Context, why: str) -> None:
    raise restate.TerminalError(why, status_code=418)


@greeter.handler()
async def hang(ctx: restate.Context) -> None:
    _, never = ctx.awakeable()
    await never


greeter_app = restate.app([greeter])


@durable_step
async def square(number: int) -> int:
    return number * number


steps = restate.Service("Steps")


@steps.handler()
async def squares(ctx: restate.Context, upto: int) -> list[int]:
    return list(await gather(*(square(number) for number in range(upto))))


@dataclass
class Interrupted:
    """A service whose second step waits until the test lets it go on."""

    service: restate.Service
    run: Any
    ran: list[str]
    go: threading.Event

    @classmethod
    def make(cls) -> Interrupted:
        service = restate.Service("Interrupted")
        ran: list[str] = []
        go = threading.Event()

        @service.handler()
        async def run(ctx: restate.Context) -> str:
            def first() -> str:
                ran.append("first")
                return "1"

            def second() -> str:
                ran.append("second")
                go.wait(30)
                return "2"

            return await ctx.run_typed("first", first) + await ctx.run_typed("second", second)

        return cls(service, run, ran, go)


def pid_of(env: ServerEnvironment) -> int:
    return env.server.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestLikeTheHarnessOfTheSdk:
    """A test for `restate.create_test_harness` changes its import, and nothing else."""

    def test_the_arguments_are_the_same(self) -> None:
        """Names, order and defaults, but for the image, which there is not."""
        theirs = inspect.signature(restate.create_test_harness).parameters
        ours = inspect.signature(restate_server).parameters

        assert list(theirs) == list(ours)[: len(theirs)]
        assert {name: p.default for name, p in theirs.items() if name != "restate_image"} == {
            name: ours[name].default for name in theirs if name != "restate_image"
        }

    @both_modes
    async def test_a_plain_service_answers(self, always_replay: bool) -> None:
        """Without a step of this package, and through the environment the SDK knows."""
        async with restate_server(greeter_app, always_replay=always_replay) as env:
            as_the_sdk_has_it: HarnessEnvironment = env

            assert "hello ADA" == await as_the_sdk_has_it.client.service_call(greet, "Ada")
            assert env.server.ingress_url == as_the_sdk_has_it.ingress_url
            assert env.server.admin_url == as_the_sdk_has_it.admin_api_url

    @both_modes
    async def test_steps_answer(self, always_replay: bool) -> None:
        """Durable steps and branches run as they do in production."""
        async with restate_server(restate.app([steps]), always_replay=always_replay) as env:
            assert [0, 1, 4, 9] == await env.client.service_call(squares, 4)

    async def test_a_failure_is_the_error_of_the_sdk(self) -> None:
        """A terminal error reaches the test as the SDK's client raises it."""
        async with restate_server(greeter_app) as env:
            with pytest.raises(restate.HttpError) as caught:
                await env.client.service_call(fail, "teapot")

        assert 418 == caught.value.status_code

    async def test_the_image_is_refused(self) -> None:
        """It says what to do instead."""
        with pytest.raises(TypeError, match=r"without a container.*RESTATE_SERVER"):
            restate_server(greeter_app, restate_image="docker.io/restatedev/restate:1.5")  # type: ignore[arg-type]

    @pytest.mark.parametrize("wrong", [greeter, [greeter], None])
    async def test_what_is_no_application_is_refused(self, wrong: Any) -> None:
        """A service is no application yet."""
        with pytest.raises(TypeError, match=r"restate_steps\.app"):
            restate_server(wrong)

    @pytest.mark.parametrize("wrong", ["main", "main:", ":app", ""])
    async def test_a_string_that_names_no_application_is_refused(self, wrong: str) -> None:
        """Before any process is started."""
        with pytest.raises(TypeError, match="module:app"):
            restate_server(wrong)


class TestModes:
    """The switches reach the server."""

    @pytest.mark.parametrize(("always_replay", "attempts"), [(False, 1), (True, 3)])
    async def test_always_replay(self, always_replay: bool, attempts: int) -> None:
        """A handler with a step and a sleep begins once, or anew after each of them."""
        service = restate.Service("Begins")
        begun: list[None] = []

        @service.handler()
        async def twice(ctx: restate.Context) -> None:
            begun.append(None)
            await ctx.sleep(timedelta(milliseconds=1))
            await ctx.sleep(timedelta(milliseconds=1))

        async with restate_server(restate.app([service]), always_replay=always_replay) as env:
            await env.client.service_call(twice, None)

        assert attempts == len(begun)

    @pytest.mark.parametrize("disable_retries", [False, True])
    async def test_disable_retries(self, disable_retries: bool) -> None:
        """The first failure ends the invocation, or is tried again."""
        service = restate.Service("FailsOnce")
        failures = [ValueError("not yet")]

        @service.handler()
        async def once(ctx: restate.Context) -> str:
            if failures:
                raise failures.pop()
            return "done"

        async with restate_server(restate.app([service]), disable_retries=disable_retries) as env:
            if disable_retries:
                with pytest.raises(restate.HttpError):
                    await env.client.service_call(once, None)
            else:
                assert "done" == await env.client.service_call(once, None)

    @both_modes
    async def test_http1(self, always_replay: bool) -> None:
        """Over HTTP/1.1, an application works in request/response mode."""
        async with restate_server(greeter_app, always_replay=always_replay, http1=True) as env:
            assert "hello ADA" == await env.client.service_call(greet, "Ada")

    async def test_follow_logs(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What the server logs while the block is open is printed."""
        async with restate_server(greeter_app, follow_logs=True) as env:
            await env.restart_server()

        assert "restate_server" in capsys.readouterr().out

    async def test_logs_are_not_followed_otherwise(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A test is silent by itself."""
        async with restate_server(greeter_app) as env:
            await env.restart_server()

        assert "" == capsys.readouterr().out


class TestReuse:
    """Invariants 1 and 2: a server for each open block, handed on only when it is empty."""

    @both_modes
    async def test_the_next_block_finds_the_server_ready(self, always_replay: bool) -> None:
        """It is the same process."""
        async with restate_server(greeter_app, always_replay=always_replay) as env:
            first = pid_of(env)
        async with restate_server(restate.app([steps]), always_replay=always_replay) as env:
            assert first == pid_of(env)

    async def test_an_unused_server_is_emptied_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A block that called nothing leaves its deployment: one round removes it, the next sees that it is gone."""
        queries: list[str] = []
        query = AdminClient.query

        def counted(admin: AdminClient, sql: str) -> Any:
            queries.append(sql)
            return query(admin, sql)

        monkeypatch.setattr(AdminClient, "query", counted)
        rounds: list[int] = []
        for _ in range(3):
            async with restate_server(greeter_app):
                queries.clear()
            rounds.append(sum("sys_deployment" in sql for sql in queries))

        assert 2 == min(rounds)

    async def test_only_some_servers_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many blocks at once leave no more servers behind than are likely to be used again."""
        monkeypatch.setattr(pool, "_IDLE_AT_MOST", 1)
        close_servers()
        async with restate_server(greeter_app) as outer, restate_server(greeter_app) as inner:
            kept, stopped = pid_of(inner), pid_of(outer)

        assert [True, False] == [alive(kept), alive(stopped)]

    async def test_a_server_with_other_settings_is_another(self) -> None:
        """One for each combination that is used."""
        pids = set[int]()
        for always_replay in (False, True):
            for disable_retries in (False, True):
                async with restate_server(
                    greeter_app, always_replay=always_replay, disable_retries=disable_retries
                ) as env:
                    pids.add(pid_of(env))

        assert 4 == len(pids)

    async def test_what_is_left_is_killed(self) -> None:
        """Running, queued and scheduled invocations end with the block, and its handlers with them."""
        service = restate.VirtualObject("Left")
        ended = threading.Event()

        @service.handler()
        async def wait(ctx: restate.ObjectContext) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with restate_server(restate.app([service])) as env:
            first = pid_of(env)
            await env.client.object_send(wait, "key", None)
            await env.client.object_send(wait, "key", None)
            await asyncio.to_thread(httpx.post, f"{env.ingress_url}/Left/key/wait/send?delay=1h", trust_env=False)
            await seen(lambda: env.find_invocations("Left", status="running"))
        assert ended.is_set()

        async with restate_server(restate.app([service])) as env:
            assert first == pid_of(env)
            assert [] == await env.find_invocations()

    async def test_a_server_that_stops_answering_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The time limit is for all requests together, not for each of them."""
        monkeypatch.setattr(cleaning, "_WITHIN", 0.5)
        service = restate.Service("Answered")

        @service.handler()
        async def answer(ctx: restate.Context) -> None: ...

        async with restate_server(restate.app([service])) as env:
            for _ in range(4):
                await env.client.service_call(answer, None)
            with _Half(env.admin_api_url) as half:
                emptied = await asyncio.to_thread(cleaning.emptied, AdminClient(half.url))

        assert not emptied
        assert len(half.unanswered) <= 1

    @both_modes
    async def test_nothing_is_remembered(self, always_replay: bool) -> None:
        """State, workflows, idempotency keys and services begin anew with each block."""
        counter = restate.VirtualObject("Counter")
        ran: list[str] = []

        @counter.handler()
        async def add(ctx: restate.ObjectContext) -> int:
            number = (await ctx.get("number", type_hint=int) or 0) + 1
            ctx.set("number", number)
            return number

        workflow = restate.Workflow("Once")

        @workflow.main()
        async def run(ctx: restate.WorkflowContext) -> str:
            await ctx.promise("made", type_hint=str).resolve("promise")
            ctx.set("made", "state")
            return "made"

        service = restate.Service("Idempotent")

        @service.handler()
        async def once(ctx: restate.Context) -> None:
            ran.append("once")

        pids = set[int]()
        for round_ in (1, 2):
            async with restate_server(restate.app([counter, workflow, service]), always_replay=always_replay) as env:
                pids.add(pid_of(env))
                assert 1 == await env.client.object_call(add, "key with ü", None)
                assert 2 == await env.client.object_call(add, "key with ü", None)
                assert "made" == await env.client.workflow_call(run, "only", None)
                await env.client.service_call(once, None, idempotency_key="same")
                await env.client.service_call(once, None, idempotency_key="same")
                assert round_ == len(ran)
                assert ("Counter", "Idempotent", "Once") == env.services
                assert 1 == len(env.server.admin.query("SELECT id FROM sys_deployment"))

        assert 1 == len(pids)

    async def test_a_service_may_become_an_object(self) -> None:
        """A name that an earlier block used says nothing about this one."""
        service, keyed = restate.Service("Changes"), restate.VirtualObject("Changes")

        @service.handler()
        async def run(ctx: restate.Context) -> str:
            return "service"

        @keyed.handler(name="run")
        async def run_keyed(ctx: restate.ObjectContext) -> str:
            return ctx.key()

        async with restate_server(restate.app([service])) as env:
            assert "service" == await env.client.service_call(run, None)
        async with restate_server(restate.app([keyed])) as env:
            assert "object" == await env.client.object_call(run_keyed, "object", None)

    @both_modes
    async def test_blocks_that_are_open_together_do_not_mix(self, always_replay: bool) -> None:
        """The same names, and a crash of one server: each block sees its own only."""

        def numbered(number: int) -> tuple[restate.Service, Any]:
            service = restate.Service("SameName")

            @service.handler()
            async def which(ctx: restate.Context) -> int:
                return number

            return service, which

        (one, which_one), (two, which_two) = numbered(1), numbered(2)
        async with (
            restate_server(restate.app([one]), always_replay=always_replay) as first,
            restate_server(restate.app([two]), always_replay=always_replay) as second,
        ):
            assert [1, 2] == [
                await first.client.service_call(which_one, None),
                await second.client.service_call(which_two, None),
            ]
            await second.kill_server()
            assert 1 == await first.client.service_call(which_one, None)

    async def test_blocks_can_be_opened_at_once(self) -> None:
        """Tasks need not wait for each other's servers."""

        async def one(name: str) -> tuple[str, int]:
            async with restate_server(greeter_app) as env:
                entered.append(name)
                if len(entered) == 3:
                    all_in.set()
                await all_in.wait()
                return await env.client.service_call(greet, name), pid_of(env)

        entered: list[str] = []
        all_in = asyncio.Event()
        answers = await asyncio.gather(one("a"), one("b"), one("c"))

        assert ["hello A", "hello B", "hello C"] == [answer for answer, _ in answers]
        assert 3 == len({pid for _, pid in answers})

    async def test_a_block_that_fails_is_tidied_as_well(self) -> None:
        """The failure of a test is its own affair."""
        pids: list[int] = []

        async def fails() -> None:
            async with restate_server(greeter_app) as env:
                pids.append(pid_of(env))
                await env.client.service_send(hang, None)
                raise AssertionError("wrong answer")

        with pytest.raises(AssertionError, match="wrong answer"):
            await fails()

        async with restate_server(greeter_app) as env:
            assert pids == [pid_of(env)]
            assert [] == await env.find_invocations()

    async def test_deployments_of_the_test_itself_are_forgotten(self) -> None:
        """A test may register more than its application."""
        async with restate_server(greeter_app) as env:
            first = pid_of(env)
            with AppServer(restate.app([steps])) as more:
                await asyncio.to_thread(env.server.admin.register, more.url)
                assert [0, 1] == await env.client.service_call(squares, 2)
        async with restate_server(greeter_app) as env:
            assert first == pid_of(env)
            with pytest.raises(restate.HttpError, match="404"):
                await env.client.service_call(squares, 2)

    async def test_after_its_block_an_environment_reaches_nothing(self) -> None:
        """The server may be that of another block by then."""
        async with restate_server(greeter_app) as env:
            pass

        for use in (env.kill_server, env.restart_server, env.restart_app, env.find_invocations):
            with pytest.raises(ServerError, match="has ended"):
                await use()
        await env.kill_app()

    async def test_a_server_with_too_much_on_it_is_not_reused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where another server is sooner there than this one is empty, another is taken."""
        monkeypatch.setattr(cleaning, "_AT_MOST", 2)
        async with restate_server(greeter_app) as env:
            full = pid_of(env)
            for name in "abc":
                await env.client.service_call(greet, name)

        assert not alive(full)
        async with restate_server(greeter_app) as env:
            assert [] == await env.find_invocations()

    async def test_a_server_that_was_killed_is_not_reused(self) -> None:
        """The next block starts another, whether it died in a block or while it was idle."""
        async with restate_server(greeter_app) as env:
            await env.kill_server()
        async with restate_server(greeter_app) as env:
            idle, process = pid_of(env), env.server
        os.kill(idle, 9)
        eventually(lambda: not process.running)

        async with restate_server(greeter_app) as env:
            assert idle != pid_of(env)
            assert "hello ADA" == await env.client.service_call(greet, "Ada")


class TestKillTheApp:
    """A crash of the service's process."""

    @both_modes
    async def test_in_a_thread(self, always_replay: bool) -> None:
        """Connections are cut; served again at the same URL, the handler goes on and repeats no finished step."""
        case = Interrupted.make()
        async with restate_server(restate.app([case.service]), always_replay=always_replay) as env:
            url = env.app_url
            sent = await env.client.service_send(case.run, None)
            await seen(lambda: asyncio.sleep(0, "second" in case.ran))

            await env.kill_app()
            case.go.set()
            status = await seen(lambda: env.find_invocations(status="backing-off"))
            await env.restart_app()

            assert [sent.invocation_id] == status
            assert "12" == await env.attach(sent.invocation_id)
            assert ["first", "second", "second"] == case.ran
            assert url == env.app_url

    @both_modes
    async def test_in_a_process(self, always_replay: bool, tmp_path: Path) -> None:
        """An import string makes a process, which SIGKILL ends; another takes its place at the same URL."""
        async with restate_server(PROCESS_APP, always_replay=always_replay) as env:
            url = env.app_url
            first = json.loads(await env.client.generic_call("ProcessApp", "pid", b""))
            argument = json.dumps(str(tmp_path)).encode()
            sent = await env.client.generic_send(
                "ProcessApp", "two_steps", argument, headers={"content-type": "application/json"}
            )
            ran = tmp_path / "ran"
            await seen(lambda: asyncio.sleep(0, ran.exists() and "second" in ran.read_text()))

            await env.kill_app()
            assert not alive(first)
            (tmp_path / "go").touch()
            await env.restart_app()

            assert ["1", "2"] == await env.attach(sent.invocation_id)
            second = json.loads(await env.client.generic_call("ProcessApp", "pid", b""))
            assert [f"first in {first}", f"second in {first}", f"second in {second}"] == ran.read_text().splitlines()
            assert os.getpid() not in (first, second)
            assert url == env.app_url

        assert not alive(second)

    @both_modes
    async def test_silence(self, always_replay: bool, caplog: pytest.LogCaptureFixture) -> None:
        """What handlers do when they are cancelled reaches neither the server nor the log."""
        service = restate.Service("Silence")
        ran: list[str] = []
        waiting = threading.Event()

        @service.handler()
        async def wait(ctx: restate.Context) -> str:
            async def step() -> str:
                ran.append("step")
                return "done"

            await ctx.run_typed("step", step)
            try:
                if not waiting.is_set():
                    waiting.set()
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                ran.append("cancelled")
                return "not from a crash"
            return await ctx.run_typed("more", step)

        async with restate_server(restate.app([service]), always_replay=always_replay) as env:
            sent = await env.client.service_send(wait, None)
            await asyncio.to_thread(waiting.wait, 30)
            await env.kill_app()
            await seen(lambda: env.find_invocations(status="backing-off"))
            await env.restart_app()

            assert "done" == await env.attach(sent.invocation_id)

        assert ["step", "cancelled", "step"] == ran
        assert [] == [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    async def test_a_long_death(self) -> None:
        """An invocation whose next attempt is far away is tried as soon as the application is back."""
        service = restate.Service("Late")

        @service.handler(invocation_retry_policy=restate.InvocationRetryPolicy(initial_interval=timedelta(hours=1)))
        async def late(ctx: restate.Context) -> str:
            begun.set()
            await asyncio.to_thread(go.wait, 30)
            return "late"

        begun, go = threading.Event(), threading.Event()
        async with restate_server(restate.app([service])) as env:
            sent = await env.client.service_send(late, None)
            await asyncio.to_thread(begun.wait, 30)
            await env.kill_app()
            go.set()
            await seen(lambda: env.find_invocations(status="backing-off"))
            await env.restart_app()

            assert "late" == await env.attach(sent.invocation_id)

    async def test_twice_in_a_row(self) -> None:
        """What is dead stays dead, and what runs is killed before it is served again."""
        async with restate_server(greeter_app) as env:
            await env.kill_app()
            await env.kill_app()
            await env.restart_app()
            await env.restart_app()

            assert "hello ADA" == await env.client.service_call(greet, "Ada")

    async def test_over_http1(self) -> None:
        """A process serves over HTTP/1.1 as well."""
        async with restate_server(PROCESS_APP, http1=True) as env:
            assert os.getpid() != json.loads(await env.client.generic_call("ProcessApp", "pid", b""))

    async def test_left_dead(self) -> None:
        """A block may end without its application, and without its server too."""
        async with restate_server(greeter_app) as env:
            await env.client.service_send(hang, None)
            await env.kill_app()
        async with restate_server(greeter_app) as env:
            assert [] == await env.find_invocations()
            await env.kill_app()
            await env.kill_server()

    async def test_a_process_that_does_not_start(self, capfd: pytest.CaptureFixture[str]) -> None:
        """The error names the application, stderr has the reason, and the next block is none the worse."""
        with pytest.raises(ServerError, match=r"'tests\.support\.process_app:missing'.*exit code 2"):
            await restate_server("tests.support.process_app:missing").__aenter__()

        assert "has no 'missing'" in capfd.readouterr().err
        async with restate_server(PROCESS_APP) as env:
            assert ("ProcessApp",) == env.services

    async def test_an_application_that_cannot_be_registered(self) -> None:
        """A block that is not entered leaves nothing behind."""

        async def refuses(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        with pytest.raises(ServerError, match="cannot register"):
            await restate_server(refuses).__aenter__()

        assert "restate-steps-app" not in {thread.name for thread in threading.enumerate()}


class TestKillTheServer:
    """A crash of the server."""

    @both_modes
    async def test_data_and_ports_are_kept(self, always_replay: bool) -> None:
        """Killed and started again, it goes on with what it had, at the URLs it had."""
        case = Interrupted.make()
        async with restate_server(restate.app([case.service]), always_replay=always_replay) as env:
            sent = await env.client.service_send(case.run, None)
            await seen(lambda: asyncio.sleep(0, "second" in case.ran))
            first = pid_of(env)

            await env.kill_server()
            assert not alive(first)
            with pytest.raises(ServerError, match="no answer"):
                await env.find_invocations()
            case.go.set()
            await env.restart_server()

            assert "12" == await env.attach(sent.invocation_id)
            assert ["first", "second", "second"] == case.ran
            assert (env.ingress_url, env.admin_api_url) == (env.server.ingress_url, env.server.admin_url)

    async def test_restarted_in_order(self) -> None:
        """One that runs is asked to end; the client stays usable, and the server is good for the next block."""
        async with restate_server(greeter_app) as env:
            assert "hello ADA" == await env.client.service_call(greet, "Ada")
            before = pid_of(env)
            await env.restart_server()
            after = pid_of(env)
            assert "hello EVE" == await env.client.service_call(greet, "Eve")
        async with restate_server(greeter_app) as env:
            assert before != after
            assert after == pid_of(env)


class Reversed(restate.JournalValueCodec):
    """Bytes that JSON cannot read, unless they are decoded."""

    def encode(self, buf: bytes) -> bytes:
        return b"\xff" + buf[::-1]

    async def decode(self, buf: bytes) -> bytes:
        assert buf[:1] == b"\xff"
        return buf[:0:-1]


class Digits(restate.JournalValueCodec):
    """Bytes that JSON reads as something else, unless they are decoded."""

    def encode(self, buf: bytes) -> bytes:
        return b"1" + b"".join(b"%03d" % byte for byte in buf)

    async def decode(self, buf: bytes) -> bytes:
        return bytes(int(buf[at : at + 3]) for at in range(1, len(buf), 3))


class TestLook:
    """A look at invocations and journals."""

    @both_modes
    @pytest.mark.parametrize("codec", [None, Reversed(), Digits()], ids=["plain", "reversed", "digits"])
    async def test_journal(self, always_replay: bool, codec: restate.JournalValueCodec | None) -> None:
        """Values are decoded, with the codec of the application if it has one."""
        service = restate.Service("Journal")
        keyed = restate.VirtualObject("Keyed")

        @keyed.handler()
        async def put(ctx: restate.ObjectContext, number: int) -> int:
            ctx.set("number", number)
            return number + 1

        @service.handler()
        async def run(ctx: restate.Context, name: str) -> dict[str, Any]:
            async def step() -> list[int]:
                return [1, 2]

            return {name: await ctx.run_typed("step", step), "more": await ctx.object_call(put, "k", 7)}

        app = restate.app([service, keyed], journal_value_codec=codec)
        async with restate_server(app, always_replay=always_replay, journal_value_codec=codec) as env:
            assert {"ada": [1, 2], "more": 8} == await env.client.service_call(run, "ada")
            [caller] = await env.find_invocations("Journal", "run")
            [callee] = await env.find_invocations("Keyed", key="k")

            journal = await env.journal(caller)
            assert all(isinstance(entry, JournalEntry) for entry in journal)
            values = {(entry.type, entry.name): entry.value for entry in journal}
            assert "ada" == values["Command: Input", None]
            assert [1, 2] == values["Command: Run", "step"]
            assert [1, 2] == values["Notification: Run", "step"]
            assert 8 == values["Command: Call", None]
            assert callee == values["Notification: CallInvocationId", None]
            assert {"ada": [1, 2], "more": 8} == values["Command: Output", None]
            called = {entry.type: entry.value for entry in await env.journal(callee)}
            assert 7 == called["Command: SetState"]
            assert {"ada": [1, 2], "more": 8} == await env.attach(caller)

    async def test_journal_of_nobody(self) -> None:
        """It is empty, with a codec and without."""
        for codec in (None, Reversed()):
            async with restate_server(greeter_app, journal_value_codec=codec) as env:
                sent = await env.client.service_send(greet, "Ada")
            async with restate_server(greeter_app, journal_value_codec=codec) as env:
                assert [] == await env.journal(sent.invocation_id)

    async def test_find_and_look_up(self) -> None:
        """By service, handler, key and status; the oldest first."""
        keyed = restate.VirtualObject("Found")

        @keyed.handler()
        async def name(ctx: restate.ObjectContext) -> str:
            return ctx.key()

        async with restate_server(restate.app([greeter, keyed])) as env:
            await env.client.object_call(name, "it's a", None)
            await env.client.object_call(name, "b", None)
            hanging = (await env.client.service_send(hang, None)).invocation_id
            await seen(lambda: env.find_invocations(status="running"))

            everything = await env.find_invocations()
            by_key = await env.find_invocations("Found", "name", key="it's a")
            assert hanging == everything[2]
            assert everything[:1] == by_key
            assert everything[:2] == await env.find_invocations("Found") == await env.find_invocations(handler="name")
            assert everything[:2] == await env.find_invocations(status="completed")
            assert [] == await env.find_invocations("Found", "hang")
            row = await env.invocation(hanging)
            assert ("running", "Greeter/hang") == (row["status"], row["target"])

    async def test_unknown_invocation(self) -> None:
        """It is said, instead of nothing."""
        async with restate_server(greeter_app) as env:
            sent = await env.client.service_send(hang, None)
        async with restate_server(greeter_app) as env:
            with pytest.raises(ServerError, match="does not know the invocation"):
                await env.invocation(sent.invocation_id)

    async def test_attach(self) -> None:
        """An answer, nothing, a failure, or no end in time."""
        nothing = restate.Service("Nothing")

        @nothing.handler()
        async def none(ctx: restate.Context) -> None:
            pass

        @nothing.handler(output_serde=restate.serde.BytesSerde(), accept="*/*", content_type="*/*")
        async def raw(ctx: restate.Context) -> bytes:
            return b"\xff"

        async with restate_server(restate.app([greeter, nothing])) as env:
            greeted = await env.client.service_send(greet, "Ada")
            empty = await env.client.service_send(none, None)
            data = await env.client.service_send(raw, None)
            failed = await env.client.service_send(fail, "teapot")
            hanging = await env.client.service_send(hang, None)

            assert "hello ADA" == await env.attach(greeted.invocation_id)
            assert await env.attach(empty.invocation_id) is None
            assert b"\xff" == await env.attach(data.invocation_id)
            with pytest.raises(restate.HttpError) as caught:
                await env.attach(failed.invocation_id)
            assert 418 == caught.value.status_code
            with pytest.raises(TimeoutError, match="did not end"):
                await env.attach(hanging.invocation_id, timeout=0.05)


@pytest.fixture
async def env_of_a_fixture() -> AsyncIterator[ServerEnvironment]:
    async with restate_server(greeter_app) as env:
        yield env


def run_python(code: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


class TestLoops:
    """Invariant 3: every loop of asyncio, never blocked."""

    async def test_pytest_asyncio_fixture(self, env_of_a_fixture: ServerEnvironment) -> None:
        """A fixture enters and leaves the block in different tasks."""
        assert "hello ADA" == await env_of_a_fixture.client.service_call(greet, "Ada")

    def test_asyncio_run(self) -> None:
        """Each run has a loop of its own, and all of them share the server."""

        async def main() -> tuple[str, int]:
            async with restate_server(greeter_app) as env:
                return await env.client.service_call(greet, "Ada"), pid_of(env)

        first, second = asyncio.run(main()), asyncio.run(main())

        assert "hello ADA" == first[0]
        assert first == second

    def test_anyio(self, tmp_path: Path) -> None:
        """In its pytest plugin, in a fixture and in a test, and with its task groups and cancel scopes."""
        (tmp_path / "test_it.py").write_text(
            textwrap.dedent(
                """
                import anyio
                import pytest
                from restate_steps.testing import restate_server
                from tests.testing.test_server import greet, greeter_app, pid_of

                pytestmark = pytest.mark.anyio

                @pytest.fixture
                def anyio_backend():
                    return "asyncio"

                @pytest.fixture
                async def env():
                    async with restate_server(greeter_app) as env:
                        yield env

                async def test_fixture(env):
                    assert "hello ADA" == await env.client.service_call(greet, "Ada")

                async def test_cancelled():
                    with anyio.CancelScope() as scope:
                        async with restate_server(greeter_app) as env:
                            first = pid_of(env)
                            scope.cancel()
                            await anyio.sleep_forever()
                    assert scope.cancelled_caught
                    async with restate_server(greeter_app) as env, anyio.create_task_group() as group:
                        assert first == pid_of(env)
                        group.start_soon(env.client.service_call, greet, "Ada")
                        await env.client.service_call(greet, "Eve")
                """
            )
        )
        arguments = ["-p", "no:asyncio", "-q", "-W", "error", str(tmp_path)]
        done = run_python(f"import pytest; raise SystemExit(pytest.main({arguments}))")

        assert "2 passed" in done.stdout, done.stdout + done.stderr

    @both_modes
    async def test_the_loop_goes_on(self, always_replay: bool) -> None:
        """While a server starts, ends, and starts again, other tasks run."""
        close_servers()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async with restate_server(greeter_app, always_replay=always_replay) as env:
            after_start, ticks = ticks, 0
            await env.restart_server()
            after_restart, ticks = ticks, 0
        ticking.cancel()

        assert 5 < after_start
        assert 5 < after_restart

    async def test_cancelled_while_it_starts(self) -> None:
        """Nothing is lost: the server that was being made ready waits for the next block."""
        async with restate_server(greeter_app) as env:
            first = pid_of(env)
        opening = asyncio.create_task(restate_server(greeter_app).__aenter__())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

        assert "restate-steps-app" not in {thread.name for thread in threading.enumerate()}
        async with restate_server(greeter_app) as env:
            assert first == pid_of(env)

    async def test_the_methods_of_a_client_do_not_block_the_event_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They send their requests to the admin API from other threads."""
        here = threading.get_ident()
        blocking: list[str] = []

        def noted(request: Callable[..., Any]) -> Callable[..., Any]:
            def send(*args: Any, **options: Any) -> Any:
                if threading.get_ident() == here:
                    blocking.append(request.__name__)
                return request(*args, **options)

            return send

        requests = (AdminClient.cancel, AdminClient.kill, AdminClient.invocation, AdminClient.register)
        for request in requests:
            monkeypatch.setattr(AdminClient, request.__name__, noted(request))
        service = restate.Service("Signalled")

        @service.handler()
        async def wait(ctx: restate.Context) -> int:
            return await ctx.signal("go", type_hint=int)

        async with restate_server(restate.app([service])) as env:
            first, second, third, fourth = [await env.send(wait) for _ in range(4)]
            await asyncio.gather(first.signal("go", 1), second.signal("go", 2))
            with pytest.raises(InvocationEndedError):
                await env.until(lambda: False, invocation=first)
            assert 2 == (await second.result()).value
            await third.cancel()
            await fourth.kill()

        assert [] == blocking


class TestEnd:
    """Invariant 4: nothing outlives the process, and what nobody needs can be stopped earlier."""

    SCRIPT = """
        import asyncio, os, sys
        from restate_steps.testing import close_servers, restate_server
        from tests.testing.test_server import greeter_app

        async def pid():
            async with restate_server(greeter_app) as env:
                print(env.server.pid, env.server.base_dir, flush=True)
                return env.server.pid
    """

    def test_the_interpreter_exits(self) -> None:
        """The server and its data go with it."""
        done = run_python(textwrap.dedent(self.SCRIPT) + "asyncio.run(pid())")
        pid, folder = done.stdout.split()

        assert (0, "") == (done.returncode, done.stderr)
        assert not alive(int(pid))
        assert not Path(folder).exists()

    def test_the_interpreter_exits_in_a_block(self) -> None:
        """A block that is still open does not keep its server."""
        code = """
        block = restate_server(greeter_app)
        loop = asyncio.new_event_loop()
        env = loop.run_until_complete(block.__aenter__())
        print(env.server.pid, flush=True)
        """
        done = run_python(textwrap.dedent(self.SCRIPT) + textwrap.dedent(code))

        eventually(lambda: not alive(int(done.stdout)))

    def test_a_fork_does_not_stop_the_servers_of_its_parent(self) -> None:
        """What a forked child has not started is not its own to end."""
        code = """
        before = asyncio.run(pid())
        child = os.fork()
        if child == 0:
            close_servers()
            os._exit(0)
        os.waitpid(child, 0)
        assert before == asyncio.run(pid())
        """
        done = run_python(textwrap.dedent(self.SCRIPT) + textwrap.dedent(code), "-W", "ignore::DeprecationWarning")

        assert (0, "") == (done.returncode, done.stderr)

    async def test_close_servers(self) -> None:
        """Idle ones stop at once, one in use when its block ends."""
        async with restate_server(greeter_app) as env:
            async with restate_server(greeter_app) as other:
                idle = pid_of(other)
            used = pid_of(env)

            await asyncio.to_thread(close_servers)
            assert not alive(idle)
            assert "hello ADA" == await env.client.service_call(greet, "Ada")

        assert not alive(used)

    def test_the_import_is_light(self) -> None:
        """Without the `server` extra the module can be imported, and the block says what to install."""
        code = """
        import sys
        import asyncio, restate
        before = set(sys.modules)
        from restate_steps.testing import restate_server
        print({"httpx", "hypercorn"} & (set(sys.modules) - before))

        async def main():
            async with restate_server(restate.app([])):
                pass

        sys.modules.update(dict.fromkeys(["httpx", "hypercorn"]))
        asyncio.run(main())
        """
        done = run_python(code)

        assert "set()" == done.stdout.strip()
        assert "restate-steps[server]" in done.stderr.splitlines()[-1]
