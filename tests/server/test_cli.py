"""The command line, run in separate processes as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from restate_steps.cli import main
from restate_steps.server import SERVER_VERSION, RestateServer
from restate_steps.server._doctor import examine
from restate_steps.server._ports import free_ports
from tests.support.harness import eventually

APP = """
import restate

{name} = restate.Service("{name}")


@{name}.handler()
async def answer(ctx: restate.Context) -> str:
    return "{answer}"


app = restate.app([{name}])
"""


class Running:
    """A running command, with its output so far."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "restate_steps", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def wait_for(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """Wait until the output has this number of matches, and return the last one."""

        def look() -> list[re.Match[str]]:
            found = list(re.finditer(pattern, self.said))
            if len(found) < times and self.process.poll() is not None:
                self._reader.join()
                found = list(re.finditer(pattern, self.said))
                assert len(found) >= times, f"ended with code {self.process.returncode}, and said:\n{self.said}"
            return found if len(found) >= times else []

        return eventually(look)[-1]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Run(Protocol):
    """A function that starts a command in the test's folder."""

    def __call__(self, *arguments: str, env: dict[str, str] | None = None) -> Running: ...


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start commands in the test's own folder, and kill those still running after the test."""
    started: list[Running] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Running:
        started.append(Running(tmp_path, *arguments, env=env))
        return started[-1]

    yield start
    for command in started:
        command.end(signal.SIGKILL)


def write(folder: Path, name: str, answer: str) -> None:
    (folder / "main.py").write_text(APP.format(name=name, answer=answer))


def answer(ingress: str, name: str) -> str:
    return str(httpx.post(f"{ingress}/{name}/answer", timeout=30).raise_for_status().json())


