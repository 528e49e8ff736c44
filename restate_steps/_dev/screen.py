"""The lines of ``dev``: one for each invocation that ends, and for each attempt that fails."""

from __future__ import annotations

from collections.abc import Sequence

import click

from restate_steps._printable import cut, printable
from restate_steps.server._attempts import AttemptEnd
from restate_steps.server._failures import LINE, CodeFrame

__all__ = ["attempt_failed", "dim", "ended", "error", "frames", "note", "plural", "short", "urls", "wait"]

# The first 16 characters are the same for all invocations of one key.
_ID_LENGTH = 20


def short(invocation: str) -> str:
    """Return the beginning of an invocation's id, which the commands accept as well.

    Example:
        >>> short("inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq")
        'inv_1hE48kUaAOCi3acv…'
    """
    return invocation if len(invocation) <= _ID_LENGTH else f"{invocation[:_ID_LENGTH]}…"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "step"), plural(2, "step")
        ('1 step', '2 steps')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ended(attempt: AttemptEnd, seconds: float) -> str:
    """Return the line for an invocation that has ended, or was rejected."""
    code = click.style(str(attempt.code), fg="green" if attempt.outcome == "succeeded" else "red")
    said = f"  {printable(cut(attempt.message.splitlines()[0], LINE))}" if attempt.message else ""
    return f"{_head(attempt)}  {code}  {plural(attempt.steps, 'step')}  {seconds:.2f} s{said}"


def attempt_failed(attempt: AttemptEnd, failure: str, then: str) -> str:
    """Return the line for an attempt that failed, with what happens next."""
    failed = click.style("failed", fg="red")
    return f"{_head(attempt)}  attempt {attempt.attempt} {failed}: {failure}; {then}"


def frames(code: Sequence[CodeFrame]) -> list[str]:
    """Return lines for the user's own code in a traceback."""
    return [note(frame.described) for frame in code]


def note(text: str) -> str:
    """Return a line of advice that belongs to the line before."""
    return f"    {text}"


def error(text: str) -> str:
    """Return an error."""
    return f"{click.style('error', fg='red')}: {text}"


def wait(seconds: float) -> str:
    """Return a time to wait.

    Example:
        >>> wait(0.41), wait(12.3)
        ('0.4 s', '12 s')
    """
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def dim(text: str) -> str:
    """Return a text that is less important."""
    return click.style(text, dim=True)


def urls(values: Sequence[tuple[str, str]]) -> list[str]:
    """Return a table of names and values."""
    return [f"  {dim(f'{name:<8}')} {value}" for name, value in values]


def _head(attempt: AttemptEnd) -> str:
    target = printable(attempt.target)
    return f"{target}  {dim(short(attempt.invocation))}" if attempt.invocation else target
