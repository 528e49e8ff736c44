"""Print the log of a server while it grows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

__all__ = ["LogFollower"]

_EVERY = 0.1


class LogFollower:
    """A thread that prints what is appended to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open(errors="replace")
        self._file.seek(0, os.SEEK_END)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restate-steps-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(_EVERY)
            if added := self._file.read():
                print(added, end="", flush=True)
