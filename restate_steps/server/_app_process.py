"""Serve an application from a process of its own, which can be stopped and started again at the same URL."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress

from restate_steps.errors import ServerError
from restate_steps.server._child import Child
from restate_steps.server._ports import LOOPBACK, free_ports

__all__ = ["AppProcess"]

_START_WITHIN = 60.0
_STOP_WITHIN = 5.0
_POLL_EVERY = 0.02


class AppProcess:
    """A process that runs ``restate-steps serve``, on loopback.

    Args:
        target: The application, as ``module:app``.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        own_path: Whether the process also searches for modules in ``sys.path`` of this process.
    """

    def __init__(self, target: str, *, http1: bool = False, own_path: bool = False) -> None:
        self._target = target
        self._http1 = http1
        self._port: int | None = None
        self._own_path = own_path
        self._process: Child | None = None

    @property
    def http1(self) -> bool:
        """True if the application is served over HTTP/1.1."""
        return self._http1

    @property
    def url(self) -> str:
        """The URL of the application."""
        return f"http://{LOOPBACK}:{self._known_port()}"

    def start(self) -> None:
        """Start the process, and wait until it accepts connections.

        Raises:
            ServerError: If the process exits, or does not accept connections in time.
        """
        port = self._known_port()
        process = self._process = Child(
            [
                *(sys.executable, "-m", "restate_steps", "serve", self._target),
                *("--host", LOOPBACK, "--port", str(port), "--quiet"),
                *(["--http1"] if self._http1 else []),
            ],
            env=self._environment(),
        )
        deadline = time.monotonic() + _START_WITHIN
        while time.monotonic() < deadline:
            if (code := process.poll()) is not None:
                self.kill()
                raise ServerError(
                    f"the process that should serve {self._target!r} at {self.url} ended with exit code {code}. Its "
                    "stderr says why."
                )
            with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
                return
            time.sleep(_POLL_EVERY)
        self.kill()
        raise ServerError(
            f"the process that should serve {self._target!r} did not accept connections within {_START_WITHIN:g} s."
        )

    def stop(self) -> None:
        """End the process and all processes that it started, after a chance to shut down cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Simulate a crash: end the process and all processes that it started with SIGKILL."""
        self._end(signal.SIGKILL)

    def _known_port(self) -> int:
        if self._port is None:
            [self._port] = free_ports(1)
        return self._port

    def _environment(self) -> dict[str, str] | None:
        if not self._own_path:
            return None
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(number, within=_STOP_WITHIN)
