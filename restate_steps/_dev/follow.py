"""Follow the invocations of a ``dev`` session, and find out from the server what the application cannot know."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from restate_steps._dev import screen
from restate_steps._dev.env_files import environment
from restate_steps.errors import ServerError
from restate_steps.server import AdminClient, _sql
from restate_steps.server._attempts import AttemptEnd
from restate_steps.server._failures import Failure

__all__ = ["Follower", "Seen"]

_JOURNAL_MISMATCH: Final = 570
_LOOK_FOR: Final = 1.0
_LOOK_EVERY: Final = 0.05
_REPLAY_WITHIN: Final = 60.0


@dataclass(slots=True)
class Seen:
    """An invocation that has not ended.

    Attributes:
        target: Its service and handler.
        since: The time of its first attempt in this session, as ``time.monotonic()``.
        generation: The number of the application's process that ran its first attempt.
        began_here: Whether it began in this session.
        failing: Whether its last attempt failed.
        explained: Whether the advice about its failure was given.
        lookup: The lookup for its latest failed attempt, whose lines come first.
    """

    target: str
    since: float
    generation: int
    began_here: bool
    failing: bool = False
    explained: bool = False
    lookup: Future[None] | None = None


class Follower:
    """Explain failed attempts, and find invocations that ended without one.

    Its methods block while they ask the server, so they run in a thread.

    Args:
        admin: A client for the server.
        target: The application, as the user named it.
        admin_argument: The option that commands need to reach the server, or nothing.
        env_files: Files with environment variables for the application.
        fail_fast: Whether an invocation ends with its first failed attempt.
    """

    def __init__(
        self, admin: AdminClient, target: str, admin_argument: str, *, env_files: Sequence[Path], fail_fast: bool
    ) -> None:
        self._admin = admin
        self._target = target
        self._admin_argument = admin_argument
        self._env_files = env_files
        self._fail_fast = fail_fast

    def failed(
        self, attempt: AttemptEnd, failure: Failure, *, changed: bool, show_code: bool, show_ways_out: bool
    ) -> list[str]:
        """Return the lines for an attempt that failed.

        Args:
            attempt: The attempt.
            failure: Its failure.
            changed: Whether the code has changed since the invocation began.
            show_code: Whether to show the lines of code that failed.
            show_ways_out: Whether to say how the invocation can end.
        """
        mismatch = attempt.code == _JOURNAL_MISMATCH
        if self._fail_fast:
            with suppress(ServerError):
                self._admin.kill(attempt.invocation)
            then = "killed (--fail-fast)"
        else:
            then = self._next_try(attempt)
        said = "its code does not match its journal (error 570)" if mismatch else failure.line
        lines = [screen.attempt_failed(attempt, said, then)]
        if show_code and not mismatch:
            lines += [screen.note(line) for line in failure.details.splitlines()]
            lines += screen.frames(failure.frames)
        if show_ways_out and mismatch:
            lines += [screen.note(line) for line in self._divergence(attempt.invocation)]
        if show_ways_out and not self._fail_fast:
            lines += [screen.note(line) for line in self._ways_out(attempt, mismatch=mismatch, changed=changed)]
        return lines

    def _ways_out(self, attempt: AttemptEnd, *, mismatch: bool, changed: bool) -> list[str]:
        give_up = f"restate-steps invocations kill {attempt.invocation}{self._admin_argument}"
        if mismatch and changed:
            return [
                "It began with code from before the change. Undo the change to let it continue, or give up on it:",
                give_up,
            ]
        if mismatch:
            return [
                "The code has not changed since it began, so the handler is not deterministic.",
                "Find the cause with restate_steps.testing.check_deterministic, or give up on it:",
                give_up,
            ]
        return ["Its caller waits until an attempt succeeds. Save a fix, or give up on it:", give_up]

    def _next_try(self, attempt: AttemptEnd) -> str:
        """Return what the server does next with an invocation, which it knows shortly after the attempt."""
        deadline = time.monotonic() + _LOOK_FOR
        while time.monotonic() < deadline:
            try:
                row = self._admin.invocation(attempt.invocation)
            except ServerError:
                return "not retried"
            if row["status"] == "paused":
                return "paused until a fix is saved"
            if row["status"] == "completed":
                return "not retried"
            if row["status"] == "backing-off" and (at := row.get("next_retry_at")):
                return f"next try in {screen.wait(max(0.0, _seconds_until(at)))}"
            if row["status"] == "running" and row.get("retry_count", 0) > attempt.attempt:
                break
            time.sleep(_LOOK_EVERY)
        return "Restate retries it"

    def _divergence(self, invocation: str) -> list[str]:
        """Find the line that diverges, by replaying the journal with the current code in another process."""
        # Imported here, because `dev` needs the testing kit only for this.
        from restate_steps.testing import export_journal

        expected = (ServerError, OSError, ValueError, subprocess.SubprocessError)
        with tempfile.TemporaryDirectory(prefix="restate-steps-") as folder, suppress(*expected):
            journal, found = Path(folder) / "journal.json", Path(folder) / "found.json"
            export_journal(self._admin, invocation).save(journal)
            subprocess.run(
                [sys.executable, "-m", "restate_steps._dev.divergence", self._target, str(journal), str(found)],
                env=environment(self._env_files),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_REPLAY_WITHIN,
                check=False,
            )
            return list(json.loads(found.read_text()))
        return []

    def ended_elsewhere(self, invocations: Collection[str]) -> dict[str, str]:
        """Return those of some open invocations that have ended without an attempt, each with how it ended."""
        columns = "id, status, completion_result, completion_failure"
        rows = {row["id"]: row for row in self._admin.query(_sql.select(columns, "sys_invocation", id=invocations))}
        ended = {invocation: "purged" for invocation in invocations if invocation not in rows}
        for invocation, row in rows.items():
            if row["status"] == "completed":
                ended[invocation] = str(row.get("completion_failure") or row.get("completion_result") or "ended")
        return ended

    def retry(self, invocations: Sequence[str]) -> None:
        """Retry failing invocations now, because their code has changed."""
        for invocation in invocations:
            # It may have ended, or be running again.
            with suppress(ServerError):
                self._admin.resume(invocation)


def _seconds_until(timestamp: Any) -> float:
    return (datetime.fromisoformat(str(timestamp)) - datetime.now(UTC)).total_seconds()
