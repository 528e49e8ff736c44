"""The command line, run in separate processes as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from restate_steps.cli import main
from restate_steps.server import SERVER_VERSION, RestateServer
from restate_steps.server._doctor import examine
from restate_steps.server._ports import free_ports
from tests.support import ROOT
from tests.support.commands import Run, alive, answer, children, write
from tests.support.harness import eventually


class TestErrors:
    """Mistakes are reported in one line."""

    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("main:", "'main:' does not name an application. Write a file, a module, or MODULE:APP, for example main"),
            ("nowhere:app", "no module 'nowhere' was found in "),
            ("mian:app", "Did you mean 'main'?"),
            ("mian.py", "the file does not exist. Did you mean 'main.py'?"),
            ("main:ap", "'main' has no 'ap'. Did you mean 'app'?"),
            ("main:Mistakes", "it is an object of type Service, not an ASGI application. Name the application that"),
            ("main:answer", "it is an object of type function, not an ASGI application."),
            (
                "services.py",
                "'services' has no Restate application. Add one: app = restate_steps.app([Mistakes",
            ),
            ("several.py", "it has several applications. Choose one of several:one, several:two."),
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
        """The error names the problem, in one line, and the exit code is that of a usage error."""
        write(tmp_path, "Mistakes", "")
        services = "import restate\nMistakes, More = restate.Service('A'), restate.Service('B')\n"
        (tmp_path / "services.py").write_text(services)
        (tmp_path / "several.py").write_text(f"{services}one, two = restate.app([More]), restate.app([Mistakes])\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))

        code = main(["serve", target])

        for name in ("main", "services", "several"):
            sys.modules.pop(name, None)
        said = capsys.readouterr().err
        assert code == 2
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
        """The exit code of a usage error is 2, and the error looks like all others, in one line."""
        assert main(["serve"]) == 2
        said = capsys.readouterr().err
        assert said == "error: missing argument 'APP'. For help, run: restate-steps serve --help\n"

    @pytest.mark.parametrize(
        ("words", "suggestion"),
        [
            (["regster", "http://127.0.0.1"], "no such command 'regster'. Did you mean 'register'?"),
            (["invocations", "kil", "inv_1"], "no such command 'kil'. Did you mean 'kill'?"),
            (["server", "--admin-prt", "1"], "no such option '--admin-prt'. Did you mean one of: '--admin-port', "),
            (["serve", "main", "--wokers", "2"], "no such option '--wokers'. Did you mean '--workers'?"),
        ],
    )
    def test_typing_errors(self, words: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The error suggests the command or the option that was meant."""
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"error: {suggestion}")

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["serve", "main", "--port", "99999"], "'--port': 99999 is not in the range 0<=x<=65535."),
            (
                ["register", "http://127.0.0.1:99999"],
                "'URL': 'http://127.0.0.1:99999' is not a URL. Write it like http",
            ),
            (["register", "localhost:9080"], "'URL': 'localhost:9080' is not a URL."),
            (["invocations", "list", "--admin", "localhost:9070"], "'--admin'"),
            (
                ["register", "http://127.0.0.1", "--header", "x"],
                "'--header': 'x' is not a header. Write it as NAME:VAL",
            ),
            (["register", "http://127.0.0.1", "--header", "x y: 1"], "'--header': 'x y: 1' is not a header."),
            (["register", "http://127.0.0.1", "--header", "x: ü"], "'--header': the value of 'x' has characters that"),
            (["approvals", "resolve", "sign_1", "NaN"], "'[JSON]': not JSON: NaN is not a JSON value."),
            (
                ["approvals", "approve", "sign_1", "--args", '{"x": NaN}'],
                "'--args': not JSON: NaN is not a JSON value.",
            ),
        ],
    )
    def test_values_that_cannot_work(self, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
        """They are usage errors, which name the option."""
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: invalid value for {reason}")
        assert len(said.splitlines()) == 1

    @pytest.mark.parametrize(
        "words",
        [
            ["invocations", "list", "--admin-token"],
            ["approvals", "resolve", "sign_1", "--ingress-token"],
            ["register", "http://127.0.0.1", "--bearer"],
        ],
        ids=lambda words: words[-1].strip("-"),
    )
    def test_a_token_that_cannot_be_sent(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """The error does not show the token."""
        assert main([*words, "secret-ü"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: invalid value for '{words[-1]}'")
        assert "the token has characters that are not visible ASCII." in said
        assert "secret" not in said

    @pytest.mark.parametrize(
        "words",
        [
            ["invocations", "list", "--key", "\udcff"],
            ["invocations", "show", "inv_1\udcff1"],
            ["approvals", "resolve", "sign_1\udcff", "1"],
            ["approvals", "resolve", "sign_1", '"\udcff"'],
            ["approvals", "resolve", "sign_1", "1e999"],
        ],
        ids=ascii,
    )
    def test_values_that_cannot_be_sent(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Bytes of the command line that are not UTF-8, and numbers that JSON does not have."""
        assert main(words) == 1
        said = capsys.readouterr().err
        assert "the request has a value that cannot be sent" in said
        assert len(said.splitlines()) == 1

    @pytest.mark.parametrize("words", [[], ["invocations"], ["approvals"], ["journal"]], ids=" ".join)
    def test_without_a_verb(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """The help is shown, and the exit code is 0."""
        assert main(words) == 0
        assert capsys.readouterr().out.startswith(" ".join(["Usage: restate-steps", *words, "[OPTIONS]"]))

    @pytest.mark.parametrize(
        "words",
        [
            ["init", "{place}/new"],
            ["server", "--base-dir", "{place}/data"],
            ["dev", "main.py", "--port", "0", "--base-dir", "{place}/data"],
            ["dev", "main.py", "--port", "0", "--env-file", "{place}/variables"],
            ["journal", "replay", "main.py", "{place}/journals"],
            ["journal", "export", "inv_1", "-o", "{place}/journal"],
        ],
        ids=lambda words: "-".join(word.strip("-") for word in words if "{" not in word),
    )
    @pytest.mark.parametrize("place", ["/proc", "a-file"])
    def test_a_place_that_cannot_be_used(self, words: list[str], place: str, run: Run, tmp_path: Path) -> None:
        """A folder that cannot be written, or a file in the place of a folder, is an error in one line."""
        write(tmp_path, "CliPlace", "")
        (tmp_path / "a-file").touch()

        command = run(*[word.format(place=place) for word in words])

        assert command.process.wait(60) in (1, 2)
        command.end()
        assert re.fullmatch(r"error: [^\n]+\n", command.said), command.said

    def test_an_ascii_terminal(self, run: Run, tmp_path: Path) -> None:
        """Characters that the terminal cannot show are escaped."""
        folder = tmp_path / "ü"
        folder.mkdir()
        ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}

        command = run("init", str(folder), env=ascii_only)

        assert command.process.wait(60) == 2
        command.end()
        assert re.match(r"error: invalid value for NAME: '(\\\w+)+' cannot be the name of a project\.", command.said)

    @pytest.mark.parametrize("words", [["--help"], ["completion", "bash"], ["invocations"], ["serve", "no.py"]])
    @pytest.mark.parametrize("ends", ["closed", "gone"])
    def test_output_that_cannot_be_written(self, words: list[str], ends: str, tmp_path: Path) -> None:
        """A reader that leaves, as ``head`` does, or output that is closed: no traceback."""
        python = [sys.executable, "-m", "restate_steps", *words]
        # The shell waits until the reader has gone.
        script = {"closed": 'exec "$@" >&-', "gone": '{ sleep 0.2; exec "$@"; } | true'}[ends]
        done = subprocess.run(
            ["sh", "-c", script, "sh", *python],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1

    def test_without_the_extra(self) -> None:
        """Without click, the program says what to install."""
        code = "import sys; sys.modules['click'] = None; from restate_steps.cli import main; sys.exit(main(['dev']))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

        assert done.returncode == 1
        assert done.stderr.endswith("Install it with: pip install 'restate-steps[cli]'\n")
        assert len(done.stderr.splitlines()) == 1

    def test_a_server_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The error names the server's URL."""
        assert main(["register", "http://127.0.0.1:1", "--admin", "http://127.0.0.1:1"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: cannot ")
        assert ": no answer from the server at http://127.0.0.1:1 (" in said


class TestHelp:
    """Help and completion."""

    def test_help_imports_no_command(self) -> None:
        """The program shows help without importing the SDK, the client, or the testing kit."""
        code = (
            "import sys\nfrom restate_steps.cli import main\nmain(['invocations', '--help'])\n"
            "slow = {'restate', 'httpx', 'pydantic', 'asyncio', 'restate_steps.server', 'restate_steps.testing'}\n"
            "print(sorted(slow & set(sys.modules)), file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

        assert done.stderr == "[]\n"

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion(self, shell: str, run: Run) -> None:
        """The script of a shell asks the program, which completes commands, options and choices."""
        script = run("completion", shell)
        assert script.process.wait(60) == 0
        script.end()
        assert f"_RESTATE_STEPS_COMPLETE={shell}_complete" in script.said

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            (["restate-steps", "inv"], "plain,invocations\n"),
            (["restate-steps", "invocations", "re"], "plain,resume\n"),
            (["restate-steps", "register", "--dr"], "plain,--dry-run\n"),
            (["restate-steps", "invocations", "list", "--status", "fail"], "plain,failing\nplain,failed\n"),
        ],
    )
    def test_completed_words(self, words: list[str], found: str, run: Run) -> None:
        """The program completes the last word."""
        asked = {
            "_RESTATE_STEPS_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        command = run(env=asked)
        assert command.process.wait(60) == 0
        command.end()
        assert command.said == found

    def test_how_to_install_completion(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The help has the line for each shell."""
        assert main(["completion", "--help"]) == 0
        said = capsys.readouterr().out
        assert '~/.bashrc  eval "$(restate-steps completion bash)"\n' in said
        assert '~/.zshrc   eval "$(restate-steps completion zsh)"\n' in said
        assert "restate-steps completion fish > ~/.config/fish" in said


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
        assert re.match(r"registered CliServe \(revision \d+\) as dp_\w+\n", capsys.readouterr().out)
        assert answer(normal_server.ingress_url, "CliServe") == "served"
        # The SDK installs its handler for SIGTERM at the first request, so stop only after one.
        assert serve.end(end) == 0

    def test_a_failed_attempt_costs_one_line(self, run: Run, tmp_path: Path, normal_server: RestateServer) -> None:
        """The log has the user's lines the first time, and no traceback of the SDK."""
        write(tmp_path, "CliBuggy", "")
        code = (tmp_path / "main.py").read_text().replace("return", 'raise ValueError("no\\nthing"); return')
        (tmp_path / "main.py").write_text(code)
        serve = run("serve", "main.py", "--port", "0")
        url = serve.wait_for(r"serving main\.py at (http://127\.0\.0\.1:\d+)\n")[1]
        normal_server.admin.register(url)
        sent = httpx.post(f"{normal_server.ingress_url}/CliBuggy/answer/send", timeout=30).json()["invocationId"]

        failed = rf"CliBuggy/answer {sent} attempt \d failed: ValueError: no \(main\.py:9\)\n"
        serve.wait_for(failed, times=3)
        normal_server.admin.kill(sent)

        assert serve.said.count("    thing\n    main.py:9 in answer: raise ValueError") == 1
        assert "Traceback" not in serve.said
        assert len(serve.said.splitlines()) == 1 + len(re.findall(failed, serve.said)) + 2
        assert serve.end(signal.SIGTERM) == 0

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


class TestDoctor:
    """Checking the machine."""

    def test_this_machine_passes(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """The machine that runs the tests passes all checks, even behind a proxy that does not answer."""
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)

        code = main(["doctor"])
        said = capsys.readouterr().out

        assert code == 0, said
        assert re.search(r"^ok    server start      healthy after \d+\.\d s", said, re.MULTILINE)
        assert re.search(r"^ok    disk              \d+ GB are free in this folder$", said, re.MULTILINE)
        proxies = r"registered an application and called it; HTTP_PROXY, .*http_proxy not used for loopback"
        assert re.search(rf"^ok    registration      {proxies}$", said, re.MULTILINE)
        assert said.endswith("no problems found\n")

    def test_problems_come_with_a_fix(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """On a machine without a server, it will be fetched. Without npm, the check says how to get that."""
        monkeypatch.delenv("RESTATE_SERVER", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("RESTATE_STEPS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("restate_steps.server._doctor.find_npm", lambda: None)

        code = main(["doctor"])
        said = capsys.readouterr().out

        assert code == 1
        assert f"ok    restate-server    {SERVER_VERSION} will be fetched at the first start (226 MB)\n" in said
        assert "FAIL  npm               not found\n" in said
        assert "-> pip install 'restate-steps[server]'\n" in said
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
