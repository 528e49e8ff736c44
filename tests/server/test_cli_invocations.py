"""``restate-steps invocations``: find, show and change invocations of real servers."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import restate

import restate_steps
from restate_steps import durable_step
from restate_steps.cli import main
from restate_steps.errors import ServerError
from restate_steps.server._invocations import STATUSES, id_of, short_ids
from tests.support import ROOT
from tests.support.harness import Env, Harness, eventually

shop = restate.Service("CliShop")
desk = restate.VirtualObject("CliDesk")


@durable_step
async def quote(item: str) -> dict[str, Any]:
    return {"item": item, "price": 950, "note": "ü" + "x" * 200}


@durable_step
async def refuse(item: str) -> str:
    raise restate.TerminalError(f"no {item}", status_code=409)


gate = threading.Event()


@durable_step
def pass_gate() -> str:
    gate.wait(60)
    return "passed"


@durable_step
async def long() -> None:
    await asyncio.sleep(600)


@shop.handler()
async def misuse(ctx: restate.Context, item: str) -> None:
    await asyncio.get_running_loop().create_server(asyncio.Protocol)


@shop.handler()
async def buggy(ctx: restate.Context, item: str) -> str:
    await quote(item)
    raise ValueError(f"no luck with {item}")


@shop.handler()
async def place(ctx: restate.Context, item: str) -> str:
    await quote(item)
    try:
        await refuse(item)
    except restate.TerminalError as error:
        return error.message
    return "ok"


@shop.handler()
async def declined(ctx: restate.Context, item: str) -> str:
    raise restate.TerminalError(f"no {item}", status_code=402)


@shop.handler()
async def slow(ctx: restate.Context, item: str) -> None:
    await long()


@shop.handler()
async def gated(ctx: restate.Context, item: str) -> str:
    passed = await pass_gate()
    await ctx.sleep(timedelta(milliseconds=1))
    return passed


@desk.handler()
async def wait(ctx: restate.ObjectContext, item: str) -> str:
    ctx.set("item", item)
    _, first = ctx.awakeable()
    await restate.gather(first, ctx.sleep(timedelta(hours=1), name="limit"))
    return item


@desk.handler()
async def break_down(ctx: restate.ObjectContext, item: str) -> None:
    raise ValueError(f"no luck with {item}")


@desk.handler()
async def ask(ctx: restate.ObjectContext, key: str) -> str:
    return await ctx.object_call(wait, key=key, arg="tea")


@pytest.fixture
def waiting(replay_harness: Harness) -> Iterator[Env]:
    """The services on a server that suspends handlers immediately."""
    with replay_harness.serve(restate_steps.app([shop, desk])) as env:
        yield env


@pytest.fixture
def running(normal_harness: Harness) -> Iterator[Env]:
    """The services on a server that keeps handlers running."""
    with normal_harness.serve(restate_steps.app([shop, desk])) as env:
        yield env


def status(env: Env, invocation: str) -> str:
    return str(env.server.admin.invocation(invocation)["status"])


def until(env: Env, invocation: str, *statuses: str) -> str:
    """Wait until an invocation has one of several statuses, and return its id."""
    eventually(lambda: status(env, invocation) in statuses)
    return invocation


class Cli:
    """The command line, against the server of a test."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, env: Env, *words: str, code: int = 0) -> str:
        """Run a command that ends with a code, and return its output."""
        found = main(["invocations", words[0], "--admin", env.server.admin_url, *words[1:]])
        said = self._capsys.readouterr()
        assert code == found, said
        return said.out if code == 0 else said.err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


