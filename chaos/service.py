"""The process that serves the handlers, from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.diary import DIARY
from chaos.ledger import LEDGER

__all__ = ["Service"]

_ROOT = Path(__file__).resolve().parent.parent


class Service:
    """Serves the handlers from a process of their own, on one port for all its lives.

    Args:
        folder: For the diary, and for what the process prints.
        ledger: The URL of the world outside.
        http1: Whether it speaks HTTP/1.1, so that the server uses the request/response mode.
    """

    def __init__(self, folder: Path, ledger: str, *, http1: bool = False) -> None:
        self.diary = folder / "diary"
        self._log = folder / "service.log"
        self._ledger = ledger
        self._http1 = http1
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self._since = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def up_for(self) -> float:
        """How long the process has been serving, in seconds."""
        return time.monotonic() - self._since

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.app", str(self._port), *(["http1"] if self._http1 else [])],
                cwd=_ROOT,
                env={**os.environ, DIARY: str(self.diary), LEDGER: self._ledger},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # An interrupt from the keyboard is for us alone; we then end the process ourselves.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said:
            raise RuntimeError(f"the handlers could not be served:\n{self._log.read_text()}")
        self._port = int(said)
        self._since = time.monotonic()

    def kill(self) -> None:
        """End the process with SIGKILL, and wait until it is gone. Does nothing if there is none."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
