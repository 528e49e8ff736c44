"""See whether a machine has what it takes to run a server and serve applications to it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from restate_steps.errors import ServerError
from restate_steps.server._binary import ServerBinary, locate_server
from restate_steps.server._fetch import find_npm
from restate_steps.server._ports import LOOPBACK, free_ports
from restate_steps.server._process import RestateServer
from restate_steps.server._version import SERVER_VERSION, server_version

__all__ = ["Finding", "examine"]

_PYTHON = (3, 11)
_START_WITHIN = 30.0
_INSTALL = "pip install 'restate-steps[{extra}]'"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at.
        ok: Whether it is as it has to be.
        detail: What was found.
        fix: What to do about it; empty if there is nothing to do.
    """

    subject: str
    ok: bool
    detail: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything that is needed, and start a server for a moment.

    Nothing is fetched.

    Yields:
        A finding for each thing, as soon as it is known; those that are not ``ok`` say what to do.

    Example:
        >>> next(examine()).subject
        'Python'
    """
    yield _python()
    yield _package("restate-steps", "", required=False, purpose="run from its source")
    for package in ("restate-sdk", "pydantic"):
        yield _package(package, "pip install restate-steps")
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
        yield Finding("restate-server", False, str(error), "set RESTATE_SERVER to a restate-server binary, or unset it")
    yield _npm(needed=binary is None)
    if binary is not None:
        yield _start(binary)


def _python() -> Finding:
    found = platform.python_version()
    return Finding("Python", sys.version_info >= _PYTHON, f"{found} ({sys.executable})", "install Python 3.11 or newer")


def _package(name: str, fix: str, *, required: bool = True, purpose: str = "optional") -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        missing = "not installed" if required else f"not installed ({purpose})"
        return Finding(name, not required, missing, fix)


def _asgi_server() -> Iterator[Finding]:
    install = _INSTALL.format(extra="server")
    yield _package("hypercorn", install)
    # HTTP/2 is what lets a handler stream in both directions.
    found = _package("h2", install)
    detail = f"h2 {found.detail}, cleartext with prior knowledge" if found.ok else "h2 is not installed"
    yield Finding("HTTP/2", found.ok, detail, install)


def _loopback() -> Finding:
    try:
        free_ports(1)
    except OSError as error:
        return Finding("loopback", False, f"no port of {LOOPBACK} can be bound: {error}", "allow it, or run elsewhere")
    return Finding("loopback", True, f"ports of {LOOPBACK} can be bound")


def _binary(binary: ServerBinary | None) -> Finding:
    if binary is None:
        return Finding(
            "restate-server", False, "not found", "fetch it into the cache: restate-steps server --version-only"
        )
    try:
        found = server_version(binary.path)
    except ServerError as error:
        return Finding("restate-server", False, str(error), "remove it, or set RESTATE_SERVER to one that runs")
    place = {"RESTATE_SERVER": "from RESTATE_SERVER", "PATH": "on PATH"}.get(binary.source, "in the cache")
    other = "" if found == SERVER_VERSION else f"; tested with {SERVER_VERSION}"
    return Finding("restate-server", True, f"{found}{other}, {place}: {binary.path}")


def _npm(*, needed: bool) -> Finding:
    npm = find_npm()
    if npm is None:
        missing = "not found" if needed else "not found (needed to fetch a server only)"
        return Finding("npm", not needed, missing, _INSTALL.format(extra="server"))
    command = [*npm.command, "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("npm", not needed, f"{npm.name} does not run: {error}", "mend it, or remove it")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        return Finding("npm", not needed, f"{npm.name} does not run: {said[-1:]}", "mend it, or remove it")
    brought = npm.command[0] == sys.executable
    node = "its own" if brought else shutil.which("node") or "not found"
    return Finding("npm", True, f"{done.stdout.strip()}, {npm.name}; node: {node}")


def _start(binary: ServerBinary) -> Finding:
    server = RestateServer(binary.path, startup_timeout=_START_WITHIN)
    started = time.monotonic()
    try:
        with server:
            took = time.monotonic() - started
            return Finding("server start", True, f"healthy after {took:.1f} s, at {server.ingress_url}")
    except ServerError as error:
        return Finding("server start", False, str(error), "mend what it says, or attach it to a report")
