"""``restate-steps dev``, run as a user runs it."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from restate_steps.cli import main
from restate_steps.server import AdminClient
from restate_steps.server._disk import free_space, low_space
from restate_steps.server._ports import free_ports
from tests.support.commands import APP, Run, Running, alive, answer, children, write
from tests.support.harness import eventually

SHOP = """
import asyncio
import logging
import restate
import restate_steps

DevShop = restate.Service("DevShop")
log = logging.getLogger("shop")


@restate_steps.durable_step
async def reserve(count: int) -> int:
    return count


@restate_steps.durable_step
async def charge(count: int) -> int:
    if count < 0:
        raise ValueError(f"cannot charge {count}")
    return count


@DevShop.handler()
async def place(ctx: restate.Context, count: int) -> int:
    log.warning("before the first step")
    await reserve(count)
    await asyncio.sleep(0.1)
    return await charge(count)


@DevShop.handler()
async def wait(ctx: restate.Context, go: str) -> int:
    await reserve(1)
    await ctx.promise(go).value() if go else await asyncio.sleep(600)
    return 1


@DevShop.handler()
async def refuse(ctx: restate.Context) -> None:
    raise restate.TerminalError("not in stock", 410)


def total(order: int) -> int:
    return order.total


@DevShop.handler()
async def bug(ctx: restate.Context) -> int:
    return total(await reserve(3))


