"""Free space on the disk that holds a server's data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

__all__ = ["free_space", "low_space"]

_LOW: Final = 200_000_000
# A new server reserves 154 MB, and writes no less afterwards.


def free_space(folder: Path) -> int:
    """Return the free space on the disk of a folder, in bytes.

    Args:
        folder: The folder. If it does not exist, its closest parent counts.
    """
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def low_space(folder: Path) -> str | None:
    """Return a warning if a server with its data in a folder may soon be unable to write; otherwise None."""
    free = free_space(folder)
    if free >= _LOW:
        return None
    return (
        f"only {free // 1_000_000} MB are free on the disk of {folder}. When it is full, calls may hang without an "
        "error."
    )
