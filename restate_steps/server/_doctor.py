"""Check that this machine can run a server and serve applications to it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import restate

import restate_steps
from restate_steps._versions import TESTED_SDK, is_tested
from restate_steps.errors import ServerError
from restate_steps.server._app import serve_app
from restate_steps.server._binary import ServerBinary, cache_dir, locate_server
from restate_steps.server._disk import free_space, low_space
from restate_steps.server._fetch import INSTALLED_SIZE, find_npm
from restate_steps.server._ports import LOOPBACK, free_ports
from restate_steps.server._process import PROXY_VARIABLES, RestateServer
from restate_steps.server._version import SERVER_VERSION, server_version

__all__ = ["DoctorCheck", "examine"]

_PYTHON = (3, 11)
_START_WITHIN = 30.0
_CALL_WITHIN = 30.0
_INSTALL = "pip install 'restate-steps[{extra}]'"


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """The result of one check.

    Attributes:
        subject: The name of the check.
        ok: Whether the check passed.
        detail: The finding, such as a version or an error.
        fix: The way to fix the problem; only meaningful if the check failed.
    """

    subject: str
    ok: bool
    detail: str
    fix: str = ""


def examine() -> Iterator[DoctorCheck]:
    """Run all checks, which include starting a server, and registering and calling an application.

    Nothing is fetched.

    Yields:
        The finding of each check, as soon as the check ends.

    Example:
        >>> next(examine()).subject
        'Python'
    """
    yield _python()
    yield _package("restate-steps", "", required=False, purpose="running from source")
    yield _package("restate-sdk", "pip install restate-steps", tested=TESTED_SDK)
    yield _package("pydantic", "pip install restate-steps")
    yield _package("pydantic-ai-slim", _INSTALL.format(extra="agents"), required=False)
    yield _package("httpx", _INSTALL.format(extra="server"))
    yield from _asgi_server()
    yield _package("watchfiles", _INSTALL.format(extra="cli"), required=False, purpose="for `dev`")
    yield _loopback()
    yield _disk()
    binary: ServerBinary | None = None
    try:
        binary = locate_server()
        yield _binary(binary)
    except ServerError as error:
        yield DoctorCheck(
            "restate-server", False, str(error), "set RESTATE_SERVER to a restate-server binary, or unset it"
        )
    yield _npm(needed=binary is None)
    if binary is not None:
        yield from _start(binary)


def _python() -> DoctorCheck:
    found = platform.python_version()
    return DoctorCheck(
        "Python", sys.version_info >= _PYTHON, f"{found} ({sys.executable})", "install Python 3.11 or newer"
    )


def _package(
    name: str, fix: str, *, required: bool = True, purpose: str = "optional", tested: str | None = None
) -> DoctorCheck:
    try:
        found = version(name)
        other = "" if tested is None or is_tested(found, tested) else f"; tested with {tested}"
        return DoctorCheck(name, True, found + other)
    except PackageNotFoundError:
        missing = "not installed" if required else f"not installed ({purpose})"
        return DoctorCheck(name, not required, missing, fix)


def _asgi_server() -> Iterator[DoctorCheck]:
    install = _INSTALL.format(extra="server")
    yield _package("hypercorn", install)
    # Handlers stream in both directions only over HTTP/2.
    found = _package("h2", install)
    detail = f"h2 {found.detail}, cleartext with prior knowledge" if found.ok else "h2 is not installed"
    yield DoctorCheck("HTTP/2", found.ok, detail, install)


def _loopback() -> DoctorCheck:
    try:
        free_ports(1)
    except OSError as error:
        advice = "allow listening on loopback, or use another machine"
        return DoctorCheck("loopback", False, f"cannot bind a port on {LOOPBACK}: {error}", advice)
    return DoctorCheck("loopback", True, f"can bind ports on {LOOPBACK}")


def _binary(binary: ServerBinary | None) -> DoctorCheck:
    if binary is None:
        size = INSTALLED_SIZE // 1_000_000
        return DoctorCheck("restate-server", True, f"{SERVER_VERSION} will be fetched at the first start ({size} MB)")
    try:
        found = server_version(binary.path)
    except ServerError as error:
        advice = "remove it, or set RESTATE_SERVER to a binary that runs"
        return DoctorCheck("restate-server", False, str(error), advice)
    place = {"RESTATE_SERVER": "from RESTATE_SERVER", "PATH": "on PATH"}.get(binary.source, "in the cache")
    other = "" if found == SERVER_VERSION else f"; tested with {SERVER_VERSION}"
    return DoctorCheck("restate-server", True, f"{found}{other}, {place}: {binary.path}")


def _npm(*, needed: bool) -> DoctorCheck:
    npm = find_npm()
    if npm is None:
        missing = "not found" if needed else "not found (only needed to fetch a server)"
        return DoctorCheck("npm", not needed, missing, _INSTALL.format(extra="server"))
    command = [*npm.command, "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return DoctorCheck("npm", not needed, f"{npm.name} does not run: {error}", "fix or remove this npm")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        return DoctorCheck("npm", not needed, f"{npm.name} does not run: {said[-1:]}", "fix or remove this npm")
    brought = npm.command[0] == sys.executable
    node = "its own" if brought else shutil.which("node") or "not found"
    return DoctorCheck("npm", True, f"{done.stdout.strip()}, {npm.name}; node: {node}")


def _disk() -> DoctorCheck:
    # The places of the fetched server, of temporary data, and of the data of `dev`.
    for folder in (cache_dir(), Path(tempfile.gettempdir()), Path.cwd()):
        if (warning := low_space(folder)) is not None:
            advice = "free some space, or choose another disk with RESTATE_STEPS_CACHE, TMPDIR or --base-dir"
            return DoctorCheck("disk", False, warning, advice)
    return DoctorCheck("disk", True, f"{free_space(Path.cwd()) / 1e9:.0f} GB are free in this folder")


def _start(binary: ServerBinary) -> Iterator[DoctorCheck]:
    server = RestateServer(binary.path, startup_timeout=_START_WITHIN)
    started = time.monotonic()
    try:
        with server:
            took = time.monotonic() - started
            yield DoctorCheck("server start", True, f"healthy after {took:.1f} s, at {server.ingress_url}")
            yield _call(server)
    except ServerError as error:
        yield DoctorCheck("server start", False, str(error), "fix the reported error, or attach it to a bug report")


def _call(server: RestateServer) -> DoctorCheck:
    """Register an application and call it, which also shows whether a proxy is in the way."""
    doctor = restate.Service("Doctor")

    @doctor.handler()
    async def answer(ctx: restate.Context) -> str:
        return await restate_steps.run_step(_here)

    proxies = sorted(name for name in os.environ if name.lower() in PROXY_VARIABLES)
    beside = f"; {', '.join(proxies)} not used for loopback" if proxies else ""
    try:
        with serve_app(restate_steps.app([doctor]), server):
            _call_handler(server.ingress_url)
    except (ServerError, OSError) as error:
        advice = "check that nothing on this machine filters requests to 127.0.0.1, such as a proxy or a firewall"
        return DoctorCheck("registration", False, str(error), advice)
    return DoctorCheck("registration", True, f"registered an application and called it{beside}")


async def _here() -> str:
    return "here"


def _call_handler(ingress_url: str) -> None:
    import httpx

    try:
        httpx.post(f"{ingress_url}/Doctor/answer", timeout=_CALL_WITHIN, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise ServerError(f"the application was registered, but calling it failed: {error!r}") from error
