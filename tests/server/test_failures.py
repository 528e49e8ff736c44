"""Failed attempts in the user's terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from restate_steps.server._attempts import AttemptEnd
from restate_steps.server._failures import CodeFrame, Failure, failure_of

SITE = Path(pytest.__file__).parent / "library.py"


def attempt(message: str, traceback: str = "", step: str = "") -> AttemptEnd:
    return AttemptEnd("inv_1", "Shop/place", 1, 1, 0, 0.1, "retried", 500, message, traceback, step)


def test_only_the_users_frames_are_left() -> None:
    """The innermost one is the place of the error."""
    traceback = f"""Traceback (most recent call last):
  File "/home/me/shop.py", line 7, in place
    total(order)
    ~~~~~^^^^^^^
  File "{SITE}", line 3, in parse
    raise ValueError("no such\\norder")
ValueError: no such
order
"""
    failure = failure_of(attempt("ValueError('no such\\norder')", traceback, "reserve"))

    assert failure == Failure(
        "ValueError: no such", "order", [CodeFrame("/home/me/shop.py", 7, "place", "total(order)")], "reserve"
    )
    assert failure.line == "ValueError: no such in step 'reserve' (shop.py:7)"


def test_the_last_of_several_errors_counts() -> None:
    """Its cause has the place if it was raised in a library."""
    traceback = f"""Traceback (most recent call last):
  File "/home/me/shop.py", line 7, in place
    pay()
KeyError: 'card'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "{SITE}", line 3, in wrap
    raise ServiceError("wrapped")
library.ServiceError: wrapped
"""
    assert failure_of(attempt("", traceback)).line == "library.ServiceError: wrapped (shop.py:7)"


def test_a_long_text_is_cut() -> None:
    """The terminal of a developer is no place for megabytes."""
    failure = failure_of(attempt("\n".join(["ValueError: many lines", "x" * 5000, *map(str, range(100))])))

    lines = failure.details.splitlines()
    assert len(lines) == 21
    assert len(lines[0]) == 2000
    assert lines[-1] == "… 81 more lines"


def test_the_text_does_not_tell_failures_apart() -> None:
    """It may have an id in it; the class, the step and the place do."""
    traceback = 'Traceback (most recent call last):\n  File "/home/me/shop.py", line {}, in place\nValueError: {}\n'
    one, other, elsewhere = (failure_of(attempt("", traceback.format(*each))) for each in ((7, 1), (7, 2), (8, 1)))

    assert one.origin == other.origin != elsewhere.origin


def test_an_error_without_a_traceback() -> None:
    """The message is all there is. What does not fit into a line is in the details."""
    assert failure_of(attempt("refused")) == Failure("refused", "", [], "")

    long = failure_of(attempt("ConcurrencyError: " + "word " * 40))
    assert len(long.line) == 120
    assert long.line.endswith("…")
    assert long.details == ("ConcurrencyError: " + "word " * 40).rstrip()
