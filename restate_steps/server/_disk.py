"""Free space on the disk that holds a server's data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

__all__ = ["LOW_SPACE", "free_space"]

LOW_SPACE: Final = 200_000_000
"""The free space, in bytes, below which a server may soon be unable to write."""


def free_space(folder: Path) -> int:
    """Return the free space on the disk of a folder, in bytes.

    Args:
        folder: The folder. If it does not exist, its closest parent counts.
    """
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
