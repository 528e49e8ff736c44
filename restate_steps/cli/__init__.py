"""The command line, ``restate-steps``.

1. Commands call functions of :mod:`restate_steps.server` and :mod:`restate_steps.testing`, and import them when they
   run, so that help and completion are fast.
2. An error is printed to stderr after ``error:``, without a traceback.
3. The exit code is 0 for success, 1 for an error, 2 for a usage error and 130 for an interrupt.
"""

from restate_steps.cli._main import main

__all__ = ["main"]
