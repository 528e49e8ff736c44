"""Check that this machine can run a server and serve applications to it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from restate_steps._versions import TESTED_SDK, is_tested
from restate_steps.errors import ServerError
from restate_steps.server._binary import ServerBinary, locate_server
from restate_steps.server._fetch import find_npm
from restate_steps.server._ports import LOOPBACK, free_ports
from restate_steps.server._process import RestateServer
from restate_steps.server._version import SERVER_VERSION, server_version

__all__ = ["DoctorCheck", "examine"]

_PYTHON = (3, 11)
_START_WITHIN = 30.0
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
    """Run all checks, which includes starting a server for a moment.

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
        yield _start(binary)


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
        return DoctorCheck("restate-server", False, "not found", "fetch it: restate-steps server --version-only")
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


def _start(binary: ServerBinary) -> DoctorCheck:
    server = RestateServer(binary.path, startup_timeout=_START_WITHIN)
    started = time.monotonic()
    try:
        with server:
            took = time.monotonic() - started
            return DoctorCheck("server start", True, f"healthy after {took:.1f} s, at {server.ingress_url}")
    except ServerError as error:
        return DoctorCheck("server start", False, str(error), "fix the reported error, or attach it to a bug report")
