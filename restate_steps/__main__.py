"""The entry point of ``restate-steps`` and ``python -m restate_steps``: Ctrl-C ends it without a traceback."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> int:
    """Run the command that the arguments of this process name.

    An interrupt is a KeyboardInterrupt for the command, so that it can clean up. While the command is imported, and
    after it, there is nothing to clean up, and an interrupt ends the process at once. SIGINT stays ignored if it is.

    Returns:
        The exit code.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _exit)
    from restate_steps import cli

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