def children(pid: int) -> set[int]:
    """Return the descendants of a process, in any process group."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return status.strip() != "" and not status.startswith("Z")


class TestErrors:
    """Mistakes are reported in one line."""

    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("main", "'main' does not name an application. Write MODULE:APP, for example main:app."),
            ("nowhere:app", "the module 'nowhere' was not found in "),
            ("main:nothing", "the module 'main' has no 'nothing'."),
            ("main:Mistakes", "it is an object of type Service, not an ASGI application. Name the application that"),
        ],
    )
    def test_a_target_that_is_not_an_application(
        self,
        target: str,
        reason: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The error names the problem, without a traceback."""
        write(tmp_path, "Mistakes", "")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "main", raising=False)

        code = main(["serve", target])

        sys.modules.pop("main", None)
        said = capsys.readouterr().err
        assert code == 1
        assert reason in said
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1

    @pytest.mark.parametrize("text", ["import nowhere_at_all", "1 / 0", "syntax error"])
    def test_a_module_that_fails_shows_where(self, run: Run, tmp_path: Path, text: str) -> None:
        """The traceback shows the module's lines, and none of this package."""
        (tmp_path / "main.py").write_text(f"\n{text}\n")

        serve = run("serve", "main:app")
        said = serve.wait_for(r"(?s)error: 'main:app' cannot be served: importing 'main' failed\.\n.*Error").string

        assert serve.process.wait(30) == 1
        assert 'main.py", line 2' in said
        assert "restate_steps" not in said
        assert "importlib" not in said

    def test_usage_errors_have_their_own_exit_code(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The exit code of a usage error is 2."""
        with pytest.raises(SystemExit) as caught:
            main(["serve"])

        assert caught.value.code == 2
        assert "MODULE:APP" in capsys.readouterr().err

    def test_a_server_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The error names the server's URL."""
        assert main(["register", "http://127.0.0.1:1", "--admin", "http://127.0.0.1:1"]) == 1
        assert "error: cannot register http://127.0.0.1:1: no answer from the server at" in capsys.readouterr().err


class TestServe:
    """Serving and registering."""

    @pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
    @pytest.mark.parametrize("more", [[], ["--http1"]], ids=["HTTP/2", "HTTP/1.1"])
    def test_serve_and_register(
        self,
        run: Run,
        tmp_path: Path,
        normal_server: RestateServer,
        capsys: pytest.CaptureFixture[str],
        more: list[str],
        end: signal.Signals,
    ) -> None:
        """A served application can be registered and called, and exits on SIGINT and SIGTERM."""
        write(tmp_path, "CliServe", "served")
        serve = run("serve", "main:app", "--port", "0", *more)
        url = serve.wait_for(r"serving main:app at (http://127\.0\.0\.1:\d+)\n")[1]

        # With --force, because an earlier test may have registered an application on the same port.
        assert main(["register", url, "--admin", normal_server.admin_url, "--force", *more]) == 0
        assert "registered CliServe as dp_" in capsys.readouterr().out
        assert answer(normal_server.ingress_url, "CliServe") == "served"
        # The SDK installs its handler for SIGTERM at the first request, so stop only after one.
        assert serve.end(end) == 0

    def test_a_port_that_is_taken(self, run: Run, tmp_path: Path) -> None:
        """The error names the port."""
        write(tmp_path, "CliTaken", "")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            serve = run("serve", "main:app", "--port", str(port))

            serve.wait_for(f"error: cannot serve on port {port} of 127.0.0.1: Address already in use")
            assert serve.process.wait(30) == 1


class TestServer:
    """Running a server."""

    def test_version_only(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The command prints the binary that would run."""
        assert main(["server", "--version-only"]) == 0
        assert re.fullmatch(r"restate-server \S+ at /\S+\n", capsys.readouterr().out)

    def test_a_server_runs_until_a_signal(self, run: Run) -> None:
        """The server uses the given ports, and its processes are gone at the end."""
        ingress, admin = free_ports(2)
        server = run("server", "--ingress-port", str(ingress), "--admin-port", str(admin))
        server.wait_for(rf"ingress  http://127\.0\.0\.1:{ingress}\n")
        ui = server.wait_for(r"UI +(http\S+)\n")[1]
        folder = Path(server.wait_for(r"data +(\S+) \(removed at the end\)\n")[1])
        below = children(server.process.pid)

        assert httpx.get(ui).is_success
        assert server.end(signal.SIGTERM) == 0
        assert not folder.exists()
        eventually(lambda: not any(alive(pid) for pid in below))

    def test_a_server_that_exits_by_itself_is_an_error(self, run: Run) -> None:
        """The command exits too, instead of waiting forever."""
        ports = [str(port) for port in free_ports(2)]
        server = run("server", "--ingress-port", ports[0], "--admin-port", ports[1])
        server.wait_for(r"data ")

        listing = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True
        ).stdout
        below = children(server.process.pid)
        servers = {int(row.split()[0]) for row in listing.splitlines() if "--no-logo" in row}
        [pid] = servers & below
        os.kill(pid, signal.SIGKILL)

        server.wait_for(r"error: restate-server exited unexpectedly\.")
        assert server.process.wait(30) == 1


class TestDev:
    """Developing with a server and an application that reloads."""

    @pytest.fixture
    def ports(self) -> list[str]:
        names = ("--ingress-port", "--admin-port", "--port")
        return [part for name, port in zip(names, free_ports(3), strict=True) for part in (name, str(port))]

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
        dev.wait_for(r"error: the application failed to start; it will restart after the next change\.\n")

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
        monkeypatch.setitem(sys.modules, "watchfiles", None)

        assert main(["dev", "main:app"]) == 1
        assert "pip install 'restate-steps[cli]'" in capsys.readouterr().err


class TestDoctor:
    """Checking the machine."""

    def test_this_machine_passes(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The machine that runs the tests passes all checks, which includes starting a server."""
        code = main(["doctor"])
        said = capsys.readouterr().out

        assert code == 0, said
        assert re.search(r"^ok    server start      healthy after \d+\.\d s", said, re.MULTILINE)
        assert said.endswith("no problems found\n")

    def test_problems_come_with_a_fix(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """On a machine without a server, the check fails and says how to get one. Nothing is fetched."""
        monkeypatch.delenv("RESTATE_SERVER", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("RESTATE_STEPS_CACHE", str(tmp_path / "cache"))

        code = main(["doctor"])
        said = capsys.readouterr().out

        assert code == 1
        assert "FAIL  restate-server    not found\n" in said
        assert "-> fetch it: restate-steps server --version-only\n" in said
        assert said.endswith("1 problem found\n")
        assert not (tmp_path / "cache").exists()

    def test_a_server_of_another_version_is_shown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another version is not a failure, because it may work; a server that does not start is."""
        other = tmp_path / "restate-server"
        other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo restate-server 0.1 || exit 5\n')
        other.chmod(0o755)
        monkeypatch.setenv("RESTATE_SERVER", str(other))

        findings = {finding.subject: finding for finding in examine()}

        assert findings["restate-server"].ok
        assert findings["restate-server"].detail.startswith(f"0.1; tested with {SERVER_VERSION}, from RESTATE_SERVER:")
        assert not findings["server start"].ok
        assert "exited with code 5" in findings["server start"].detail

    def test_a_variable_that_names_nothing_is_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The variable is not skipped silently."""
        monkeypatch.setenv("RESTATE_SERVER", str(tmp_path / "nothing"))

        [finding] = [finding for finding in examine() if finding.subject == "restate-server"]

        assert not finding.ok
        assert "does not exist" in finding.detail
        assert "RESTATE_SERVER" in finding.fix
