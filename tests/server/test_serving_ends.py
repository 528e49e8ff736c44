"""Served applications end at a signal, and lose no step."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import restate

import restate_steps
from restate_steps.errors import ServerError
from restate_steps.server import RestateServer, serve_app
from restate_steps.server._draining import guarded, warn_if_open
from restate_steps.server._ports import free_ports
from tests.support import ROOT
from tests.support.commands import children
from tests.support.harness import eventually

SERVERS = {
    "serve": ["restate_steps", "serve", "APP", "--port", "PORT"],
    "uvicorn": ["uvicorn", "APP", "--port", "PORT"],
    "granian": ["granian", "APP", "--interface", "asgi", "--http", "2", "--port", "PORT"],
    "hypercorn": ["hypercorn", "APP", "--bind", "127.0.0.1:PORT", "--graceful-timeout", "1"],
}
WORKERS = """
import sys
from restate_steps.server._workers import run_workers

run_workers(sys.argv[1], workers=2, port=int(sys.argv[2]), ready=lambda url: print("ready", flush=True))
"""
KEY = "publickeyv1_3bV2K6KE7uhPHUHLQix8FZSg7jFHu7j1MJKUK6GC7ne9"
PRIVATE_KEY = """\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIPhYEdS2Uv8XAtwAMSj8zScDGKLF8/MPxAjSKjBoKrVK
-----END PRIVATE KEY-----
"""


class Served:
    """A process that serves, in a process group of its own, with its output so far."""

    def __init__(self, *arguments: str, port: int) -> None:
        words = (word.replace("PORT", str(port)) for word in arguments)
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        eventually(lambda: self._accepts(port))

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    def _accepts(self, port: int) -> bool:
        assert self.process.poll() is None, self.said
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(30)
        return code

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers, and kill those still running after the test."""
    started: list[Served] = []

    def start(name: str, app: str = "app", *more: str, port: int | None = None) -> Served:
        target = f"tests.server.serve_app:{app}"
        program = ["-c", WORKERS, target, "PORT"] if name == "workers" else ["-m", *SERVERS[name]]
        words = [word.replace("APP", target) for word in program]
        [chosen] = free_ports(1) if port is None else [port]
        started.append(Served(*words, *more, port=chosen))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=30) as client:
        yield client


def call(client: httpx.Client, server: RestateServer, handler: str, body: object = None) -> httpx.Response:
    options = {} if body is None else {"json": body}
    return client.post(f"{server.ingress_url}/ServeApp/{handler}", **options).raise_for_status()


