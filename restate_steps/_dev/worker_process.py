"""The application's process, seen from ``dev``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from restate_steps._dev.env_files import environment
from restate_steps._dev.events import AppExited, FromApp, load
from restate_steps._dev.worker import WorkerOptions
from restate_steps.server._child import Child
from restate_steps.server._serving import Listener

__all__ = ["WorkerProcess"]

_STOP_WITHIN = 5.0


class WorkerProcess:
    """A process that serves an application on a socket of this one, and can be restarted.

    Args:
        target: The application, as the user named it.
        listener: The socket, which stays open.
        http1: Whether to serve over HTTP/1.1.
        verbose: Whether the process logs everything.
        env_files: Files with environment variables, which are read at each start.
        put: Takes the events of the process, from a thread.
    """

    def __init__(
        self,
        target: str,
        listener: Listener,
        *,
        http1: bool,
        verbose: bool,
        env_files: Sequence[Path],
        put: Callable[[FromApp], None],
    ) -> None:
        self._target = target
        self._listener = listener
        self._http1 = http1
        self._verbose = verbose
        self._env_files = env_files
        self._put = put
        self._process: Child | None = None
        self._generation = 0

    @property
    def generation(self) -> int:
        """The number of processes so far."""
        return self._generation

    def start(self) -> None:
        """Start the process, which puts :class:`Loaded` or :class:`LoadFailed` soon."""
        self.stop()
        self._generation += 1
        reading, writing = os.pipe()
        options = WorkerOptions(self._target, self._listener.fileno(), writing, self._http1, self._verbose)
        try:
            process = self._process = Child(
                [sys.executable, "-m", "restate_steps._dev.worker", options.as_argument()],
                env=environment(self._env_files),
                pass_fds=(self._listener.fileno(), writing),
            )
        finally:
            os.close(writing)
        threading.Thread(target=self._read, args=(reading, process, self._generation), daemon=True).start()

    def stop(self) -> None:
        """End the process, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGTERM, within=_STOP_WITHIN)

    def _read(self, reading: int, process: Child, generation: int) -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                # A process that is killed may leave half a line.
                with suppress(ValueError):
                    self._put(FromApp(generation, load(line)))
        # A process that does not end although it has closed the pipe is still the application.
        while process.wait(1.0) is None:
            pass
        self._put(FromApp(generation, AppExited(process.poll() or 0)))
