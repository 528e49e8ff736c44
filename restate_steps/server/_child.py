"""Start processes that end when this one dies, however it dies.

1. A child never runs unwatched: it is held back by a pipe until its guard is there. An interrupt at any point before
   that closes the pipe, and the child ends without having begun.
2. A guard waits at the end of another pipe. The kernel closes that when this process is gone, even by SIGKILL, and the
   guard then kills the child's process group. (A parent-death signal would be shorter, but it exists on Linux only, and
   it is sent when the *thread* that started the child ends.)
3. A child leads a session: a Ctrl-C meant for this process does not reach it, and ending it ends all it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

__all__ = ["Child"]

_GATE = 'read -r _ && exec "$@" </dev/null'

# No "--" before the group: dash takes it for a number.
_GUARD = """
trap '' HUP INT TERM
read -r group || exit 0
read -r _
kill -KILL "-$group" 2>/dev/null
if [ -n "$1" ]; then rm -rf -- "$1"; fi
"""


class Child:
    """A process with all it starts, which does not outlive this one.

    Args:
        command: What to run.
        cwd: Where to run it.
        env: Its environment; that of this process if left out.
        output: Where its stdout and stderr go; to those of this process if left out.
        remove: A folder to remove when this process dies.

    Raises:
        OSError: If no process can be started.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
        remove: Path | None = None,
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
        """The id of the process, and of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Tell the exit code, or ``None`` while the process runs."""
        return self._process.poll()

    def wait(self, timeout: float) -> int | None:
        """Wait for the process.

        Args:
            timeout: How long, in seconds.

        Returns:
            Its exit code, or ``None`` if it still runs.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def end(self, number: signal.Signals = signal.SIGKILL, *, within: float = 10.0) -> int:
        """End the process and all it has started.

        Args:
            number: The signal to try first.
            within: How long to wait before SIGKILL, in seconds.

        Returns:
            The exit code.
        """
        self._signal(number)
        if self.wait(within) is None:
            self._signal(signal.SIGKILL)
        code = self._process.wait()
        # What it started may have outlived it.
        self._signal(signal.SIGKILL)
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        return code

    def _signal(self, number: signal.Signals) -> None:
        # The second error is what macOS says of a group that has ended.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
