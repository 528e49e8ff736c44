"""The service: the child process that serves the handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.event_log import EVENT_LOG
from tests.chaos.payment_service import PAYMENT_SERVICE

__all__ = ["Service"]

from tests.support import ROOT


class Service:
    """A child process that serves the handlers, on the same port after every restart.

    Args:
        folder: The folder for the event log and the process's log.
        payments: The URL of the payment service.
        http1: Whether to serve over HTTP/1.1, so that the server uses its request/response mode.
    """

    def __init__(self, folder: Path, payments: str, *, http1: bool = False) -> None:
        self.event_log = folder / "events.log"
        self._log = folder / "service.log"
        self._payments = payments
        self._http1 = http1
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self._since = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def up_for(self) -> float:
        """The time since the process started to serve, in seconds."""
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
                [sys.executable, "-m", "tests.chaos.app", str(self._port), *(["http1"] if self._http1 else [])],
                cwd=ROOT,
                env={**os.environ, EVENT_LOG: str(self.event_log), PAYMENT_SERVICE: self._payments},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Ctrl-C must not reach the child directly; this process kills it.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said:
            raise RuntimeError(f"the service failed to start; its log is:\n{self._log.read_text()}")
        self._port = int(said)
        self._since = time.monotonic()

    def kill(self, *, gracefully: bool = False) -> None:
        """End the process, and wait until it has exited. Does nothing if no process is running.

        Args:
            gracefully: Whether to send SIGTERM, so that it drains, instead of SIGKILL.
        """
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM if gracefully else signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
