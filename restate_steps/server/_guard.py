"""End a child process when this one dies, however it dies.

A parent-death signal would be shorter, but it exists on Linux only, and it is sent when the *thread* that started
the child ends. So a small shell waits at the end of a pipe instead: the kernel closes the pipe when this process is
gone, even by SIGKILL, and the shell then kills the child's process group.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["Guard"]

_SCRIPT = """
trap '' HUP INT TERM
read -r group || exit 0
# Ends at the end of the pipe. No "--" before the group: dash takes it for a number.
read -r _
kill -KILL "-$group" 2>/dev/null
if [ -n "$1" ]; then rm -rf -- "$1"; fi
"""


class Guard:
    """A watcher over the process group of one child.

    Args:
        group: The process group to kill when this process is gone.
        remove: A folder to remove after that.
    """

    def __init__(self, group: int, *, remove: Path | None = None) -> None:
        arguments = ["/bin/sh", "-c", _SCRIPT, "restate-steps-guard", str(remove) if remove else ""]
        self._shell = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{group}\n".encode())
        self._shell.stdin.flush()

    def dismiss(self) -> None:
        """Stop watching, and leave the child alone."""
        self._shell.kill()
        self._shell.wait()
        if self._shell.stdin is not None:
            self._shell.stdin.close()