class TestList:
    """Finding invocations."""

    def test_open_ones_by_default(self, running: Env, cli: Cli) -> None:
        """Completed invocations are listed with --all only, and the newest is last."""
        failing = until(running, running.send("CliShop", "buggy", "tea"), "backing-off")
        done = until(running, running.send("CliShop", "place", "tea"), "completed")
        slow = until(running, running.send("CliShop", "slow", "tea"), "running")

        open_ones = [each["id"] for each in json.loads(cli(running, "list", "--service", "CliShop", "--json"))]
        everything = [each["id"] for each in json.loads(cli(running, "list", "--service", "CliShop", "-a", "--json"))]

        assert [failing, slow] == open_ones
        assert [failing, done, slow] == [each for each in everything if each in (failing, done, slow)]

    def test_a_table_of_80_columns(self, running: Env, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line has a short id, the target, status, age, attempts, and the last failure, as far as it fits."""
        monkeypatch.setenv("COLUMNS", "80")
        failing = until(running, running.send("CliShop", "buggy", "tea"), "backing-off")

        head, *lines = cli(running, "list", "--service", "CliShop").splitlines()

        assert ["ID", "TARGET", "STATUS", "AGE", "TRY", "LAST", "FAILURE"] == head.split()
        assert all(len(line) <= 80 for line in lines)
        [line] = [line for line in lines if failing.startswith(line.split("…")[0])]
        assert re.search(r"  CliShop/buggy +backing-off +\d+s +\d+ +ValueError: no luck", line), line

    def test_a_long_target(self, running: Env, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        """It leaves room for the failure, and is whole if the terminal has room for it."""
        monkeypatch.setenv("COLUMNS", "80")
        key = "a-key-of-29-characters-exactly"
        until(running, running.send("CliDesk", "break_down", "tea", key=key), "backing-off")

        lines = cli(running, "list", "--key", key).splitlines()
        assert all(len(line) <= 80 for line in lines), lines
        assert re.search(r"  Cli\S*…\S*down  backing-off .*  ValueError", lines[1]), lines

        monkeypatch.setenv("COLUMNS", "160")
        assert f"  CliDesk/{key}/break_down  backing-off" in cli(running, "list", "--key", key)

    def test_a_key_in_wide_characters(self, waiting: Env, cli: Cli) -> None:
        """A terminal shows some characters in two columns, and the columns of the table align all the same."""
        invocation = until(waiting, waiting.send("CliDesk", "wait", "tea", key="東京" * 12), "suspended")

        head, *lines = cli(waiting, "list", "--service", "CliDesk", "--status", "suspended").splitlines()

        [line] = [line for line in lines if invocation.startswith(line.split("…")[0])]
        assert re.search(r"  CliDesk/[東京]+…[東京]*/wait  suspended ", line)
        assert head.index("STATUS") == line.index("suspended") + len(re.findall("[東京]", line))

    def test_control_characters(self, waiting: Env, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
        """A key from outside can neither break lines nor send commands to the terminal."""
        key = "a\nb\x1b[31m\x9b31m"
        shown = r"CliDesk/a\nb\x1b[31m\x9b31m/wait"
        invocation = until(waiting, waiting.send("CliDesk", "wait", f"c{key}", key=key), "suspended")
        second = waiting.send("CliDesk", "wait", "tea", key=key)

        [_, *lines] = cli(waiting, "list", "--key", key).splitlines()
        assert 2 == len(lines)
        assert all(line.startswith("inv_1") and line.isprintable() for line in lines)
        said = cli(waiting, "show", invocation)
        assert said.startswith(f"{shown}  {invocation}\n")
        assert all(line.isprintable() for line in said.splitlines())
        assert f"\n  {second}  {shown}  pending" in cli(waiting, "show", second[:16], code=1)
        assert 0 == main(["approvals", "list", "--admin", waiting.server.admin_url])
        assert f"awaited in {shown} ({invocation})\n" in capsys.readouterr().out
        assert f"killed {invocation}  {shown}\n" in cli(waiting, "kill", "--key", key, "--yes")

    def test_filters(self, waiting: Env, cli: Cli) -> None:
        """Handler, key and status filter, also together."""
        ann = until(waiting, waiting.send("CliDesk", "wait", "tea", key="Ann & 'Bo'"), "suspended")
        waiting_too = waiting.send("CliDesk", "wait", "tea", key="Ann & 'Bo'")
        bo = until(waiting, waiting.send("CliDesk", "wait", "tea", key="Bo"), "suspended")
        declined = until(waiting, waiting.send("CliShop", "declined", "tea"), "completed")

        def found(*words: str) -> list[str]:
            return [each["id"] for each in json.loads(cli(waiting, "list", "--json", *words))]

        assert [ann, waiting_too] == found("--key", "Ann & 'Bo'")
        assert [ann] == found("--key", "Ann & 'Bo'", "--status", "suspended")
        assert {ann, waiting_too, bo} == set(found("--handler", "wait"))
        assert declined in found("--service", "CliShop", "--status", "failed")
        assert declined not in found("--service", "CliShop", "--status", "succeeded", "--status", "open")
        assert [bo] == found("--service", "CliDesk", "--limit", "1")

    def test_failing_ones(self, running: Env, cli: Cli) -> None:
        """The status failing stands for backing-off and paused."""
        retried = until(running, running.send("CliShop", "buggy", "a"), "backing-off")
        paused = until(running, running.send("CliShop", "buggy", "b"), "backing-off")
        running.server.admin.pause(paused)
        until(running, paused, "paused")

        found = json.loads(cli(running, "list", "--service", "CliShop", "--status", "failing", "--json"))

        assert [retried, paused] == [each["id"] for each in found]

    def test_without_any(self, running: Env, capsys: pytest.CaptureFixture[str]) -> None:
        """Nothing is an answer: the exit code is 0."""
        assert 0 == main(["invocations", "list", "--admin", running.server.admin_url, "--service", "CliNothing"])
        assert capsys.readouterr() == ("", "no open invocations match\n")

    def test_the_help_names_the_statuses(self) -> None:
        """The command line has its own list of statuses, so that help is fast."""
        from restate_steps.cli import _invocations

        assert STATUSES == _invocations._STATUSES


class TestIds:
    """The beginning of an id."""

    def test_the_short_form_is_unique(self, waiting: Env) -> None:
        """Ids with the same key begin in the same way. Their short forms differ, and each names its invocation."""
        ids = [waiting.send("CliDesk", "wait", "tea", key="Ann") for _ in range(5)]
        admin = waiting.server.admin

        shorts = short_ids(admin, ids)

        assert 5 == len(set(shorts.values()))
        assert ids == [id_of(admin, short) for short in shorts.values()]

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
    def test_an_ellipsis_is_dropped(self, waiting: Env, encoding: str) -> None:
        """It is dropped in each form in which Python reads it, which depends on the encoding of the terminal."""
        invocation = waiting.send("CliDesk", "wait", "tea", key="Gil")
        pasted = f"{invocation[:30]}…".encode().decode(encoding, "surrogateescape")

        assert invocation == id_of(waiting.server.admin, pasted)

    def test_several_matches_are_listed(self, waiting: Env, cli: Cli) -> None:
        """The error names each match with its target and status."""
        first, second = (waiting.send("CliDesk", "wait", "tea", key="Cy") for _ in range(2))
        until(waiting, first, "suspended")

        said = cli(waiting, "kill", f"{first[:16]}…", code=1)

        assert said.startswith(f"error: 2 invocations have ids that start with {first[:16]!r}. Write more of the id:\n")
        assert f"\n  {first}  CliDesk/Cy/wait  suspended\n" in said
        assert f"\n  {second}  CliDesk/Cy/wait  pending\n" in said
        assert "suspended" == status(waiting, first)

    def test_no_match(self, waiting: Env) -> None:
        """The error says how to see the ids that exist."""
        with pytest.raises(ServerError, match=r"no invocation whose id starts with 'inv_1nothing'.*invocations list"):
            id_of(waiting.server.admin, "inv_1nothing")
        with pytest.raises(ServerError, match=r"'o1' is not the id of an invocation, or its beginning"):
            id_of(waiting.server.admin, "o1")


class TestShow:
    """Showing an invocation."""

    def test_a_failing_one(self, running: Env, cli: Cli) -> None:
        """It shows the deployment, the steps with decoded values, the attempts, and the user's line of the failure."""
        invocation = until(running, running.send("CliShop", "buggy", "tea"), "backing-off")

        said = cli(running, "show", f"{invocation[:20]}…")

        assert said.startswith(f"CliShop/buggy  {invocation}\n")
        assert re.search(r"  status +backing-off, attempt \d+\n", said)
        assert re.search(rf"  deployment +dp_\w+  {re.escape(running.app_server.url)}/  restate-sdk-python/", said)
        assert re.search(r"  waits for +its next attempt, \d{4}-\d\d-\d\d [\d:]+Z \(", said)
        assert re.search(r"  last failure +\[500 RT0007\] ValueError: no luck with tea \(\S+\.py:\d+\)\n", said)
        assert re.search(r'test_cli_invocations\.py:\d+ in buggy: raise ValueError\(f"no luck', said)
        assert re.search(r'^  0  Input +"tea"$', said, re.MULTILINE)
        [line] = re.findall(r"^  1  Run +quote .*$", said, re.MULTILINE)
        assert '{"item": "tea", "price": 950, "note": "üx' in line
        assert line.endswith("x…")
        assert 80 == len(line)

    def test_a_paused_one(self, running: Env, cli: Cli) -> None:
        """The server has its failure only among the events of the journal."""
        invocation = until(running, running.send("CliShop", "misuse", "tea"), "paused")

        said = cli(running, "show", invocation)

        assert re.search(r"  last failure +\[500\] ConcurrencyError: create_server was called outside of a step", said)
        assert re.search(r"test_cli_invocations\.py:\d+ in misuse: await asyncio", said)
        assert "ConcurrencyError" in cli(running, "list", "--status", "paused")

    def test_full(self, running: Env, cli: Cli) -> None:
        """With --full, nothing is cut."""
        invocation = until(running, running.send("CliShop", "buggy", "tea"), "backing-off")

        said = cli(running, "show", invocation, "--full")

        assert f'"note": "ü{"x" * 200}"\n' in said
        assert "Traceback (most recent call last):" in said

    def test_a_completed_one(self, running: Env, cli: Cli) -> None:
        """It shows the failures of steps that the handler has caught, and the result."""
        invocation = until(running, running.send("CliShop", "place", "tea"), "completed")

        said = cli(running, "show", invocation)

        assert re.search(r"  status +succeeded\n", said)
        assert re.search(r"Run +refuse +failed: \[409\] no tea\n", said)
        assert re.search(r'Output +"no tea"\n', said)
        assert "waits for" not in said

    def test_a_terminal_failure(self, running: Env, cli: Cli) -> None:
        """It shows the failure with its code."""
        invocation = until(running, running.send("CliShop", "declined", "tea"), "completed")

        assert re.search(r"  status +failed\n(.*\n)*  failure +\[402\] no tea\n", cli(running, "show", invocation))

    def test_a_running_step(self, running: Env, cli: Cli) -> None:
        """It says which step runs."""
        invocation = until(running, running.send("CliShop", "slow", "tea"), "running")

        eventually(lambda: "waits for    step 'long'\n" in cli(running, "show", invocation))

    def test_the_waits_of_a_suspended_one(self, waiting: Env, cli: Cli) -> None:
        """It names the awakeable to resolve, the end of the sleep, and the invocation that was called."""
        caller = until(waiting, waiting.send("CliDesk", "ask", "Di", key="caller"), "suspended")
        [row] = eventually(lambda: json.loads(cli(waiting, "list", "--key", "Di", "--status", "suspended", "--json")))

        assert f"  waits for    call of CliDesk/Di/wait {row['id']}\n" in cli(waiting, "show", caller)

        said = cli(waiting, "show", row["id"])
        assert re.search(r"  waits for +sleep 'limit', \S+ \S+Z \(in 59m\)\n", said)
        [token] = re.findall(r"  waits for +awakeable (sign_1\S+)\n", said)
        assert re.search(r'SetState +item +"tea"\n', said)

        waiting.resolve_awakeable(token, "done")
        eventually(lambda: re.search(r' Signal +sign_1\S+ +"done"\n', cli(waiting, "show", row["id"])))

    def test_the_wait_for_a_key(self, waiting: Env, cli: Cli) -> None:
        """An invocation that waits for its key shows the invocation that has it."""
        holder = until(waiting, waiting.send("CliDesk", "wait", "tea", key="Ed"), "suspended")
        pending = until(waiting, waiting.send("CliDesk", "wait", "tea", key="Ed"), "pending")

        assert f"the key 'Ed' of CliDesk, which has another invocation {holder}\n" in cli(waiting, "show", pending)

    def test_json(self, waiting: Env, cli: Cli) -> None:
        """The JSON has the row, the journal with decoded values, and the waits."""
        invocation = until(waiting, waiting.send("CliDesk", "wait", "tea", key="Flo"), "suspended")

        found = json.loads(cli(waiting, "show", invocation, "--json"))

        assert invocation == found["invocation"]["id"]
        assert ("SetState", "item", "tea") == tuple(found["journal"][1][key] for key in ("type", "name", "value"))
        assert {"sleep", "awakeable"} == {each["type"] for each in found["waits_for"]}

    def test_an_id_that_is_unknown(self, waiting: Env, cli: Cli) -> None:
        """The error is that of the client."""
        said = cli(waiting, "show", "inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq", code=1)
        assert "does not know the invocation" in said


class TestChange:
    """Changing invocations."""

    def test_each_verb(self, running: Env, cli: Cli) -> None:
        """Pause, resume, cancel, kill and purge act on the real server. Several ids can be given."""
        first, second = (until(running, running.send("CliShop", "buggy", each), "backing-off") for each in "ab")

        assert f"pausing {first}\npausing {second}\n" == cli(running, "pause", first[:20], second)
        for each in (first, second):
            until(running, each, "paused")
        assert f"resumed {first}\n" == cli(running, "resume", first)
        eventually(lambda: status(running, first) != "paused")
        assert f"killed {first}\n" == cli(running, "kill", first)
        until(running, first, "completed")
        assert f"purged {first}\n" == cli(running, "purge", first)
        with pytest.raises(ServerError, match="does not know"):
            eventually(lambda: running.server.admin.invocation(first) is None)

        slow = until(running, running.send("CliShop", "slow", "c"), "running")
        assert f"cancelling {slow}\n" == cli(running, "cancel", slow)

    def test_a_step_ends_before_a_pause(self, running: Env, cli: Cli) -> None:
        """A step that is running when the invocation is paused ends, and is recorded."""
        gate.clear()
        invocation = running.send("CliShop", "gated", "a")
        eventually(lambda: "step 'pass_gate'" in cli(running, "show", invocation))

        assert f"pausing {invocation}\n" == cli(running, "pause", invocation)
        assert "running" == status(running, invocation)
        gate.set()

        until(running, invocation, "paused")
        assert re.search(r'Run +pass_gate +"passed"\n', cli(running, "show", invocation))
        cli(running, "resume", invocation)
        assert "passed" == running.attach(invocation)

    def test_filters(self, running: Env, cli: Cli) -> None:
        """With --yes, all that match are changed, and no others."""
        failing = until(running, running.send("CliShop", "buggy", "a"), "backing-off")
        slow = until(running, running.send("CliShop", "slow", "b"), "running")

        said = cli(running, "kill", "--service", "CliShop", "--status", "failing", "--yes")

        assert f"killed {failing}  CliShop/buggy\n" == said
        until(running, failing, "completed")
        assert "running" == status(running, slow)

    @pytest.mark.parametrize("stdin", ["not a terminal", "closed"])
    def test_filters_need_a_confirmation(
        self, running: Env, cli: Cli, stdin: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a terminal and --yes, nothing is changed, and the error names the number."""
        if stdin == "closed":
            monkeypatch.setattr(sys, "stdin", None)
        slow = until(running, running.send("CliShop", "slow", "a"), "running")

        said = cli(running, "kill", "--service", "CliShop", code=2)

        assert said.startswith("error: this would kill 1 invocation. To confirm it without a terminal, add --yes.")
        assert "running" == status(running, slow)

    @pytest.mark.parametrize(("reply", "left"), [("n", "running"), ("y", "completed")])
    def test_a_confirmation_at_a_terminal(self, running: Env, reply: str, left: str) -> None:
        """The question names the number, and only a yes changes anything."""
        slow = until(running, running.send("CliShop", "slow", "a"), "running")
        words = ["kill", "--service", "CliShop", "--admin", running.server.admin_url]
        controller, terminal = pty.openpty()
        try:
            with subprocess.Popen(
                [sys.executable, "-m", "restate_steps", "invocations", *words],
                cwd=ROOT,
                stdin=terminal,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                os.write(controller, f"{reply}\n".encode())
                _, said = process.communicate(timeout=60)
        finally:
            os.close(controller)
            os.close(terminal)

        assert "kill 1 invocation? [y/N]" in said
        assert 0 == process.returncode
        until(running, slow, left)

    def test_one_that_fails_does_not_stop_the_others(self, running: Env, cli: Cli) -> None:
        """Each error is reported, and the exit code is 1."""
        done = until(running, running.send("CliShop", "place", "a"), "completed")
        slow = until(running, running.send("CliShop", "slow", "b"), "running")

        said = cli(running, "kill", done, slow, code=1)

        assert f"error: cannot kill the invocation '{done}': the server answered 409: " in said
        until(running, slow, "completed")

    def test_neither_ids_nor_filters(self, running: Env, cli: Cli) -> None:
        """A command without an id must not change everything."""
        assert "error: give either the ids of invocations, or filters." in cli(running, "kill", code=2)
        assert "error: give either" in cli(running, "kill", "inv_1x", "--service", "CliShop", code=2)


def test_journal_export_takes_the_beginning_of_an_id(running: Env, capsys: pytest.CaptureFixture[str]) -> None:
    """The ids that other commands print can be exported."""
    invocation = until(running, running.send("CliShop", "place", "tea"), "completed")

    assert 0 == main(["journal", "export", "--admin", running.server.admin_url, f"{invocation[:22]}…"])
    assert invocation in capsys.readouterr().out
