"""Environment variables from files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from restate_steps.errors import ServerError
from restate_steps.server._extra import missing_extra

__all__ = ["environment"]


def environment(files: Sequence[Path]) -> dict[str, str]:
    """Return the variables of a process that imports the application: those of this process, and those of files.

    The files have the format of python-dotenv. Variables that are set already win, as they do elsewhere. What the
    process prints appears at once, also without a terminal.

    Raises:
        ServerError: A file does not exist, or python-dotenv is not installed.
    """
    found: dict[str, str] = {}
    for file in files:
        try:
            from dotenv import dotenv_values
        except ImportError as error:
            raise missing_extra("python-dotenv", "read --env-file", extra="cli") from error
        if not file.is_file():
            raise ServerError(f"the file {str(file)!r} of --env-file does not exist.")
        found |= {name: value for name, value in dotenv_values(file).items() if value is not None}
    return {**found, **os.environ, "PYTHONUNBUFFERED": "1"}