app = restate_steps.app([DevShop])
"""


@pytest.fixture
def ports() -> list[str]:
    """Options for ports that no other test uses."""
    names = ("--ingress-port", "--admin-port", "--port")
    return [part for name, port in zip(names, free_ports(3), strict=True) for part in (name, str(port))]


def ingress_of(dev: Running) -> str:
    dev.wait_for(r"serving \w+")
    return str(dev.wait_for(r"ingress +(http\S+)\n")[1])


def call(ingress: str, handler: str, body: object = None) -> httpx.Response:
    arguments = {} if body is None else {"json": body}
    return httpx.post(f"{ingress}/DevShop/{handler}", timeout=60, **arguments)


def send(ingress: str, handler: str, body: object = None) -> str:
    arguments = {} if body is None else {"json": body}
    sent = httpx.post(f"{ingress}/DevShop/{handler}/send", timeout=30, **arguments)
    return str(sent.raise_for_status().json()["invocationId"])


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "shop.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


class TestOneSees:
    """One line for each invocation that ends, and for each attempt that fails."""

    def test_how_each_invocation_ended(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The line has the handler, the id, the status code, the steps and the time; no colours without a terminal."""
        (tmp_path / "shop.py").write_text(SHOP)
        dev = run("dev", "shop.py", "--always-replay", *ports)
        ingress = ingress_of(dev)

        assert call(ingress, "place", 2).json() == 2
        assert call(ingress, "refuse").status_code == 410
        broken = httpx.post(f"{ingress}/DevShop/place", content="{", headers={"content-type": "application/json"})
        assert broken.status_code == 500

        dev.wait_for(r"\nDevShop/place  inv_\w{16}…  200  2 steps  \d\.\d\d s\n")
        dev.wait_for(r"\nDevShop/refuse  inv_\w{16}…  410  0 steps  \d\.\d\d s  not in stock\n")
        dev.wait_for(r"\nDevShop/place  inv_\w{16}…  500  0 steps  \d\.\d\d s  \S.*\n")
        assert "\x1b[" not in dev.said
        # Replayed code does not log again, and a server's announcement says nothing new.
        assert dev.said.count("before the first step") == 1
        assert "Running on" not in dev.said
        dev.wait_for(r"\n  log +\.restate-steps/restate-server\.log\n")

    def test_a_bug_costs_one_line_an_attempt(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The user's own lines are shown once, and the ways out once an invocation. A saved fix answers the callers."""
        (tmp_path / "shop.py").write_text(SHOP)
        dev = run("dev", "shop", *ports)
        ingress = ingress_of(dev)
        line = 1 + SHOP.splitlines().index("    return order.total")
        invocations = [send(ingress, "bug") for _ in range(2)]
        failed = (
            r"DevShop/bug  inv_\w{16}…  attempt (\d) failed: AttributeError: 'int' object has no attribute 'total' "
            rf"\(shop\.py:{line}\); (?:next try in \d+(?:\.\d)? s|Restate retries it)\n"
        )
        for invocation in invocations:
            dev.wait_for(
                rf"{invocation[:20]}…  attempt 1 failed.*\n(    shop.*\n)*"
                r"    Its caller waits until an attempt succeeds\. "
                rf"Save a fix, or give up on it:\n    restate-steps invocations kill {invocation} --admin http\S+\n"
            )
        dev.wait_for(failed, times=5)

        assert dev.said.count("    shop.py:") == 2
        assert dev.said.count(f"    shop.py:{line} in total: return order.total\n") == 1
        assert dev.said.count("Its caller waits until an attempt succeeds") == 2
        assert "Traceback" not in dev.said
        lines = dev.said.partition("(ready in")[2].splitlines()[1:]
        assert len(lines) == len(re.findall(failed, dev.said)) + 2 + 2 * 2

        edit(tmp_path, "order.total", "order")
        dev.wait_for(r"changed: shop\.py\nserving DevShop")
        for invocation in invocations:
            attach = f"{ingress}/restate/invocation/{invocation}/attach"
            assert httpx.get(attach, timeout=60).raise_for_status().json() == 3

    def test_a_failing_step_is_named(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """With --fail-fast the first failure ends the invocation, so its caller does not wait."""
        (tmp_path / "shop.py").write_text(SHOP)
        dev = run("dev", "shop.py", "--fail-fast", *ports)
        ingress = ingress_of(dev)

        assert call(ingress, "place", -1).status_code >= 400

        dev.wait_for(
            r"attempt 1 failed: ValueError: cannot charge -1 in step 'charge' \(shop\.py:\d+\); "
            r"killed \(--fail-fast\)\n"
        )
        assert "Its caller waits" not in dev.said

    def test_everything_with_verbose(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The SDK's tracebacks, and what libraries log."""
        (tmp_path / "shop.py").write_text(SHOP)
        dev = run("dev", "shop.py", "--verbose", "--fail-fast", *ports)

        call(ingress_of(dev), "bug")

        dev.wait_for(r"Traceback \(most recent call last\)")
        dev.wait_for(r"INFO restate_steps\.server: Running on")

    def test_colours_on_a_terminal(self, tmp_path: Path, ports: list[str]) -> None:
        """Colours are for terminals, unless NO_COLOR asks for none."""
        (tmp_path / "shop.py").write_text(SHOP)

        coloured = on_terminal(tmp_path, ["dev", "shop.py", *ports], {"NO_COLOR": ""})
        plain = on_terminal(tmp_path, ["dev", "shop.py", *ports], {"NO_COLOR": "1"})

        assert "\x1b[32m200\x1b[0m" in coloured
        assert "  200  2 steps" in plain
        assert "\x1b[" not in plain


class TestRunsInFlight:
    """Invocations that code changes, and earlier runs, have left behind."""

    def test_a_save_that_breaks_one(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """It is named, with the entry and the line that diverge. Undoing the change lets it continue."""
        # What a module prints does not disturb the comparison.
        (tmp_path / "shop.py").write_text(f"print('imported')\n{SHOP}".replace("sleep(0.1)", "sleep(4)"))
        dev = run("dev", "shop.py", *ports)
        ingress = ingress_of(dev)
        invocation = send(ingress, "place", 2)
        eventually(lambda: "before the first step" in dev.said)

        edit(tmp_path, "await reserve(count)", "await charge(count)")

        dev.wait_for(
            rf"DevShop/place  {invocation[:20]}…  attempt \d failed: its code does not match its journal "
            r"\(error 570\); next try in .*\n"
            r"    At entry 1 its journal has:  run reserve\n"
            r"    The code now does:  run charge \(shop\.py:\d+\)\n"
            r"    It began with code from before the change\. Undo the change to let it continue, or give up on it:\n"
            rf"    restate-steps invocations kill {invocation} --admin \S+\n"
        )

        edit(tmp_path, "await charge(count)", "await reserve(count)")
        dev.wait_for("retrying 1 invocation that failed with the old code")
        dev.wait_for(rf"DevShop/place  {invocation[:20]}…  200  2 steps")

    def test_those_of_an_earlier_run(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The start says how many go on and how many fail. With --fresh there are none."""
        (tmp_path / "shop.py").write_text(SHOP)
        dev = run("dev", "shop.py", *ports)
        ingress = ingress_of(dev)
        send(ingress, "wait", "")
        send(ingress, "bug")
        dev.wait_for(r"attempt 1 failed")
        assert dev.end() == 0

        again = run("dev", "shop.py", *ports)
        again.wait_for(
            r"2 invocations of an earlier run: 1 continues, 1 fails\. "
            r"To list them: restate-steps invocations list --admin \S+\. "
            r"To start empty: restate-steps dev --fresh\.\n"
        )
        assert again.end() == 0

        fresh = run("dev", "shop.py", "--fresh", *ports)
        ingress = ingress_of(fresh)
        admin = fresh.wait_for(r"admin +(http\S+)\n")[1]
        assert AdminClient(admin).query("SELECT id FROM sys_invocation") == []
        assert call(ingress, "place", 2).json() == 2

    def test_a_paused_one_of_an_earlier_run(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """Nothing else would resume it, and its code may be another one now."""
        broken = SHOP.replace("return total(await reserve(3))", "await asyncio.get_running_loop().create_server(print)")
        (tmp_path / "shop.py").write_text(broken)
        dev = run("dev", "shop.py", *ports)
        invocation = send(ingress_of(dev), "bug")
        dev.wait_for(r"paused until a fix is saved\n")
        assert dev.end() == 0

        edit(tmp_path, "await asyncio.get_running_loop().create_server(print)", "return await reserve(3)")
        again = run("dev", "shop.py", *ports)

        again.wait_for(rf"DevShop/bug  {invocation[:20]}…  200  1 step")

    def test_fresh_removes_only_data_of_a_server(self, run: Run, tmp_path: Path) -> None:
        """A folder of something else stays as it is."""
        (tmp_path / "shop.py").write_text(SHOP)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "work.txt").write_text("months of it")

        dev = run("dev", "shop.py", "--fresh", "--base-dir", "mine")

        dev.wait_for(r"error: mine has no data of a server, so --fresh does not empty it\.")
        assert (tmp_path / "mine" / "work.txt").read_text() == "months of it"

    def test_one_that_is_killed_has_a_line_too(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The application does not see that, but the server tells."""
        (tmp_path / "shop.py").write_text(SHOP)
        dev = run("dev", "shop.py", *ports)
        invocation = send(ingress_of(dev), "bug")
        dev.wait_for(r"attempt 1 failed")

        AdminClient(dev.wait_for(r"admin +(http\S+)\n")[1]).kill(invocation)

        dev.wait_for(rf"\nDevShop/bug  {invocation[:20]}…  \[409\] killed\n")


class TestSurroundings:
    """Ports, proxies, and processes that die."""

    def test_a_given_port_that_is_taken_is_an_error(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """Otherwise the server would get to know somebody else's application."""
        (tmp_path / "shop.py").write_text(SHOP)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            dev = run("dev", "shop.py", *ports[:4], "--port", str(port))

            dev.wait_for(f"error: cannot serve on port {port} of 127.0.0.1: Address already in use")
            assert dev.process.wait(30) == 1

    def test_a_proxy_in_the_environment(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """Neither the server nor the commands use it for loopback."""
        (tmp_path / "shop.py").write_text(SHOP)
        nowhere = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:1")

        dev = run("dev", "shop.py", *ports, env={**nowhere, "NO_PROXY": "", "no_proxy": ""})

        answer = httpx.post(f"{ingress_of(dev)}/DevShop/place", json=2, timeout=60, trust_env=False)
        assert answer.json() == 2

    def test_two_at_once(self, run: Run, tmp_path: Path) -> None:
        """Both come up, because a port that the other one took first is replaced."""
        (tmp_path / "shop.py").write_text(SHOP)
        both = [run("dev", "shop.py", "--base-dir", name) for name in ("one", "two")]

        urls = {ingress_of(dev) for dev in both}

        assert len(urls) == 2
        assert [call(url, "place", 2).json() for url in urls] == [2, 2]

    def test_two_in_the_same_folder(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The second one says why it does not start, and disturbs nothing."""
        (tmp_path / "shop.py").write_text(SHOP)
        first = run("dev", "shop.py", *ports)
        ingress = ingress_of(first)

        second = run("dev", "shop.py")

        second.wait_for(r"error: the data folder \S+ is in use by another server\.")
        assert second.process.wait(30) == 1
        assert call(ingress, "place", 2).json() == 2

    def test_an_application_that_dies_is_restarted(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """At once the first time; if that happens again, a change starts it."""
        (tmp_path / "shop.py").write_text(SHOP + "\nimport os\nprint('pid', os.getpid(), flush=True)\n")
        dev = run("dev", "shop.py", *ports)
        ingress = ingress_of(dev)

        os.kill(int(dev.wait_for(r"pid (\d+)\n")[1]), signal.SIGKILL)
        dev.wait_for(r"error: the application was killed by signal 9; restarting it\.\npid \d+\nserving DevShop")
        assert call(ingress, "place", 2).json() == 2

    def test_a_process_that_ends_while_it_is_imported(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """That cannot be reported by the process itself. A change starts it again."""
        (tmp_path / "shop.py").write_text("import os\nos._exit(3)\n")
        dev = run("dev", "shop.py", *ports)
        dev.wait_for(
            r"error: the application exited with code 3 while it was imported\.\n"
            r"The application will restart after the next change\.\n"
        )

        (tmp_path / "shop.py").write_text(SHOP)
        assert call(ingress_of(dev), "place", 2).json() == 2

    def test_ignored_signals_stay_ignored(self, tmp_path: Path, ports: list[str]) -> None:
        """Under nohup, the end of the terminal does not end it. SIGTERM does."""
        (tmp_path / "shop.py").write_text(SHOP)
        log = tmp_path / "log"
        command = f"trap '' HUP INT; exec {sys.executable} -m restate_steps dev shop.py {' '.join(ports)}"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            eventually(lambda: "(ready in" in log.read_text())
            for number in (signal.SIGINT, signal.SIGHUP):
                process.send_signal(number)
            found = re.search(r"ingress +(http\S+)\n", log.read_text())
            assert found is not None
            assert call(found[1], "place", 2).json() == 2

            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()

    def test_output_of_the_application(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """Its own configuration of logs counts, and what it prints appears at once, also without a terminal."""
        configured = f"import logging\nlogging.basicConfig(level=logging.INFO, format='%(message)s!')\n{SHOP}"
        code = configured.replace('log.warning("before', 'print("in the handler")\n    log.info("before')
        (tmp_path / "shop.py").write_text(code)
        dev = run("dev", "shop.py", *ports, env={"PYTHONUNBUFFERED": ""})

        call(ingress_of(dev), "place", 2)

        dev.wait_for(r"\nin the handler\nbefore the first step!\n")

    def test_a_wrong_name_ends_it_before_a_server_starts(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The exit code is that of a usage error, and nothing is left behind."""
        (tmp_path / "shop.py").write_text(SHOP)

        dev = run("dev", "shop:ap", *ports)

        dev.wait_for(r"error: 'shop:ap' cannot be served: 'shop' has no 'ap'\. Did you mean 'app'\?\n")
        assert dev.process.wait(30) == 2
        assert not (tmp_path / ".restate-steps").exists()

    def test_environment_files_and_watched_files(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """A change of a named file restarts the application too, with the new values."""
        shop = SHOP.replace('TerminalError("not in stock", 410)', 'TerminalError(os.environ["WHY"], 410)')
        (tmp_path / "shop.py").write_text(f"import os\n{shop}")
        (tmp_path / "prices.toml").write_text("tea = 1\n")
        (tmp_path / ".env").write_text("WHY=sold\n")
        dev = run("dev", "shop.py", *ports, *("--env-file", ".env", "--watch", ".", "--watch", "prices.toml"))
        ingress = ingress_of(dev)
        assert call(ingress, "refuse").json()["message"] == "sold"

        (tmp_path / ".env").write_text("WHY=lost\n")
        dev.wait_for(r"changed: \.env\nserving DevShop")
        (tmp_path / "prices.toml").write_text("tea = 2\n")
        dev.wait_for(r"changed: prices\.toml\nserving DevShop")
        assert call(ingress, "refuse").json()["message"] == "lost"

        (tmp_path / ".env").unlink()
        dev.wait_for(
            r"error: the file '\.env' of --env-file does not exist\.\nThe application will restart after the next"
        )
        (tmp_path / ".env").write_text("WHY=found\n")
        dev.wait_for(r"serving DevShop", times=4)
        assert call(ingress, "refuse").json()["message"] == "found"


def on_terminal(folder: Path, arguments: list[str], env: dict[str, str]) -> str:
    """Run ``dev`` on a terminal until it has answered a call, and return its output."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "restate_steps", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    said = b""

    def read_until(part: bytes) -> None:
        nonlocal said
        while part not in said:
            said += os.read(controller, 4096)

    try:
        read_until(b"(ready in")
        ingress = re.search(rb"(http\S+)\r\n", said)
        assert ingress is not None
        call(ingress[1].decode(), "place", 2)
        read_until(b"2 steps")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        os.close(controller)
    return said.decode()


class TestDisk:
    """A full disk makes calls hang, so `dev` and `doctor` warn in time."""

    def test_a_warning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder need not exist yet."""
        usage = shutil.disk_usage(tmp_path)
        assert free_space(tmp_path / "not" / "there") == pytest.approx(usage.free, rel=0.1)

        monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=5_000_000))
        assert low_space(Path("data")) == (
            "only 5 MB are free on the disk of data. When it is full, calls may hang without an error."
        )
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=5_000_000_000))
        assert low_space(Path("data")) is None


class TestDev:
    """Developing with a server and an application that reloads."""

    def test_a_change_is_served(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """New code answers soon after a file is saved. Code that does not load is reported, and can be fixed."""
        write(tmp_path, "CliDev", "old")
        dev = run("dev", "main:app", *ports)
        dev.wait_for(r"serving CliDev \(ready in")
        ingress = dev.wait_for(r"ingress +(http\S+)\n")[1]
        assert answer(ingress, "CliDev") == "old"

        write(tmp_path, "CliDev", "new")
        dev.wait_for(r"changed: main\.py\nserving CliDev")
        assert answer(ingress, "CliDev") == "new"

        (tmp_path / "main.py").write_text("syntax error\n")
        dev.wait_for(
            r'(?s)error: \'main:app\' cannot be served: importing \'main\' failed\..*File "\S+main\.py", line 1\n'
            r".*SyntaxError.*\nThe application will restart after the next change\.\n"
        )

        write(tmp_path, "CliDev", "fixed")
        dev.wait_for(r"serving CliDev", times=3)
        assert answer(ingress, "CliDev") == "fixed"

    @pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
    def test_nothing_outlives_it(self, run: Run, tmp_path: Path, ports: list[str], end: signal.Signals) -> None:
        """However it ends, the server and the application end too. The data stays, and git ignores it."""
        write(tmp_path, "CliEnds", "")
        dev = run("dev", "main:app", *ports)
        dev.wait_for(r"serving CliEnds")
        below = children(dev.process.pid)

        code = dev.end(end)

        assert code == (-signal.SIGKILL if end == signal.SIGKILL else 0)
        assert len(below) >= 2
        eventually(lambda: not any(alive(pid) for pid in below))
        assert (tmp_path / ".restate-steps" / ".gitignore").read_text() == "*\n"

    def test_invocations_survive_a_change_and_a_new_run(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """A waiting handler continues after a reload, and after a restart of everything."""
        code = APP.replace("    return", "    await ctx.promise('go').value()\n    return")
        code = code.replace("restate.Service(", "restate.Workflow(").replace("Context", "WorkflowContext")
        code = code.replace("@{name}.handler()", "@{name}.main()")
        more = "@{name}.handler()\nasync def go(ctx: restate.WorkflowSharedContext) -> None:\n"
        code = code.replace("\napp =", f"\n{more}    await ctx.promise('go').resolve(1)\n\napp =")
        (tmp_path / "main.py").write_text(code.format(name="CliSurvives", answer="before"))
        dev = run("dev", "main:app", *ports)
        dev.wait_for(r"serving CliSurvives")
        ingress = dev.wait_for(r"ingress +(http\S+)\n")[1]
        sent = httpx.post(f"{ingress}/CliSurvives/w/answer/send").raise_for_status().json()["invocationId"]

        (tmp_path / "main.py").write_text(code.format(name="CliSurvives", answer="after"))
        dev.wait_for(r"serving CliSurvives", times=2)
        dev.end()
        again = run("dev", "main:app", *ports)
        again.wait_for(r"serving CliSurvives")
        httpx.post(f"{ingress}/CliSurvives/w/go", timeout=30).raise_for_status()

        attach = f"{ingress}/restate/invocation/{sent}/attach"
        assert httpx.get(attach, timeout=30).raise_for_status().json() == "after"

    def test_usual_ports_that_are_taken_are_replaced(self, run: Run, tmp_path: Path, ports: list[str]) -> None:
        """The command reports the replacement, and continues."""
        write(tmp_path, "CliPorts", "elsewhere")
        with socket.socket() as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Another process may hold the port already, which is just as good.
            with suppress(OSError):
                holder.bind(("127.0.0.1", 8080))
                holder.listen()
            dev = run("dev", "main:app", *ports[2:])
            port = dev.wait_for(r"port 8080 is in use; the ingress is on port (\d+) instead\n")[1]
            dev.wait_for(r"serving CliPorts")

            assert answer(f"http://127.0.0.1:{port}", "CliPorts") == "elsewhere"
            assert dev.end() == 0

    def test_without_watchfiles_the_error_names_the_extra(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The error has the command that installs it."""
        monkeypatch.setattr("restate_steps._dev.develop.find_spec", lambda name: None)

        assert main(["dev", "main:app"]) == 1
        assert "pip install 'restate-steps[cli]'" in capsys.readouterr().err