def is_draining(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 503
    except httpx.TransportError:
        return True


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_ends_at_sigterm(
    serve: Serve, client: httpx.Client, normal_server: RestateServer, tmp_path: Path, name: str
) -> None:
    """uvicorn, granian, Hypercorn and ours end, although a handler ran, and another one waits."""
    served = serve(name)
    normal_server.admin.register(served.url, http1=name == "uvicorn", force=True)
    call(client, normal_server, "pid")
    sent = call(client, normal_server, "waits/send", str(tmp_path)).json()["invocationId"]
    eventually(lambda: (tmp_path / "started").exists())

    code = served.end()

    normal_server.admin.kill(sent)
    # uvicorn raises the signal again when it has shut down.
    assert code == (-signal.SIGTERM if name == "uvicorn" else 0)


@pytest.mark.parametrize(
    ("name", "app", "more", "whole_group"),
    [
        ("serve", "app", [], False),
        ("serve", "app", ["--http1"], False),
        ("serve", "plain", [], False),
        ("uvicorn", "app", [], False),
        ("workers", "app", [], False),
        ("serve", "app", [], True),
        ("workers", "app", [], True),
    ],
    ids=["serve", "http1", "restate.app", "uvicorn", "workers", "serve, group", "workers, group"],
)
def test_running_bodies_end(
    serve: Serve,
    client: httpx.Client,
    normal_server: RestateServer,
    tmp_path: Path,
    name: str,
    app: str,
    more: list[str],
    whole_group: bool,
) -> None:
    """A body that runs at SIGTERM ends, its result is recorded, and the next step runs in the next process.

    A service manager such as systemd may signal every process of the service at once.
    """
    served = serve(name, app, *more)
    normal_server.admin.register(served.url, http1="--http1" in more or name == "uvicorn", force=True)
    folders = [tmp_path / str(number) for number in range(5)]
    sent: list[str] = []
    for folder in folders:
        folder.mkdir()
        sent.append(call(client, normal_server, "works/send", str(folder)).json()["invocationId"])
    eventually(lambda: all((folder / "started").exists() for folder in folders))

    group = [served.process.pid, *(children(served.process.pid) if whole_group else ())]
    for pid in group:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    # A worker that took one of the signals for a second one would have cut its bodies by then.
    eventually(lambda: is_draining(served.url))
    for folder in folders:
        (folder / "go").touch()
    served.process.wait(30)
    serve(name, app, *more, port=int(served.url.rpartition(":")[2]))

    attach = f"{normal_server.ingress_url}/restate/invocation"
    for folder, invocation in zip(folders, sent, strict=True):
        ran = client.get(f"{attach}/{invocation}/attach").raise_for_status().json()
        assert ran == [int(pid) for pid in (folder / "started").read_text().split()]


def test_a_second_signal_cuts(serve: Serve, client: httpx.Client, normal_server: RestateServer, tmp_path: Path) -> None:
    """A body that does not end holds up the first signal, and not the second."""
    served = serve("serve")
    normal_server.admin.register(served.url, force=True)
    sent = call(client, normal_server, "works/send", str(tmp_path)).json()["invocationId"]
    eventually(lambda: (tmp_path / "started").exists())

    served.process.send_signal(signal.SIGTERM)
    with httpx.Client(trust_env=False, http2=False) as plain:
        eventually(lambda: plain.get(f"{served.url}/health").status_code == 503)
    assert served.end() == 0
    assert "Traceback" not in served.said
    normal_server.admin.kill(sent)


def test_the_load_is_spread(serve: Serve, client: httpx.Client, normal_server: RestateServer, tmp_path: Path) -> None:
    """Bodies that run at once run in both workers, and a worker that dies is replaced."""
    served = serve("workers")
    eventually(lambda: "ready" in served.said)
    normal_server.admin.register(served.url, force=True)
    sent = [call(client, normal_server, "works/send", str(tmp_path)).json()["invocationId"] for _ in range(40)]
    started = tmp_path / "started"
    eventually(lambda: started.exists() and len(started.read_text().split()) == 40)

    spread = Counter(started.read_text().split())
    [victim, _] = spread
    os.kill(int(victim), signal.SIGKILL)
    eventually(lambda: "a worker ended with exit code -9; starting another" in served.said)
    (tmp_path / "go").touch()
    for invocation in sent:
        url = f"{normal_server.ingress_url}/restate/invocation/{invocation}/attach"
        client.get(url).raise_for_status()

    assert len(spread) == 2
    assert served.end() == 0


def test_workers_that_do_not_start_are_an_error() -> None:
    """The error of the application is shown, and nothing is left behind."""
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, "no_such_module:app", "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "no module 'no_such_module' was found" in done.stderr
    assert "a process that should serve 'no_such_module:app' ended with exit code 1" in done.stderr


@pytest.mark.parametrize("marker", ["asyncio", "restate_steps.errors", "restate_steps.server", "serving "])
def test_no_traceback_at_ctrl_c(tmp_path: Path, marker: str) -> None:
    """An interrupt while the command imports, or while it serves, ends it quietly."""
    process = subprocess.Popen(
        # Python writes a line for each module that it has imported.
        [sys.executable, "-X", "importtime", "-m", "restate_steps", "serve", "tests.server.serve_app:app", "--port=0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout)
    pattern = re.compile(rf"\| +{re.escape(marker)}\n|^{re.escape(marker)}tests")
    assert any(pattern.search(line) for line in lines)

    process.send_signal(signal.SIGINT)
    rest = "".join(lines)
    process.stdout.close()

    assert process.wait(30) == (0 if marker == "serving " else 130)
    assert "Traceback" not in rest


def test_ignored_signals_stay_ignored(serve: Serve) -> None:
    """Under nohup, neither the end of the terminal nor an ignored Ctrl-C ends the process; SIGTERM does."""
    ignored = (signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        served = serve("serve")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    served.process.send_signal(signal.SIGHUP)
    served.process.send_signal(signal.SIGINT)

    assert httpx.get(f"{served.url}/health", trust_env=False).is_success
    assert served.process.poll() is None
    assert served.end() == 0


async def statuses(app: object, path: str) -> list[int]:
    """Return the status of a request without a signature."""
    found: list[int] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            found.append(int(str(message["status"])))

    scope = {"type": "http", "http_version": "2", "method": "GET", "path": path, "headers": []}
    await app(scope, receive, send)  # type: ignore[operator]
    return found


async def test_identity_keys() -> None:
    """Requests without a signature are rejected, except for health checks."""
    app = guarded(restate_steps.app([restate.Service("Signed")]), http1=False, identity_keys=[KEY])

    assert [401] == await statuses(app, "/discover")
    assert [401] == await statuses(app, "/invoke/Signed/any")
    assert [200] == await statuses(app, "/health")


def test_a_server_that_signs_is_accepted(tmp_path: Path) -> None:
    """A server with the private key can register the application and call it."""
    key_file = tmp_path / "key.pem"
    key_file.write_text(PRIVATE_KEY)
    service = restate.Service("SignedFor")

    @service.handler()
    async def answer(ctx: restate.Context) -> str:
        return "signed"

    app = guarded(restate_steps.app([service]), http1=False, identity_keys=[KEY])
    signing = {"RESTATE_REQUEST_IDENTITY_PRIVATE_KEY_PEM_FILE": str(key_file)}
    with RestateServer(env=signing) as server, serve_app(app, server):
        answered = httpx.post(f"{server.ingress_url}/SignedFor/answer", timeout=30, trust_env=False)

    assert answered.json() == "signed"


def test_an_invalid_identity_key_is_refused() -> None:
    """The error names it."""
    with pytest.raises(ServerError, match="identity keys \\['nonsense'\\]"):
        guarded(restate_steps.app([]), http1=False, identity_keys=["nonsense"])


@pytest.mark.parametrize(
    ("host", "keys", "own", "warns"),
    [
        ("0.0.0.0", [], None, True),
        ("::", [], None, True),
        ("127.0.0.1", [], None, False),
        ("localhost", [], None, False),
        ("0.0.0.0", [KEY], None, False),
        ("0.0.0.0", [], [KEY], False),
    ],
)
def test_an_open_port_is_warned_about(
    caplog: pytest.LogCaptureFixture, host: str, keys: list[str], own: list[str] | None, warns: bool
) -> None:
    """A port that others reach needs identity keys, from the command line or in the application."""
    with caplog.at_level(logging.WARNING, "restate_steps.server"):
        warn_if_open(restate_steps.app([], identity_keys=own), host, keys)

    assert warns == ("--identity-key" in caplog.text)
