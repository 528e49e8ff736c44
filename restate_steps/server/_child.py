"""Start child processes that end when this process dies, however it dies.

1. A child never runs without a guard. It waits on a pipe until its guard process has started. An interrupt before that
   closes the pipe, and the child exits without running its command.
2. The guard reads from another pipe. The kernel closes that pipe when this process dies, even by SIGKILL, and the guard
   then kills the child's process group. (A parent-death signal would be simpler, but only Linux has it, and the kernel
   sends it when the *thread* that started the child ends.)
3. A child leads its own session: a Ctrl-C in this process's terminal does not reach it, and killing its process group
   also kills the processes that it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

__all__ = ["Child"]

_GATE = 'read -r _ && exec "$@" </dev/null'

# No "--" before the group: dash would parse it as a number.
_GUARD = """
trap '' HUP INT TERM
read -r group || exit 0
read -r _
kill -KILL "-$group" 2>/dev/null
if [ -n "$1" ]; then rm -rf -- "$1"; fi
"""


class Child:
    """A child process that, with all processes it starts, does not outlive this one.

    Args:
        command: The command to run.
        cwd: The working directory; this process's by default.
        env: The environment variables; this process's by default.
        output: The file for its stdout and stderr; this process's own stdout and stderr by default.
        remove: A folder to remove when this process dies.
        pass_fds: File descriptors that it inherits.

    Raises:
        OSError: If the process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
        remove: Path | None = None,
        pass_fds: Collection[int] = (),
    ) -> None:
        gated = ["/bin/sh", "-c", _GATE, "sh", *(str(word) for word in command)]
        self._process = subprocess.Popen(
            gated,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "restate-steps-guard", str(remove) if remove else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{self.pid}\n".encode())
        self._guard.stdin.flush()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as gate:
            gate.write(b"go\n")

    @property
    def pid(self) -> int:
        """The id of the process and of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while the process runs."""
        return self._process.poll()

    def wait(self, timeout: float) -> int | None:
        """Wait for the process to exit.

        Args:
            timeout: The maximum time to wait, in seconds.

        Returns:
            The exit code, or ``None`` if the process is still running.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def end(self, number: signal.Signals = signal.SIGKILL, *, within: float = 10.0) -> int:
        """End the process and all processes that it started.

        Args:
            number: The first signal to send.
            within: The time to wait before sending SIGKILL, in seconds.

        Returns:
            The exit code.
        """
        self._signal(number)
        if self.wait(within) is None:
            self._signal(signal.SIGKILL)
        code = self._process.wait()
        # Processes that it started may have outlived it.
        self._signal(signal.SIGKILL)
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        return code

    def _signal(self, number: signal.Signals) -> None:
        # macOS raises PermissionError for a process group that has ended.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
