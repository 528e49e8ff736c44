"""The pinned version of restate-server, and asking a binary for its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from restate_steps.errors import ServerError

__all__ = ["SERVER_VERSION", "server_version"]

SERVER_VERSION = "1.7.12"
"""The version of restate-server that is fetched, and that this package is tested with."""


def server_version(path: Path) -> str:
    """Ask a server binary for its version.

    Args:
        path: The binary.

    Returns:
        The version alone, for example ``1.7.12``.

    Raises:
        ServerError: If the binary does not run on this machine.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{path} does not run on this machine: {error}") from error
    words = done.stdout.split()
    if done.returncode != 0 or not words:
        said = (done.stderr or done.stdout).strip() or "nothing"
        raise ServerError(f"{path} does not run on this machine: exit code {done.returncode}, and it said: {said}")
    return words[-1]
