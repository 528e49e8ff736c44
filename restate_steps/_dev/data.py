"""The folder in which ``dev`` keeps the server's data."""

from __future__ import annotations

import shutil
from pathlib import Path

from restate_steps.errors import ServerError
from restate_steps.server._process import is_data_folder, locked

__all__ = ["prepare", "remember_port", "remembered_port"]

_PORT_FILE = "app-port"


def prepare(folder: Path, *, fresh: bool) -> None:
    """Create the folder, or empty it.

    Args:
        folder: The folder.
        fresh: Whether to remove the data of earlier runs.

    Raises:
        ServerError: The folder has files of something else, or another server uses it.
        OSError: The folder cannot be written.
    """
    if fresh and folder.exists():
        if not is_data_folder(folder) and any(folder.iterdir()):
            raise ServerError(
                f"{folder} has no data of a server, so --fresh does not empty it. Check --base-dir, or remove the "
                "folder yourself."
            )
        with locked(folder) as lock:
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != lock:
                    path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    # Keep the data out of version control, even after `git add .`.
    (folder / ".gitignore").write_text("*\n")


def remembered_port(folder: Path) -> int | None:
    """Return the port of the application in the last run; None if there was none.

    Invocations in flight belong to a deployment, and a deployment to a URL.
    """
    try:
        return int((folder / _PORT_FILE).read_text())
    except (OSError, ValueError):
        return None


def remember_port(folder: Path, port: int) -> None:
    """Store the port of the application for the next run."""
    (folder / _PORT_FILE).write_text(f"{port}\n")
