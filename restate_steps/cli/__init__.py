"""The command line, ``restate-steps``.

1. Commands call functions of :mod:`restate_steps.server` and :mod:`restate_steps.testing`, and import them when they
   run, so that help and completion are fast.
2. An error is printed to stderr after ``error:``, without a traceback.
3. The exit code is 0 for success, 1 for an error, 2 for a usage error and 130 for an interrupt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The arguments after the program's name; those of this process by default.

    Returns:
        The exit code: 0 for success, 1 for an error, 2 for a usage error, 130 for an interrupt.

    Example:
        >>> main(["register", "--help"])
        Usage: restate-steps register [OPTIONS] URL
        ...
        0
    """
    try:
        from restate_steps.cli._main import run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        # pip installs the program without the extra, too.
        print(
            "error: the package 'click' is not installed, but it is required to run commands. "
            "Install it with: pip install 'restate-steps[cli]'",
            file=sys.stderr,
        )
        return 1
    return run(arguments)
