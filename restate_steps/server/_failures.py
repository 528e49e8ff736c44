"""Describe failed attempts: one line each, and the lines of the user's own code once."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from restate_steps._printable import cut, printable
from restate_steps._user_code import is_user_code
from restate_steps.server._attempts import AttemptEnd, watch_attempts
from restate_steps.server._serving import ASGIApp

__all__ = ["LINE", "CodeFrame", "Failure", "Origin", "described", "failure_of", "hide_tracebacks", "log_failures"]

_FRAME: Final = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
# The error itself is in the first line without indentation after the last frame.
_ERROR: Final = re.compile(r"^(?P<error>[^\s].*)$", re.MULTILINE)
LINE: Final = 120
"""The number of characters of an error's text that fit into a line with something else."""

_REMEMBERED: Final = 1000
_MOST_LINES: Final = 20
_LONGEST_LINE: Final = 2000

Origin: TypeAlias = tuple[str, str, tuple[str, ...]]
"""The identity of a failure: its class, its step and its place in the code."""

_logger = logging.getLogger("restate_steps.server")


class CodeFrame(NamedTuple):
    """A line of the user's code in a traceback.

    Attributes:
        file: The path of the file.
        line: The number of the line, from 1.
        function: The name of the function.
        code: The text of the line; empty if it is not known.
    """

    file: str
    line: int
    function: str
    code: str

    def __str__(self) -> str:
        return f"{_shown(self.file)}:{self.line}"

    @property
    def described(self) -> str:
        """The place, the function and the code."""
        return f"{self} in {self.function}: {self.code}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt, in the user's terms.

    Attributes:
        error: The error in one line, for example ``ValueError: no such order``.
        details: What the line leaves out: further lines of the error's text, or all of a long one; often empty.
        frames: The lines of the user's code, the innermost last.
        step: The name of the step that failed, if one did.
    """

    error: str
    details: str
    frames: Sequence[CodeFrame]
    step: str

    @property
    def origin(self) -> Origin:
        """Its class, its step and its place. The text may have an id in it, and be another one each time."""
        place = tuple(str(frame) for frame in self.frames)
        return (self.error.partition(":")[0] if place else self.error), self.step, place

    @property
    def line(self) -> str:
        """The error, the step, and the place in the code, in one line."""
        step = f" in step {self.step!r}" if self.step else ""
        place = f" ({self.frames[-1]})" if self.frames else ""
        return f"{printable(cut(self.error, LINE))}{step}{place}"


def failure_of(attempt: AttemptEnd) -> Failure:
    """Return the failure of an attempt that Restate retries or pauses."""
    return described(attempt.message, attempt.traceback, attempt.step)


def described(message: str, traceback: str, step: str) -> Failure:
    """Return a failure, given what the SDK reports about it.

    Args:
        message: The error's text.
        traceback: The traceback, if the SDK has sent one.
        step: The name of the step that failed, if one did.
    """
    *_, last = re.split(r"^Traceback \(most recent call last\):\n", traceback, flags=re.MULTILINE)
    frames = list(_FRAME.finditer(last))
    error, _, details = message.partition("\n")
    if frames and (said := _ERROR.search(last, frames[-1].end())):
        error, _, details = last[said.start() :].rstrip().partition("\n")
    if len(error) > LINE:
        details = f"{error}\n{details}".rstrip()
    lines = [cut(line, _LONGEST_LINE) for line in details.splitlines()]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"… {len(lines) - _MOST_LINES} more lines"]
    # The cause of an error that a library raised may be the only part in the user's code.
    return Failure(error, "\n".join(lines), _own_frames(last) or _own_frames(traceback), step)


def log_failures(app: ASGIApp) -> ASGIApp:
    """Wrap an application, and log a line for each attempt that fails, in place of the SDK's traceback.

    The lines of the user's code follow the first time that a failure is logged.
    """
    hide_tracebacks()
    shown: set[Origin] = set()

    def ended(attempt: AttemptEnd) -> None:
        if attempt.outcome != "retried":
            return
        failure = failure_of(attempt)
        lines = [f"{attempt.target} {attempt.invocation} attempt {attempt.attempt} failed: {failure.line}"]
        if failure.origin not in shown:
            if len(shown) >= _REMEMBERED:
                shown.clear()
            shown.add(failure.origin)
            lines += [f"    {line}" for line in failure.details.splitlines()]
            lines += [f"    {frame.described}" for frame in failure.frames]
        _logger.error("%s", "\n".join(lines))

    return watch_attempts(app, ended)


def hide_tracebacks() -> None:
    """Hide what the SDK logs about failed attempts: a traceback each, mostly of its own code."""

    def is_something_else(record: logging.LogRecord) -> bool:
        # A failure whose text cannot be encoded reaches neither the server nor this package.
        unsent = record.exc_info is not None and isinstance(record.exc_info[1], UnicodeEncodeError)
        return unsent or "Exception in Restate handler" not in record.getMessage()

    logging.getLogger("restate.server").addFilter(is_something_else)
    logging.getLogger("restate_steps").addFilter(lambda record: "Restate will retry it" not in record.getMessage())


def _own_frames(text: str) -> list[CodeFrame]:
    return [
        CodeFrame(found["file"], int(found["line"]), found["function"], _code_after(text, found.end()))
        for found in _FRAME.finditer(text)
        if is_user_code(found["file"])
    ]


def _code_after(text: str, at: int) -> str:
    line = text[at + 1 :].partition("\n")[0]
    return line.strip() if line.startswith("    ") else ""


def _shown(file: str) -> str:
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
