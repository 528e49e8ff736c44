"""The pinned version of restate-server, and the version of a binary."""

from __future__ import annotations

import subprocess
from pathlib import Path

from restate_steps.errors import ServerError

__all__ = ["SERVER_VERSION", "server_version"]

SERVER_VERSION = "1.7.12"
"""The version of restate-server that this package fetches and is tested with."""


def server_version(path: Path) -> str:
    """Run a server binary to get its version.

    Args:
        path: The binary.

    Returns:
        The version number, for example ``1.7.12``.

    Raises:
        ServerError: If the binary does not run on this machine.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{path} does not run on this machine: {error}") from error
    words = done.stdout.split()
    if done.returncode != 0 or not words:
        output = (done.stderr or done.stdout).strip() or "(no output)"
        raise ServerError(f"{path} does not run on this machine: exit code {done.returncode}, output: {output}")
    return words[-1]
