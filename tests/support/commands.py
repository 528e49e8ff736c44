"""Commands of this package, run in processes of their own, as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

import httpx

from tests.support.harness import eventually

APP = """
import restate

{name} = restate.Service("{name}")


@{name}.handler()
async def answer(ctx: restate.Context) -> str:
    return "{answer}"


app = restate.app([{name}])
"""


class Running:
    """A running command, with its output so far."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "restate_steps", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def wait_for(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """Wait until the output has this number of matches, and return the last one."""

        def look() -> list[re.Match[str]]:
            found = list(re.finditer(pattern, self.said))
            if len(found) < times and self.process.poll() is not None:
                self._reader.join()
                found = list(re.finditer(pattern, self.said))
                assert len(found) >= times, f"ended with code {self.process.returncode}, and said:\n{self.said}"
            return found if len(found) >= times else []

        return eventually(look)[-1]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Run(Protocol):
    """A function that starts a command in the test's folder."""

    def __call__(self, *arguments: str, env: dict[str, str] | None = None) -> Running: ...


def write(folder: Path, name: str, answer: str) -> None:
    (folder / "main.py").write_text(APP.format(name=name, answer=answer))


def answer(ingress: str, name: str) -> str:
    return str(httpx.post(f"{ingress}/{name}/answer", timeout=30).raise_for_status().json())


def children(pid: int) -> set[int]:
    """Return the descendants of a process, in any process group."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return status.strip() != "" and not status.startswith("Z")
